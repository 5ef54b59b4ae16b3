"""An HTTP endpoint that is asked one thing at a time, at a pace.

It must never follow a redirect, nor put the URL, a header or what was answered into an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from pathlib import Path

from aiolimiter import AsyncLimiter

from engine.network.failures import os_cause
from engine.network.transport import Timeouts, Transport, TransportError

from ..core.contracts import Head, Request
from ..core.secret import Secret
from .line import Line

PATIENCE_S = 30.0  # for a connection or the next byte; twice that in all
ANSWER_MAX = 64 << 10  # bytes of an answer that are read; none of them is kept


class Endpoint:
    """One URL. `gap_s` is the least time from one request to the next; `ca_file`: as PEM."""

    def __init__(self, url: Secret, *, gap_s: float | None, ca_file: Path | None) -> None:
        self._url = url
        self._ca_file = ca_file
        # One at a time: without bursts no window holds more.
        self._pace = AsyncLimiter(1, gap_s) if gap_s else nullcontext()
        self._line = Line("cannot post", self._connect, (TransportError, OSError), _cause)

    async def ask(
        self, method: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None
    ) -> Head:
        """The head of the answer, whatever its status. Raises SinkError."""
        url = self._url.reveal()
        request = Request(method=method, url=url, headers=tuple(headers), json=body)
        async with self._pace:
            return await self._line.use(_fetch, request)

    async def close(self) -> None:
        await self._line.drop()

    async def _connect(self, closing: AsyncExitStack) -> Transport:
        transport = Transport(ca_file=str(self._ca_file) if self._ca_file else None)
        closing.push_async_callback(transport.close)
        await transport.open()
        return transport


async def _fetch(transport: Transport, request: Request) -> Head:
    patience = Timeouts(PATIENCE_S, 2 * PATIENCE_S, ANSWER_MAX)
    async with transport.fetch("", request, patience) as answer:
        with suppress(TransportError):  # the head has said it all
            async for _ in answer.chunks():  # to its end, for the connection's sake
                pass
        return answer.head


def _cause(error: Exception) -> str:
    if isinstance(error, TransportError):
        return error.cause
    return f"ca_file cannot be read: {os_cause(error, 'it holds no certificates')}"
