"""The memory store's schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec

from engine.core.contracts import Kind
from engine.core.work import Work

from .memory_tables import NOWHERE, Marks, OverTables


def _work_marks(work: Work) -> Marks:
    return {("works", work.account, work.kind)}, {(("due", work.account), work.due_ms)}


def _copy_work(work: Work, work_id: int | None) -> Work:
    return msgspec.structs.replace(work, data=msgspec.to_builtins(work.data), id=work_id)


class MemoryWorks(OverTables):
    """Primitives over the tables."""

    def work(self, work_id: int) -> Work | None:
        found = self._tables.works.get(work_id)
        return _copy_work(found, found.id) if found is not None else None

    def works(self, ids: Sequence[int]) -> dict[int, Work]:
        found = {work_id: self.work(work_id) for work_id in ids}
        return {work_id: work for work_id, work in found.items() if work is not None}

    def works_due(
        self, account: str, until_ms: int, limit: int, *, after: tuple[int, int] = (-(1 << 62), 0)
    ) -> list[Work]:
        works = self._tables.works
        ids = self._tables.span(("due", account), after[0], until_ms)
        later = (work_id for work_id in ids if (works[work_id].due_ms, work_id) > after)
        return [_copy_work(works[work_id], work_id) for work_id in islice(later, limit)]

    def find_works(self, account: str, kind: Kind, keys: Sequence[str] | None) -> list[Work]:
        ids = self._tables.group("works", account, kind)
        if keys is not None:
            by_key = (self._tables.work_ids.get((account, kind, key)) for key in keys)
            ids = {work_id for work_id in by_key if work_id is not None}
        return [_copy_work(self._tables.works[work_id], work_id) for work_id in sorted(ids)]

    def find_batches(self, account: str, reference: str, limit: int) -> list[Work]:
        works = self._tables.works
        ids = sorted(self._tables.group("works", account, Kind.BATCH))
        found = (one for one in ids if works[one].data.get("reference") == reference)
        return [_copy_work(works[one], one) for one in islice(found, limit)]

    def works_after(self, account: str, after_id: int, limit: int) -> list[Work]:
        ids = sorted(
            work_id
            for kind in Kind
            for work_id in self._tables.group("works", account, kind)
            if work_id > after_id
        )
        return [_copy_work(self._tables.works[work_id], work_id) for work_id in ids[:limit]]

    def put_works(self, works: Sequence[Work]) -> list[Work]:
        tables = self._tables
        stored: list[Work] = []
        for work in works:
            work_id = tables.number_of(tables.work_ids, (work.account, work.kind, work.key))
            before = _work_marks(tables.works[work_id]) if work_id in tables.works else NOWHERE
            kept = _copy_work(work, work_id)
            tables.set(tables.works, work_id, kept)
            tables.move(work_id, before, _work_marks(kept))
            stored.append(_copy_work(kept, work_id))
        return stored

    def move_works(self, works: Sequence[Work]) -> None:
        tables = self._tables
        for work in works:
            work_id = work.id or 0
            held = tables.works.get(work_id)
            if held is None:
                continue
            kept = _copy_work(work, work_id)
            tables.set(tables.works, work_id, kept)
            if kept.due_ms != held.due_ms:
                tables.shift(("due", kept.account), work_id, held.due_ms, kept.due_ms)

    def drop_works(self, ids: Sequence[int]) -> None:
        tables = self._tables
        for work_id in tables.works.keys() & set(ids):
            work = tables.drop(tables.works, work_id)
            tables.drop(tables.work_ids, (work.account, work.kind, work.key))
            tables.move(work_id, _work_marks(work), NOWHERE)

    def count_works(self, now_ms: int) -> dict[str, dict[Kind, tuple[int, int, int]]]:
        counts: dict[str, dict[Kind, tuple[int, int, int]]] = {}
        for work in self._tables.works.values():
            kinds = counts.setdefault(work.account, {})
            total, due, first = kinds.get(work.kind, (0, 0, work.due_ms))
            kinds[work.kind] = (total + 1, due + (work.due_ms <= now_ms), min(first, work.due_ms))
        return counts
