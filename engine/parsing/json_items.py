"""Records of one array in a JSON object, out of a body that comes in chunks of any size.

The quick way: cut what has come at the last record boundary (`},{` with any white space) and
decode the slice before it, wrapped in brackets. A slice that begins at a record and decodes is
balanced, so the boundary was a real one; at a false one (in a string, in a nested array) the
decoder refuses, and an earlier boundary is tried. This is nearly as quick as decoding the body
whole, and needs a window instead of the body.

The sure way: where guessing failed, for what is broken, and for the last record of the array, the
exact scanner finds the end of each value. No byte is part of more than one window that is guessed
at, and the tries for a window are few, so no body makes the whole more than linear.

Both give the same records, flaws and counts for every way of cutting the body into chunks. A
record that cannot be read costs only itself. Nothing here may ever raise for what a body holds,
hold more than one record and a few chunks, or pass over a record without leaving a flaw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from engine.parsing.flaw import FLAW_RAW_MAX, Flaw, opening, set_aside
from engine.parsing.json_boundary import Boundaries
from engine.parsing.json_cursor import ValueCursor
from engine.parsing.json_decode import DECODE_ERRORS, decode_value, encode, reason
from engine.parsing.json_scan import (
    BLANK,
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COMMA,
    OPEN_ARRAY,
    OPEN_OBJECT,
    QUOTE,
    STRING,
    TOO_DEEP,
)
from engine.parsing.json_shortcut import Shortcut, Ways

# one file: the phases of one walk over a body share all of its state

# A record is some hundred bytes; with a long text and many fields some thousand. Beyond this it
# is an attack or a broken array, and it is passed over without being held.
RECORD_MAX: Final = 16 * 1024 * 1024
# Everything of the object but the array: page numbers, totals, explanations.
ENVELOPE_MAX: Final = 1024 * 1024
# A key, quotes included; names of members are words.
KEY_MAX: Final = 64 * 1024

# How much is decoded at once: what a transport hands over (64 KiB) and a rest from before. Bigger
# slices leave the processor's cache and cost more per record.
WINDOW: Final = 128 * 1024
# After n windows in vain in a row, 2**n windows go the sure way before the next guess; at most:
PATIENCE_MAX: Final = 6

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = 0x3A
_SELF_ENDING: Final = (b"}", b"]", b'"', b"e", b"l")  # a number's last digit may not be its last


class JsonItems(ValueCursor):
    """The records of the array under `key` at the top level of a JSON object."""

    def __init__(
        self,
        key: str,
        *,
        record_max: int = RECORD_MAX,
        envelope_max: int = ENVELOPE_MAX,
    ) -> None:
        self.envelope: dict[str, Any] = {}
        self.found = False
        self.rows = 0
        self.complete = False
        self.cause: str | None = None
        self.flaws: list[Flaw] = []
        super().__init__()
        self._key = key
        self._record_max = record_max
        self._envelope_max = envelope_max
        self._envelope_size = 0
        self._out: list[Any] = []
        self._phase: Callable[[], bool] = self._begin
        self._closed = False
        self._member = ""  # the key it stands under
        # Guessing.
        self._boundaries = Boundaries()
        self._sure_until = 0  # up to here (in the body) there is nothing to be won by guessing
        self._in_vain = 0
        self._ways = Ways()
        # When the rest cannot be read.
        self._stop_cause = ""
        self._began = False
        self._rest = bytearray()
        self._rest_start = 0
        self._rest_more = False
        self._complaint: str | None = None  # the first thing that makes the envelope unreliable

    def feed(self, chunk: bytes) -> list[Any]:
        """Take the next bytes; return the records that are known to be whole by now."""
        if self._closed:
            raise RuntimeError("fed after close")
        return self._work() if self._gather(chunk) else []

    def close(self, *, cut: bool = False) -> list[Any]:
        """Say that there are no more bytes; return what is still whole."""
        if self._closed:
            return []
        self._closed = True
        out = self._work()
        self._finish(cut)
        out += self._out
        self._out = []
        self._buffer = b""
        return out

    def take_flaws(self) -> list[Flaw]:
        """Hand over what was set aside since the last time."""
        taken, self.flaws = self.flaws, []
        return taken

    def raw(self, record: Any) -> bytes:
        """A record as it stands in an answer."""
        return encode(record)

    def frame(self, raw: bytes) -> bytes:
        """An answer with this record alone."""
        return b'{"%b":[%b]}' % (self._key.encode(), raw)

    def offer(self, shortcut: Shortcut) -> None:
        """What may be taken where the records are of the usual kind."""
        self._ways.shortcut = shortcut

    def take_shortcuts(self, allowed: bool) -> None:
        """Whether to give what the shortcut makes of records, where it fits; at first not."""
        self._ways.short = allowed

    def _work(self) -> list[Any]:
        self._refill()
        while self._phase():
            pass
        out, self._out = self._out, []
        return out

    # -- phases: each returns whether there may be more to do with what is in the buffer --------

    def _begin(self) -> bool:
        if not self._base and not self._at:
            if len(self._buffer) < len(_BOM) and not self._closed:
                return False
            self._at = len(_BOM) if self._buffer.startswith(_BOM) else 0
        byte = self._next_byte()
        if byte == -1:
            return False
        if byte != OPEN_OBJECT:
            return self._stop("a JSON array where an object was expected")
        self._at += 1
        self._phase = self._first_key
        return True

    def _first_key(self) -> bool:
        byte = self._next_byte()
        if byte == CLOSE_OBJECT:
            self._at += 1
            self._phase = self._after
            return True
        if byte != -1:
            self._phase = self._any_key
        return byte != -1

    def _any_key(self) -> bool:
        byte = self._next_byte()
        if byte == -1:
            return False
        if byte != QUOTE:
            return self._malformed()
        match = STRING.match(self._buffer, self._at)
        size = (match.end() if match else len(self._buffer)) - self._at
        if size > KEY_MAX:
            return self._stop(f"a key of more than {KEY_MAX} bytes")
        if match is None:
            return False
        raw = match.group()
        try:
            self._member = decode_value(raw)
        except DECODE_ERRORS as error:
            self._member = raw[1:-1].decode("utf-8", "replace")
            self._set_aside(f"a key: {reason(error)}", self._base + self._at, raw)
        self._envelope_size += size
        self._at = match.end()
        self._phase = self._colon
        return True

    def _colon(self) -> bool:
        byte = self._next_byte()
        if byte == -1:
            return False
        if byte != _COLON:
            return self._malformed()
        self._at += 1
        self._phase = self._member_value
        return True

    def _member_value(self) -> bool:
        byte = self._next_byte()
        if byte == -1:
            return False
        if self._member == self._key and byte == OPEN_ARRAY:
            self._at += 1
            self.found = True
            self.envelope.pop(self._key, None)
            self._phase = self._first_item
        else:
            self._expect(CLOSE_OBJECT)
            self._phase = self._value
        return True

    def _value(self) -> bool:
        end = self._walk(max(0, self._envelope_max - self._envelope_size))
        if end < 0:
            return self._unfinished(end)
        if self._head is not None:
            self._too_big_member()
        else:
            raw = self._buffer[self._at : end].strip(BLANK)
            self._envelope_size += len(raw)
            self._keep_member(raw)
        self._at = end + 1
        self._phase = self._any_key if self._buffer[end] == COMMA else self._after
        return True

    def _first_item(self) -> bool:
        byte = self._next_byte()
        if byte == CLOSE_ARRAY:
            self._at += 1
            self._phase = self._after_array
        elif byte != -1:
            self._expect(CLOSE_ARRAY)
            self._phase = self._items
        return byte != -1

    def _items(self) -> bool:
        record_max = self._record_max
        while True:
            if self._is_fresh() and self._start >= self._sure_until:
                self._guess()
            end = self._walk(record_max)
            if end < 0:
                return self._unfinished(end)
            self._take_item(end)
            self._at = end + 1
            if self._buffer[end] == CLOSE_ARRAY:
                self._phase = self._after_array
                return True
            self._expect(CLOSE_ARRAY)

    def _after_array(self) -> bool:
        byte = self._next_byte()
        if byte == -1:
            return False
        if byte not in (COMMA, CLOSE_OBJECT):
            return self._malformed()
        self._at += 1
        self._phase = self._any_key if byte == COMMA else self._after
        return True

    def _after(self) -> bool:
        if self._next_byte() == -1:
            return False
        return self._stop("more bytes after the end of the document")

    def _stopped(self) -> bool:
        part = self._buffer[self._at :]
        room = FLAW_RAW_MAX - len(self._rest)
        self._rest += part[:room]
        self._rest_more = self._rest_more or len(part) > room
        self._at = len(self._buffer)
        return False

    def _unfinished(self, end: int) -> bool:
        return self._stop("nested too deep") if end == TOO_DEEP else False

    # -- one value ------------------------------------------------------------------------------

    def _take_item(self, end: int) -> None:
        self.rows += 1
        if self._head is not None:
            self._too_big_item()
            return
        raw = self._buffer[self._at : end].strip(BLANK)
        try:
            self._out.append(decode_value(raw))
        except DECODE_ERRORS as error:
            self._set_aside_item(reason(error) if raw else "nothing between the commas", raw)

    def _too_big_item(self) -> None:
        head, self._head = self._head or b"", None
        cause = f"a record of more than {self._record_max} bytes"
        self._set_aside_item(cause, head, truncated=True)

    def _too_big_member(self) -> None:
        head, self._head = self._head or b"", None
        cause = f"an envelope of more than {self._envelope_max} bytes"
        self._complaint = self._complaint or cause
        self._set_aside(cause, self._start, head, truncated=True)

    def _keep_member(self, raw: bytes) -> None:
        try:
            value = decode_value(raw)
        except DECODE_ERRORS as error:
            self._set_aside(f"in the envelope: {reason(error)}", self._start, raw)
            return
        if self._member != self._key:
            self.envelope[self._member] = value
        elif not self.found:
            self.envelope[self._key] = value

    def _set_aside_item(self, cause: str, raw: bytes, *, truncated: bool = False) -> None:
        position = f"record {self.rows}, byte {self._start}"
        self.flaws.append(set_aside(cause, position, raw, truncated=truncated))

    def _set_aside(self, cause: str, start: int, raw: bytes, *, truncated: bool = False) -> None:
        self.flaws.append(set_aside(cause, f"byte {start}", raw, truncated=truncated))

    # -- guessing -------------------------------------------------------------------------------

    def _guess(self) -> None:
        """Take as many records at once as a window holds, if its boundaries can be believed."""
        start = self._at
        # Not more than a record may have: so none of the records in it is too big.
        stop = min(len(self._buffer), start + min(WINDOW, self._record_max))
        self._sure_until = self._base + stop
        view = memoryview(self._buffer)
        for cut, comma in self._boundaries.candidates(self._buffer, start, stop):
            try:
                values = self._ways.records(view[start:cut])
            except DECODE_ERRORS:
                continue
            self._boundaries.proven(self._buffer, start, cut, stop)
            self._in_vain = 0
            self._out += values
            self.rows += len(values)
            self._at = comma + 1
            self._next_byte()
            self._expect(CLOSE_ARRAY)
            return
        if self._boundaries.tried:
            self._sure_until += WINDOW << self._in_vain
            self._in_vain = min(self._in_vain + 1, PATIENCE_MAX)

    # -- the end --------------------------------------------------------------------------------

    def _malformed(self) -> bool:
        return self._stop(f"not valid JSON at byte {self._base + self._at}")

    def _stop(self, cause: str) -> bool:
        """Give up: what is left goes into one flaw."""
        self._stop_cause = cause
        self._rest_start = self._base + self._at
        if self._head is not None:
            self._rest += self._head
            self._rest_start, self._rest_more, self._head = self._start, True, None
        self._began = self._phase != self._begin
        self._phase = self._stopped
        return True

    def _finish(self, cut: bool) -> None:
        size = self._base + len(self._buffer)
        whole = self._finish_value()
        if self._phase == self._stopped:
            raw = bytes(self._rest)
            cause = self._stop_cause
            if not self._began and not raw.startswith(b"["):
                cause = f"not JSON: begins with {opening(raw)}"
            self.cause = cause
            self._set_aside(cause, self._rest_start, raw, truncated=self._rest_more)
        elif self._phase == self._begin:
            self.cause = "empty"
        elif self._phase == self._after and not cut:
            self.cause = self._complaint
            self.complete = self.cause is None
            if not self.found and self.envelope.get(self._key) is not None:
                self.cause = f"'{self._key}' is not an array"
        elif self.found:
            self.cause = f"cut after {whole} records (byte {size})"
        else:
            self.cause = f"cut before the records (byte {size})"

    def _finish_value(self) -> int:
        """Take the value at the cut, if it is whole; return how many records are."""
        if self._phase not in (self._items, self._value):
            return self.rows
        is_item = self._phase == self._items
        raw = self._buffer[self._at :].strip(BLANK)
        if self._head is not None:
            self.rows += is_item
            if is_item:
                self._too_big_item()
            else:
                self._too_big_member()
            return self.rows - is_item
        if not raw.endswith(_SELF_ENDING) or self._scan.is_open:
            if raw and is_item:
                self.rows += 1
                self._set_aside_item("cut off before its end", raw)
                return self.rows - 1
        elif is_item:
            self._take_item(len(self._buffer))
        else:
            self._keep_member(raw)
        return self.rows
