"""The memory store's dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from itertools import accumulate

import msgspec

from .memory_tables import OverTables
from .transaction import DeadCount, DeadLetter


class MemoryDeadLetters(OverTables):
    """Primitives over the tables."""

    def put_dead_letters(self, letters: Sequence[DeadLetter]) -> int:
        tables, new = self._tables, 0
        for letter in letters:
            new += (letter.sink, letter.event_id) not in tables.dead_ids
            letter_id = tables.number_of(tables.dead_ids, (letter.sink, letter.event_id))
            old = tables.dead.get(letter_id)
            kept = msgspec.structs.replace(
                letter, id=letter_id, place=tuple(letter.place), record=bytes(letter.record)
            )
            if old is not None:
                kept.first_ms, kept.times = old.first_ms, old.times + letter.times
            tables.set(tables.dead, letter_id, kept)
        return new

    def dead_letters(
        self, sink: str, after_id: int, limit: int, *, bytes_max: int
    ) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        size = 0
        for letter_id in sorted(self._tables.dead):
            letter = self._tables.dead[letter_id]
            if letter.sink != sink or letter_id <= after_id:
                continue
            if len(found) == limit or size >= bytes_max:
                break
            found.append(copy(letter))
            size += len(letter.record)
        return found

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        tables = self._tables
        gone = tables.dead.keys() & set(ids)
        for letter_id in gone:
            letter = tables.drop(tables.dead, letter_id)
            tables.drop(tables.dead_ids, (letter.sink, letter.event_id))
        return len(gone)

    def trim_dead_letters(self, sink: str, keep: int, keep_bytes: int) -> dict[str, int]:
        letters = [one for one in self._tables.dead.values() if one.sink == sink]
        letters.sort(key=lambda one: -one.id)
        sizes = accumulate(len(one.record) for one in letters)
        gone = [
            one
            for place, (one, size) in enumerate(zip(letters, sizes, strict=True), 1)
            if place > keep or size > keep_bytes
        ]
        self.drop_dead_letters([one.id for one in gone])
        return dict(Counter(one.account for one in gone))

    def count_dead_letters(self) -> dict[str, DeadCount]:
        counts: dict[str, DeadCount] = {}
        for one in self._tables.dead.values():
            empty = DeadCount(letters=0, bytes=0, first_ms=one.first_ms, last_id=0)
            count = counts.setdefault(one.sink, empty)
            count.letters += 1
            count.bytes += len(one.record)
            count.first_ms = min(count.first_ms, one.first_ms)
            count.last_id = max(count.last_id, one.id)
        return counts
