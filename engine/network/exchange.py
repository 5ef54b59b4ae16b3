"""One HTTP/1.1 exchange on a connection of aiohttp's pool, read by aiohttp's parser.

Why not through aiohttp's session. What a session does around a request (URLs built anew, cookies,
redirects, proxies, tracing, a second try on a new connection) is either forbidden here or costs
more than the request itself: 160 us of processor time a small answer against 45. So the pool, TLS,
name look-up and the parser are aiohttp's; the request's bytes, the patience and the end of an
exchange are ours. What is used of aiohttp beside its documented interface is used in this file and
in `lenient`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import quote_plus, urlencode

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http import HttpResponseParser, RawResponseMessage
from yarl import URL

from engine.core.contracts import Request
from engine.network.lenient import HEAD_MAX, LenientParser

KEEPALIVE_S = 15.0  # shorter than common servers', so that an idle connection is seldom a dead one
DNS_CACHE_S = 60  # a provider that moves is found again within a minute
# For a body behind a 204, which may have none. One that is written apart from its head comes after
# a round trip and a delayed acknowledgement.
LATE_BODY_S = 0.5
LAST_LOOK_S = 0.05  # what has arrived by the end of the patience is read before it ends
BODY_PIECE = 64 * 1024  # of a request's body, written at a time
PLACES_MAX = 4096  # URLs that are kept as the wire has them; more than accounts have paths

_QUERY_SAFE = "?/:@!$'()*,"  # what may stand in a query as it is
_plain_in_a_query = re.compile(r"[0-9A-Za-z_.~?/:@!$'()*,-]*").fullmatch


class _Protocol(ResponseHandler):
    """aiohttp's, with a parser that throws less away; it looks once more before its patience ends,
    and tells who reads a body."""

    _parser: LenientParser | None  # type: ignore[assignment]  # it is asked for no more than that

    def begin(self, patience_s: float, *, asks: bool) -> None:
        """An answer is to come; whoever `asks` for something wants its body."""
        self.read_timeout = patience_s
        hold = partial(self._hold, min(LATE_BODY_S, patience_s)) if asks else None
        self._parser = LenientParser(self._fresh_parser, self.force_close, hold)

    def _hold(self, seconds: float) -> None:
        self._loop.call_later(seconds, self._let_go, self._parser)

    def _let_go(self, parser: LenientParser | None) -> None:
        """Nothing more is waited for; `parser` is of the answer that was."""
        if parser is not None and parser is self._parser and parser.holds:
            self.data_received(b"")

    def _fresh_parser(self) -> HttpResponseParser:
        return HttpResponseParser(
            self,
            self._loop,
            self._read_bufsize,
            payload_exception=aiohttp.ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
            max_line_size=HEAD_MAX,  # all of it is bounded: see `LenientParser`
            max_field_size=HEAD_MAX,
            max_headers=HEAD_MAX,
        )

    def _on_read_timeout(self) -> None:
        # A process that stood still (suspended, starved) may find its patience over before it has
        # read what came meanwhile: uvloop runs timers first. So the socket is looked at once more.
        self._read_timeout_handle = self._loop.call_later(LAST_LOOK_S, self._give_up)

    def _give_up(self) -> None:
        if self._parser is None or not self._parser.end():
            super()._on_read_timeout()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Each piece that is taken asks for this. What was not held up needs no parsing once more.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        # A connection on which a chunk is malformed is closed, but only those who wait for a head
        # are told: the reader of the body would wait for the whole deadline.
        self._let_go(self._parser)
        payload = self._payload
        super().connection_lost(exc)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError())


class Place:
    """Where requests go: what the pool asks of a request, and the request's first lines."""

    proxy = None
    proxy_headers = None
    server_hostname = None
    ssl = True  # checked as the pool is set up

    def __init__(self, url: URL) -> None:
        """Raises ValueError for what is no http or https URL."""
        if url.scheme not in ("http", "https") or not url.raw_host:
            raise ValueError
        self.url = url.origin()
        self.host, self.port = url.raw_host, url.port
        secure = url.scheme == "https"
        self.connection_key = ConnectionKey(self.host, self.port, secure, True, None, None, None)
        self.target = url.raw_path_qs
        self.lines: tuple[tuple[tuple[str, str], ...], str] | None = None  # of the last request
        self.headers = {"host": ("Host", _plain(url.host_port_subcomponent or ""))}
        if url.user is not None:
            pair = f"{url.user}:{url.password or ''}".encode()
            self.headers["authorization"] = ("Authorization", f"Basic {b64encode(pair).decode()}")

    def is_ssl(self) -> bool:
        return bool(self.connection_key.is_ssl)


class Pool:
    """Connections, kept open between requests."""

    def __init__(
        self,
        resolver: aiohttp.abc.AbstractResolver,
        trusted: ssl.SSLContext | None,
        *,
        connections: int,
        headers: Iterable[tuple[str, str]],
    ) -> None:
        """`trusted`: whose certificates are; None: the system's. `connections` bounds them in all,
        0 does not; `headers` go with every request."""
        self._connector = aiohttp.TCPConnector(
            resolver=resolver,
            limit=connections,
            ssl=True if trusted is None else trusted,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
        )
        made = partial(_Protocol, loop=asyncio.get_running_loop())
        self._connector._factory = made  # type: ignore[assignment]  # noqa: SLF001
        self._headers = {name.lower(): (name, value) for name, value in headers}
        self._places: dict[str, Place] = {}

    async def close(self) -> None:
        await self._connector.close()

    def place(self, url: str) -> Place:
        """Raises ValueError for what is no http or https URL."""
        place = self._places.get(url)
        if place is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            place = self._places[url] = Place(URL(url))
        return place

    async def connect(self, place: Place, patience_s: float) -> aiohttp.connector.Connection:
        """A connection on which nothing is left over from before.

        Raises TimeoutError, or what aiohttp raises where there is none to be had.
        """
        timeout = _patience(patience_s)
        while True:
            # A place answers all that is asked of a request here.
            found = await self._connector.connect(cast("Any", place), [], timeout)
            protocol = found.protocol
            if protocol is not None and not protocol.should_close:
                return found
            found.close()  # such as a server's "408" to a connection that it found idle

    def head(self, place: Place, request: Request, body: bytes | None, kind: str) -> bytes:
        """The request up to its body. Raises ValueError where a header would break out of it."""
        target = place.target
        if request.params:
            query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in request.params)
            target = f"{target}{'&' if '?' in target else '?'}{query}"
        if body is not None:
            lines = self._lines(place, request, (("Content-Type", kind),))
            lines += f"Content-Length: {len(body)}\r\n"
        elif place.lines is not None and place.lines[0] == request.headers:
            lines = place.lines[1]
        else:
            lines = self._lines(place, request, ())
            place.lines = request.headers, lines
        return f"{_plain(request.method)} {target} HTTP/1.1\r\n{lines}\r\n".encode()

    def _lines(self, place: Place, request: Request, more: tuple[tuple[str, str], ...]) -> str:
        lines = self._headers | place.headers
        lines |= {name.lower(): (name, value) for name, value in (*more, *request.headers)}
        lines.pop("content-length", None)  # that is counted
        return "".join(f"{_plain(name)}: {_plain(value)}\r\n" for name, value in lines.values())


class Exchange:
    """A request on its connection, and the answer to it."""

    def __init__(self, connection: aiohttp.connector.Connection) -> None:
        assert connection.protocol is not None
        self._connection = connection
        self._protocol = cast("_Protocol", connection.protocol)
        self._deadline: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self.content: aiohttp.StreamReader | None = None

    async def run(
        self,
        head: bytes,
        body: bytes,
        *,
        asks: bool,
        patience_s: float,
        total_s: float,
        on_sent: Callable[[], None],
    ) -> RawResponseMessage:
        """Send, and wait for the answer's head; `content` is its body then. `asks`: for a body.

        `on_sent` is called when the request's head is handed to the network. Raises what aiohttp
        raises, HttpProcessingError included, and TimeoutError once `total_s` have passed.
        """
        protocol, loop = self._protocol, asyncio.get_running_loop()
        self._deadline = loop.call_later(total_s, self._expire)
        protocol.begin(patience_s, asks=asks)
        transport = protocol.transport
        if transport is None:
            raise aiohttp.ServerDisconnectedError
        on_sent()
        transport.write(head + body[:BODY_PIECE])
        if len(body) > BODY_PIECE:
            self._writing = loop.create_task(self._write(transport, memoryview(body)[BODY_PIECE:]))
        else:
            protocol.start_timeout()
        while True:
            message, content = await protocol.read()
            if not 100 <= message.code < 200 or message.code == 101:
                break  # else something else follows: an "early hint", say
        self.content = content
        return message

    async def _write(self, transport: asyncio.Transport, rest: memoryview) -> None:
        """The rest of a large body: in pieces, with turns for other tasks."""
        for start in range(0, len(rest), BODY_PIECE):
            await self._protocol._drain_helper()  # noqa: SLF001
            if transport.is_closing():
                return  # who waits for the answer is told why
            transport.write(bytes(rest[start : start + BODY_PIECE]))
            await asyncio.sleep(0)
        self._protocol.start_timeout()

    def _expire(self) -> None:
        """The time for all of it is over; what has come whole may still be read."""
        if self.content is None:
            self._protocol.set_exception(TimeoutError())
        elif not self.content.is_eof():
            self.content.set_exception(TimeoutError())

    def end(self) -> None:
        """Keep the connection where the answer was read to its end; else it is closed."""
        if self._deadline is not None:
            self._deadline.cancel()
        sent = self._writing is None or self._writing.done()
        if self._writing is not None:
            self._writing.cancel()
        if sent and self.content is not None and self.content.is_eof():
            self._connection.release()
        else:
            self._connection.close()


@lru_cache(maxsize=64)
def _patience(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=seconds)


def form(request: Request) -> tuple[bytes | None, str]:
    """A request's body and its type."""
    if request.json is not None:
        return request.json, "application/json"
    if request.method == "POST" and request.form:
        return urlencode(request.form).encode(), "application/x-www-form-urlencoded"
    return None, ""


def _quoted(text: str) -> str:
    return text if _plain_in_a_query(text) else quote_plus(text, safe=_QUERY_SAFE)


def _plain(text: str) -> str:
    """Raises ValueError where a text would end a line of the head, or is no text at all."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError
    return text
