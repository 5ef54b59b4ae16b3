"""The one JSON decoder behind the parsers, and its errors in plain words.

msgspec decodes chunks about as quickly as orjson and keeps integers beyond 64 bits exact, where
orjson turns them into floats without a word: a message id would lose its last digits. It is
strict (no NaN, no trailing bytes, no lone surrogates), and the splitter depends on that: a cut is
proven by the fact that the slice before it decodes.

It must never be replaced by a lenient decoder, and a cause must never quote the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import msgspec
import orjson

# msgspec: its own errors. ValueError: invalid UTF-8 (UnicodeDecodeError), orjson's errors.
DECODE_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError)

# Levels of one record. Four are the most that a delivery report has; what is accepted has to be
# written, read and written again, and JSON writers give up at 254.
NESTING_MAX: Final = 200

# An integer of 19 digits or more may not fit into 64 bits: orjson would round it.
_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")
_AT_BYTE: Final = re.compile(r" ?\(byte (\d+)\)$")
_MALFORMED: Final = "JSON is malformed: "

_decode: Final = msgspec.json.Decoder().decode


class Misfit(Exception):
    """Records that a shortcut does not know how to read; they are read the long way."""


def decode_list(raw: bytes) -> list[Any]:
    """Decode an array."""
    values: list[Any] = _decode(raw)
    _refuse_deep(values, raw.count(b"[") + raw.count(b"{") - 1)
    return values


def decode_value(raw: bytes) -> Any:
    """Decode one value.

    msgspec counts nesting on the interpreter's stack, so its limit depends on who calls. What it
    finds too deep goes to orjson, whose limit (1,024) is fixed, and then to a limit of our own:
    whether a record is accepted depends on the record alone.
    """
    try:
        value = _decode(raw)
    except RecursionError:
        if _LONG_INTEGER.search(raw):
            raise
        value = orjson.loads(raw)
    _refuse_deep([value], raw.count(b"[") + raw.count(b"{"))
    return value


def _refuse_deep(values: Iterable[Any], openers: int) -> None:
    """Raise RecursionError where one of the values has more than NESTING_MAX levels.

    `openers` are the brackets in their text: those that are not accounted for cannot add more
    levels than they are, so that mostly one look at the records is enough.
    """
    for level in range(NESTING_MAX + 1):
        if level + openers <= NESTING_MAX:
            return
        containers = [value for value in values if type(value) is dict or type(value) is list]
        if not containers:
            return
        openers -= len(containers)
        values = chain.from_iterable(
            value.values() if type(value) is dict else value for value in containers
        )
    raise RecursionError


def encode(value: Any) -> bytes:
    """Write a value that was decoded here. Raises RecursionError or TypeError beyond orjson's
    depth, which is less than what may have been read."""
    try:
        return msgspec.json.encode(value)
    except RecursionError:
        return orjson.dumps(value)


def reason(error: BaseException) -> str:
    """Say in plain words why a single value did not decode."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in text:  # the latter since msgspec 0.23
        return "not valid UTF-8 in a string"
    if isinstance(error, orjson.JSONDecodeError):
        return "nested too deep" if "depth" in text else f"not valid JSON at byte {error.pos}"
    if "out of range" in text:
        return "a number is out of range"
    found = _AT_BYTE.search(text)
    if found is None or not text.startswith(_MALFORMED):
        return "not valid JSON: a string or the record ends too early"
    what = text[len(_MALFORMED) : found.start()]
    return f"not valid JSON: {what} at byte {found.group(1)} of the record"
