"""The SQLite store's rows of accounts: names as numbers, and what is known of each."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

SEQ_BITS = 40
SEQ_MAX = (1 << SEQ_BITS) - 1


class Account(NamedTuple):
    """An account's row. Rows of messages are counted over all accounts."""

    number: int
    first: int | None = None  # none of its messages stands in a row before this
    by_id_from: int | None = None  # from this one on they are found by their ids alone, too
    log_next: int = 1  # the number of the next log row
    log_bytes: int = 0  # of all log rows there ever were


_COLUMNS = "id, first_message, by_id_from, log_next, log_bytes"


class SqliteAccounts:
    """A connection; `accounts` is what its transactions have seen, and is shared by them."""

    def __init__(
        self, db: sqlite3.Connection, accounts: dict[str, Account], *, writes: bool = True
    ) -> None:
        self._db = db
        self._accounts = accounts
        self._writes = writes
        self._names = {known.number: name for name, known in accounts.items()}

    def _account(self, name: str) -> int:
        known = self._accounts.get(name)
        return known.number if known is not None else self._seen(name).number

    def _seen(self, name: str) -> Account:
        """An account that is written to; it is made where it is missing."""
        known = self._peek(name)
        if known is None:
            row = self._db.execute("INSERT INTO account (name) VALUES (?) RETURNING id", (name,))
            known = Account(row.fetchone()[0])
        self._accounts[name] = known
        self._names[known.number] = name
        return known

    def _touch(self, name: str) -> Account:
        """An account that is given messages."""
        known = self._accounts.get(name) or self._seen(name)
        if known.first is None:
            known = known._replace(first=self.newest_row() + 1)
            self._note(name, known)
        return known

    def ask_by_id(self, name: str) -> Account:
        """An account whose messages are asked for by their ids alone."""
        known = self._touch(name)
        if known.by_id_from is None:
            known = known._replace(by_id_from=self.newest_row() + 1)
            self._note(name, known)
        return known

    def _note(self, name: str, known: Account) -> None:
        self._db.execute(
            "UPDATE account SET first_message = ?, by_id_from = ?, log_next = ?, log_bytes = ?"
            " WHERE id = ?",
            (*known[1:], known.number),
        )
        self._accounts[name] = known

    def newest_row(self) -> int:
        """The last message that was ever put in."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
        return int(row[0]) if row is not None else 0

    def _claim(self, count: int) -> int:
        """The first of so many numbers for new messages."""
        newest = self.newest_row()
        if count:
            moved = self._db.execute(
                "UPDATE sqlite_sequence SET seq = ? WHERE name = 'message'", (newest + count,)
            )
            if not moved.rowcount:
                self._db.execute(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES ('message', ?)", (count,)
                )
        return newest + 1

    def _peek(self, name: str) -> Account | None:
        """For reads: an account that was never written has no rows, and gets none."""
        known = self._accounts.get(name)
        if known is None:
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM account WHERE name = ?", (name,)
            ).fetchone()
            known = Account(*row) if row is not None else None
        return known

    def _peek_account(self, name: str) -> int:
        known = self._peek(name)
        return known.number if known is not None else -1

    def _name(self, number: int) -> str:
        name = self._names.get(number)
        if name is None:
            row = self._db.execute("SELECT name FROM account WHERE id = ?", (number,)).fetchone()
            name = self._names[number] = str(row[0])
        return name

    def _log_id(self, account: str, seq: int) -> int:
        return self._peek_account(account) << SEQ_BITS | seq

    def _by_text(
        self, start: str, values: Sequence[str], rest: str, more: tuple[Any, ...]
    ) -> list[tuple[Any, ...]]:
        """Rows whose text is one of `values`. One with a NUL in it is looked up by itself:
        json_each ends a text there."""
        plain = [value for value in values if "\0" not in value]
        array = orjson.dumps(plain).decode()
        rows = self._db.execute(
            f"{start} (SELECT value FROM json_each(?)) {rest}", (array, *more)
        ).fetchall()
        for odd in set(values) - set(plain):
            rows += self._db.execute(f"{start} (?) {rest}", (odd, *more)).fetchall()
        return rows
