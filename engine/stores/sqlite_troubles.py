"""The SQLite store's rows of what went wrong: set-aside pieces and incidents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.core.contracts import Flaw, Form
from engine.core.work import Asked, Incident

from .kept import flaw_identity, incident_identity, pack, unpack, write_asked
from .sqlite_accounts import SqliteAccounts
from .transaction import Piece, Trouble

_PUT = """
INSERT INTO trouble (account, kind, identity, cause, position, first_ms, last_ms, raw, times,
    form, truncated, size, asked, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)
ON CONFLICT (account, kind, identity)
    DO UPDATE SET times = times + 1, last_ms = excluded.last_ms
RETURNING times
"""
# All that was set aside of an answer which was read whole after all.
_PARTS = """
SELECT part.id FROM trouble AS whole JOIN trouble AS part
    ON part.account = whole.account AND part.asked = whole.asked
    AND part.first_ms = whole.first_ms
WHERE whole.id = ? AND whole.form = 'answer' AND length(whole.asked) > 0
"""


class SqliteTroubles(SqliteAccounts):
    """Primitives over one connection."""

    def put_flaws(
        self,
        account: str,
        source: str,
        flaws: Sequence[Flaw],
        at_ms: int,
        asked: Asked | None = None,
    ) -> int:
        kept = write_asked(asked)
        new = 0
        for flaw in flaws:
            raw, body = pack(flaw.raw)
            new += self._put_trouble(
                (self._account(account), "set_aside", flaw_identity(source, flaw)),
                (flaw.cause, f"{source}: {flaw.position}", at_ms, at_ms),
                (raw, flaw.form.value, flaw.truncated, len(flaw.raw), kept, body),
            )
        return new

    def put_incident(self, account: str, incident: Incident, at_ms: int) -> bool:
        identity = incident_identity(incident)
        return self._put_trouble(
            (self._account(account), incident.kind, identity),
            (incident.text, identity, at_ms, at_ms),
            (b"", Form.RECORD.value, False, 0, None, None),
        )

    def _put_trouble(
        self, key: tuple[int, str, str], what: tuple[str, str, int, int], piece: tuple[Any, ...]
    ) -> bool:
        return int(self._db.execute(_PUT, (*key, *what, *piece)).fetchone()[0]) == 1

    def troubles(self, account: str | None, limit: int) -> list[Trouble]:
        where = "" if account is None else "WHERE account = ?"
        rows = self._db.execute(
            "SELECT account, kind, cause, position, raw, first_ms, last_ms, times FROM trouble"
            f" {where} ORDER BY last_ms DESC, id DESC LIMIT ?",
            (limit,) if account is None else (self._peek_account(account), limit),
        ).fetchall()
        return [
            Trouble(
                account=self._name(row[0]),
                kind=row[1],
                cause=row[2],
                position=row[3],
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
        found: list[Piece] = []
        size = 0
        cursor = self._db.execute(
            "SELECT id, cause, position, form, truncated, size, asked, raw, body, first_ms, times"
            " FROM trouble WHERE id > ? AND account = ? AND last_ms >= ? AND asked IS NOT NULL"
            " ORDER BY id LIMIT ?",
            (after_id, self._peek_account(account), since_ms, limit),
        )
        for row in cursor:
            found.append(
                Piece(
                    id=row[0],
                    account=account,
                    cause=row[1],
                    position=row[2],
                    form=Form(row[3]),
                    truncated=bool(row[4]),
                    size=row[5],
                    asked=row[6],
                    raw=unpack(row[7], row[8]),
                    at_ms=row[9],
                    times=row[10],
                )
            )
            size += row[5]
            if size >= bytes_max:
                break
        cursor.close()
        return found

    def drop_pieces(self, ids: Sequence[int]) -> int:
        gone = 0
        for piece_id in ids:
            parts = self._db.execute(_PARTS, (piece_id,)).fetchall()
            for row_id in {piece_id, *(row[0] for row in parts)}:
                gone += self._db.execute("DELETE FROM trouble WHERE id = ?", (row_id,)).rowcount
        return gone

    def drop_troubles(self, before_ms: int, keep: int, keep_bytes: int, limit: int) -> int:
        cursor = self._db.execute(
            "DELETE FROM trouble WHERE id IN (SELECT id FROM trouble WHERE last_ms < ? LIMIT ?)",
            (before_ms, limit),
        )
        gone = cursor.rowcount
        cursor = self._db.execute(
            "DELETE FROM trouble WHERE id IN (SELECT id FROM trouble ORDER BY last_ms, id"
            " LIMIT max(0, min(?, (SELECT count(*) FROM trouble) - ?)))",
            (limit, keep),
        )
        gone += cursor.rowcount
        held = "SELECT coalesce(sum(size), 0) FROM trouble WHERE size > 0"
        beyond = self._db.execute(held).fetchone()[0] - keep_bytes
        if beyond > 0:
            cursor = self._db.execute(
                "DELETE FROM trouble WHERE id IN (SELECT id FROM (SELECT id, size, sum(size) OVER"
                " (ORDER BY last_ms, id) AS so_far FROM trouble) WHERE so_far - size < ? LIMIT ?)",
                (beyond, limit),
            )
            gone += cursor.rowcount
        return gone
