"""Blocking work on a thread of one's own, which ends with its owner.

A pool that lives as long as the event loop would leave a thread behind in a program that embeds
the engine; nothing of the engine outlives its block. The one exception is a call that hangs in the
system (a pipe nobody reads, a disk that does not answer): nobody can end it. It is left behind
after `GONE_S`, as a daemon, so that it holds up neither the others nor the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# Work that was cancelled, or that is under way at the end, is waited for so long.
GONE_S = 1.0
CLOSE_S = 5.0


class Interrupted(Exception):
    """Long work was asked to stop: whoever waited for it was cancelled."""


class Hanging(OSError):
    """The work before has still not come back."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the call before it still hangs")


class _Job:
    """A piece of work, and where its outcome goes."""

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def do(self) -> None:
        result, error = None, None
        try:
            result = self._work()
        except BaseException as fault:  # whoever waits for it is told
            error = fault
        hand_over([(self._loop, self.future, result, error)])


# Where an outcome goes: a loop, who waits in it, the result or the error.
Outcome = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Any, BaseException | None]


def hand_over(outcomes: Sequence[Outcome]) -> None:
    """From another thread: give outcomes to whoever waits for them, a loop's all at once."""
    for loop in {outcome[0] for outcome in outcomes}:
        with contextlib.suppress(RuntimeError):  # the loop was closed; nobody waits any more
            loop.call_soon_threadsafe(_settle, [one for one in outcomes if one[0] is loop])


def _settle(outcomes: Sequence[Outcome]) -> None:
    for _, future, result, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class Offload:
    """One thread, one piece of work at a time, in the order of the calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._left: asyncio.Future[Any] | None = None  # work that nobody waits for any more
        self._interrupt = threading.Event()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """The work's result. Cancelled, it waits a moment for the work to end, and no longer.

        Raises Hanging while work that was left behind has not come back.
        """
        if self.hangs:
            raise Hanging
        self._left = None
        self._interrupt.clear()
        future: asyncio.Future[T] = self._put(lambda: work(*args))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._interrupt.set()
            with anyio.move_on_after(GONE_S, shield=True):
                await asyncio.wait([future])
            if not future.done():
                self._left = future
            elif not future.cancelled():
                future.exception()  # seen: the cancellation is what the caller hears of
            raise

    @property
    def hangs(self) -> bool:
        """Whether work that was left behind has not come back."""
        return self._left is not None and not self._left.done()

    def check(self) -> None:
        """For long work, on its thread: raises Interrupted where it is not waited for any more."""
        if self._interrupt.is_set():
            raise Interrupted

    async def close(self) -> None:
        """End the thread. It comes back with the next `run`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        last, jobs = self._put(lambda: None, thread), self._jobs
        self._jobs = queue.SimpleQueue()
        jobs.put(None)
        patience_s = GONE_S if self._left is not None else CLOSE_S
        with anyio.move_on_after(patience_s, shield=True):
            await asyncio.wait([last])
        if last.done():
            thread.join()

    def _put(self, work: Callable[[], T], thread: threading.Thread | None = None) -> Any:
        if self._thread is None and thread is None:
            self._thread = threading.Thread(
                target=_do_all, args=(self._jobs,), name=self._name, daemon=True
            )
            self._thread.start()
        job = _Job(work, asyncio.get_running_loop())
        self._jobs.put(job)
        return job.future


def _do_all(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.do()
        del job  # what it holds is not kept while the thread waits for the next one
