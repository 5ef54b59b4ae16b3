"""The SQLite store's transaction: reads and writes rows, in lists.

Each method is a statement or two. Lists go in as one JSON array (`json_each`), so that a page of
1,000 reports is one look-up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

import orjson

from engine.core.contracts import Kind
from engine.core.work import LogRow, Work

from .kept import as_kept, pack_log, unpack_log
from .sqlite_accounts import SEQ_BITS, SEQ_MAX
from .sqlite_dead import SqliteDeadLetters
from .sqlite_messages import SqliteMessages
from .sqlite_troubles import SqliteTroubles
from .transaction import NOTHING, InboxItem, Place

_BESIDES = "WHERE id NOT IN (SELECT value FROM json_each(?))"
_WORK = "account, kind, key, due_ms, start_ms, answered_ms, data, id"
_PUT_WORK = """
INSERT INTO work (account, kind, key, due_ms, start_ms, answered_ms, data)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (account, kind, key) DO UPDATE SET due_ms = excluded.due_ms,
    start_ms = excluded.start_ms, answered_ms = excluded.answered_ms, data = excluded.data
RETURNING id
"""
_MOVE_WORKS = """
UPDATE work SET due_ms = moved.due_ms, answered_ms = moved.answered_ms, data = moved.data
FROM (
    SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS due_ms,
        json_extract(value, '$[2]') AS answered_ms,
        CAST(json_extract(value, '$[3]') AS BLOB) AS data
    FROM json_each(?)
) AS moved WHERE work.id = moved.id
"""


class SqliteTransaction(SqliteMessages, SqliteTroubles, SqliteDeadLetters):
    """Primitives over one connection; `accounts` maps names to row numbers and is shared."""

    # The schedule

    def _work(self, row: tuple[Any, ...]) -> Work:
        return Work(
            account=self._name(row[0]),
            kind=Kind(row[1]),
            key=row[2],
            due_ms=row[3],
            start_ms=row[4],
            answered_ms=row[5],
            data=orjson.loads(row[6]),
            id=row[7],
        )

    def work(self, work_id: int) -> Work | None:
        row = self._db.execute(f"SELECT {_WORK} FROM work WHERE id = ?", (work_id,)).fetchone()
        return self._work(row) if row is not None else None

    def works(self, ids: Sequence[int]) -> dict[int, Work]:
        rows = self._db.execute(
            f"SELECT {_WORK} FROM work WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(ids)).decode(),),
        )
        return {row[7]: self._work(row) for row in rows.fetchall()}

    def works_due(
        self, account: str, until_ms: int, limit: int, *, after: tuple[int, int] = (-(1 << 62), 0)
    ) -> list[Work]:
        rows = self._db.execute(
            f"SELECT {_WORK} FROM work WHERE account = ? AND due_ms <= ?"
            " AND (due_ms, id) > (?, ?) ORDER BY due_ms, id LIMIT ?",
            (self._peek_account(account), until_ms, *after, limit),
        )
        return [self._work(row) for row in rows.fetchall()]

    def find_works(self, account: str, kind: Kind, keys: Sequence[str] | None) -> list[Work]:
        number = self._peek_account(account)
        if keys is None:
            rows = self._db.execute(
                f"SELECT {_WORK} FROM work WHERE account = ? AND kind = ? ORDER BY id",
                (number, kind.value),
            ).fetchall()
        else:
            rows = self._by_text(
                f"SELECT {_WORK} FROM work WHERE key IN",
                keys,
                "AND account = ? AND kind = ? ORDER BY id",
                (number, kind.value),
            )
        return [self._work(row) for row in rows]

    def find_batches(self, account: str, reference: str, limit: int) -> list[Work]:
        rows = self._db.execute(
            f"SELECT {_WORK} FROM work WHERE account = ? AND kind = ? AND instr(data, ?) > 0"
            " ORDER BY id LIMIT ?",
            (self._peek_account(account), Kind.BATCH.value, as_kept(reference), limit),
        )
        return [self._work(row) for row in rows.fetchall()]

    def works_after(self, account: str, after_id: int, limit: int) -> list[Work]:
        rows = self._db.execute(
            f"SELECT {_WORK} FROM work WHERE id > ? AND account = ? ORDER BY id LIMIT ?",
            (after_id, self._peek_account(account), limit),
        )
        return [self._work(row) for row in rows.fetchall()]

    def put_works(self, works: Sequence[Work]) -> list[Work]:
        for work in works:
            row = self._db.execute(
                _PUT_WORK,
                (
                    self._account(work.account),
                    work.kind.value,
                    work.key,
                    work.due_ms,
                    work.start_ms,
                    work.answered_ms,
                    orjson.dumps(work.data),
                ),
            ).fetchone()
            work.id = int(row[0])
        return list(works)

    def move_works(self, works: Sequence[Work]) -> None:
        rows = [
            (work.id, work.due_ms, work.answered_ms, orjson.dumps(work.data).decode())
            for work in works
        ]
        self._db.execute(_MOVE_WORKS, (orjson.dumps(rows).decode(),))

    def drop_works(self, ids: Sequence[int]) -> None:
        self._db.execute(
            "DELETE FROM work WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(list(ids)).decode(),),
        )

    def count_works(self, now_ms: int) -> dict[str, dict[Kind, tuple[int, int, int]]]:
        counts: dict[str, dict[Kind, tuple[int, int, int]]] = {}
        rows = self._db.execute(
            "SELECT account, kind, count(*), sum(due_ms <= ?), min(due_ms) FROM work"
            " GROUP BY account, kind",
            (now_ms,),
        )
        for account, kind, count, due, first_ms in rows.fetchall():
            counts.setdefault(self._name(account), {})[Kind(kind)] = (count, due, first_ms)
        return counts

    # The log

    def append_log(
        self, account: str, rows: Sequence[LogRow], replaced: Mapping[int, int] = NOTHING
    ) -> None:
        known = self._accounts.get(account) or self._seen(account)
        base = known.number << SEQ_BITS
        for row in rows:
            log_id = base | row.seq
            self._db.execute(
                "INSERT INTO log (id, at_ms, states, body, before_bytes) VALUES (?, ?, ?, ?, ?)",
                (log_id, row.at_ms, row.states, pack_log(row.body), known.log_bytes),
            )
            self._db.execute(
                "INSERT INTO held (log, records) VALUES (?, ?)", (log_id, len(row.states))
            )
            known = known._replace(log_next=row.seq + 1, log_bytes=known.log_bytes + len(row.body))
        self._note(account, known)
        self._give_back({base | seq: count for seq, count in replaced.items()})

    def next_log_seq(self, account: str) -> int:
        known = self._peek(account)
        return known.log_next if known is not None else 1

    def log_rows(self, account: str, from_seq: int, limit: int, *, bytes_max: int) -> list[LogRow]:
        found: list[LogRow] = []
        size = 0
        cursor = self._db.execute(
            "SELECT log.id, at_ms, states, body FROM account JOIN log"
            " ON log.id >= (account.id << 40 | max(?, log_start))"
            " AND log.id < (account.id << 40 | log_next)"
            " WHERE name = ? ORDER BY log.id LIMIT ?",
            (from_seq, account, limit),
        )
        for key, at_ms, states, body in cursor:
            found.append(LogRow(seq=key & SEQ_MAX, at_ms=at_ms, states=states,
                                body=unpack_log(body)))  # fmt: skip
            size += len(found[-1].body)
            if size >= bytes_max:
                break
        cursor.close()
        return found

    def log_bounds(self) -> dict[str, tuple[int, int]]:
        rows = self._db.execute("SELECT name, log_start, log_next FROM account")
        return {name: (start, end) for name, start, end in rows.fetchall()}

    def drop_log(self, account: str, before_seq: int, before_ms: int, limit: int) -> int:
        number = self._account(account)
        base = number << SEQ_BITS
        old = self._db.execute(
            "SELECT log.id, at_ms FROM account JOIN log ON log.id >= (account.id << 40 | log_start)"
            " AND log.id < ? WHERE account.id = ? ORDER BY log.id LIMIT ?",
            (base | before_seq, number, limit),
        )
        # Row by row: mostly the first one stays, and each is a page of the disk.
        gone = [key for key, _ in takewhile(lambda row: row[1] < before_ms, old)]
        old.close()
        if gone:
            self._db.execute(
                "UPDATE account SET log_start = ? WHERE id = ?", (gone[-1] - base + 1, number)
            )
        # What no sink will read goes once it is no message's newest record any more.
        empty = self._db.execute(
            "SELECT held.log FROM account JOIN held ON held.log >= (account.id << 40)"
            " AND held.log < (account.id << 40 | log_start) AND records <= 0"
            " WHERE account.id = ? LIMIT ?",
            (number, limit),
        ).fetchall()
        if empty:
            rows = orjson.dumps([log for (log,) in empty]).decode()
            for table, column in (("log", "id"), ("held", "log")):
                self._db.execute(
                    f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",
                    (rows,),
                )
        return len(gone)

    def log_since(self, account: str, at_ms: int) -> int:
        number, first, end = self._kept_log(account)
        base = number << SEQ_BITS
        row = self._db.execute(
            "SELECT id FROM log WHERE id >= ? AND id < ? AND at_ms >= ? ORDER BY id LIMIT 1",
            (base | first, base | end, at_ms),
        ).fetchone()
        return row[0] - base if row is not None else end

    def log_records(self, account: str, from_seq: int) -> tuple[int, int | None]:
        number, first, end = self._kept_log(account)
        base = number << SEQ_BITS
        row = self._db.execute(
            "SELECT coalesce(sum(length(states)), 0), min(at_ms) FROM log WHERE id >= ? AND id < ?",
            (base | max(first, from_seq), base | end),
        ).fetchone()
        return row[0], row[1]

    def _kept_log(self, account: str) -> tuple[int, int, int]:
        """An account's number, its first row still kept, and the number of its next."""
        row = self._db.execute(
            "SELECT id, log_start, log_next FROM account WHERE name = ?", (account,)
        ).fetchone()
        return row if row is not None else (-1, 1, 1)

    # Sinks

    def places(self) -> dict[str, dict[str, Place]]:
        found: dict[str, dict[str, Place]] = {}
        rows = self._db.execute("SELECT sink, account, seq, record FROM place")
        for sink, account, seq, record in rows.fetchall():
            found.setdefault(sink, {})[self._name(account)] = (seq, record)
        return found

    def put_places(self, sink: str, places: dict[str, Place]) -> None:
        self._db.executemany(
            "INSERT INTO place (sink, account, seq, record) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (sink, account) DO UPDATE SET seq = excluded.seq,"
            " record = excluded.record",
            [(sink, self._account(name), seq, index) for name, (seq, index) in places.items()],
        )

    def drop_places(self, sink: str) -> int:
        return self._db.execute("DELETE FROM place WHERE sink = ?", (sink,)).rowcount

    def backlog(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        rows = self._db.execute(
            "SELECT place.sink, account.name, account.log_bytes - coalesce((SELECT before_bytes"
            " FROM log WHERE id = (account.id << 40 | max(place.seq, account.log_start))),"
            " account.log_bytes) FROM place JOIN account ON account.id = place.account"
        )
        for sink, account, size in rows.fetchall():
            found.setdefault(sink, {})[account] = size
        return found

    def reusable_bytes(self) -> int:
        (pages,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(size)

    # Books

    def add_tallies(self, account: str, changes: dict[str, int]) -> None:
        number = self._account(account)
        self._db.executemany(
            "INSERT INTO tally (account, name, n) VALUES (?, ?, ?)"
            " ON CONFLICT (account, name) DO UPDATE SET n = n + excluded.n",
            [(number, name, by) for name, by in changes.items() if by],
        )

    def tallies(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for account, name, n in self._db.execute("SELECT account, name, n FROM tally").fetchall():
            found.setdefault(self._name(account), {})[name] = n
        return found

    # Inbox and notes

    def put_inbox(self, item: InboxItem) -> int:
        row = self._db.execute(
            "INSERT INTO inbox (account, kind, payload, at_ms) VALUES (?, ?, ?, ?) RETURNING id",
            (item.account, item.kind, item.payload, item.at_ms),
        ).fetchone()
        return int(row[0])

    def inbox_waits(self, besides: Collection[int] = ()) -> bool:
        row = self._db.execute(f"SELECT 1 FROM inbox {_BESIDES} LIMIT 1", (_ids(besides),))
        return row.fetchone() is not None

    def inbox(self, limit: int, besides: Collection[int] = ()) -> list[InboxItem]:
        rows = self._db.execute(
            f"SELECT account, kind, payload, at_ms, id FROM inbox {_BESIDES} ORDER BY id LIMIT ?",
            (_ids(besides), limit),
        ).fetchall()
        return [
            InboxItem(account=row[0], kind=row[1], payload=row[2], at_ms=row[3], id=row[4])
            for row in rows
        ]

    def drop_inbox(self, ids: Collection[int]) -> None:
        self._db.executemany("DELETE FROM inbox WHERE id = ?", [(item_id,) for item_id in ids])

    def put_note(self, account: str, name: str, value: bytes) -> None:
        self.put_notes({(account, name): value})

    def put_notes(self, notes: Mapping[tuple[str, str], bytes]) -> None:
        self._db.executemany(
            "INSERT INTO note (account, name, value) VALUES (?, ?, ?)"
            " ON CONFLICT (account, name) DO UPDATE SET value = excluded.value",
            [(*key, value) for key, value in notes.items()],
        )

    def notes(self, name: str) -> dict[str, bytes]:
        rows = self._db.execute("SELECT account, value FROM note WHERE name = ?", (name,))
        return {account: bytes(value) for account, value in rows.fetchall()}

    def drop_note(self, account: str, name: str) -> None:
        self._db.execute("DELETE FROM note WHERE account = ? AND name = ?", (account, name))


def _ids(ids: Collection[int]) -> str:
    return orjson.dumps(list(ids)).decode()
