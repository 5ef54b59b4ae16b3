"""The SQLite store's rows of accounts and messages.

Lists go in as one JSON array (`json_each`), so that a page of 1,000 reports is one look-up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import orjson

from engine.core.reconcile import Known
from engine.core.report import recipient_key
from engine.core.state import State

_KNOWN = (
    "account, message_id, direction, revision, state, final, open, verdict, provider_status, "
    "error_code, status_ms, sent_ms, placed_ms, seen_ms, batch_id, reference, recipient, "
    "tracked, record, history, id"
)
_PUT_KNOWN = """
INSERT INTO message (account, message_id, direction, revision, state, final, open, verdict,
    provider_status, error_code, status_ms, sent_ms, placed_ms, seen_ms, batch_id, reference,
    recipient, tracked, record, history, recipient_key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (message_id, account, direction) DO UPDATE SET revision = excluded.revision,
    state = excluded.state, final = excluded.final, open = excluded.open,
    verdict = excluded.verdict, provider_status = excluded.provider_status,
    error_code = excluded.error_code, status_ms = excluded.status_ms, sent_ms = excluded.sent_ms,
    placed_ms = excluded.placed_ms,
    seen_ms = excluded.seen_ms, batch_id = excluded.batch_id, reference = excluded.reference,
    recipient = excluded.recipient, tracked = excluded.tracked, record = excluded.record,
    history = excluded.history, recipient_key = excluded.recipient_key
"""
_FIND_BY = {
    "message_id": "message_id = ?",
    "batch_id": "batch_id = ?",
    "reference": "reference = ?",
    "recipient": "recipient_key = ?",
}


class SqliteAccounts:
    """A connection; `accounts` maps names to row numbers and is shared by its transactions."""

    def __init__(self, db: sqlite3.Connection, accounts: dict[str, int]) -> None:
        self._db = db
        self._accounts = accounts
        self._names = {number: name for name, number in accounts.items()}

    def _account(self, name: str) -> int:
        number = self._accounts.get(name)
        if number is None:
            row = self._db.execute("SELECT id FROM account WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = self._db.execute(
                    "INSERT INTO account (name) VALUES (?) RETURNING id", (name,)
                ).fetchone()
            number = int(row[0])
            self._accounts[name] = number
            self._names[number] = name
        return number

    def _peek_account(self, name: str) -> int:
        """For reads: an account that was never written has no rows, and gets none."""
        number = self._accounts.get(name)
        if number is None:
            row = self._db.execute("SELECT id FROM account WHERE name = ?", (name,)).fetchone()
            number = int(row[0]) if row is not None else -1
        return number

    def _name(self, number: int) -> str:
        name = self._names.get(number)
        if name is None:
            row = self._db.execute("SELECT name FROM account WHERE id = ?", (number,)).fetchone()
            name = self._names[number] = str(row[0])
        return name

    def _by_text(
        self, start: str, values: Sequence[str], rest: str, more: tuple[Any, ...]
    ) -> list[tuple[Any, ...]]:
        """Rows whose text is one of `values`. One with a NUL in it is looked up by itself:
        json_each ends a text there."""
        plain = [value for value in values if "\0" not in value]
        rows = self._db.execute(
            f"{start} (SELECT value FROM json_each(?)) {rest}", (_array(plain), *more)
        ).fetchall()
        for odd in set(values) - set(plain):
            rows += self._db.execute(f"{start} (?) {rest}", (odd, *more)).fetchall()
        return rows


class SqliteMessages(SqliteAccounts):
    """The primitives on messages."""

    def _known(self, row: tuple[Any, ...]) -> Known:
        return Known(
            account=self._name(row[0]),
            message_id=row[1],
            direction=row[2],
            revision=row[3],
            state=State(row[4]),
            final=bool(row[5]),
            open=bool(row[6]),
            verdict=row[7],
            provider_status=row[8],
            error_code=row[9],
            status_ms=row[10],
            sent_ms=row[11],
            placed_ms=row[12],
            seen_ms=row[13],
            batch_id=row[14],
            reference=row[15],
            recipient=row[16],
            tracked=bool(row[17]),
            record=row[18],
            history=row[19],
            row=row[20],
        )

    def messages(
        self, account: str, ids: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Known]:
        if not ids:
            return {}
        wanted = set(ids)
        rows = self._by_text(
            f"SELECT {_KNOWN} FROM message WHERE message_id IN",
            [message_id for message_id, _ in ids],
            "AND account = ?",
            (self._peek_account(account),),
        )
        found = {(row[1], row[2]): row for row in rows}
        return {key: self._known(row) for key, row in found.items() if key in wanted}

    def put_messages(self, messages: Sequence[Known]) -> None:
        self._db.executemany(
            _PUT_KNOWN,
            [
                (
                    self._account(known.account),
                    known.message_id,
                    known.direction,
                    known.revision,
                    known.state.value,
                    known.final,
                    known.open,
                    known.verdict,
                    known.provider_status,
                    known.error_code,
                    known.status_ms,
                    known.sent_ms,
                    known.placed_ms,
                    known.seen_ms,
                    known.batch_id,
                    known.reference,
                    known.recipient,
                    known.tracked,
                    known.record,
                    known.history,
                    recipient_key(known.recipient) if known.recipient is not None else None,
                )
                for known in messages
            ],
        )

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND final = 0" if pending else ""
        rows = self._db.execute(
            f"SELECT {_KNOWN} FROM message WHERE batch_id = ? AND account = ?{only}"
            " ORDER BY id LIMIT ?",
            (batch_id, self._peek_account(account), limit),
        )
        return [self._known(row) for row in rows.fetchall()]

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(final = 0), 0), coalesce(sum(final = 0 AND tracked), 0)"
            " FROM message WHERE batch_id = ? AND account = ?",
            (batch_id, self._peek_account(account)),
        ).fetchone()
        return (row[0], row[1], row[2])

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        if not batch_ids:
            return set()
        rows = self._by_text(
            "SELECT DISTINCT batch_id FROM message WHERE batch_id IN",
            batch_ids,
            "AND account = ? AND final = 0 AND tracked = 1",
            (self._peek_account(account),),
        )
        return {row[0] for row in rows}

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND final = 0" if pending else ""
        rows = self._db.execute(
            f"SELECT {_KNOWN} FROM message WHERE open = 1 AND account = ?"
            f" AND placed_ms BETWEEN ? AND ?{only} ORDER BY placed_ms, id LIMIT ?",
            (self._peek_account(account), from_ms, to_ms, limit),
        )
        return [self._known(row) for row in rows.fetchall()]

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        rows = self._db.execute(
            f"SELECT {_KNOWN} FROM message WHERE {_FIND_BY[by]} ORDER BY id LIMIT ?",
            (value, limit),
        )
        return [self._known(row) for row in rows.fetchall()]

    def drop_ended(self, before_ms: int, limit: int) -> list[Known]:
        gone = self._db.execute(
            f"SELECT {_KNOWN} FROM message WHERE final = 1 AND seen_ms < ? AND NOT EXISTS"
            " (SELECT 1 FROM work WHERE work.account = message.account AND work.kind = 'batch'"
            " AND work.key = message.batch_id) LIMIT ?",
            (before_ms, limit),
        ).fetchall()
        self._db.executemany("DELETE FROM message WHERE id = ?", [(row[20],) for row in gone])
        return [self._known((*row[:18], b"", b"", row[20])) for row in gone]


def _array(values: Sequence[str]) -> str:
    return orjson.dumps(list(values)).decode()
