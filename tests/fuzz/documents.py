"""JSON as text, written value by value: strange and well-formed, or strange and broken.

Nothing here goes through an encoder: what an encoder never writes (blanks, escapes, numbers in
odd spellings, names that stand twice) is what a parser has to be tried with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.fuzz.draw import Draw

STRINGS: Sequence[bytes] = (
    b'""', b'"a"', b'"},{"', b'"\\"},{\\"a\\":1"', b'"\\\\"', b'"]}"', b'"\\u0000"', b'"\xc3\xa9"',
    b'"\\ud83d\\ude00"', b'"\xf0\x9f\x98\x80"', b'"\\/\\b\\f\\n\\r\\t"', b'",\\"r\\":["', b'"{"',
    b'"[["', b'"\xe2\x80\xa8"', b'"447700900001"',
)  # fmt: skip
NUMBERS: Sequence[bytes] = (
    b"0", b"-0", b"1", b"-1.5", b"1e5", b"1E-7", b"0.1", b"9007199254740993",
    b"18446744073709551616", b"-123456789012345678901234567890", b"1.7976931348623157e308",
    b"5e-324", b"0.0", b"-0.0", b"123456789.123456789", b"2.5E+3",
)  # fmt: skip
WORDS: Sequence[bytes] = (b"null", b"true", b"false")
BROKEN: Sequence[bytes] = (
    b"x", b"nul", b"01", b"1.", b".5", b"+1", b"1e999", b"NaN", b"Infinity", b'"\\ud800"',
    b'"\\x"', b'"\xff"', b'"\x01"', b"{]}", b'{"a" 1}', b'{"a":1,}', b"[1,]", b"[1 2]", b"{}}",
    b"'a'", b"", b'"\xed\xa0\x80"', b"{a:1}", b"-", b'"\\u12"', b"\x00", b"]", b"}", b'"',
)  # fmt: skip
BLANKS: Sequence[bytes] = (b"", b"", b"", b" ", b"\n", b"\t \r\n")
KEYS: Sequence[bytes] = (b'"a"', b'"b"', b'"r"', b'"\\u0072"', b'""', b'"a,b"', b'"},{"')
TOKENS: Sequence[bytes] = (
    b'"', b"}", b"]", b"{", b"[", b",", b":", b"\\", b"},{", b"\xff", b"\\u", b"0", b"\xef\xbb\xbf",
)  # fmt: skip

DEEP = (20, 198, 203)  # far deeper ones cost milliseconds each: unit tests have them


class Writer:
    """Writes JSON text by choices; `loose`: now and then something that is none."""

    def __init__(self, draw: Draw, *, loose: bool = False, deep: bool = True) -> None:
        self.draw = draw
        self.loose = loose
        self.deep = deep

    def blank(self) -> bytes:
        return self.draw.pick(BLANKS)

    def value(self, depth: int = 4) -> bytes:
        draw = self.draw
        kind = draw.byte()
        if self.loose and kind >= 232:
            return draw.pick(BROKEN)
        if self.deep and kind == 255 and draw.chance(8):
            return self._deep()
        if depth and kind % 8 == 6:
            return self.array([self.value(depth - 1) for _ in range(draw.below(4))])
        if depth and kind % 8 == 7:
            return self.table(
                [(draw.pick(KEYS), self.value(depth - 1)) for _ in range(draw.below(4))]
            )
        if kind % 8 < 2:
            return draw.pick(NUMBERS)
        if kind % 8 == 2:
            return draw.pick(WORDS)
        if kind % 8 == 3:
            return json.dumps(draw.text(), ensure_ascii=draw.flag()).encode()
        return draw.pick(STRINGS)

    def _deep(self) -> bytes:
        levels = self.draw.pick(DEEP)
        inner = self.draw.pick(WORDS)
        if self.draw.flag():
            return b"[" * levels + inner + b"]" * levels
        return b'{"a":' * levels + inner + b"}" * levels

    def array(self, values: Sequence[bytes]) -> bytes:
        before, behind = self.blank(), self.blank()
        return b"[" + before + (before + b"," + behind).join(values) + behind + b"]"

    def table(self, members: Sequence[tuple[bytes, bytes]]) -> bytes:
        colon = self.blank() + b":" + self.blank()
        before, behind = self.blank(), self.blank()
        inner = (before + b"," + behind).join(key + colon + value for key, value in members)
        return b"{" + before + inner + behind + b"}"


def same(one: Any, other: Any) -> bool:
    """Whether two decoded values are equal to the type and the sign of a zero."""
    return repr(one) == repr(other)
