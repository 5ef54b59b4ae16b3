"""A secret that cannot be printed by accident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

# A part of a secret is one by itself from this length on.
PART_MIN: Final = 6


class Secret:
    """A password, key or token. Every rendering of it is `***`; `reveal` is the one way in."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __str__(self) -> str:
        return "***"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __getstate__(self) -> object:
        raise TypeError("a secret is not pickled")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        raise TypeError("a secret is not pickled")


def secrets_in(value: Any) -> Iterator[str]:
    """The secrets anywhere in a configuration's value, and what is secret in them by itself: a
    password inside a URL, a token behind its scheme."""
    if isinstance(value, Secret):
        whole = value.reveal()
        yield whole
        yield from (part for part in whole.split()[1:] if len(part) >= PART_MIN)
        if "://" in whole:
            yield from _of_url(whole)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from secrets_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from secrets_in(inner)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for inner in value:
            yield from secrets_in(inner)


def _of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        words = [parts.password or "", *(word for _, word in parse_qsl(parts.query))]
    except ValueError:
        return
    for word in words:
        for part in dict.fromkeys((word, unquote(word))):
            if len(part) >= PART_MIN:
                yield part
