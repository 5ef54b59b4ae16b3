"""The store with a crash model: what was committed stays, the rest goes.

The tables are those of the engine's own `MemoryStore`. A job happens at one moment, a while after
it was asked for and a while before its caller hears of it; a process that dies in between has
committed without knowing it. A store that is not the living process's can do nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from engine.core.errors import StoreTrouble
from engine.stores.memory import MemoryStore
from engine.stores.transaction import Transaction
from tests.simulation.world import Process

T = TypeVar("T")

Watch = Callable[[Any], None]


class Disk:
    """`Store` of one process on tables that outlive it. `committed` is told after each commit."""

    def __init__(
        self,
        process: Process,
        tables: MemoryStore,
        committed: Callable[[], None],
        *,
        trouble: float,
        slow_s: float,
    ) -> None:
        self._process = process
        self._world = process.world
        self._tables = tables
        self._committed = committed
        self._trouble = trouble
        self._slow_s = slow_s
        self._rand = process.world.dice(f"disk {process.number}")
        self._free_at = {True: 0.0, False: 0.0}  # writes, reads: each in the order of the calls

    async def open(self, *, own: bool) -> None:
        await self._pause()
        await self._tables.open(own=own)

    async def close(self) -> None:
        self._process.check()
        await self._tables.close()

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        return await self._queue(job, writes=True)

    async def sync(self) -> None:
        """A crash here is one of the process: what was written lazily stays, too."""
        await self._pause()

    async def read(self, job: Callable[[Transaction], T]) -> T:
        return await self._queue(job, writes=False)

    async def _pause(self) -> None:
        self._process.check()
        await asyncio.sleep(self._rand.random() * self._slow_s)
        self._process.check()

    async def _queue(self, job: Callable[[Transaction], T], *, writes: bool) -> T:
        self._process.check()
        world, rand = self._world, self._rand
        future: asyncio.Future[T] = self._process.loop.create_future()
        slow_s = self._slow_s if writes else self._slow_s / 10
        happens_at = max(world.now + rand.random() * slow_s, self._free_at[writes])
        told_at = self._free_at[writes] = happens_at + rand.random() * slow_s
        trouble = not world.calm and writes and rand.random() < self._trouble
        if trouble:
            job = _out_of_order
        world.at(happens_at, partial(self._happen, job, writes, future, told_at))
        return await future

    def _happen(
        self,
        job: Callable[[Transaction], T],
        writes: bool,
        future: asyncio.Future[T],
        told_at: float,
    ) -> None:
        if not self._process.alive:
            return
        try:
            result = self._tables._run(job, writes=writes)
        except Exception as fault:
            if not isinstance(fault, StoreTrouble):
                self._world.note(f"a job failed: {fault!r}")
            self._world.at(told_at, partial(self._tell, future.set_exception, future, fault))
            return
        if writes:
            self._committed()
        self._world.at(told_at, partial(self._tell, future.set_result, future, result))

    def _tell(self, told: Callable[[Any], None], future: asyncio.Future[T], what: Any) -> None:
        if self._process.alive and not future.done():
            told(what)


def _out_of_order(tx: Transaction) -> Any:
    raise StoreTrouble("the disk is full")
