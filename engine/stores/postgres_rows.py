"""The PostgreSQL store's transaction: reads and writes rows, in lists.

Each method is a statement or none: what can wait goes with other writes (`postgres_pending`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
import zstandard

from engine.core.contracts import Kind
from engine.core.work import LogRow, Work

from .kept import as_kept
from .postgres_dead import PostgresDeadLetters
from .postgres_messages import PostgresMessages
from .postgres_pending import Pending, original, plain
from .postgres_troubles import PostgresTroubles
from .transaction import NOTHING, InboxItem, Place

_WORK = "account, kind, key, due_ms, start_ms, answered_ms, data, id"
_PUT_WORKS = """
    INSERT INTO work (account, kind, key, due_ms, start_ms, answered_ms, data)
    SELECT account, kind, key, due_ms, start_ms, answered_ms, data FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[]
    ) WITH ORDINALITY AS new (account, kind, key, due_ms, start_ms, answered_ms, data, n)
    ORDER BY n
    ON CONFLICT (account, kind, key) DO UPDATE SET due_ms = excluded.due_ms,
        start_ms = excluded.start_ms, answered_ms = excluded.answered_ms, data = excluded.data
    RETURNING account, kind, key, id
"""
# Rows up to the one with which they have so many bytes.
_LOG_ROWS = """
    SELECT seq, at_ms, states, body FROM (
        SELECT seq, at_ms, states, body, before_bytes,
            first_value(before_bytes) OVER (ORDER BY seq) AS first_bytes
        FROM log WHERE account = $1 AND seq >= $2 ORDER BY seq LIMIT $3
    ) AS rows WHERE before_bytes - first_bytes < $4 ORDER BY seq
"""
_DROP_LOG = """
    WITH old AS (
        SELECT seq, at_ms FROM log
        WHERE account = $1 AND seq < $2
        AND seq >= (SELECT log_start FROM account WHERE name = $1) ORDER BY seq LIMIT $4
    ), gone AS (
        DELETE FROM log USING old WHERE log.account = $1 AND log.seq = old.seq
        AND old.seq < coalesce((SELECT min(seq) FROM old WHERE at_ms >= $3), $2)
        RETURNING log.seq
    ), moved AS (
        UPDATE account SET log_start = (SELECT max(seq) + 1 FROM gone)
        WHERE name = $1 AND EXISTS (SELECT FROM gone)
    )
    SELECT count(*) FROM gone
"""
_BACKLOG = """
    SELECT place.sink, place.account, coalesce(account.log_bytes - coalesce((
        SELECT before_bytes FROM log WHERE log.account = account.name
        AND log.seq = greatest(place.seq, account.log_start)
    ), account.log_bytes), 0) FROM place LEFT JOIN account ON account.name = place.account
"""
_OUR_INBOX = "($1::text[] IS NULL OR account = ANY($1)) AND id <> ALL($2::bigint[])"
_INBOX_WAITS = f"SELECT 1 FROM inbox WHERE {_OUR_INBOX} LIMIT 1"
_INBOX = f"""
    SELECT account, kind, payload, at_ms, id FROM inbox WHERE {_OUR_INBOX}
    ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED
"""


class PostgresTransaction(PostgresMessages, PostgresTroubles, PostgresDeadLetters):
    """The primitives of one transaction. See `Transaction` for what each of them does."""

    # The schedule

    def work(self, work_id: int) -> Work | None:
        return self.works([work_id]).get(work_id)

    def works(self, ids: Sequence[int]) -> dict[int, Work]:
        which = "WHERE id = ANY($1::bigint[])"
        found = self._works(which, list(ids))
        fresh = {work.account for work in found} - self._entered
        if fresh and self._writes:
            self._enter(*fresh)  # then look again: they may have changed before that
            found = self._works(which, list(ids))
        return {work.id: work for work in found if work.id is not None}

    def works_due(
        self, account: str, until_ms: int, limit: int, *, after: tuple[int, int] = (-(1 << 62), 0)
    ) -> list[Work]:
        self._enter(account)
        return self._works(
            "WHERE account = $1 AND due_ms <= $2 AND (due_ms, id) > ($3, $4)"
            " ORDER BY due_ms, id LIMIT $5",
            account,
            until_ms,
            *after,
            limit,
        )

    def find_works(self, account: str, kind: Kind, keys: Sequence[str] | None) -> list[Work]:
        self._enter(account)
        which = "WHERE account = $1 AND kind = $2"
        if keys is None:
            return self._works(f"{which} ORDER BY id", account, kind.value)
        if not keys:
            return []
        wanted = [plain(key) for key in set(keys)]
        return self._works(
            f"{which} AND key = ANY($3::text[]) ORDER BY id", account, kind.value, wanted
        )

    def find_batches(self, account: str, reference: str, limit: int) -> list[Work]:
        self._enter(account)
        return self._works(
            "WHERE account = $1 AND kind = $2 AND position($3::bytea IN data) > 0"
            " ORDER BY id LIMIT $4",
            account,
            Kind.BATCH.value,
            as_kept(reference),
            limit,
        )

    def works_after(self, account: str, after_id: int, limit: int) -> list[Work]:
        self._enter(account)
        return self._works(
            "WHERE account = $1 AND id > $2 ORDER BY id LIMIT $3", account, after_id, limit
        )

    def _works(self, which: str, *values: Any) -> list[Work]:
        self.flush(Pending.works)
        rows = self._session.fetch(f"SELECT {_WORK} FROM work {which}", *values)
        return [
            Work(
                account=row[0],
                kind=Kind(row[1]),
                key=original(row[2]),
                due_ms=row[3],
                start_ms=row[4],
                answered_ms=row[5],
                data=orjson.loads(row[6]),
                id=row[7],
            )
            for row in rows
        ]

    def put_works(self, works: Sequence[Work]) -> list[Work]:
        if not works:
            return []
        self.flush(Pending.works)
        accounts = {work.account for work in works}
        self._enter(*accounts)
        self._write_now(*accounts)
        rows: dict[tuple[str, str, str], tuple[Any, ...]] = {}
        keys = [(work.account, work.kind.value, plain(work.key)) for work in works]
        for key, work in zip(keys, works, strict=True):
            data = orjson.dumps(work.data)
            rows[key] = (*key, work.due_ms, work.start_ms, work.answered_ms, data)
        stored = self._session.fetch(_PUT_WORKS, *zip(*rows.values(), strict=True))
        ids = {(row[0], row[1], row[2]): row[3] for row in stored}
        for key, work in zip(keys, works, strict=True):
            work.id = ids[key]
        return list(works)

    def move_works(self, works: Sequence[Work]) -> None:
        accounts = {work.account for work in works}
        self._enter(*accounts)
        pending = self._to_write(*accounts)
        for work in works:
            if work.id is not None:
                data = orjson.dumps(work.data)
                pending.moved[work.id] = (work.due_ms, work.answered_ms, data)

    def drop_works(self, ids: Sequence[int]) -> None:
        if ids:
            self._to_write(*self._accounts_of_works(ids)).ended.update(ids)

    def _accounts_of_works(self, ids: Sequence[int]) -> list[str]:
        if self._fences is None:
            return []
        rows = self._session.fetch(
            "SELECT DISTINCT account FROM work WHERE id = ANY($1::bigint[])", list(ids)
        )
        return [row[0] for row in rows]

    def count_works(self, now_ms: int) -> dict[str, dict[Kind, tuple[int, int, int]]]:
        self.flush(Pending.works)
        counts: dict[str, dict[Kind, tuple[int, int, int]]] = {}
        rows = self._session.fetch(
            "SELECT account, kind, count(*), count(*) FILTER (WHERE due_ms <= $1), min(due_ms)"
            " FROM work GROUP BY account, kind",
            now_ms,
        )
        for account, kind, count, due, first_ms in rows:
            counts.setdefault(account, {})[Kind(kind)] = (count, due, first_ms)
        return counts

    # The log

    def append_log(
        self, account: str, rows: Sequence[LogRow], replaced: Mapping[int, int] = NOTHING
    ) -> None:
        """A message's newest record stands in its own row, too: nothing hangs on the log's."""
        self._enter(account)
        pending = self._to_write(account)
        pending.append(account, rows, self._log_head(account))

    def _log_head(self, account: str) -> tuple[int, int]:
        """The number of the next row, and the bytes of all before it."""
        for heads in (self._job.heads, self._group.heads, self._heads):
            if account in heads:
                return heads[account]
        rows = self._session.fetch(
            "SELECT log_next, log_bytes FROM account WHERE name = $1", account
        )
        head = (rows[0][0], rows[0][1]) if rows else (1, 0)
        if account in self._entered:  # so it stays as it is
            self._heads[account] = head
        return head

    def next_log_seq(self, account: str) -> int:
        self._enter(account)
        return self._log_head(account)[0]

    def log_rows(self, account: str, from_seq: int, limit: int, *, bytes_max: int) -> list[LogRow]:
        self.flush(lambda waiting: waiting.log)
        unpacker = zstandard.ZstdDecompressor()
        return [
            LogRow(seq=seq, at_ms=at_ms, states=states, body=unpacker.decompress(body))
            for seq, at_ms, states, body in self._session.fetch(
                _LOG_ROWS, account, from_seq, limit, bytes_max
            )
        ]

    def log_bounds(self) -> dict[str, tuple[int, int]]:
        rows = self._of_ours("SELECT name, log_start, log_next FROM account", "name")
        bounds = {name: (start, end) for name, start, end in rows}
        for waiting in (self._group, self._job):
            for name, (end, _) in waiting.heads.items():
                bounds[name] = (bounds.get(name, (1, 1))[0], end)
        return bounds

    def drop_log(self, account: str, before_seq: int, before_ms: int, limit: int) -> int:
        """Only of an account whose lease is held, where there are leases."""
        if self._fences is not None and not self._hold([account]):
            return 0
        self.flush(lambda waiting: waiting.heads)
        self._write_now(account)
        gone = self._session.fetch(_DROP_LOG, account, before_seq, before_ms, limit)
        return int(gone[0][0])

    def log_since(self, account: str, at_ms: int) -> int:
        self.flush(lambda waiting: waiting.heads)
        rows = self._session.fetch(
            "SELECT coalesce((SELECT seq FROM log WHERE account = $1 AND seq >= log_start"
            " AND at_ms >= $2 ORDER BY seq LIMIT 1), log_next) FROM account WHERE name = $1",
            account,
            at_ms,
        )
        return int(rows[0][0]) if rows else 1

    def log_records(self, account: str, from_seq: int) -> tuple[int, int | None]:
        self.flush(lambda waiting: waiting.heads)
        row = self._session.fetch(
            "SELECT coalesce(sum(length(states)), 0)::bigint, min(at_ms) FROM log"
            " WHERE account = $1 AND seq >= $2",
            account,
            from_seq,
        )[0]
        return row[0], row[1]

    # Sinks

    def places(self) -> dict[str, dict[str, Place]]:
        self.flush(lambda waiting: waiting.places)
        found: dict[str, dict[str, Place]] = {}
        rows = self._of_ours("SELECT sink, account, seq, record FROM place", "account")
        for sink, account, seq, record in rows:
            found.setdefault(sink, {})[account] = (seq, record)
        return found

    def put_places(self, sink: str, places: dict[str, Place]) -> None:
        pending = self._to_write(*places)
        for account, place in places.items():
            pending.places[sink, account] = place

    def drop_places(self, sink: str) -> int:
        """Of a sink that is gone: of no account, so no lease is asked for."""
        self.flush(lambda waiting: waiting.places)
        self._write_now()
        return len(self._session.fetch("DELETE FROM place WHERE sink = $1 RETURNING 1", sink))

    def backlog(self) -> dict[str, dict[str, int]]:
        self.flush(lambda waiting: waiting.heads or waiting.places)
        found: dict[str, dict[str, int]] = {}
        for sink, account, size in self._of_ours(_BACKLOG, "place.account"):
            found.setdefault(sink, {})[account] = size
        return found

    def reusable_bytes(self) -> int:
        return 0  # the disk is the server's

    # Books

    def add_tallies(self, account: str, changes: dict[str, int]) -> None:
        self._to_write(account).tally(account, changes)

    def tallies(self) -> dict[str, dict[str, int]]:
        self.flush(lambda waiting: waiting.tallies)
        found: dict[str, dict[str, int]] = {}
        for account, name, n in self._session.fetch("SELECT account, name, n FROM tally"):
            found.setdefault(account, {})[name] = n
        return found

    # Inbox and notes

    def put_inbox(self, item: InboxItem) -> int:
        """By whoever has it, without a lease."""
        self._write_now()
        rows = self._session.fetch(
            "INSERT INTO inbox (account, kind, payload, at_ms) VALUES ($1, $2, $3, $4)"
            " RETURNING id",
            item.account,
            item.kind,
            item.payload,
            item.at_ms,
        )
        return int(rows[0][0])

    def inbox_waits(self, besides: Collection[int] = ()) -> bool:
        return bool(self._session.fetch(_INBOX_WAITS, self._ours(), list(besides)))

    def inbox(self, limit: int, besides: Collection[int] = ()) -> list[InboxItem]:
        """Of the accounts whose leases are held, where there are leases."""
        rows = self._session.fetch(_INBOX, self._ours(), list(besides), limit)
        return [
            InboxItem(account=row[0], kind=row[1], payload=row[2], at_ms=row[3], id=row[4])
            for row in rows
        ]

    def drop_inbox(self, ids: Collection[int]) -> None:
        if ids:
            self._write_now()
            self._session.execute("DELETE FROM inbox WHERE id = ANY($1::bigint[])", list(ids))

    def _of_ours(self, query: str, account: str) -> list[Any]:
        """Rows of the accounts whose leases are held, where there are leases: of ten thousand
        accounts a worker looks at its own."""
        ours = self._ours()
        if ours is None:
            return self._session.fetch(query)
        return self._session.fetch(f"{query} WHERE {account} = ANY($1::text[])", ours)

    def _ours(self) -> list[str] | None:
        return list(self._fences) if self._fences is not None else None

    def put_note(self, account: str, name: str, value: bytes) -> None:
        self.put_notes({(account, name): value})

    def put_notes(self, notes: Mapping[tuple[str, str], bytes]) -> None:
        kept = self._to_write(*{account for account, _ in notes}).notes
        kept.update({key: bytes(value) for key, value in notes.items()})

    def notes(self, name: str) -> dict[str, bytes]:
        self.flush(lambda waiting: waiting.notes)
        which, ours = "SELECT account, value FROM note WHERE name = $1", self._ours()
        if ours is None:
            rows = self._session.fetch(which, name)
        else:  # and what is no account's
            rows = self._session.fetch(f"{which} AND account = ANY($2::text[])", name, ["", *ours])
        return {row[0]: row[1] for row in rows}

    def drop_note(self, account: str, name: str) -> None:
        self._to_write(account).notes[account, name] = None
