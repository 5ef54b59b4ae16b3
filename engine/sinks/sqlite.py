"""Records into two tables of an SQLite database, exactly once.

`reports` takes each event once, `messages` keeps the newest record of each message. A batch is one
transaction that ends with an fsync, so a repeated batch changes nothing and a broken one leaves
nothing. Any error closes the connection; the next write opens it again, makes what is missing and
so recovers by itself, also from a database that was moved away under it.

It must never change a table, a column or a row that is not its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from engine.machine.disk_causes import write_cause
from engine.machine.private import make_database, make_folder

from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.rows import COLUMNS, Kind, Row, read_rows
from ..core.two_tables import TwoTables
from ..targets.own_thread import OwnThread

BUSY_S = 5.0  # how long a write waits for another program's transaction
PREFIX_MAX = 40

_TYPES: dict[Kind, str] = {"text": "TEXT", "flag": "INTEGER", "integer": "INTEGER", "time": "TEXT"}
_VALUES = f"VALUES ({', '.join('?' * len(COLUMNS))})"
_ONES_OWN = (sqlite3.DataError, sqlite3.IntegrityError)  # of a row, not of the moment


class SqliteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`table_prefix` stands before the names of tables and indexes."""

    path: Path
    table_prefix: str = ""

    def __post_init__(self) -> None:
        prefix = self.table_prefix
        if prefix and not re.fullmatch(rf"[A-Za-z_][A-Za-z0-9_]{{0,{PREFIX_MAX - 1}}}", prefix):
            raise ValueError(
                f"table_prefix: expected at most {PREFIX_MAX} letters, digits and _, no digit"
                f" first, got {prefix!r}"
            )
        if prefix.lower().startswith("sqlite_"):
            raise ValueError("table_prefix: SQLite keeps names that start with sqlite_ for itself")


class SqliteSink:
    """Inserts batches. All work is in a worker thread, one call at a time."""

    name: ClassVar[str] = "sqlite"
    Options: ClassVar[type[msgspec.Struct]] = SqliteOptions

    def __init__(self, options: SqliteOptions) -> None:
        self._path = options.path
        self._tables = TwoTables(options.table_prefix, _TYPES)
        self._take = self._tables.take_once(_VALUES)
        self._keep = self._tables.keep_newest(_VALUES)
        self._thread = OwnThread(
            "dlr-sqlite-sink", f"cannot write {self._path}", self._drop, write_cause
        )
        self._db: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None

    async def open(self) -> None:
        await self._thread.run(self._connected)

    async def write(self, batch: Batch) -> None:
        if batch.lines and (rejected := await self._thread.run(self._store, batch.lines)):
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._thread.close()

    # All below runs on its thread; whatever it raises drops the connection, which rolls back.

    def _store(self, lines: Sequence[bytes]) -> dict[int, str]:
        rows, rejected = read_rows(lines, timed=False)
        db = self._connected()
        db.execute("BEGIN IMMEDIATE")
        try:
            self._put(db, rows.values())
        except _ONES_OWN:
            if db.in_transaction:  # a constraint or a trigger may end it by itself
                db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            rejected |= self._put_one_by_one(db, rows)
        db.execute("COMMIT")
        return rejected

    def _put(self, db: sqlite3.Connection, rows: Collection[Row]) -> None:
        db.executemany(self._take, rows)
        db.executemany(self._keep, rows)

    def _put_one_by_one(self, db: sqlite3.Connection, rows: dict[int, Row]) -> dict[int, str]:
        """Store what can be; the causes of what cannot."""
        rejected: dict[int, str] = {}
        taken: list[Row] = []
        for index, row in rows.items():
            db.execute("SAVEPOINT one")
            try:
                self._put(db, [row])
            except _ONES_OWN as exc:
                rejected[index] = f"SQLite cannot take it: {exc}"
                if not db.in_transaction:  # its refusal took with it what had been stored
                    db.execute("BEGIN IMMEDIATE")
                    self._put(db, taken)
                    continue
                db.execute("ROLLBACK TO one")
            else:
                taken.append(row)
            db.execute("RELEASE one")
        return rejected

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._file is not None and os.path.samestat(self._file, os.stat(self._path)):
                    return self._db
            self._drop()  # what is written to a file that was moved away, nobody would find
        make_folder(self._path.parent)
        make_database(self._path)
        self._db = db = sqlite3.connect(
            self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        self._file = os.stat(self._path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        self._make_tables(db)
        db.execute("COMMIT")
        return db

    def _make_tables(self, db: sqlite3.Connection) -> None:
        for table, key in self._tables.keys.items():
            present = {row[1].lower() for row in db.execute(f"PRAGMA table_info({table})")}
            if not self._tables.owns(table, present):
                raise SinkError(
                    f"cannot write {self._path}: its table {table} is not this sink's; set"
                    " table_prefix"
                )
            for statement in self._tables.making(table, present):
                db.execute(statement)
            db.execute(f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_key ON {table} ({key})")

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
