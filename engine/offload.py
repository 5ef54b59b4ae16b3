"""Blocking work on a thread of one's own, which ends with its owner.

A pool that lives as long as the event loop would leave a thread behind in a program that embeds
the engine; nothing of the engine outlives its block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# A thread that hangs in the system (a pipe nobody reads) is not waited for longer than this.
CLOSE_S = 5.0


class Interrupted(Exception):
    """Long work was asked to stop: whoever waited for it was cancelled."""


class Offload:
    """One thread, one piece of work at a time, in the order of the calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._interrupt = threading.Event()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """The work's result. It runs to its end also when the caller is cancelled."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._interrupt.clear()
        waiter = asyncio.wrap_future(self._executor.submit(work, *args))
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            self._interrupt.set()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([waiter])
            if not waiter.cancelled():
                waiter.exception()  # seen: the cancellation is what the caller hears of
            raise

    def check(self) -> None:
        """For long work, on its thread: raises Interrupted where it is not waited for any more."""
        if self._interrupt.is_set():
            raise Interrupted

    async def close(self) -> None:
        """End the thread. It comes back with the next `run`."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        idle = asyncio.wrap_future(executor.submit(lambda: None))
        with anyio.move_on_after(CLOSE_S, shield=True):
            await asyncio.wait([idle])
        executor.shutdown(wait=idle.done())
