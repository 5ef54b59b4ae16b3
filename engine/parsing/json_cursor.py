"""The bytes of a body that are at hand, and the value in them that is being walked over.

Chunks are gathered here until a look at them pays, and the place in the buffer is kept together
with the place in the body, which positions of flaws are given in. A value beyond its limit is
walked over to its end without being kept: only its beginning stays, for the flaw that shows it.

It must never hold more than one value within its limit and what was gathered since, and never
judge by the way the body came in chunks: what is too big is so by its own bytes alone.
"""

from __future__ import annotations

from typing import Final

from engine.parsing.flaw import FLAW_RAW_MAX
from engine.parsing.json_scan import BLANK, CLOSE_OBJECT, SPACE, TOO_DEEP, ValueScan, skip

# Smaller chunks are gathered first: each look at the buffer has a price.
STEP_MIN: Final = 4096
# With a big unfinished value in the buffer, this share of it is gathered before it is copied
# together with what is new: otherwise tiny chunks would copy it again and again.
STEP_SHARE: Final = 4


class ValueCursor:
    """A buffer over the body, a place in it, and the value that begins there."""

    def __init__(self) -> None:
        self._buffer = b""
        self._base = 0  # bytes of the body before the buffer
        self._at = 0  # what is left to read begins here in the buffer
        self._new: list[bytes] = []  # chunks that are not in the buffer yet
        self._new_size = 0
        self._scan = ValueScan(CLOSE_OBJECT)
        self._scanned = 0  # the value has been walked over up to here
        self._head: bytes | None = None  # it is too big: its beginning; the rest is not kept
        self._start = 0  # where it begins in the body

    def _gather(self, chunk: bytes) -> bool:
        """Keep a chunk; say whether it is time to look at what has come."""
        self._new.append(chunk)
        self._new_size += len(chunk)
        return self._new_size >= max(STEP_MIN, (len(self._buffer) - self._at) // STEP_SHARE)

    def _refill(self) -> None:
        """Let go of what was read, and put what was gathered behind the rest."""
        gone = self._at
        self._buffer = b"".join((self._buffer[gone:], *self._new))
        self._new.clear()
        self._new_size = 0
        self._base += gone
        self._scanned -= gone
        self._at = 0

    def _next_byte(self) -> int:
        """Pass over white space; return the byte behind it, or -1."""
        self._at = skip(SPACE, self._buffer, self._at)
        return self._buffer[self._at] if self._at < len(self._buffer) else -1

    def _expect(self, closer: int) -> None:
        """Get ready for a value that begins here, in a container which `closer` ends."""
        self._scan.reset(closer)
        self._scanned, self._start = self._at, self._base + self._at

    def _is_fresh(self) -> bool:
        """Pass over the white space before a value of which nothing has been walked over yet."""
        if self._scanned != self._at or self._head is not None:
            return False
        self._next_byte()
        self._scanned, self._start = self._at, self._base + self._at
        return True

    def _walk(self, limit: int) -> int:
        """Go on to the end of the value; negative (MORE, TOO_DEEP): it is not in the buffer."""
        end = self._scan.run(self._buffer, self._scanned)
        if end == TOO_DEEP:
            return end
        here = len(self._buffer) if end < 0 else end
        if self._head is None and here - self._at > limit:
            beyond = self._buffer[self._at + limit : here]
            if self._scan.is_open or beyond.strip(BLANK):
                self._head = self._buffer[self._at : self._at + min(limit, FLAW_RAW_MAX)]
            elif end < 0:  # a flood of white space behind the value
                self._buffer = self._buffer[: self._at + limit]
                self._base += len(beyond)
        if end < 0:
            if self._head is not None:
                self._at = len(self._buffer)
            self._scanned = len(self._buffer)
        return end
