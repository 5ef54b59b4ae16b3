"""gzip and deflate bodies, inflated a bounded piece at a time.

HTTP libraries inflate whatever a network read brought, in one go: a few kilobytes that grow to
gigabytes then cost gigabytes of memory before anyone can say no. Here the reader asks for each
piece, so that a limit on the inflated size can be kept, and stops asking.

It must never hold more than one piece, and never take a body that ended early for a whole one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

PIECE = 128 * 1024  # large for a parser, small beside what a bomb grows to
CODINGS = ("gzip", "x-gzip", "deflate")

_GZIP = 16 + zlib.MAX_WBITS  # zlib's own signs for what frames the data
_FRAMED = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


class Damaged(Exception):
    """The data is not what its coding says."""


class Inflater:
    """One body: gzip with any number of members, or deflate with zlib's frame or without."""

    def __init__(self, coding: str) -> None:
        self.coding = "deflate" if coding == "deflate" else "gzip"
        self._zlib: Any = zlib.decompressobj(_GZIP) if self.coding == "gzip" else None
        self._begin = b""  # of a deflate body, until it shows whether it is framed
        self._started = False
        self._framed = self.coding == "gzip"  # by a head that damage would show in

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` inflates to. Raises Damaged after what could still be inflated."""
        if self._zlib is None:
            self._begin += data
            if len(self._begin) < 2:
                return
            data, first = self._begin, int.from_bytes(self._begin[:2], "big")
            framed = (first >> 8) & 15 == zlib.DEFLATED and first % 31 == 0
            self._zlib = zlib.decompressobj(_FRAMED if framed else _RAW)
            self._framed = framed
        while data:
            if self._zlib.eof:
                data = data.lstrip(b"\0")  # padding between and behind members
                if not data or self.coding != "gzip":
                    return
                self._zlib = zlib.decompressobj(_GZIP)
            self._started = True
            before = self._zlib.copy()  # an error takes what was inflated in its step along
            try:
                piece, data = self._step(data)
            except zlib.error as error:
                if self._framed:
                    yield from _salvaged(before, data)
                raise Damaged(str(error)) from None
            if piece:
                yield piece

    def ended(self) -> bool:
        """Whether the body was whole, if it ends here. An empty one is."""
        return bool(self._zlib.eof) if self._started else not self._begin

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        piece: bytes = self._zlib.decompress(data, PIECE)
        if self._zlib.eof:
            return piece, self._zlib.unused_data
        rest: bytes = self._zlib.unconsumed_tail
        if not rest and len(piece) == PIECE:
            # All input is taken but output may be left inside: a few kilobytes at most, as
            # zlib holds no more than some bits of input and one match.
            piece += self._zlib.decompress(b"", PIECE)
        return piece, rest


def _salvaged(inflating: Any, data: bytes) -> Iterator[bytes]:
    """What comes before the damage in a step that failed, but for its last byte."""
    size = PIECE
    while size:
        before = inflating.copy()
        try:
            piece: bytes = inflating.decompress(data, size)
        except zlib.error:
            inflating, size = before, size // 2
            continue
        if not piece:
            return
        data = inflating.unconsumed_tail
        yield piece
