"""Guess where a record ends: likely boundaries in a window, the last one first.

A guess costs a search; that it was right is for the decoder to prove. Boundaries that were proven
teach the exact bytes between two records (`},{"bulkId"`, with the white space of this body and
the first key of its records): the next ones are found with one backward search, and objects in
nested arrays, which begin with other keys, do not mislead it.

A guess must never be believed without its proof, and the guesses for a window must stay few.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# Decodes in vain for one window. Each may cost as much as the window's records themselves.
TRIES: Final = 4
# The end of a window is searched first; records are mostly smaller than this.
NEAR: Final = 4096
# White space, braces and a key: what is longer is not worth comparing.
LEARNT_MAX: Final = 256

_OPEN_OBJECT: Final = 0x7B
# How values that are no objects end, by their first byte; all others end at any comma.
_ENDS: Final = {0x22: b'",', 0x5B: b"],"}
_BETWEEN: Final = re.compile(rb"\}[ \t\n\r]*+,[ \t\n\r]*+\{")
_BETWEEN_AND_KEY: Final = re.compile(rb'\}[ \t\n\r]*+,[ \t\n\r]*+\{[ \t\n\r]*+"[^"\\]*+"')


class Boundaries:
    """Likely boundaries between the records of one body."""

    __slots__ = ("_learnt", "tried")

    def __init__(self) -> None:
        self.tried = 0
        self._learnt = b""

    def candidates(self, data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (end of a record, comma behind it), from the last to the first; a few."""
        self.tried = 0
        if start >= stop:
            return
        if data[start] == _OPEN_OBJECT:
            places, size = self._ends_of_objects(data, start, stop), 1
        else:
            end = _ENDS.get(data[start], b",")
            # Not at the start: nothing at all would decode, too, and hide a missing value.
            places, size = self._backwards(data, end, start + 1, stop), len(end) - 1
        for place in places:
            self.tried += 1
            yield place + size, data.index(b",", place)
            if self.tried >= TRIES:
                return

    def proven(self, data: bytes, start: int, cut: int, stop: int) -> None:
        """Learn from a boundary that was a real one."""
        if data[start] != _OPEN_OBJECT:
            return
        if self._learnt:
            # Found far from the end: this body's records do not all look like this.
            if cut - start < (stop - start) // 2:
                self._learnt = b""
            return
        match = _BETWEEN_AND_KEY.match(data, cut - 1)
        if match and match.end() - match.start() <= LEARNT_MAX:
            self._learnt = match.group()

    def _ends_of_objects(self, data: bytes, start: int, stop: int) -> Iterator[int]:
        if self._learnt:
            places = self._backwards(data, self._learnt, start, stop)
            first = next(places, -1)
            if first >= 0:
                yield first
                yield from places
                return
        # One search of the near end, one of all: a window is never searched more than twice.
        near = max(start, stop - NEAR)
        found = self._all(data, near, stop)
        if not found and near > start:
            found = self._all(data, start, stop)
        yield from reversed(found)

    @staticmethod
    def _all(data: bytes, start: int, stop: int) -> list[int]:
        return [match.start() for match in _BETWEEN.finditer(data, start, stop)]

    @staticmethod
    def _backwards(data: bytes, what: bytes, start: int, stop: int) -> Iterator[int]:
        place = data.rfind(what, start, stop)
        while place >= 0:
            yield place
            place = data.rfind(what, start, place)
