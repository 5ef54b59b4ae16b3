"""The way to the database, which can be cut and made to hang, also while the database is away."""

from __future__ import annotations

import asyncio
import contextlib

from tests.services import Line


class Way(Line):
    """A line whose other end may be down: whoever calls then is turned away."""

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super()._accept(reader, writer)
        except OSError:
            writer.transport.abort()

    async def drop(self) -> None:
        """End all connections; new ones get through."""
        await self.cut()
        with contextlib.suppress(OSError):
            await self.mend()
