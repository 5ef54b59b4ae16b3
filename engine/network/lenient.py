"""aiohttp's parser for one answer, and what it would throw away of it.

The parser gives out nothing of a piece that it takes offence at, and a head that breaks a rule of
HTTP takes the whole answer along; a provider may have no second copy of it. So a head goes in
alone, and one that is refused goes in once more in plain words (`core.amended`). A body that is not
in the chunks that its head speaks of is handed on as it is; and so is what is no HTTP at all, as a
body that ends with the parser's refusal: whoever reads it can set it aside. A 204 on its own may
be held for a moment, for a body that comes behind it all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from aiohttp.http import HttpProcessingError, RawResponseMessage
from aiohttp.http_exceptions import LineTooLong

from engine.core.amended import amended

HEAD_END = b"\r\n\r\n"
HEAD_MAX = 256 * 1024  # a larger one is not read, but handed on as no HTTP is
INTERIM = (b"HTTP/1.1 100", b"HTTP/1.1 102", b"HTTP/1.1 103")  # the answer's own head follows

# Heads and their bodies; the rest concerns other protocols than HTTP.
Fed = tuple[Sequence[tuple[RawResponseMessage, aiohttp.StreamReader]], bool, bytes]

_NOTHING: Fed = (), False, b""
_NO_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
_NO_BODY = (b"\r", b"\n", b"HTTP/")  # may stand behind an answer without a body
_head_end = re.compile(rb"\n\r?\n").search


class LenientParser:
    """What a connection of aiohttp's asks of a parser."""

    _head = b""  # what has come of it
    _refusal: HttpProcessingError | None = None
    _body: aiohttp.StreamReader | None = None  # once there is a head
    _lengths: frozenset[int] = frozenset()
    _no_http = False
    _held: Fed | None = None  # a 204 on its own

    def __init__(
        self,
        fresh: Callable[[], Any],
        spoil: Callable[[], None],
        hold: Callable[[], None] | None = None,
    ) -> None:
        """`fresh` makes a parser of aiohttp's; `spoil` is called where the connection must not be
        used again. `hold`: a 204 on its own is held, and this is called; who gave it feeds b""
        when nothing more is waited for."""
        self._fresh, self._spoil, self._hold = fresh, spoil, hold
        self._parser = fresh()

    @property
    def holds(self) -> bool:
        return self._held is not None

    def feed_data(self, data: bytes) -> Fed:
        if self._body is not None:
            return self._feed_body(self._body, data)
        if self._held is not None:
            return self._feed_held(self._held, data)
        if (end := data.find(HEAD_END)) < 0 or (end := end + len(HEAD_END)) == len(data):
            return self._feed_head(data, b"")
        return self._feed_both(data[:end], data[end:])

    def feed_eof(self) -> Any:
        return None if self.end() else self._parser.feed_eof()

    def pause_reading(self) -> None:
        self._parser.pause_reading()

    def end(self) -> bool:
        """The connection has ended, or nothing more comes. Whether that ends the body, where its
        head does not say so."""
        if self._body is None or self._body.is_eof():
            return False
        if self._no_http and self._refusal is not None:
            self._body.set_exception(self._refusal)
        elif self._body.total_bytes in self._lengths:
            self._body.feed_eof()
        else:
            return False
        return True

    def _feed_both(self, head: bytes, rest: bytes) -> Fed:
        fed = self._feed_head(head, rest)
        if self._body is None:  # that was the end of an interim one
            return self.feed_data(rest)
        self._feed_rest(self._body, rest)
        return fed

    # Bodies

    def _feed_body(self, body: aiohttp.StreamReader, data: bytes) -> Fed:
        try:
            fed: Fed = self._parser.feed_data(data)
        except HttpProcessingError:
            if not body.is_eof() and not body.total_bytes:
                body.feed_data(data)
            raise
        return fed

    def _feed_rest(self, body: aiohttp.StreamReader, data: bytes) -> None:
        """What came with a head; whatever it is, the head goes on."""
        try:
            self._feed_body(body, data)
        except HttpProcessingError:
            self._spoil()
            if not body.is_eof():
                body.set_exception(aiohttp.ClientPayloadError())

    # Heads

    def _feed_head(self, data: bytes, rest: bytes) -> Fed:
        self._head += data
        if self._refusal is not None:
            return self._amend(rest)
        if len(self._head) > HEAD_MAX and not _head_end(self._head, 0, HEAD_MAX):
            return self._hand_on_large()
        try:
            fed: Fed = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._refusal = error
            return self._amend(rest)
        for message, body in fed[0]:
            if message.code == 204 and (_speaks_of_a_body(message) or _is_body(rest)):
                return self._amend(rest)
            if self._hold is not None and not rest and _is_bare(message):
                self._held = fed
                self._hold()
                return _NOTHING
            self._begin(message, body)
        self._pass_interim()
        return fed

    def _feed_held(self, held: Fed, data: bytes) -> Fed:
        """What came behind a 204 on its own, or nothing."""
        self._held = None
        if _is_body(data):
            fed = self._amend(data)
        else:
            fed = held
            for message, body in fed[0]:
                self._begin(message, body)
        if data and self._body is not None:
            self._feed_rest(self._body, data)
        return fed

    def _begin(self, message: RawResponseMessage, body: aiohttp.StreamReader) -> None:
        if message.code >= 200 or message.code == 101:  # else another head comes
            self._body, self._head = body, b""

    def _amend(self, rest: bytes) -> Fed:
        """Read a head that cannot be read as it stands. `rest` is fed when it is done with."""
        self._pass_interim()
        if not b"HTTP/".startswith(self._head.lstrip()[:5].upper()):
            return self._hand_on()
        found = _head_end(self._head)
        end = found.end() if found else len(self._head)
        if end > HEAD_MAX:
            return self._hand_on_large()
        if not found:
            return _NOTHING
        more = self._head[end:]  # of a head whose lines end otherwise
        plain = amended(self._head[:end], followed=_is_body(more or rest))
        if plain is None:
            return self._hand_on()
        self._lengths = plain.lengths
        return self._feed_again(plain.head, more)

    def _pass_interim(self) -> None:
        while self._head.startswith(INTERIM) and (found := _head_end(self._head)):
            self._head = self._head[found.end() :]

    def _hand_on_large(self) -> Fed:
        self._refusal = LineTooLong(b"", HEAD_MAX)
        return self._hand_on()

    def _hand_on(self) -> Fed:
        self._no_http = True
        return self._feed_again(_NO_HEAD, self._head)

    def _feed_again(self, head: bytes, more: bytes) -> Fed:
        self._parser = self._fresh()
        fed: Fed = self._parser.feed_data(head)
        for message, body in fed[0]:
            self._begin(message, body)
        if more and self._body is not None:
            self._feed_rest(self._body, more)
        return fed


def _speaks_of_a_body(message: RawResponseMessage) -> bool:
    headers = message.headers
    return headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers


def _is_bare(message: RawResponseMessage) -> bool:
    """Whether it says nothing of a body, not even that there is none."""
    return message.code == 204 and "Content-Length" not in message.headers


def _is_body(rest: bytes) -> bool:
    return bool(rest) and not rest.startswith(_NO_BODY)
