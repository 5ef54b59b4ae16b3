"""A provider's loosely typed values as what a record's fields hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

import msgspec
import orjson

# What is more counts nothing, and no store's number could hold it.
COUNT_MAX: Final = 10**18 - 1


def count_of(value: object) -> int | None:
    """A number of things, also as text; None where it is neither."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= COUNT_MAX else None


def text_of(value: object) -> str | None:
    """A field as text, whatever type it came as; what is empty is null, as in a file."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json_of(value).decode()


def json_of(value: object) -> bytes:
    """Compact JSON of a decoded value; integers may be of any size."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return msgspec.json.encode(value)


def unknown_filters(filters: Iterable[str], known: Sequence[str]) -> list[str]:
    """A fault for each filter that the provider does not have, naming the nearest it has."""
    return [
        f'filters.{key}: unknown key; the nearest known one is "{nearest}"'
        for key in filters
        if key not in known
        for nearest in get_close_matches(key, known, n=1, cutoff=0.0)
    ]
