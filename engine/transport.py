"""The only HTTP client: a `Request` goes out once, an answer comes back as a head and pieces.

Why a seam of its own. aiohttp puts URLs into its exceptions, and a provider's password may stand in
a URL; it resends a request whose kept-alive connection was closed, which would break a limit and
may lose a report that is given only once; it inflates a body without a bound. All three end here.

How. Library errors become values inside the `except` and are raised outside of it, so that neither
`__cause__` nor `__context__` leads back to a URL. A middleware turns the two errors that aiohttp
answers by resending into one that it does not know. Bodies are inflated here, a bounded piece at
a time, and what had arrived before a connection broke is handed on before the error is raised.

It must never follow a redirect, resend, keep a cookie, read a proxy or a password from the
environment, skip a certificate check, or hold more than a few pieces of a body.
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from engine.core.contracts import Head, Request
from engine.core.http import readable
from engine.failures import (
    BadAnswer,
    BadEncoding,
    Cut,
    Timeout,
    Timeouts,
    TooLarge,
    TransportError,
    Unreachable,
    dns_cause,
    os_cause,
    size,
    tls_cause,
)
from engine.inflate import CODINGS, Damaged, Inflater
from engine.resolver import Resolver

# one file: what aiohttp does beside HTTP is undone in one place
READ = 64 * 1024  # compressed bytes taken at a time; bounds the copying in a chain of tiny members
KEEPALIVE_S = 15.0  # shorter than common servers', so that an idle connection is seldom a dead one
DNS_CACHE_S = 60  # a provider that moves is found again within a minute
HEAD_LINE_MAX = 16 * 1024  # one header, or the status line
HEADERS_MAX = 128
LAST_LOOK_S = 0.05  # what has arrived by the end of the patience is read before it ends
PAUSE_EVERY = READ  # inflated bytes between two turns for the other tasks
try:
    USER_AGENT = f"dlr-engine/{version('dlr-engine')}"
except PackageNotFoundError:  # run from a source tree
    USER_AGENT = "dlr-engine"


__all__ = [
    "Answer",
    "BadAnswer",
    "BadEncoding",
    "Cut",
    "Timeout",
    "Timeouts",
    "TooLarge",
    "Transport",
    "TransportError",
    "Unreachable",
]


class _Once(Exception):
    """Carries an error past aiohttp's decision to send the request again."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Protocol(ResponseHandler):
    """A process that stood still (suspended, starved) may find its patience over before it has
    read what came meanwhile: uvloop runs timers first. So the socket is looked at once more."""

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = self._loop.call_later(LAST_LOOK_S, super()._on_read_timeout)


class _Exchange:
    """What is known of a request on its way."""

    def __init__(
        self,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None,
        may_send: Callable[[], bool],
    ) -> None:
        self.timeouts = timeouts
        self.on_sent = on_sent
        self.may_send = may_send
        self.sent = False
        self.received = 0

    def fail(self, kind: type[TransportError], cause: str) -> TransportError:
        return kind(cause, sent=self.sent, received_bytes=self.received)

    def translate(self, error: BaseException) -> TransportError:
        """The one table from the library's errors to ours."""
        if isinstance(error, _Once):
            error = error.error
        patience = f"{self.timeouts.connect_or_byte_s:g} s"
        match error:
            case _Withheld():
                return self.fail(Unreachable, "withheld: it may not be sent any more")
            case aiohttp.ConnectionTimeoutError():
                return self.fail(Timeout, f"no connection after {patience}")
            case aiohttp.SocketTimeoutError():
                return self.fail(Timeout, f"timed out after {patience} without a byte")
            case aiohttp.ClientConnectorDNSError():
                return self.fail(Unreachable, dns_cause(error.os_error))
            case aiohttp.ClientConnectorCertificateError():
                return self.fail(Unreachable, tls_cause(error.certificate_error))
            case aiohttp.ClientConnectorSSLError():
                return self.fail(Unreachable, tls_cause(error.os_error))
            case aiohttp.ClientConnectorError():
                return self.fail(Unreachable, os_cause(error.os_error, "cannot connect"))
            case aiohttp.ClientResponseError():
                return self.fail(BadAnswer, _answer_cause(error))
            case aiohttp.ClientPayloadError():
                return self.fail(Cut, f"body ended early, after {self._bytes()}")
            case TimeoutError() if not isinstance(error, aiohttp.ClientOSError):
                took = "body" if self.received else "answer"
                return self.fail(Timeout, f"{took} took longer than {self.timeouts.total_s:g} s")
            case aiohttp.ServerDisconnectedError():
                return self.fail(Cut, f"connection closed after {self._bytes()}")
            case OSError() | aiohttp.ClientConnectionError():
                return self.fail(Cut, f"{os_cause(error, 'connection lost')} after {self._bytes()}")
        kind = BadAnswer if self.sent else Unreachable
        what = "answer cannot be read" if self.sent else "request cannot be built"
        return self.fail(kind, what)

    def _bytes(self) -> str:
        return f"{self.received:,} bytes"


def _answer_cause(error: aiohttp.ClientResponseError) -> str:
    # The parser's message quotes the answer, which may quote the request: only its kind is kept.
    long = isinstance(error.__cause__, aiohttp.http.HttpProcessingError) and any(
        word in error.message for word in ("more than", "Too many", "too long")
    )
    return "answer's head is too large" if long else "answer is not valid HTTP"


class Answer:
    """The head of an answer, and its body as it comes. Read the body once."""

    def __init__(self, response: aiohttp.ClientResponse, exchange: _Exchange) -> None:
        self._content = response.content
        self._exchange = exchange
        headers: dict[str, str] = {}
        for name, raw in response.headers.items():
            low, value = name.lower(), readable(raw)
            headers[low] = f"{headers[low]}, {value}" if low in headers else value
        self.head = Head(response.status, headers)

    @property
    def received_bytes(self) -> int:
        """Of the body, as it came over the wire, up to now."""
        return self._exchange.received

    async def chunks(self) -> AsyncIterator[bytes]:
        """Pieces of the inflated body. A `TransportError` comes after all that had arrived."""
        exchange, room = self._exchange, self._exchange.timeouts.body_max
        turn = PAUSE_EVERY
        async for piece in self._inflated():
            if len(piece) > room:
                if room:
                    yield piece[:room]
                raise exchange.fail(
                    TooLarge, f"body larger than {size(exchange.timeouts.body_max)}"
                )
            room -= len(piece)
            turn -= len(piece)
            yield piece
            if turn <= 0:
                turn = PAUSE_EVERY
                await asyncio.sleep(0)

    async def _inflated(self) -> AsyncIterator[bytes]:
        coding = self.head.headers.get("content-encoding", "").strip().lower()
        if coding in ("", "identity"):
            async for data in self._raw():
                yield data
            return
        if coding not in CODINGS:
            raise self._exchange.fail(BadEncoding, "body is in an encoding that was not asked for")
        inflater = Inflater(coding)
        async for data in self._raw():
            try:
                for piece in inflater.feed(data):
                    yield piece
            except Damaged:
                damaged = f"{inflater.coding} data is damaged"
                raise self._exchange.fail(BadEncoding, damaged) from None
        if not inflater.ended():
            raise self._exchange.fail(Cut, f"{inflater.coding} data ended early")

    async def _raw(self) -> AsyncIterator[bytes]:
        while True:
            failure = None
            try:
                data = await self._content.read(READ)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                failure = error
            if failure is not None:
                for data in self._left():
                    yield data
                error_of_ours = self._exchange.translate(failure)
                failure = None
                raise error_of_ours
            if not data:
                return
            self._exchange.received += len(data)
            yield data

    def _left(self) -> Iterator[bytes]:
        """What had arrived before the connection broke: aiohttp keeps it, but raises instead."""
        content = cast("Any", self._content)
        content.set_exception(None)
        while True:
            try:
                data = content.read_nowait(READ)
            except (aiohttp.ClientError, OSError):  # the deadline is over as well
                return
            if not data:
                return
            self._exchange.received += len(data)
            yield data


class _Withheld(aiohttp.ClientError):
    """At the last moment the request was not to go out."""


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        failure = error
    raise _Once(failure)


async def _on_headers_sent(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: object
) -> None:
    exchange: _Exchange = context.trace_request_ctx
    if not exchange.may_send():
        raise _Withheld
    exchange.sent = True
    if exchange.on_sent is not None:
        # Told just before the bytes are written, and they may be written a turn of the loop later
        # (a body's task, uvloop's queue): two turns on they are out.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, exchange.on_sent)


def _seen(closed: asyncio.Future[None]) -> None:
    """Take note of a connection's error, lest the loop reports that nobody did."""
    if not closed.cancelled():
        closed.exception()


def _wake(content: aiohttp.StreamReader, _closed: object) -> None:
    """Tell the reader of a body that no more will come.

    aiohttp closes a connection on which a chunk is malformed, but tells only those who wait for a
    head: the reader of the body would wait for the whole deadline.
    """
    if not content.is_eof() and content.exception() is None:
        content.set_exception(aiohttp.ClientPayloadError())


class Transport:
    """Connections to all providers. `connections` bounds them in all; 0 is no bound of its own."""

    def __init__(self, *, connections: int = 0, ca_file: str | None = None) -> None:
        self._connections = connections
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None
        self._resolver: Resolver | None = None
        self._closed: WeakSet[asyncio.Future[None]] = WeakSet()

    async def open(self) -> None:
        """Read the certificates to trust and make the session: those of the CA file, else the
        system's. An OSError or ssl.SSLError is the file's fault."""
        context = ssl.create_default_context(cafile=self._ca_file)
        self._resolver = Resolver()
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_on_headers_sent)
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            limit=self._connections,
            ssl=context,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
        )
        made = partial(_Protocol, loop=asyncio.get_running_loop())
        connector._factory = made  # type: ignore[assignment]  # noqa: SLF001
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_send_once,),
            trace_configs=[trace],
            raise_for_status=False,
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEAD_LINE_MAX,
            max_field_size=HEAD_LINE_MAX,
            max_headers=HEADERS_MAX,
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def __aenter__(self) -> Transport:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @asynccontextmanager
    async def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[Answer]:
        """Send once; the block has the answer. `on_sent` is called when the request is out.

        `may_send` is asked at the last moment, once there is a connection; where it says no,
        nothing goes out. A body that was not read to its end costs its connection.
        """
        exchange = _Exchange(timeouts, on_sent, may_send)
        response = None
        try:
            response = await self._head(base_url, request, exchange)
        except (aiohttp.ClientError, _Once, OSError, ValueError, TypeError) as error:
            failure = exchange.translate(error)
        if response is None:
            raise failure
        closed = self._closing(response)
        wake = partial(_wake, response.content)
        if closed is None:
            wake(None)
        else:
            closed.add_done_callback(wake)
        try:
            yield Answer(response, exchange)
        finally:
            if closed is not None:
                closed.remove_done_callback(wake)
            response.close()

    def _closing(self, response: aiohttp.ClientResponse) -> asyncio.Future[None] | None:
        """What ends with the answer's connection. None: it has ended, or given back, already."""
        protocol = response.connection.protocol if response.connection is not None else None
        closed = protocol.closed if protocol is not None else None
        if closed is not None and closed not in self._closed:
            self._closed.add(closed)
            closed.add_done_callback(_seen)
        return closed

    async def _head(
        self, base_url: str, request: Request, exchange: _Exchange
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the transport is not open")
        url = URL(request.url or base_url.rstrip("/") + request.path)
        if url.scheme not in ("http", "https"):
            raise ValueError
        headers = dict(request.headers)
        body: bytes | io.BytesIO | None = None
        if request.json is not None:
            body = io.BytesIO(request.json)  # goes out in pieces, with turns for other tasks
            headers.setdefault("Content-Type", "application/json")
        elif request.method == "POST" and request.form:
            body = urlencode(request.form).encode()
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        patience = exchange.timeouts.connect_or_byte_s
        return await self._session.request(
            request.method,
            url.extend_query(request.params) if request.params else url,
            data=body,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=exchange.timeouts.total_s, connect=patience, sock_read=patience
            ),
            trace_request_ctx=exchange,
        )
