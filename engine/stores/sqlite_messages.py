"""The SQLite store's rows of messages.

A page goes in, and what is known of its messages comes out, in one statement: at each step a
statement gives the interpreter's lock up, and a busy event loop lets nobody have it back for
milliseconds. How the rows are laid out, and why, stands in `schema/sqlite-0004.sql`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

import msgspec
import orjson

from engine.core.reconcile import Known
from engine.core.report import recipient_key

from .kept import unpack_log
from .sqlite_accounts import SqliteAccounts

Key = tuple[str, str]  # message id, direction

_HASH_BITS = 31
_HASH = (1 << _HASH_BITS) - 1

# Rows that one statement takes: 5,500 values, of the 32,766 that any SQLite since 2020 allows.
_AT_ONCE = (500, 100, 20, 5, 1)
_COLUMNS = 11

# So many rows are sorted into a run at once: 20 ms of the writer's time, and what a look-up reads
# row by row before that. Whether they are there is looked at once in so many new rows.
RUN_ROWS = 8192
_LOOK_EVERY = 1024

# Rows that are written as JSON at once: more would need fresh memory each time.
_WRITTEN_TOGETHER = 100

_ROW = f"({', '.join('?' * _COLUMNS)})"
_PUT = {
    count: f"""
INSERT INTO message (id, key, account, pending, open_ms, ended_ms, elsewhere, batch, who,
    reference, data)
VALUES {", ".join([_ROW] * count)}
ON CONFLICT (id) DO UPDATE SET pending = excluded.pending, open_ms = excluded.open_ms,
    ended_ms = excluded.ended_ms, batch = excluded.batch, who = excluded.who,
    reference = excluded.reference, data = excluded.data
"""
    for count in _AT_ONCE
}
_AS_JSON = "group_concat('[' || id || ',' || data || ']')"
_RUN = f"""
INSERT OR IGNORE INTO lookup (run, hash, message)
SELECT ?1, hash, id FROM (
    SELECT key & {_HASH} AS hash, id FROM message WHERE id > ?2
    UNION ALL SELECT who, id FROM message WHERE id > ?2 AND who IS NOT NULL
    UNION ALL SELECT reference, id FROM message WHERE id > ?2 AND reference IS NOT NULL
) ORDER BY hash, id
"""
_GIVE_BACK = """
UPDATE held SET records = records - given.count
FROM (SELECT CAST(key AS INTEGER) AS log, value AS count FROM json_each(?)) AS given
WHERE held.log = given.log
"""
_FORGET = """
DELETE FROM lookup WHERE run = 0 AND (hash, message) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
)
"""
_FOUND_BY = {"message_id": f"key & {_HASH}", "recipient": "who", "reference": "reference"}

_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(list[tuple[int, Known]]).decode


class SqliteMessages(SqliteAccounts):
    """The primitives on messages."""

    wants_records = False

    # Reading

    def messages(
        self, account: str, ids: Sequence[Key], marks: Sequence[int | None] | None = None
    ) -> dict[Key, Known]:
        found: dict[Key, Known] = {}
        number = self._peek_account(account)
        wanted = set(ids)
        if marks is not None:
            keys = [
                mark << _HASH_BITS | hash_of(message_id)
                for (message_id, _), mark in zip(ids, marks, strict=True)
                if mark is not None
            ]
            self._take(found, wanted, "account = ? AND key IN", number, keys)
        if len(found) < len(wanted) and self._any_elsewhere():
            self._by_id(found, wanted, number)
        unmarked = wanted if marks is None else _unmarked(ids, marks)
        if left := unmarked - found.keys():
            self._long_known(found, left, account)
        return found

    def _take(
        self, found: dict[Key, Known], wanted: set[Key], where: str, number: int, among: list[Any]
    ) -> None:
        """Those of `wanted` that are among the rows with one of these values."""
        for known in self._read(
            f"SELECT {_AS_JSON} FROM message WHERE {where} (SELECT value FROM json_each(?))",
            (number, _array(among)),
        ):
            key = (known.message_id, known.direction)
            if key in wanted:
                found[key] = known

    def _any_elsewhere(self) -> bool:
        """Whether any message has to be looked for by its id: mostly none has."""
        some = "SELECT 1 FROM message WHERE elsewhere IS NOT NULL LIMIT 1"
        return self._db.execute(some).fetchone() is not None

    def _by_id(self, found: dict[Key, Known], wanted: set[Key], number: int) -> None:
        """Those whose mark may have been another one before."""
        left = {message_id for message_id, direction in wanted - found.keys()}
        plain = [message_id for message_id in left if "\0" not in message_id]
        where = "account = ? AND elsewhere IN"
        self._take(found, wanted, where, number, plain)
        for odd in left.difference(plain):  # json_each ends a text at a NUL
            for known in self._read(
                f"SELECT {_AS_JSON} FROM message WHERE {where} (?)", (number, odd)
            ):
                if (known.message_id, known.direction) in wanted:
                    found[known.message_id, known.direction] = known

    def _long_known(self, found: dict[Key, Known], left: set[Key], account: str) -> None:
        """Those that came before the account was first asked by ids alone; later ones are found
        by them."""
        known = self.ask_by_id(account) if self._writes else self._peek(account)
        if known is None or known.first is None:
            return
        if known.by_id_from is None or known.first < known.by_id_from:
            hashes = {hash_of(message_id) for message_id, _ in left}
            rows = self._looked_up("message_id", hashes)
            self._take(found, left, "account = ? AND id IN", known.number, rows)

    def _looked_up(self, by: str, hashes: Iterable[int]) -> list[int]:
        """Rows that may be those with these hashes, from the runs and from what is in none yet."""
        (last,) = self._db.execute("SELECT max(last) FROM run").fetchone()
        rows = self._db.execute(
            "SELECT lookup.message FROM run CROSS JOIN json_each(?1) AS wanted CROSS JOIN lookup"
            " ON lookup.run = run.id AND lookup.hash = wanted.value"
            f" UNION SELECT id FROM message WHERE id > ?2 AND {_FOUND_BY[by]} IN"
            " (SELECT value FROM json_each(?1))",
            (_array(list(hashes)), last),
        )
        return [row for (row,) in rows.fetchall()]

    def _read(self, select: str, values: tuple[Any, ...]) -> list[Known]:
        """Messages that a statement gives as one text: `_AS_JSON`."""
        (text,) = self._db.execute(select, values).fetchone()
        messages: list[Known] = []
        for row, known in _decode(f"[{text}]") if text is not None else ():
            known.row = row
            messages.append(known)
        return messages

    def newest(self, messages: Sequence[Known]) -> None:
        rows: dict[int, list[Known]] = {}
        for known in messages:
            if known.place is not None:
                rows.setdefault(self._log_id(known.account, known.place[0]), []).append(known)
            else:
                spare = self._db.execute("SELECT record FROM spare WHERE id = ?", (known.row,))
                found = spare.fetchone()
                known.record = found[0] if found is not None else b""
        for log_id, here in sorted(rows.items()):
            (body,) = self._db.execute("SELECT body FROM log WHERE id = ?", (log_id,)).fetchone()
            lines = unpack_log(body).split(b"\n")
            for known in here:
                assert known.place is not None
                known.record = lines[known.place[1]]

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND pending > 0" if pending else ""
        return self._read(
            f"SELECT {_AS_JSON} FROM (SELECT id, data FROM message WHERE batch = ?"
            f" AND account = ?{only} ORDER BY id LIMIT ?)",
            (batch_id, self._peek_account(account), limit),
        )

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(pending > 0), 0), coalesce(sum(pending = 2), 0)"
            " FROM message WHERE batch = ? AND account = ?",
            (batch_id, self._peek_account(account)),
        ).fetchone()
        return (row[0], row[1], row[2])

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        if not batch_ids:
            return set()
        rows = self._by_text(
            "SELECT DISTINCT batch FROM message WHERE batch IN",
            batch_ids,
            "AND account = ? AND pending = 2",
            (self._peek_account(account),),
        )
        return {row[0] for row in rows}

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND pending > 0" if pending else ""
        return self._read(
            f"SELECT {_AS_JSON} FROM (SELECT id, data FROM message WHERE account = ?"
            f" AND open_ms BETWEEN ? AND ?{only} ORDER BY open_ms, id LIMIT ?)",
            (self._peek_account(account), from_ms, to_ms, limit),
        )

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        if by == "batch_id":
            return self._read(
                f"SELECT {_AS_JSON} FROM (SELECT id, data FROM message WHERE batch = ?"
                " ORDER BY id LIMIT ?)",
                (value, limit),
            )
        found = self._read(
            f"SELECT {_AS_JSON} FROM (SELECT id, data FROM message WHERE id IN"
            " (SELECT value FROM json_each(?)) ORDER BY id)",
            (_array(self._looked_up(by, [hash_of(value)])),),
        )
        return [known for known in found if _is_meant(known, by, value)][:limit]

    # Writing

    def put_messages(self, messages: Sequence[Known]) -> None:
        values: list[Any] = []
        new = 0
        accounts = {name: self._touch(name) for name in {known.account for known in messages}}
        for known, data in zip(messages, _as_rows(messages), strict=True):
            account, mark = accounts[known.account], known.mark
            unsure = mark is None or account.by_id_from is not None
            if mark is None:
                mark = known.sent_ms // 1000 & 0xFFFFFFFF if known.sent_ms is not None else 0
            new += known.row is None
            final, recipient, reference = known.final, known.recipient, known.reference
            values += (
                known.row,
                mark << _HASH_BITS | hash_of(known.message_id),
                account.number,
                0 if final else 1 + known.tracked,
                known.placed_ms if known.open else None,
                known.seen_ms if final else None,
                known.message_id if unsure else None,
                known.batch_id,
                hash_of(recipient_key(recipient)) if recipient is not None else None,
                hash_of(reference) if reference is not None else None,
                data,
            )
        start = 0
        for count in _pieces(len(messages)):
            end = start + count * _COLUMNS
            self._db.execute(_PUT[count], values[start:end])
            start = end
        self._put_spare([m for m in messages if m.place is None and m.record], new)
        if new:
            self.sort(new, max(known.seen_ms for known in messages))

    def _put_spare(self, messages: Sequence[Known], new: int) -> None:
        """Records that stand in no log row."""
        rows: dict[tuple[str, str, str], int | None] = {}
        if any(known.row is None for known in messages):
            last = self._read(
                f"SELECT {_AS_JSON} FROM message WHERE id > ?", (self.newest_row() - new,)
            )
            rows = {(one.account, one.message_id, one.direction): one.row for one in last}
        for known in messages:
            row = known.row or rows[known.account, known.message_id, known.direction]
            self._db.execute(
                "INSERT OR REPLACE INTO spare (id, record) VALUES (?, ?)", (row, known.record)
            )

    def sort(self, new: int, at_ms: int) -> None:
        """So many rows are new: put those that came since the last run into one, once they are
        enough."""
        newest = self.newest_row()
        if newest // _LOOK_EVERY == (newest - new) // _LOOK_EVERY:
            return
        run, last = self._db.execute("SELECT max(id), max(last) FROM run").fetchone()
        if newest - last >= RUN_ROWS:
            self._db.execute(_RUN, (run + 1, last))
            self._db.execute(
                "INSERT INTO run (id, last, at_ms) VALUES (?, ?, ?)", (run + 1, newest, at_ms)
            )

    def drop_ended(self, before_ms: int, limit: int) -> list[Known]:
        gone = self._read(
            # Rows that came later cannot have ended before; those in no run yet are few.
            f"SELECT {_AS_JSON} FROM (SELECT id, data FROM message WHERE ended_ms < ?1"
            " AND (id <= (SELECT max(last) FROM run WHERE at_ms < ?1)"
            " OR id > (SELECT max(last) FROM run)) AND NOT EXISTS"
            " (SELECT 1 FROM work WHERE work.account = message.account"
            " AND work.kind = 'batch' AND work.key = message.batch) LIMIT ?2)",
            (before_ms, limit),
        )
        if gone:
            rows = _array([known.row for known in gone])
            for table in ("message", "spare"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))", (rows,)
                )
            self._db.execute(_FORGET, (_array(_changed_later(gone)),))
            self._drop_runs()
        counts: dict[int, int] = {}
        for known in gone:
            known.history = b""
            if known.place is not None:
                log_id = self._log_id(known.account, known.place[0])
                counts[log_id] = counts.get(log_id, 0) + 1
        self._give_back(counts)
        return gone

    def _drop_runs(self) -> None:
        """Runs of messages that have all gone."""
        (first,) = self._db.execute("SELECT min(id) FROM message").fetchone()
        old = self._db.execute(
            "SELECT id FROM run WHERE id > 0 AND last < ?"
            " AND last < (SELECT max(last) FROM run) LIMIT 8",
            (first if first is not None else 1 << 62,),
        ).fetchall()
        for run in old:
            self._db.execute("DELETE FROM lookup WHERE run = ?", run)
            self._db.execute("DELETE FROM run WHERE id = ?", run)

    def _give_back(self, counts: dict[int, int]) -> None:
        """So many messages need these log rows no more."""
        if counts:
            array = orjson.dumps(counts, option=orjson.OPT_NON_STR_KEYS).decode()
            self._db.execute(_GIVE_BACK, (array,))


def _changed_later(messages: Sequence[Known]) -> list[tuple[int, int | None]]:
    """What run 0 may hold of these: hash and row."""
    hashes = [(hash_of(recipient_key(m.recipient)), m.row) for m in messages if m.recipient]
    return hashes + [(hash_of(m.reference), m.row) for m in messages if m.reference]


def _as_rows(messages: Sequence[Known]) -> list[str]:
    """What is kept of each, its record aside: no JSON holds a line feed."""
    recorded = [(known, known.record) for known in messages if known.record]
    for known, _ in recorded:
        known.record = b""
    rows: list[str] = []
    for start in range(0, len(messages), _WRITTEN_TOGETHER):
        lines = _encode_lines(messages[start : start + _WRITTEN_TOGETHER])
        rows += lines.decode().split("\n")[:-1]
    for known, record in recorded:
        known.record = record
    return rows


def hash_of(text: str) -> int:
    return crc32(text.encode()) & _HASH


def _unmarked(ids: Sequence[Key], marks: Sequence[int | None]) -> set[Key]:
    return {key for key, mark in zip(ids, marks, strict=True) if mark is None}


def _is_meant(known: Known, by: str, value: str) -> bool:
    """Hashes are shared."""
    if by == "recipient":
        return known.recipient is not None and recipient_key(known.recipient) == value
    return bool(getattr(known, by) == value)


def _pieces(count: int) -> Iterator[int]:
    """A number of rows, as numbers of rows that there are statements for."""
    for size in _AT_ONCE:
        while count >= size:
            yield size
            count -= size


def _array(values: Sequence[Any]) -> str:
    return orjson.dumps(values).decode()
