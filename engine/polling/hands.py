"""Tasks that go on with the next piece of work: a new one for each costs several times as much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from anyio.abc import TaskGroup

J = TypeVar("J")


class Hands(Generic[J]):
    """Does jobs, each in a task of the group; `idle_max` tasks stay when there is nothing to do."""

    def __init__(
        self, do: Callable[[J], Awaitable[None]], drop: Callable[[J], None], *, idle_max: int
    ) -> None:
        """`drop` is called with a job that was handed to a task which was cancelled meanwhile."""
        self._do = do
        self._drop = drop
        self._idle_max = idle_max
        self._idle: list[asyncio.Future[J]] = []

    def start(self, group: TaskGroup, job: J) -> None:
        while self._idle:
            ready = self._idle.pop()
            if not ready.done():
                ready.set_result(job)
                return
        group.start_soon(self._work, job)

    async def _work(self, job: J) -> None:
        await self._do(job)
        while len(self._idle) < self._idle_max:
            ready: asyncio.Future[J] = asyncio.get_running_loop().create_future()
            self._idle.append(ready)
            try:
                job = await ready
            except BaseException:
                if ready.done() and not ready.cancelled():
                    self._drop(ready.result())
                raise
            await self._do(job)
