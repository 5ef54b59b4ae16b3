"""Records for the program that embeds the engine: an async iterator with a durable position."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import anyio

from engine.core.errors import StoreError
from engine.core.report import Report, decode
from engine.dispatch.log_reader import LogReader, Portion

# The consumer of `Engine.reports`, as its position is named.
REPORTS_NAME = "reports()"

# Records held between two durable positions: what may come again after a crash.
PORTION_MAX = 100
PORTION_BYTES_MAX = 1 << 20

# Without news the log is looked at this often, in case another hand has written to it.
LOOK_S = 0.5


class Reports:
    """`async for report in poller.reports()`: each is acknowledged when the next is asked for."""

    def __init__(
        self, reader: LogReader, before: Reports | None, *, chosen: Sequence[str] | None = None
    ) -> None:
        """`chosen`: of accounts that come later, only these; None is all."""
        self._reader = reader
        self._chosen = chosen
        self._before = before
        self._open = False
        self._ended = False
        self._portion = Portion()
        self._lines: deque[bytes] = deque()
        self._given = 0  # of the portion
        self._acknowledged = 0  # of these: the last one is not until the next is asked for
        self._news = anyio.Event()

    async def take(self, accounts: Sequence[str]) -> None:
        """Give the records of these, too."""
        if wanted := [name for name in accounts if self._chosen is None or name in self._chosen]:
            await self._reader.take(wanted)

    async def let_go(self, accounts: Sequence[str]) -> None:
        """Give no more records of these; whoever has them gives the rest."""
        await self._reader.drop(accounts)

    def tell(self) -> None:
        """There is more in the log."""
        self._news.set()

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> Report:
        if self._ended:
            raise StopAsyncIteration
        if not self._open:
            if self._before is not None:
                await self._before.finish()
                self._before = None
            await self._reader.open()
            self._open = True
        self._acknowledged = self._given
        while not self._lines:
            try:
                await self._next_portion()
            except StoreError:
                if not self._ended:
                    raise
            if self._ended:  # the block was left while this waited for news
                raise StopAsyncIteration
        self._given += 1
        return decode(self._lines.popleft())

    async def _next_portion(self) -> None:
        await self._reader.move(self._portion.places)
        self._news = anyio.Event()
        self._portion = await self._reader.read(PORTION_MAX, PORTION_BYTES_MAX)
        self._lines = deque(self._portion.lines)
        self._given = self._acknowledged = 0
        if not self._lines and not self._portion.more:
            with anyio.move_on_after(LOOK_S):
                await self._news.wait()

    async def finish(self) -> None:
        """Keep the position after the last acknowledged one. Nothing more is given."""
        if self._ended or not self._open:
            self._ended = True
            return
        self._ended = True
        self._news.set()
        try:
            await self._reader.move(self._portion.places_after(self._acknowledged))
        except StoreError:
            return  # what was given since the last position comes again
