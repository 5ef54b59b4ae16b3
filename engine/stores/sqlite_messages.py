"""The SQLite store's messages: how they are put in, sorted and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import msgspec
import orjson

from engine.core.reconcile import Known
from engine.core.report import recipient_key

from .sqlite_accounts import Account
from .sqlite_insert import Insert
from .sqlite_lookups import AS_JSON, SqliteLookups
from .sqlite_lots import (
    HASH,
    IN_LOTS,
    LOT_MAX,
    array,
    ended,
    hash_of,
    key_of,
    looked_up_later,
    sorted_out,
)

# So many rows are sorted into a run at once: 20 ms of the writer's time, and what a look-up reads
# row by row before that. Whether they are there is looked at once in so many new rows.
RUN_ROWS = 8192
_LOOK_EVERY = 1024

# Rows that are written as JSON at once: more would need fresh memory each time.
_WRITTEN_TOGETHER = 100

_PUT = Insert(
    "message (id, key, account, pending, open_ms, ended_ms, elsewhere, batch, who, reference,"
    " data)",
    "ON CONFLICT (id) DO UPDATE SET pending = excluded.pending, open_ms = excluded.open_ms,"
    " ended_ms = excluded.ended_ms, batch = excluded.batch, who = excluded.who,"
    " reference = excluded.reference, data = excluded.data",
)
_PUT_KEYS = Insert("by_key (key, message)")
_FORGET_KEYS = """
DELETE FROM by_key WHERE (key, message) IN (
    SELECT key, id FROM message WHERE id IN (SELECT value FROM json_each(?))
)
"""
_ENDED = ended("message")
_RUN = f"""
INSERT OR IGNORE INTO lookup (run, hash, message)
SELECT ?1, hash, id FROM (
    {IN_LOTS}
    UNION ALL SELECT key & {HASH}, id FROM message WHERE id > ?2
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

_encode_lines = msgspec.json.Encoder().encode_lines


class SqliteMessages(SqliteLookups):
    """The primitives on messages."""

    wants_records = False

    def put_messages(self, messages: Sequence[Known]) -> None:
        accounts = {name: self._touch(name) for name in {known.account for known in messages}}
        lots, rows = sorted_out(messages, accounts)
        packed = sum(map(len, lots))
        new = packed + sum(known.row is None for known in rows)
        first = self._claim(new)
        keys = self._put_lots(lots, accounts, first)
        numbers = _numbers(rows, first + packed)
        keys += [
            (key_of(known), number)
            for known, number in zip(rows, numbers, strict=True)
            if known.row is None
        ]
        self._put_rows(rows, numbers, accounts)
        _PUT_KEYS.run(self._db, [value for pair in sorted(keys) for value in pair])
        if self._from:
            self._move_out(rows)
        for known, number in zip(rows, numbers, strict=True):
            if known.place is None and known.record:  # it stands in no log row
                spare = "INSERT OR REPLACE INTO spare (id, record) VALUES (?, ?)"
                self._db.execute(spare, (number, known.record))
        if new:
            self.sort(new, max(known.seen_ms for known in messages))

    def _put_rows(
        self, rows: Sequence[Known], numbers: Sequence[int], accounts: dict[str, Account]
    ) -> None:
        values: list[Any] = []
        for known, number, data in zip(rows, numbers, _as_rows(rows), strict=True):
            account = accounts[known.account]
            unsure = known.mark is None or account.by_id_from is not None
            final, recipient, reference = known.final, known.recipient, known.reference
            values += (
                number,
                key_of(known),
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
        _PUT.run(self._db, values)

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
        gone = self._read(f"SELECT {AS_JSON} FROM ({_ENDED})", (before_ms, limit))
        if gone:
            rows = array([known.row for known in gone])
            self._db.execute(_FORGET_KEYS, (rows,))
            for table in ("message", "spare"):
                self._db.execute(
                    f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))", (rows,)
                )
        if len(gone) < limit:
            gone += self._drop_lots(before_ms, max(1, (limit - len(gone)) // LOT_MAX))
        if gone:
            self._db.execute(
                _FORGET, (array([one for known in gone for one in looked_up_later(known)]),)
            )
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
        (first,) = self._db.execute(
            "SELECT min(first) FROM (SELECT min(id) AS first FROM message"
            " UNION ALL SELECT min(id) FROM lot)"
        ).fetchone()
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


def _numbers(messages: Sequence[Known], first: int) -> list[int]:
    """Of each its number; new ones get the next from `first` on."""
    new = count(first)
    return [known.row if known.row is not None else next(new) for known in messages]
