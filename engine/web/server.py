"""The port: connections, requests and their bounds; who answers is handed in.

A connection serves one request and has one deadline for all of it, from the first byte to the
last, so a slow or hostile client costs a place among CONNECTIONS_MAX for that long and nothing
else. What aiohttp would log is thrown away: URLs hold push secrets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.config.model import HttpConfig
from engine.core.errors import EngineError
from engine.telemetry import Telemetry

# Connections at a time; a further one is closed at once.
CONNECTIONS_MAX = 128

# For all of a connection, and within it for finding the answer.
CONNECTION_S = 60.0
ANSWER_S = 30.0
LOOK_S = 1.0  # how often deadlines are looked at

# Bytes of all bodies that are in memory at a time; what would be more is told to come again.
BODIES_MAX = 64 << 20

# For answers that are under way when the port is closed.
CLOSE_S = 2.0

HEADERS = {
    "Server": "dlr-engine",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

NOWHERE = "there is nothing here"

Handler = Callable[[web.BaseRequest], Awaitable[web.Response]]

_silent = logging.Logger("dlr_engine.web.unheard", logging.CRITICAL + 1)
_silent.addHandler(logging.NullHandler())


class Refusal(Exception):
    """An answer that ends a request at once."""

    def __init__(self, status: int, *errors: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(str(status))
        self.status = status
        self.errors = errors
        self.headers = headers or {}

    def response(self) -> web.Response:
        return answer({"errors": list(self.errors)}, self.status, self.headers)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """JSON, a line of it."""
    body = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    return web.Response(
        body=body, status=status, content_type="application/json", headers=headers or {}
    )


class Port:
    """Listens where the configuration says."""

    def __init__(self, config: HttpConfig, handler: Handler, telemetry: Telemetry) -> None:
        self._config = config
        self._handler = handler
        self._telemetry = telemetry
        self._server: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self._bodies = 0  # bytes of all that are in memory
        self.address = ("", 0)

    async def open(self, source: str) -> None:
        """Raises EngineError, headed with `source`, where it cannot listen there."""
        loop, http = asyncio.get_running_loop(), self._config
        self._server = web.Server(self._serve)
        try:
            self._listening = await loop.create_server(self._connection, http.host, http.port)
        except OSError as error:
            # What asyncio says of it repeats the place and the number of the error.
            of_name = isinstance(error, socket.gaierror)
            why = error.strerror if of_name or error.errno is None else os.strerror(error.errno)
            raise EngineError(
                f"{source}: http.listen: cannot listen on {http.shown}: {why}"
            ) from None
        self.address = self._listening.sockets[0].getsockname()[:2]
        self._watching = loop.create_task(self._watch(self._server))
        host, port = self.address
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._telemetry.event(logging.INFO, "http", f"listening on {place}")

    async def close(self) -> None:
        """Take no more; what is being answered gets CLOSE_S to end."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        if self._listening is not None:
            self._listening.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(CLOSE_S)

    # Connections

    def _connection(self) -> asyncio.BaseProtocol:
        assert self._server is not None
        if len(self._server.connections) >= CONNECTIONS_MAX:
            return _Closed()
        return _Connection(
            self._server,
            loop=asyncio.get_running_loop(),
            access_log=_silent,
            logger=_silent,
            debug=False,
            auto_decompress=False,
        )

    async def _watch(self, server: web.Server) -> None:
        """End what has been open for too long, whatever it does."""
        since: dict[Any, float] = {}
        while True:
            await asyncio.sleep(LOOK_S)
            now = asyncio.get_running_loop().time()
            since = {one: since.get(one, now) for one in server.connections}
            for connection, began in since.items():
                if now - began >= CONNECTION_S and connection.transport is not None:
                    connection.transport.abort()

    # Requests

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        response = Refusal(503, "no answer was found in time; try again").response()
        try:
            with anyio.move_on_after(ANSWER_S):
                response = await self._handler(request)
        except Refusal as refusal:
            response = refusal.response()
        except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
            response = Refusal(400, "the body did not come whole").response()
        except Exception as fault:  # its text may hold what the request held
            self._telemetry.count("faults", "")
            self._telemetry.debug(fault)
            response = Refusal(500, "a fault in the program: please report it").response()
        return _last(response)

    async def pieces(self, request: web.BaseRequest, most: int) -> AsyncIterator[bytes]:
        """A body of at most so many bytes, as it comes. Raises Refusal."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "a compressed body is not taken")
        size = request.content_length or 0
        if size > most:
            raise Refusal(413, f"the body is longer than {most:,} bytes")
        came = held = 0
        try:
            held = self._room(size)
            if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            async for piece in request.content.iter_any():
                came += len(piece)
                if came > most:
                    raise Refusal(413, f"the body is longer than {most:,} bytes")
                held += self._room(came - held)  # it grows where nothing was said of its length
                yield piece
        finally:
            self._bodies -= held

    def _room(self, more: int) -> int:
        """Take so many bytes more of the room of all bodies, if that is any; how many it were."""
        more = max(0, more)
        if self._bodies + more > BODIES_MAX:
            raise Refusal(503, "too much at a time; try again", headers={"Retry-After": "1"})
        self._bodies += more
        return more


def _last(response: web.Response) -> web.Response:
    """The one answer of its connection."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.force_close()
    return response


class _Connection(web.RequestHandler):
    """What is no HTTP is answered in our own words: aiohttp's repeat it, secrets included."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc)  # raises where an answer has begun
        return _last(Refusal(status, "this is not a request in HTTP").response())


class _Closed(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
