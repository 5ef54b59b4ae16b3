"""The SQLite store's rows of dead letters: what a sink refused for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .sqlite_accounts import SqliteAccounts
from .transaction import DeadCount, DeadLetter

_PUT = """
INSERT INTO dead_letter (sink, account, seq, position, message_id, revision, event_id, first_ms,
    last_ms, times, size, cause, record)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (sink, event_id) DO UPDATE SET times = times + excluded.times, seq = excluded.seq,
    position = excluded.position, last_ms = excluded.last_ms, cause = excluded.cause,
    account = excluded.account, message_id = excluded.message_id, revision = excluded.revision,
    size = excluded.size, record = excluded.record
"""
# From the newest on, what goes beyond one of the bounds.
_BEYOND = """
SELECT id, account FROM (
    SELECT id, account, count(*) OVER newest AS letters, sum(size) OVER newest AS bytes
    FROM dead_letter WHERE sink = ?
    WINDOW newest AS (ORDER BY id DESC)
) WHERE letters > ? OR bytes > ?
"""


class SqliteDeadLetters(SqliteAccounts):
    """Primitives over one connection."""

    def put_dead_letters(self, letters: Sequence[DeadLetter]) -> int:
        before = self._count()
        self._db.executemany(
            _PUT,
            [
                (
                    one.sink,
                    self._account(one.account),
                    *one.place,
                    one.message_id,
                    one.revision,
                    one.event_id,
                    one.first_ms,
                    one.last_ms,
                    one.times,
                    len(one.record),
                    one.cause,
                    one.record,
                )
                for one in letters
            ],
        )
        return self._count() - before

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM dead_letter").fetchone()[0])

    def dead_letters(
        self, sink: str, after_id: int, limit: int, *, bytes_max: int
    ) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        size = 0
        cursor = self._db.execute(
            "SELECT account, seq, position, message_id, revision, event_id, first_ms, last_ms,"
            " times, cause, record, id FROM dead_letter WHERE sink = ? AND id > ?"
            " ORDER BY id LIMIT ?",
            (sink, after_id, limit),
        )
        for row in cursor:
            found.append(
                DeadLetter(
                    sink=sink,
                    account=self._name(row[0]),
                    place=(row[1], row[2]),
                    message_id=row[3],
                    revision=row[4],
                    event_id=row[5],
                    first_ms=row[6],
                    last_ms=row[7],
                    times=row[8],
                    cause=row[9],
                    record=row[10],
                    id=row[11],
                )
            )
            size += len(row[10])
            if size >= bytes_max:
                break
        cursor.close()
        return found

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        before = self._count()
        self._db.executemany("DELETE FROM dead_letter WHERE id = ?", [(one,) for one in ids])
        return before - self._count()

    def trim_dead_letters(self, sink: str, keep: int, keep_bytes: int) -> dict[str, int]:
        gone = self._db.execute(_BEYOND, (sink, keep, keep_bytes)).fetchall()
        self.drop_dead_letters([row[0] for row in gone])
        return dict(Counter(self._name(row[1]) for row in gone))

    def count_dead_letters(self) -> dict[str, DeadCount]:
        rows = self._db.execute(
            "SELECT sink, count(*), sum(size), min(first_ms), max(id) FROM dead_letter"
            " GROUP BY sink"
        )
        return {
            sink: DeadCount(letters=letters, bytes=size, first_ms=first_ms, last_id=last_id)
            for sink, letters, size, first_ms, last_id in rows.fetchall()
        }
