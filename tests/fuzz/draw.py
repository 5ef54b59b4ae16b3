"""Choices out of bytes: what a fuzzer changes in the bytes changes one choice or a few.

Bytes that have run out count as zero, so every generator must end on zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

PIECES_MAX = 80  # of a body: what is learnt from thousands of them costs thousands of inputs


class Draw:
    """A place in the fuzzer's bytes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        at = self.at
        self.at = at + 1
        return self.data[at] if at < len(self.data) else 0

    def below(self, limit: int) -> int:
        """0 to limit - 1, of one byte where that is enough."""
        if limit <= 256:
            return self.byte() % limit
        return self.whole((limit.bit_length() + 7) // 8) % limit

    def between(self, least: int, most: int) -> int:
        return least + self.below(most - least + 1)

    def whole(self, size: int) -> int:
        """An integer of so many bytes, never negative."""
        return int.from_bytes(self.take(size), "big")

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def chance(self, one_in: int) -> bool:
        """Rarely true; never once the bytes have run out."""
        return self.byte() % one_in == one_in - 1

    def take(self, size: int) -> bytes:
        at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def rest(self) -> bytes:
        return self.take(max(0, len(self.data) - self.at))

    def text(self, most: int = 12) -> str:
        """Text without lone surrogates, of any characters."""
        return self.take(self.below(most + 1)).decode("utf-8", "replace")

    def sizes(self) -> list[int]:
        """Sizes of chunks, to be used in turn."""
        return [1 + self.below(90) for _ in range(1 + self.below(4))]


def chunks(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The body in pieces of these sizes, used in turn; a long one in larger pieces."""
    out = []
    place = turn = 0
    more = len(body) // PIECES_MAX
    while place < len(body):
        size = sizes[turn % len(sizes)] + more
        out.append(body[place : place + size])
        place += size
        turn += 1
    return out


def damaged(draw: Draw, body: bytes, tokens: Sequence[bytes]) -> bytes:
    """The body with one to four small damages."""
    changed = bytearray(body)
    for _ in range(1 + draw.below(4)):
        place = draw.below(len(changed) + 1)
        width = draw.below(4)
        changed[place : place + width] = draw.pick(tokens) if draw.flag() else draw.take(2)
    return bytes(changed)


class Patched:
    """Other values for names of modules, while it lasts: bounds that short inputs can reach."""

    def __init__(self, *places: tuple[Any, str, Any]) -> None:
        self._places = [(owner, name, getattr(owner, name), value) for owner, name, value in places]

    def __enter__(self) -> None:
        for owner, name, _, value in self._places:
            setattr(owner, name, value)

    def __exit__(self, *error: object) -> None:
        for owner, name, value, _ in self._places:
            setattr(owner, name, value)
