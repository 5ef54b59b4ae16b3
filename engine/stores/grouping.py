"""A thread that does a store's jobs, and what waits for it.

What waits is taken together, so that one commit makes a group durable: its flush of the disk is
shared by all who wait. The event loop never waits for the disk or a server.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio

from engine.core.errors import StoreError
from engine.machine.offload import Outcome, hand_over

from .transaction import Transaction

# Jobs that one commit makes durable together, and how many may wait before callers do.
GROUP_MAX = 64
QUEUE_MAX = 4096

# A thread that hangs in the system, or waits for a silent server, is not waited for longer.
CLOSE_S = 5.0


class Job:
    """What is to be done in a transaction, and who waits for it. `lazy`: it may be lost to a power
    cut."""

    def __init__(self, run: Callable[[Transaction], Any], lazy: bool) -> None:
        self.run = run
        self.lazy = lazy
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def ended(self, result: Any, error: BaseException | None) -> Outcome:
        """Its outcome, to be handed over."""
        return self.loop, self.future, result, error


J = TypeVar("J", bound=Job)


class Grouping(Generic[J]):
    """Does jobs one after the other, in groups."""

    def __init__(
        self, name: str, shown: str, serve: Callable[[list[J]], None], end: Callable[[], None]
    ) -> None:
        """`serve` does a group on the thread, and hands over what came of it; what it raises is the
        outcome of those that are left. `end` is the last thing that the thread does."""
        self.waiting = 0  # jobs that are not done
        self._shown = shown
        self._serve = serve
        self._end = end
        self._jobs: queue.SimpleQueue[J | None] = queue.SimpleQueue()
        self._places = asyncio.Semaphore(QUEUE_MAX)
        self._closed = False
        self._on_end: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: J) -> Any:
        """The job's result. Raises what it raised, and StoreError."""
        async with self._places:
            if self._closed:
                raise StoreError(f"the store {self._shown} is closed")
            self._jobs.put(job)
            self.waiting += 1
            try:
                return await job.future
            finally:
                self.waiting -= 1

    async def close(self) -> None:
        """Do what waits, and end."""
        loop, ended = asyncio.get_running_loop(), anyio.Event()
        self._on_end = lambda: loop.call_soon_threadsafe(ended.set)
        self._closed = True
        self._jobs.put(None)
        with anyio.move_on_after(CLOSE_S, shield=True):
            await ended.wait()
        if ended.is_set():  # else nobody can end it
            self._thread.join()

    # On the thread

    def _work(self) -> None:
        last = False
        while not last:
            jobs, last = self._take()
            if jobs:
                try:
                    self._serve(jobs)
                except BaseException as fault:  # the thread must live on: others wait for it
                    hand_over([job.ended(None, fault) for job in jobs])
        self._end()
        self._on_end()

    def _take(self) -> tuple[list[J], bool]:
        jobs: list[J] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= GROUP_MAX:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True
