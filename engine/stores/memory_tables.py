"""The memory store's tables, with the inverse of what the running job has done so far."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from typing import TypeVar

from engine.core.contracts import Kind
from engine.core.reconcile import Known
from engine.core.work import LogRow, Work

from .transaction import DeadLetter, InboxItem, Piece, Place, Trouble

K = TypeVar("K")
V = TypeVar("V")

Name = tuple[str, ...]
# Where an item stands in the indexes: the groups it is in, and its times on ordered lines.
Marks = tuple[set[Name], set[tuple[Name, int]]]

NOWHERE: Marks = (set(), set())


class Tables:
    """All that the store holds, and the inverse of what the running job has done so far."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], None]] = []
        self.numbers = count(1)  # of rows, works and inbox items; a number is never used again
        self.messages: dict[int, Known] = {}
        self.rows: dict[tuple[str, str, str], int] = {}
        self.works: dict[int, Work] = {}
        self.work_ids: dict[tuple[str, Kind, str], int] = {}
        self.log: dict[tuple[str, int], LogRow] = {}
        self.log_bounds: dict[str, tuple[int, int]] = {}
        self.log_bytes: dict[str, int] = {}  # of all rows there ever were
        self.before_bytes: dict[tuple[str, int], int] = {}  # of the rows before this one
        self.places: dict[tuple[str, str], Place] = {}
        self.tallies: dict[tuple[str, str], int] = {}
        self.troubles: dict[Name, Trouble] = {}
        self.pieces: dict[Name, tuple[Piece, bool]] = {}  # and whether it can be read again
        self.dead: dict[int, DeadLetter] = {}
        self.dead_ids: dict[tuple[str, str], int] = {}  # by sink and event id
        self.inbox: dict[int, InboxItem] = {}
        self.notes: dict[tuple[str, str], bytes] = {}
        self._groups: dict[Name, dict[int, None]] = {}
        self._lines: dict[Name, list[tuple[int, int]]] = {}

    def set(self, table: dict[K, V], key: K, value: V) -> None:
        if key in table:
            self.undo.append(partial(table.__setitem__, key, table[key]))
        else:
            self.undo.append(partial(table.__delitem__, key))
        table[key] = value

    def drop(self, table: dict[K, V], key: K) -> V:
        value = table.pop(key)
        self.undo.append(partial(table.__setitem__, key, value))
        return value

    def number_of(self, table: dict[K, int], key: K) -> int:
        """The number under which something is kept; a new one where it is not."""
        if key not in table:
            self.set(table, key, next(self.numbers))
        return table[key]

    def move(self, number: int, before: Marks, after: Marks) -> None:
        """Bring the indexes from where an item stood to where it stands now."""
        for name in before[0] - after[0]:
            members = self._groups[name]
            self.drop(members, number)
            if not members:
                self.drop(self._groups, name)
        for name in after[0] - before[0]:
            if name not in self._groups:
                self.set(self._groups, name, {})
            self.set(self._groups[name], number, None)
        for name, ms in before[1] - after[1]:
            self._take_off((name, ms, number))
            self.undo.append(partial(self._put_on, (name, ms, number)))
        for name, ms in after[1] - before[1]:
            self._put_on((name, ms, number))
            self.undo.append(partial(self._take_off, (name, ms, number)))

    def shift(self, name: Name, number: int, before_ms: int, after_ms: int) -> None:
        """Of an item that stays where it is otherwise, the time on one line."""
        before, after = (name, before_ms, number), (name, after_ms, number)
        self._put_on(after)
        self._take_off(before)
        self.undo.append(partial(self._take_off, after))
        self.undo.append(partial(self._put_on, before))

    def group(self, *name: str) -> Iterable[int]:
        return self._groups.get(name, ())

    def span(self, name: Name, from_ms: int | None, to_ms: int) -> Iterator[int]:
        """Numbers (from 1) on a line in order of time, both ends included."""
        line = self._lines.get(name, [])
        start = 0 if from_ms is None else bisect_left(line, (from_ms, 0))
        for index in range(start, bisect_left(line, (to_ms + 1, 0))):
            yield line[index][1]

    def roll_back(self) -> None:
        while self.undo:
            self.undo.pop()()

    def _put_on(self, mark: tuple[Name, int, int]) -> None:
        insort(self._lines.setdefault(mark[0], []), mark[1:])

    def _take_off(self, mark: tuple[Name, int, int]) -> None:
        line = self._lines[mark[0]]
        del line[bisect_left(line, mark[1:])]
        if not line:
            del self._lines[mark[0]]


class OverTables:
    """What a job's primitives have to hand."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables


def nested(table: dict[tuple[str, str], V]) -> dict[str, dict[str, V]]:
    nested: dict[str, dict[str, V]] = {}
    for (outer, inner), value in table.items():
        nested.setdefault(outer, {})[inner] = value
    return nested
