"""The PostgreSQL store's rows of what went wrong: set-aside pieces and incidents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.core.contracts import Flaw, Form
from engine.core.work import Asked, Incident

from .kept import flaw_identity, incident_identity, pack, unpack, write_asked
from .postgres_messages import PostgresRows
from .postgres_pending import original, plain
from .transaction import Piece, Trouble

# What is there already was met so many times more.
_PUT = """
    INSERT INTO trouble AS kept (account, kind, identity, cause, position, first_ms, last_ms,
        times, form, truncated, size, asked, raw, body)
    SELECT $1, $2, identity, cause, position, $3, $3, times, form, truncated, size, $4, raw, body
    FROM unnest($5::text[], $6::text[], $7::text[], $8::bigint[], $9::text[], $10::boolean[],
        $11::bigint[], $12::bytea[], $13::bytea[]) WITH ORDINALITY
        AS new (identity, cause, position, times, form, truncated, size, raw, body, n)
    ORDER BY n
    ON CONFLICT (account, kind, identity) DO UPDATE
        SET times = kept.times + excluded.times, last_ms = excluded.last_ms
    RETURNING identity, times
"""
# Up to the one with which they have so many bytes.
_PIECES = """
    SELECT id, cause, position, form, truncated, size, asked, raw, body, first_ms, times FROM (
        SELECT *, sum(size) OVER (ORDER BY id) - size AS bytes_before FROM (
            SELECT * FROM trouble
            WHERE id > $1 AND account = $2 AND last_ms >= $3 AND asked IS NOT NULL
            ORDER BY id LIMIT $4
        ) AS picked
    ) AS sized WHERE bytes_before < $5 ORDER BY id
"""
# With an answer that was read whole after all, all that was set aside of it.
_DROP_PIECES = """
    DELETE FROM trouble WHERE id IN (
        SELECT unnest($1::bigint[])
        UNION
        SELECT part.id FROM trouble AS whole JOIN trouble AS part
            ON part.account = whole.account AND part.asked = whole.asked
            AND part.first_ms = whole.first_ms
        WHERE whole.id = ANY($1) AND whole.form = 'answer' AND length(whole.asked) > 0
    ) RETURNING 1
"""
_DROP_OLD = """
    DELETE FROM trouble WHERE id IN (
        SELECT id FROM trouble WHERE last_ms < $1 ORDER BY last_ms, id LIMIT $2
    ) RETURNING 1
"""
_DROP_OLDEST = """
    DELETE FROM trouble WHERE id IN (
        SELECT id FROM trouble ORDER BY last_ms, id
        LIMIT greatest(0, least($1, (SELECT count(*) FROM trouble) - $2))
    ) RETURNING 1
"""
_DROP_LARGE = """
    DELETE FROM trouble WHERE id IN (
        SELECT id FROM (
            SELECT id, size, sum(size) OVER (ORDER BY last_ms, id) AS so_far FROM trouble
        ) AS sized WHERE so_far - size < $1 LIMIT $2
    ) RETURNING 1
"""


class PostgresTroubles(PostgresRows):
    """The primitives on troubles."""

    def put_flaws(
        self,
        account: str,
        source: str,
        flaws: Sequence[Flaw],
        at_ms: int,
        asked: Asked | None = None,
    ) -> int:
        rows: dict[str, list[Any]] = {}
        for flaw in flaws:
            identity = flaw_identity(source, flaw)
            if identity in rows:
                rows[identity][3] += 1
                continue
            raw, body = pack(flaw.raw)
            position = f"{source}: {flaw.position}"
            what = [identity, plain(flaw.cause), plain(position), 1]
            rows[identity] = [
                *what,
                flaw.form.value,
                flaw.truncated,
                len(flaw.raw),
                bytes(raw),
                body,
            ]
        return self._put(account, "set_aside", at_ms, write_asked(asked), list(rows.values()))

    def put_incident(self, account: str, incident: Incident, at_ms: int) -> bool:
        identity = incident_identity(incident)
        row = [plain(identity), plain(incident.text), plain(identity), 1]
        row += [Form.RECORD.value, False, 0, b"", None]
        return self._put(account, incident.kind, at_ms, None, [row]) == 1

    def _put(
        self, account: str, kind: str, at_ms: int, asked: bytes | None, rows: list[list[Any]]
    ) -> int:
        """How many of them are new."""
        if not rows:
            return 0
        self._write_now(account)
        columns = [list(column) for column in zip(*rows, strict=True)]
        kept = self._session.fetch(_PUT, account, kind, at_ms, asked, *columns)
        times = {row[0]: row[3] for row in rows}
        return sum(n == times[identity] for identity, n in kept)

    def troubles(self, account: str | None, limit: int) -> list[Trouble]:
        rows = self._session.fetch(
            "SELECT account, kind, cause, position, raw, first_ms, last_ms, times FROM trouble"
            " WHERE $1::text IS NULL OR account = $1 ORDER BY last_ms DESC, id DESC LIMIT $2",
            account,
            limit,
        )
        return [
            Trouble(
                account=row[0],
                kind=row[1],
                cause=original(row[2]),
                position=original(row[3]),
                raw=row[4],
                first_ms=row[5],
                last_ms=row[6],
                times=row[7],
            )
            for row in rows
        ]

    def pieces(
        self, account: str, after_id: int, since_ms: int, limit: int, *, bytes_max: int
    ) -> list[Piece]:
        rows = self._session.fetch(_PIECES, after_id, account, since_ms, limit, bytes_max)
        return [
            Piece(
                id=row[0],
                account=account,
                cause=original(row[1]),
                position=original(row[2]),
                form=Form(row[3]),
                truncated=row[4],
                size=row[5],
                asked=row[6],
                raw=unpack(row[7], row[8]),
                at_ms=row[9],
                times=row[10],
            )
            for row in rows
        ]

    def drop_pieces(self, ids: Sequence[int]) -> int:
        if not ids:
            return 0
        accounts = []
        if self._fences is not None:
            accounts = self._session.fetch(
                "SELECT DISTINCT account FROM trouble WHERE id = ANY($1::bigint[])", list(ids)
            )
        self._write_now(*(row[0] for row in accounts))
        return len(self._session.fetch(_DROP_PIECES, list(ids)))

    def drop_troubles(self, before_ms: int, keep: int, keep_bytes: int, limit: int) -> int:
        """Of all accounts: what has passed its time is nobody's any more."""
        self._write_now()
        gone = len(self._session.fetch(_DROP_OLD, before_ms, limit))
        gone += len(self._session.fetch(_DROP_OLDEST, limit, keep))
        held = "SELECT coalesce(sum(size), 0)::bigint FROM trouble WHERE size > 0"
        beyond = self._session.fetch(held)[0][0] - keep_bytes
        if beyond > 0:
            gone += len(self._session.fetch(_DROP_LARGE, beyond, limit))
        return gone
