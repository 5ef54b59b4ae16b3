"""The PostgreSQL store's rows of dead letters: what a sink refused for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from .postgres_messages import PostgresRows
from .postgres_pending import original, plain
from .transaction import DeadCount, DeadLetter

_PUT = """
    INSERT INTO dead_letter AS kept (sink, account, seq, position, message_id, revision, event_id,
        first_ms, last_ms, times, size, cause, record)
    SELECT sink, account, seq, position, message_id, revision, event_id, first_ms, last_ms, times,
        length(record), cause, record
    FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::integer[],
        $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::bytea[])
        WITH ORDINALITY AS new (sink, account, seq, position, message_id, revision, event_id,
        first_ms, last_ms, times, cause, record, n)
    ORDER BY n
    ON CONFLICT (sink, event_id) DO UPDATE SET times = kept.times + excluded.times,
        seq = excluded.seq, position = excluded.position, last_ms = excluded.last_ms,
        cause = excluded.cause, account = excluded.account, message_id = excluded.message_id,
        revision = excluded.revision, size = excluded.size, record = excluded.record
    RETURNING sink, event_id, times
"""
# Up to the one with which they have so many bytes.
_READ = """
    SELECT account, seq, position, message_id, revision, event_id, first_ms, last_ms, times, cause,
        record, id
    FROM (
        SELECT *, sum(size) OVER (ORDER BY id) - size AS bytes_before FROM (
            SELECT * FROM dead_letter WHERE sink = $1 AND id > $2 ORDER BY id LIMIT $3
        ) AS picked
    ) AS sized WHERE bytes_before < $4 ORDER BY id
"""
# From the newest on, what goes beyond one of the bounds.
_TRIM = """
    DELETE FROM dead_letter WHERE id IN (
        SELECT id FROM (
            SELECT id, count(*) OVER newest AS letters, sum(size) OVER newest AS bytes
            FROM dead_letter WHERE sink = $1
            WINDOW newest AS (ORDER BY id DESC)
        ) AS counted WHERE letters > $2 OR bytes > $3
    ) RETURNING account
"""


class PostgresDeadLetters(PostgresRows):
    """The primitives on dead letters. They go by sink and need no lease: a letter may be offered
    once more by whichever worker has the sink. Who refuses a record counts that in its account's
    books, and needs the lease for those."""

    def put_dead_letters(self, letters: Sequence[DeadLetter]) -> int:
        if not letters:
            return 0
        self._write_now()
        merged: dict[tuple[str, str], DeadLetter] = {}
        for one in letters:
            key = one.sink, one.event_id
            before = merged.get(key)
            if before is not None:
                times = before.times + one.times
                one = replace(one, times=times, first_ms=before.first_ms)
            merged[key] = one
        rows = [
            (
                one.sink,
                one.account,
                *one.place,
                plain(one.message_id),
                one.revision,
                one.event_id,
                one.first_ms,
                one.last_ms,
                one.times,
                plain(one.cause),
                one.record,
            )
            for one in merged.values()
        ]
        columns = [list(column) for column in zip(*rows, strict=True)]
        kept = self._session.fetch(_PUT, *columns)
        return sum(merged[row[0], row[1]].times == row[2] for row in kept)

    def dead_letters(
        self, sink: str, after_id: int, limit: int, *, bytes_max: int
    ) -> list[DeadLetter]:
        return [
            DeadLetter(
                sink=sink,
                account=row[0],
                place=(row[1], row[2]),
                message_id=original(row[3]),
                revision=row[4],
                event_id=row[5],
                first_ms=row[6],
                last_ms=row[7],
                times=row[8],
                cause=original(row[9]),
                record=row[10],
                id=row[11],
            )
            for row in self._session.fetch(_READ, sink, after_id, limit, bytes_max)
        ]

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        self._write_now()
        gone = "DELETE FROM dead_letter WHERE id = ANY($1::bigint[]) RETURNING 1"
        return len(self._session.fetch(gone, list(ids)))

    def trim_dead_letters(self, sink: str, keep: int, keep_bytes: int) -> dict[str, int]:
        self._write_now()
        return dict(Counter(row[0] for row in self._session.fetch(_TRIM, sink, keep, keep_bytes)))

    def count_dead_letters(self) -> dict[str, DeadCount]:
        rows = self._session.fetch(
            "SELECT sink, count(*), sum(size)::bigint, min(first_ms), max(id) FROM dead_letter"
            " GROUP BY sink"
        )
        return {
            sink: DeadCount(letters=letters, bytes=size, first_ms=first_ms, last_id=last_id)
            for sink, letters, size, first_ms, last_id in rows
        }
