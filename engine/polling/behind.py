"""Answers of a reading that are on their way into the store while the next question is asked.

What is committed last is what moves the cursor, and it waits for all before it: a crash in between
costs nothing but asking again. So this is for what can be read again, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc

from engine.polling.asking import Asker, Reply

# Answers of one reading that may wait for the store; then the reading waits for it, too.
BEHIND_MAX = 8


class Behind:
    """The answers of one reading that are not durable yet."""

    def __init__(
        self, asker: Asker, group: anyio.abc.TaskGroup, committed: Callable[[Reply], None]
    ) -> None:
        """`committed(reply)` is told of each that is durable."""
        self._asker = asker
        self._group = group
        self._committed = committed
        self._under_way = 0
        self._one_ended = anyio.Event()

    async def put(self, reply: Reply) -> None:
        """Commit this one, in its own time."""
        await self._wait(BEHIND_MAX - 1)
        self._under_way += 1
        self._group.start_soon(self._run, reply)

    async def settle(self) -> None:
        """Wait until all of them are durable."""
        await self._wait(0)

    async def _wait(self, left: int) -> None:
        while self._under_way > left:
            self._one_ended = anyio.Event()
            await self._one_ended.wait()

    async def _run(self, reply: Reply) -> None:
        await self.commit(reply)
        self._under_way -= 1
        self._one_ended.set()

    async def commit(self, reply: Reply) -> None:
        reply.note(await self._asker.commit(reply.page))
        self._committed(reply)
