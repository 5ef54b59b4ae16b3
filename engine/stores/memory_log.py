"""The memory store's log, and where each sink stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy

from engine.core.errors import StoreError
from engine.core.work import LogRow

from .memory_tables import OverTables, nested
from .transaction import NOTHING, Place


class MemoryLog(OverTables):
    """Primitives over the tables."""

    def next_log_seq(self, account: str) -> int:
        return self._tables.log_bounds.get(account, (1, 1))[1]

    def append_log(
        self, account: str, rows: Sequence[LogRow], replaced: Mapping[int, int] = NOTHING
    ) -> None:
        tables = self._tables
        for row in rows:
            first, end = tables.log_bounds.get(account, (1, 1))
            if row.seq != end:
                raise StoreError("a log row was to be appended out of its turn")
            before = tables.log_bytes.get(account, 0)
            tables.set(tables.log, (account, row.seq), copy(row))
            tables.set(tables.before_bytes, (account, row.seq), before)
            tables.set(tables.log_bytes, account, before + len(row.body))
            tables.set(tables.log_bounds, account, (first, end + 1))

    def log_rows(self, account: str, from_seq: int, limit: int, *, bytes_max: int) -> list[LogRow]:
        first, end = self._tables.log_bounds.get(account, (1, 1))
        rows: list[LogRow] = []
        size = 0
        for seq in range(max(first, from_seq), min(end, max(first, from_seq) + limit)):
            rows.append(copy(self._tables.log[account, seq]))
            size += len(rows[-1].body)
            if size >= bytes_max:
                break
        return rows

    def log_bounds(self) -> dict[str, tuple[int, int]]:
        return dict(self._tables.log_bounds)

    def drop_log(self, account: str, before_seq: int, before_ms: int, limit: int) -> int:
        tables = self._tables
        first, end = tables.log_bounds.get(account, (1, 1))
        seq, stop = first, min(end, before_seq, first + limit)
        while seq < stop and tables.log[account, seq].at_ms < before_ms:
            tables.drop(tables.log, (account, seq))
            tables.drop(tables.before_bytes, (account, seq))
            seq += 1
        tables.set(tables.log_bounds, account, (seq, end))
        return seq - first

    def log_since(self, account: str, at_ms: int) -> int:
        first, end = self._tables.log_bounds.get(account, (1, 1))
        seqs = range(first, end)
        return next((seq for seq in seqs if self._tables.log[account, seq].at_ms >= at_ms), end)

    def log_records(self, account: str, from_seq: int) -> tuple[int, int | None]:
        first, end = self._tables.log_bounds.get(account, (1, 1))
        rows = [self._tables.log[account, seq] for seq in range(max(first, from_seq), end)]
        return sum(len(row.states) for row in rows), min((row.at_ms for row in rows), default=None)

    def places(self) -> dict[str, dict[str, Place]]:
        return nested(self._tables.places)

    def put_places(self, sink: str, places: dict[str, Place]) -> None:
        for account, (row, index) in places.items():
            self._tables.set(self._tables.places, (sink, account), (row, index))

    def drop_places(self, sink: str) -> int:
        gone = [key for key in self._tables.places if key[0] == sink]
        for key in gone:
            self._tables.drop(self._tables.places, key)
        return len(gone)

    def backlog(self) -> dict[str, dict[str, int]]:
        tables = self._tables
        found: dict[str, dict[str, int]] = {}
        for (sink, account), (seq, _) in tables.places.items():
            size = tables.log_bytes.get(account, 0)
            first, _ = tables.log_bounds.get(account, (1, 1))
            before = tables.before_bytes.get((account, max(first, seq)), size)
            found.setdefault(sink, {})[account] = size - before
        return found
