"""The store on plain dicts: the reference for the other drivers, and `memory://` for trials.

It keeps the promises of a store except the one of outliving its process: a job happens whole or
not at all, and no two jobs overlap. Every change goes through `_Tables`, which notes its inverse
first, so that undoing costs what the job did and not what the store holds.
It must never hand out, or keep, an object that somebody else may change, nor wait inside a job.
"""

# one file: the reference is to be read as one piece

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from heapq import nsmallest
from itertools import accumulate, count, islice
from typing import TypeVar

import msgspec

from engine.core.contracts import Flaw, Form, Kind
from engine.core.errors import StoreBusy, StoreError
from engine.core.reconcile import Known
from engine.core.report import recipient_key
from engine.core.work import Asked, Incident, LogRow, Work

from .kept import UNKNOWN, flaw_identity, incident_identity, pack, write_asked
from .transaction import (
    NOTHING,
    DeadCount,
    DeadLetter,
    InboxItem,
    Piece,
    Place,
    Transaction,
    Trouble,
)

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Key = tuple[str, str]  # message id, direction
Name = tuple[str, ...]
# Where an item stands in the indexes: the groups it is in, and its times on ordered lines.
Marks = tuple[set[Name], set[tuple[Name, int]]]

_NOWHERE: Marks = (set(), set())


class _Tables:
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


def _work_marks(work: Work) -> Marks:
    return {("works", work.account, work.kind)}, {(("due", work.account), work.due_ms)}


def _copy_work(work: Work, work_id: int | None) -> Work:
    return msgspec.structs.replace(work, data=msgspec.to_builtins(work.data), id=work_id)


def _bare(known: Known) -> Known:
    """A copy, without the record."""
    return msgspec.structs.replace(known, record=b"")


def _nested(table: dict[tuple[str, str], V]) -> dict[str, dict[str, V]]:
    nested: dict[str, dict[str, V]] = {}
    for (outer, inner), value in table.items():
        nested.setdefault(outer, {})[inner] = value
    return nested


class _MemoryTransaction:
    """The primitives, over the tables. See `Transaction` for what each of them does."""

    wants_records = True

    def __init__(self, tables: _Tables) -> None:
        self._tables = tables

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
            before = _message_marks(held) if held is not None else _NOWHERE
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
            tables.move(row, _message_marks(known), _NOWHERE)
            gone.append(msgspec.structs.replace(known, record=b"", history=b""))
        return gone

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
            before = _work_marks(tables.works[work_id]) if work_id in tables.works else _NOWHERE
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
            tables.move(work_id, _work_marks(work), _NOWHERE)

    def count_works(self, now_ms: int) -> dict[str, dict[Kind, tuple[int, int, int]]]:
        counts: dict[str, dict[Kind, tuple[int, int, int]]] = {}
        for work in self._tables.works.values():
            kinds = counts.setdefault(work.account, {})
            total, due, first = kinds.get(work.kind, (0, 0, work.due_ms))
            kinds[work.kind] = (total + 1, due + (work.due_ms <= now_ms), min(first, work.due_ms))
        return counts

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
        return _nested(self._tables.places)

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

    def reusable_bytes(self) -> int:
        return 0

    def add_tallies(self, account: str, changes: dict[str, int]) -> None:
        tallies = self._tables.tallies
        for name, by in changes.items():
            if by:
                self._tables.set(tallies, (account, name), tallies.get((account, name), 0) + by)

    def tallies(self) -> dict[str, dict[str, int]]:
        return _nested(self._tables.tallies)

    def put_flaws(
        self,
        account: str,
        source: str,
        flaws: Sequence[Flaw],
        at_ms: int,
        asked: Asked | None = None,
    ) -> int:
        new = 0
        for flaw in flaws:
            key = (account, "set_aside", flaw_identity(source, flaw))
            place = f"{source}: {flaw.position}"
            if self._put_trouble(key, flaw.cause, place, pack(flaw.raw)[0], at_ms):
                new += 1
                piece = Piece(
                    id=next(self._tables.numbers),
                    account=account,
                    cause=flaw.cause,
                    position=place,
                    form=flaw.form,
                    truncated=flaw.truncated,
                    size=len(flaw.raw),
                    asked=write_asked(asked) or UNKNOWN,
                    raw=bytes(flaw.raw),
                    at_ms=at_ms,
                    times=1,
                )
                self._tables.set(self._tables.pieces, key, (piece, asked is not None))
        return new

    def put_incident(self, account: str, incident: Incident, at_ms: int) -> bool:
        span = incident_identity(incident)
        return self._put_trouble((account, incident.kind, span), incident.text, span, b"", at_ms)

    def pieces(
        self, account: str, after_id: int, since_ms: int, limit: int, *, bytes_max: int
    ) -> list[Piece]:
        found: list[Piece] = []
        size = 0
        in_order = sorted(self._tables.pieces.items(), key=lambda item: item[1][0].id)
        for key, (piece, readable) in in_order:
            trouble = self._tables.troubles[key]
            if not (readable and piece.account == account and piece.id > after_id):
                continue
            if trouble.last_ms >= since_ms and len(found) < limit and size < bytes_max:
                found.append(msgspec.structs.replace(piece, times=trouble.times))
                size += piece.size
        return found

    def drop_pieces(self, ids: Sequence[int]) -> int:
        pieces = self._tables.pieces
        wholes = {
            (piece.account, piece.asked, piece.at_ms)
            for piece, _ in pieces.values()
            if piece.id in ids and piece.form is Form.ANSWER and piece.asked != UNKNOWN
        }
        gone = [
            key
            for key, (piece, _) in pieces.items()
            if piece.id in ids or (piece.account, piece.asked, piece.at_ms) in wholes
        ]
        for key in gone:
            self._drop_trouble(key)
        return len(gone)

    def troubles(self, account: str | None, limit: int) -> list[Trouble]:
        kept = [
            trouble
            for trouble in reversed(self._tables.troubles.values())
            if account in (None, trouble.account)
        ]
        kept.sort(key=lambda trouble: -trouble.last_ms)
        return [copy(trouble) for trouble in kept[:limit]]

    def drop_troubles(self, before_ms: int, keep: int, keep_bytes: int, limit: int) -> int:
        oldest = sorted(self._tables.troubles.items(), key=lambda item: item[1].last_ms)
        beyond = max(0, len(oldest) - keep)
        gone = [
            key
            for n, (key, trouble) in enumerate(oldest)
            if n < beyond or trouble.last_ms < before_ms
        ]
        pieces = self._tables.pieces
        beyond = sum(piece.size for piece, _ in pieces.values()) - keep_bytes
        for key, _ in oldest:
            if key in pieces and beyond > 0:
                beyond -= pieces[key][0].size
                if key not in gone:
                    gone.append(key)
        for key in gone[:limit]:
            self._drop_trouble(key)
        return len(gone[:limit])

    def _drop_trouble(self, key: Name) -> None:
        self._tables.drop(self._tables.troubles, key)
        if key in self._tables.pieces:
            self._tables.drop(self._tables.pieces, key)

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

    def put_inbox(self, item: InboxItem) -> int:
        kept = msgspec.structs.replace(item, id=next(self._tables.numbers))
        self._tables.set(self._tables.inbox, kept.id, kept)
        return kept.id

    def inbox_waits(self, besides: Collection[int] = ()) -> bool:
        return bool(self._tables.inbox.keys() - besides)

    def inbox(self, limit: int, besides: Collection[int] = ()) -> list[InboxItem]:
        oldest = nsmallest(limit, self._tables.inbox.keys() - besides)
        return [copy(self._tables.inbox[item_id]) for item_id in oldest]

    def drop_inbox(self, ids: Collection[int]) -> None:
        for item_id in self._tables.inbox.keys() & ids:
            self._tables.drop(self._tables.inbox, item_id)

    def put_note(self, account: str, name: str, value: bytes) -> None:
        self._tables.set(self._tables.notes, (name, account), bytes(value))

    def put_notes(self, notes: Mapping[tuple[str, str], bytes]) -> None:
        for (account, name), value in notes.items():
            self.put_note(account, name, value)

    def notes(self, name: str) -> dict[str, bytes]:
        return _nested(self._tables.notes).get(name, {})

    def drop_note(self, account: str, name: str) -> None:
        if (name, account) in self._tables.notes:
            self._tables.drop(self._tables.notes, (name, account))

    def _batch(self, account: str, batch_id: str) -> Iterator[Known]:
        for row in sorted(self._tables.group("batch_id", batch_id)):
            known = self._tables.messages[row]
            if known.account == account:
                yield known

    def _put_trouble(self, key: Name, cause: str, position: str, raw: bytes, at_ms: int) -> bool:
        troubles = self._tables.troubles
        old = troubles.get(key)
        if old is not None:
            new = msgspec.structs.replace(old, last_ms=at_ms, times=old.times + 1)
        else:
            new = Trouble(
                account=key[0],
                kind=key[1],
                cause=cause,
                position=position,
                raw=raw,
                first_ms=at_ms,
                last_ms=at_ms,
                times=1,
            )
        self._tables.set(troubles, key, new)
        return old is None


class MemoryStore:
    """A store for one process. What it holds stays while the object lives, closed or not."""

    def __init__(self) -> None:
        self._tables = _Tables()
        self._opened = self._owned = False

    async def open(self, *, own: bool) -> None:
        if own and self._owned:
            raise StoreBusy("this memory store has a worker already")
        self._opened, self._owned = True, self._owned or own

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        return self._run(job, writes=True)

    async def sync(self) -> None:
        """There is no disk."""

    async def read(self, job: Callable[[Transaction], T]) -> T:
        return self._run(job, writes=False)

    async def close(self) -> None:
        self._opened = self._owned = False

    def _run(self, job: Callable[[Transaction], T], *, writes: bool) -> T:
        if not self._opened:
            raise StoreError("the memory store is closed")
        tables = self._tables
        try:
            result = job(_MemoryTransaction(tables))
            if tables.undo and not writes:
                raise StoreError("a job that was only to read has written")
            tables.undo.clear()
        finally:
            tables.roll_back()
        return result
