r"""Find where a JSON value ends, exactly and in linear time, without decoding it.

The quick way to cut a body into records (guess a boundary, let the decoder prove it) fails on a
record that is broken, on the last record of an array and on bodies made to mislead it. This
scanner is the way that always works. It knows strings, escapes and depth; complete strings and
innermost containers are skipped inside the regex engine, so Python code runs only once for each
outer bracket. All quantifiers are possessive: there is nothing to backtrack into, so hostile
bytes cost no more than ordinary ones.

It can stop at the end of a chunk and go on with the next one, without ever looking at a byte
again, and what lies behind it may be thrown away. It must never keep the bytes it has seen.

Brackets are matched by kind, so that a broken value does as little harm as possible: a closer
closes the nearest opener of its own kind (`{"a": [1}` ends at the brace) and is passed over when
there is none (`{"a": 1}}` is one broken value, not the end of the document).
"""

from __future__ import annotations

import re
from typing import Final

# Characters that JSON takes for white space; bytes.strip() alone would take more.
BLANK: Final = b" \t\n\r"

# Levels of one value. A decoder refuses a thousandth of it; the bound is here because a value
# which is skipped for its size may otherwise pile up a stack as large as the body.
DEPTH_MAX: Final = 1024 * 1024

MORE: Final = -1  # the value does not end in these bytes
TOO_DEEP: Final = -2  # it nests beyond DEPTH_MAX

QUOTE, COMMA = 0x22, 0x2C
OPEN_ARRAY, CLOSE_ARRAY = 0x5B, 0x5D
OPEN_OBJECT, CLOSE_OBJECT = 0x7B, 0x7D

_STRING_REST: Final = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_STRING: Final = rb'"' + _STRING_REST + rb'"'
_FLAT: Final = rb'[^"\[\]{}]*+(?:' + _STRING + rb'[^"\[\]{}]*+)*+'
_LEAF: Final = rb"\{" + _FLAT + rb"\}|\[" + _FLAT + rb"\]"

STRING: Final = re.compile(_STRING, re.DOTALL)
SPACE: Final = re.compile(rb" *+[ \t\n\r]*+")  # a run of one character is seven times as quick
_IN_STRING: Final = re.compile(_STRING_REST, re.DOTALL)
_INSIDE: Final = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL)
# At the value's own level the comma and the container's closer count, and no other closer does.
_OUTSIDE: Final = {
    CLOSE_ARRAY: re.compile(rb'(?:[^"\[\]{,]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL),
    CLOSE_OBJECT: re.compile(rb'(?:[^"\[{},]++|' + _STRING + rb"|" + _LEAF + rb")*+", re.DOTALL),
}


def skip(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Return the place behind a pattern that may match nothing."""
    match = pattern.match(data, position)
    return match.end() if match else position


class ValueScan:
    """The walk over one value, which may come in pieces."""

    __slots__ = ("_arrays", "_closer", "_escaped", "_in_string", "_objects", "_stack")

    def __init__(self, closer: int) -> None:
        self.reset(closer)

    def reset(self, closer: int) -> None:
        """Get ready for a value inside a container which `closer` ends."""
        self._closer = closer
        self._stack = bytearray()
        self._objects = 0
        self._arrays = 0
        self._in_string = False
        self._escaped = False

    @property
    def is_open(self) -> bool:
        """Whether a string or a container waits for its end."""
        return self._in_string or bool(self._stack)

    def run(self, data: bytes, position: int) -> int:
        """Go on from `position`; return where the comma or closer behind the value stands.

        MORE means that all of `data` belongs to the value; go on with the bytes after it.
        """
        if self._in_string:
            position = self._leave_string(data, position)
            if position == MORE:
                return MORE
        stack = self._stack
        outside = _OUTSIDE[self._closer]
        size = len(data)
        while True:
            position = skip(_INSIDE if stack else outside, data, position)
            if position >= size:
                return MORE
            byte = data[position]
            if byte == QUOTE:
                # A string that had its end here would have been skipped.
                self._in_string = True
                return self._leave_string(data, position + 1)
            if byte in (OPEN_OBJECT, OPEN_ARRAY):
                if len(stack) >= DEPTH_MAX:
                    return TOO_DEEP
                self._open(byte)
            elif stack:
                self._close(byte)
            else:
                return position
            position += 1

    def _leave_string(self, data: bytes, position: int) -> int:
        if self._escaped:
            if position >= len(data):
                return MORE
            self._escaped = False
            position += 1
        end = skip(_IN_STRING, data, position)
        if end >= len(data):
            return MORE
        if data[end] == QUOTE:
            self._in_string = False
            return end + 1
        self._escaped = True  # a backslash is the last byte: what it escapes comes later
        return MORE

    def _open(self, byte: int) -> None:
        self._stack.append(byte)
        if byte == OPEN_OBJECT:
            self._objects += 1
        else:
            self._arrays += 1

    def _close(self, byte: int) -> None:
        # The counts make a closer without an opener cheap: no search through a deep stack.
        if byte == CLOSE_OBJECT:
            opener, known = OPEN_OBJECT, self._objects
        else:
            opener, known = OPEN_ARRAY, self._arrays
        while known:
            last = self._stack.pop()
            if last == OPEN_OBJECT:
                self._objects -= 1
            else:
                self._arrays -= 1
            if last == opener:
                return
