"""The only HTTP client: a `Request` goes out once, an answer comes back as a head and pieces.

Why a seam of its own. aiohttp puts URLs into its exceptions, and a provider's password may stand in
a URL; it resends a request whose kept-alive connection was closed, which would break a limit and
may lose a report that is given only once; it inflates a body without a bound. All three end here.

How. Library errors become values inside the `except` and are raised outside of it, so that neither
`__cause__` nor `__context__` leads back to a URL. A request goes out on a connection of aiohttp's
pool, past its session (`engine.network.exchange`). Bodies are inflated here, a bounded piece at a
time, and what had arrived before a connection broke is handed on before the error is raised.

It must never follow a redirect, resend, keep a cookie, read a proxy or a password from the
environment, skip a certificate check, or hold more than a few pieces of a body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from engine.core.contracts import Head, Request
from engine.core.http import readable
from engine.network.exchange import Exchange, Place, Pool, form
from engine.network.failures import (
    BadAnswer,
    BadEncoding,
    Cut,
    Timeout,
    Timeouts,
    TooLarge,
    TransportError,
    Unreachable,
    Withheld,
    dns_cause,
    os_cause,
    size,
    tls_cause,
)
from engine.network.inflate import CODINGS, Damaged, Inflater
from engine.network.lenient import HEAD_MAX
from engine.network.resolver import Resolver

READ = 64 * 1024  # compressed bytes taken at a time; bounds the copying in a chain of tiny members
PAUSE_EVERY = READ  # inflated bytes between two turns for the other tasks
# The names by which a body is encoded. Others (UTF-8, none, binary) stand in the head by mistake.
ENCODED = {*CODINGS, "br", "zstd", "compress", "x-compress", "dcb", "dcz", "exi", "aes128gcm"}
try:
    USER_AGENT = f"dlr-engine/{version('dlr-engine')}"
except PackageNotFoundError:  # run from a source tree
    USER_AGENT = "dlr-engine"


__all__ = [
    "Answer",
    "BadAnswer",
    "BadEncoding",
    "Cut",
    "Fetch",
    "Timeout",
    "Timeouts",
    "TooLarge",
    "Transport",
    "TransportError",
    "Unreachable",
    "Withheld",
]


class _Progress:
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

    def note_sent(self) -> None:
        """Raises where it may not go out any more."""
        if not self.may_send():
            raise _Barred
        self.sent = True
        if self.on_sent is not None:
            # Told just before the bytes are written, and they may be written a turn of the loop
            # later (a body's task, uvloop's queue): two turns on they are out.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self.on_sent)

    def fail(self, kind: type[TransportError], cause: str) -> TransportError:
        return kind(cause, sent=self.sent, received_bytes=self.received)

    def translate(self, error: BaseException) -> TransportError:
        """The one table from the library's errors to ours."""
        patience = f"{self.timeouts.connect_or_byte_s:g} s"
        match error:
            case _Barred():
                return self.fail(Withheld, "withheld: it may not be sent any more")
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
            case HttpProcessingError():
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


def _answer_cause(error: HttpProcessingError) -> str:
    # The parser's message quotes the answer, which may quote the request: only its kind is kept.
    if isinstance(error, LineTooLong):
        return f"answer's head is larger than {size(HEAD_MAX)}"
    return "answer is not valid HTTP"


class Answer:
    """The head of an answer, and its body as it comes. Read the body once."""

    def __init__(
        self,
        status: int,
        fields: Iterable[tuple[str, str]],
        content: aiohttp.StreamReader,
        exchange: _Progress,
    ) -> None:
        self._content = content
        self._exchange = exchange
        headers: dict[str, str] = {}
        for name, raw in fields:
            low, value = name.lower(), readable(raw)
            headers[low] = f"{headers[low]}, {value}" if low in headers else value
        self.head = Head(status, headers)

    @property
    def received_bytes(self) -> int:
        """Of the body, as it came over the wire, up to now."""
        return self._exchange.received

    async def chunks(self) -> AsyncIterator[bytes]:
        """Pieces of the inflated body. A `TransportError` comes after all that had arrived."""
        exchange, room = self._exchange, self._exchange.timeouts.body_max
        turn = PAUSE_EVERY
        if (whole := self._small(room)) is not None:
            exchange.received += len(whole)
            if whole:
                yield whole
            return
        coding = self.head.headers.get("content-encoding", "").strip().lower()
        plain = not any(word.strip() in ENCODED for word in coding.split(","))
        async for piece in self._raw() if plain else self._inflated(coding):
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

    def _small(self, room: int) -> bytes | None:
        """The body, where it is plain and has come whole with its head, as most have."""
        content = self._content
        if not content.is_eof() or content.exception() or "content-encoding" in self.head.headers:
            return None
        if content.total_bytes > min(READ, room):
            return None
        return b"" if content.at_eof() else content.read_nowait(-1)

    async def _inflated(self, coding: str) -> AsyncIterator[bytes]:
        """What cannot be inflated at all goes on as it is, before the error: a provider may have
        no second copy of it, and one that is labelled wrongly can be read as it stands."""
        if coding not in CODINGS:
            async for data in self._raw():
                yield data
            raise self._exchange.fail(BadEncoding, "body is in an encoding that was not asked for")
        inflater, nothing = Inflater(coding), True
        async for data in self._raw():
            try:
                for piece in inflater.feed(data):
                    nothing = False
                    yield piece
            except Damaged:
                if nothing:
                    yield data
                    async for more in self._raw():
                        yield more
                damaged = f"{inflater.coding} data is damaged"
                raise self._exchange.fail(BadEncoding, damaged) from None
        if not inflater.ended():
            raise self._exchange.fail(Cut, f"{inflater.coding} data ended early")

    async def _raw(self) -> AsyncIterator[bytes]:
        while True:
            failure = None
            try:
                data = await self._content.read(READ)
            except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
                failure = error
            if failure is not None:
                for data in list(self._left()):  # at once: one that goes on would never end
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
        while data := content.read_nowait(READ):
            self._exchange.received += len(data)
            yield data


class _Barred(aiohttp.ClientError):
    """At the last moment the request was not to go out."""


class Transport:
    """Connections to all providers. `connections` bounds them in all; 0 is no bound of its own."""

    def __init__(self, *, connections: int = 0, ca_file: str | None = None) -> None:
        self._connections = connections
        self._ca_file = ca_file
        self._pool: Pool | None = None
        self._resolver: Resolver | None = None

    async def open(self) -> None:
        """Read the certificates to trust and make the pool: those of the CA file, else the
        system's, which aiohttp has read already. An OSError or ssl.SSLError is the file's fault."""
        trusted = ssl.create_default_context(cafile=self._ca_file) if self._ca_file else None
        self._resolver = Resolver()
        self._pool = Pool(
            self._resolver,
            trusted,
            connections=self._connections,
            headers=(
                ("Accept", "*/*"),
                ("Accept-Encoding", "gzip, deflate"),
                ("User-Agent", USER_AGENT),
            ),
        )

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def __aenter__(self) -> Transport:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Fetch:
        """Send once; the block has the answer. `on_sent` is called when the request is out.

        `may_send` is asked at the last moment, once there is a connection; where it says no,
        nothing goes out. A body that was not read to its end costs its connection.
        """
        if self._pool is None:
            raise RuntimeError("the transport is not open")
        return Fetch(self._pool, base_url, request, _Progress(timeouts, on_sent, may_send))


class Fetch:
    """A request, from where it is sent to where its answer is done with."""

    __slots__ = ("_base_url", "_exchange", "_pool", "_progress", "_request")

    def __init__(self, pool: Pool, base_url: str, request: Request, progress: _Progress) -> None:
        self._pool, self._base_url = pool, base_url
        self._request, self._progress = request, progress
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Answer:
        try:
            return await self._ask()
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            failure = self._progress.translate(error)
            self._end()
        except BaseException:
            self._end()
            raise
        raise failure

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._exchange is not None:
            self._exchange.end()

    async def _ask(self) -> Answer:
        request, progress = self._request, self._progress
        place = self._place()
        body, kind = form(request)
        head = self._pool.head(place, request, body, kind)
        limits = progress.timeouts
        exchange = self._exchange = Exchange(await self._connect(place))
        message = await exchange.run(
            head,
            body or b"",
            asks=request.method == "GET",
            patience_s=limits.connect_or_byte_s,
            total_s=limits.total_s,
            on_sent=progress.note_sent,
        )
        assert exchange.content is not None
        return Answer(message.code, message.headers.items(), exchange.content, progress)

    def _place(self) -> Place:
        if self._request.url is not None:
            return Place(URL(self._request.url))
        return self._pool.place(self._base_url.rstrip("/") + self._request.path)

    async def _connect(self, place: Place) -> Connection:
        limits = self._progress.timeouts
        first_s = min(limits.connect_or_byte_s, limits.total_s)
        try:
            return await self._pool.connect(place, first_s)
        except TimeoutError:
            if first_s < limits.connect_or_byte_s:
                raise
        raise aiohttp.ConnectionTimeoutError
