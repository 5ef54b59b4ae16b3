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
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.report import FIELDS, decode
from ..disk_causes import cause, file_cause
from ..offload import Offload
from ..private import make_database, make_folder

BUSY_S = 5.0  # how long a write waits for another program's transaction
PREFIX_MAX = 40

_INTEGERS = frozenset({"revision", "final", "error_permanent", "parts"})
_TYPES = {field: "INTEGER" if field in _INTEGERS else "TEXT" for field in FIELDS}
_COLUMNS = ", ".join(FIELDS)
_MARKS = ", ".join("?" * len(FIELDS))
_KEY = ("account", "message_id", "direction")
_NEWER = ", ".join(f"{field} = excluded.{field}" for field in FIELDS if field not in _KEY)
_PLAIN = tuple(field for field in FIELDS if field != "extra")
_plain = attrgetter(*_PLAIN)
_key = attrgetter(*_KEY)
_encode = msgspec.json.Encoder().encode

Row = tuple[object, ...]


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
        self._reports = reports = f"{options.table_prefix}reports"
        self._messages = messages = f"{options.table_prefix}messages"
        # The prefix holds identifier characters alone, and no other text is put in.
        self._insert = (
            f"INSERT INTO {reports} ({_COLUMNS}) VALUES ({_MARKS})"
            " ON CONFLICT (event_id) DO NOTHING"
        )
        self._upsert = (
            f"INSERT INTO {messages} ({_COLUMNS}) VALUES ({_MARKS})"
            f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {_NEWER}"
            f" WHERE excluded.revision > {messages}.revision"
        )
        self._offload = Offload("dlr-sqlite-sink")
        self._db: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None

    async def open(self) -> None:
        await self._run(self._connected)

    async def write(self, batch: Batch) -> None:
        if batch.lines:
            await self._run(self._store, batch.lines)

    async def close(self) -> None:
        try:
            await self._run(self._drop)
        finally:
            await self._offload.close()

    async def _run(self, work: Callable[..., object], *args: Any) -> None:
        try:
            await self._offload.run(self._guarded, work, *args)
        except sqlite3.Error as exc:
            raise SinkError(f"cannot write {self._path}: {cause(exc)}") from exc
        except OSError as exc:
            raise SinkError(f"cannot write {self._path}: {file_cause(exc)}") from exc

    # All below runs in a worker thread, under the guard.

    def _guarded(self, work: Callable[..., object], *args: Any) -> None:
        try:
            work(*args)
        except PartialWrite:
            raise  # the others were taken
        except BaseException:
            self._drop()  # rolls back
            raise

    def _store(self, lines: Sequence[bytes]) -> None:
        rejected: dict[int, str] = {}
        rows: dict[int, Row] = {}
        newest: dict[Row, tuple[int, int]] = {}
        for index, line in enumerate(lines):
            try:
                report = decode(line)
                extra = _encode(report.extra).decode()
            except (msgspec.DecodeError, UnicodeError) as exc:
                rejected[index] = f"not a record: {exc}"
                continue
            rows[index] = (*_plain(report), extra)
            key = _key(report)
            if key not in newest or report.revision > newest[key][0]:
                newest[key] = (report.revision, index)
        db = self._connected()
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(self._insert, rows.values())
            db.executemany(self._upsert, (rows[index] for _, index in newest.values()))
        except (OverflowError, UnicodeError, sqlite3.DataError, sqlite3.InterfaceError):
            db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            rejected |= self._one_by_one(db, rows)
        db.execute("COMMIT")
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    def _one_by_one(self, db: sqlite3.Connection, rows: dict[int, Row]) -> dict[int, str]:
        """Store what SQLite can take; the causes of what it cannot. Values fail before a change."""
        rejected = {}
        for index, row in rows.items():
            try:
                db.execute(self._insert, row)
                db.execute(self._upsert, row)
            except (OverflowError, UnicodeError, sqlite3.DataError, sqlite3.InterfaceError) as exc:
                rejected[index] = f"SQLite cannot hold a value of it: {exc}"
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
        for table, unique in ((self._reports, ("event_id",)), (self._messages, _KEY)):
            columns = ", ".join(f"{field} {kind}" for field, kind in _TYPES.items())
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
            present = {row[1].lower() for row in db.execute(f"PRAGMA table_info({table})")}
            if not present.issuperset(unique):
                raise SinkError(
                    f"cannot write {self._path}: its table {table} is not this sink's; set"
                    " table_prefix"
                )
            for field, kind in _TYPES.items():
                if field not in present:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {field} {kind}")
            db.execute(
                f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_key ON {table} ({', '.join(unique)})"
            )
        db.execute(
            f"CREATE INDEX IF NOT EXISTS {self._reports}_message"
            f" ON {self._reports} (account, message_id)"
        )

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
