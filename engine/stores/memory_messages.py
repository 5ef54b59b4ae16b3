"""The memory store's messages, and what they are found by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from engine.core.contracts import Kind
from engine.core.reconcile import Known
from engine.core.report import recipient_key

from .memory_tables import NOWHERE, Marks, Name, OverTables

Key = tuple[str, str]  # message id, direction


def _message_marks(known: Known) -> Marks:
    values = {
        "message_id": known.message_id,
        "batch_id": known.batch_id,
        "reference": known.reference,
        "recipient": recipient_key(known.recipient) if known.recipient is not None else None,
    }
    groups: set[Name] = {(by, value) for by, value in values.items() if value is not None}
    times: set[tuple[Name, int]] = set()
    if known.open and known.placed_ms is not None:
        times.add((("open", known.account), known.placed_ms))
    if known.final:
        times.add((("ended",), known.seen_ms))
    return groups, times


def _bare(known: Known) -> Known:
    """A copy, without the record."""
    return msgspec.structs.replace(known, record=b"")


class MemoryMessages(OverTables):
    """Primitives over the tables."""

    def messages(
        self, account: str, ids: Sequence[Key], marks: Sequence[int | None] | None = None
    ) -> dict[Key, Known]:
        rows = {key: self._tables.rows.get((account, *key)) for key in ids}
        messages = self._tables.messages
        return {key: _bare(messages[row]) for key, row in rows.items() if row is not None}

    def newest(self, messages: Sequence[Known]) -> None:
        for known in messages:
            if known.row is not None:
                known.record = self._tables.messages[known.row].record

    def put_messages(self, messages: Sequence[Known]) -> None:
        tables = self._tables
        for message in messages:
            key = (message.account, message.message_id, message.direction)
            row = tables.number_of(tables.rows, key)
            held = tables.messages.get(row)
            before = _message_marks(held) if held is not None else NOWHERE
            record = message.record or (held.record if held is not None else b"")
            kept = msgspec.structs.replace(message, row=row, record=record)
            tables.set(tables.messages, row, kept)
            tables.move(row, before, _message_marks(kept))

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        batch = self._batch(account, batch_id)
        wanted = (known for known in batch if not (pending and known.final))
        return [_bare(known) for known in islice(wanted, limit)]

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        batch = list(self._batch(account, batch_id))
        open_ = [known for known in batch if not known.final]
        return len(batch), len(open_), sum(known.tracked for known in open_)

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        return {
            batch_id
            for batch_id in batch_ids
            if any(one.tracked and not one.final for one in self._batch(account, batch_id))
        }

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        rows = self._tables.span(("open", account), from_ms, to_ms)
        span = (self._tables.messages[row] for row in rows)
        wanted = (known for known in span if not (pending and known.final))
        return [_bare(known) for known in islice(wanted, limit)]

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        rows = sorted(self._tables.group(by, value))
        return [_bare(self._tables.messages[row]) for row in rows[:limit]]

    def drop_ended(self, before_ms: int, limit: int) -> list[Known]:
        tables = self._tables
        gone: list[Known] = []
        for row in list(tables.span(("ended",), None, before_ms - 1)):
            kept = tables.messages[row]
            if (kept.account, Kind.BATCH, kept.batch_id) in tables.work_ids or len(gone) >= limit:
                continue
            known = tables.drop(tables.messages, row)
            tables.drop(tables.rows, (known.account, known.message_id, known.direction))
            tables.move(row, _message_marks(known), NOWHERE)
            gone.append(msgspec.structs.replace(known, record=b"", history=b""))
        return gone

    def _batch(self, account: str, batch_id: str) -> Iterator[Known]:
        for row in sorted(self._tables.group("batch_id", batch_id)):
            known = self._tables.messages[row]
            if known.account == account:
                yield known
