"""Records into two tables of a PostgreSQL database, exactly once.

`reports` takes each event once, `messages` keeps the newest record of each message. A batch is
copied into a temporary table and from there into both in one transaction: repeated it changes
nothing, broken it leaves nothing. Rows go in in the order of their keys, lest two workers wait for
each other. Any error ends the connection, and the next write makes another. What the database
refuses for good is found by halving the batch.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar

import asyncpg
import msgspec

from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.rows import COLUMNS, Row, read_rows
from ..core.secret import Secret
from ..sqlstate import ERRORS, NOT_OURS, cause, refusal

CONNECT_S = 30.0
COMMAND_S = 60.0  # a server that is silent for so long is given up
CLOSE_S = 5.0
LOCK_S = 10  # how long a write waits for another program's transaction

_TYPES = {"text": "text", "flag": "boolean", "integer": "bigint", "time": "timestamptz"}
_DEFINED = ", ".join(f"{field} {_TYPES[kind]}" for field, kind in COLUMNS.items())
_FIELDS = ", ".join(COLUMNS)
_KEYS = {"reports": "event_id", "messages": "account, message_id, direction"}
_NEWER = ", ".join(f"{field} = excluded.{field}" for field in COLUMNS)
_SESSION = f"""
    SET lock_timeout = '{{}}s';
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') = 'off';
    CREATE TEMP TABLE dlr_batch ({_DEFINED}) ON COMMIT DELETE ROWS"""
_PRESENT = """
    SELECT attname FROM pg_attribute
        WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"""


class PostgresOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`table_prefix` stands before the names of tables and indexes."""

    url: Secret
    schema: str = "public"
    table_prefix: str = ""

    def __post_init__(self) -> None:
        if not re.match("postgres(ql)?://", self.url.reveal()):
            raise ValueError("url: expected a URL such as postgresql://user@host/database")
        if not 0 < len(self.schema.encode()) < 64 or not self.schema.isprintable():
            raise ValueError(f"schema: expected 1 to 63 bytes, got {self.schema!r}")
        if not re.fullmatch("([a-z_][a-z0-9_]{0,39})?", self.table_prefix):
            raise ValueError("table_prefix: expected up to 40 of a-z 0-9 _, no digit first")


class PostgresSink:
    """Inserts batches, one at a time, over a connection of its own."""

    name: ClassVar[str] = "postgres"
    Options: ClassVar[type[msgspec.Struct]] = PostgresOptions

    def __init__(self, options: PostgresOptions) -> None:
        self._url = options.url
        self._schema = '"{}"'.format(options.schema.replace('"', '""'))
        self._tables = {f"{options.table_prefix}{table}": key for table, key in _KEYS.items()}
        (reports, event), (messages, message) = self._tables.items()
        self._take = f"""
            INSERT INTO {self._schema}.{reports} ({_FIELDS})
                SELECT {_FIELDS} FROM dlr_batch ORDER BY {event} ON CONFLICT ({event}) DO NOTHING;
            INSERT INTO {self._schema}.{messages} AS kept ({_FIELDS})
                SELECT DISTINCT ON ({message}) {_FIELDS} FROM dlr_batch
                    ORDER BY {message}, revision DESC
                ON CONFLICT ({message}) DO UPDATE SET {_NEWER}
                    WHERE excluded.revision > kept.revision"""
        self._db: Any = None

    async def open(self) -> None:
        await self._guarded(self._connected)

    async def write(self, batch: Batch) -> None:
        rows, rejected = read_rows(batch.lines)
        for index in rows:
            if b"\\u0000" in batch.lines[index]:  # no text of PostgreSQL can hold it
                rows[index] = tuple(map(_without_nul, rows[index]))
        if rows:
            await self._guarded(lambda: self._store(list(rows.items()), rejected))
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    async def close(self) -> None:
        if self._db is not None:
            with suppress(*ERRORS):
                await self._db.close(timeout=CLOSE_S)
            self._drop()

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    async def _guarded(self, act: Callable[[], Awaitable[object]]) -> None:
        try:
            return await act()  # type: ignore[return-value]
        except ERRORS as error:
            why = cause(error)
        except BaseException:  # cancelled: the server rolls back
            self._drop()
            raise
        self._drop()
        raise SinkError(f"cannot write to PostgreSQL: {why}")  # nothing leads back to the error

    async def _store(self, rows: list[tuple[int, Row]], rejected: dict[int, str]) -> None:
        db = await self._connected()
        try:
            async with db.transaction():
                records = [row for _, row in rows]
                await db.copy_records_to_table("dlr_batch", columns=COLUMNS, records=records)
                await db.execute(self._take)
        except asyncpg.PostgresError as error:
            why = refusal(error)
            if why is None:
                raise
        else:
            return
        if len(rows) == 1:
            rejected[rows[0][0]] = f"PostgreSQL cannot take it: {why}"
            return
        middle = len(rows) // 2
        await self._store(rows[:middle], rejected)
        await self._store(rows[middle:], rejected)

    async def _connected(self) -> Any:
        if self._db is None or self._db.is_closed():
            self._db = await asyncpg.connect(
                self._url.reveal(), timeout=CONNECT_S, command_timeout=COMMAND_S
            )
            await self._db.execute(_SESSION.format(LOCK_S))
            async with self._db.transaction():
                await self._db.execute("SELECT pg_advisory_xact_lock(hashtext('dlr-engine'))")
                await self._make_tables()
        return self._db

    async def _make_tables(self) -> None:
        """Make what is missing; where nothing is, no right to do so is needed."""
        if not await self._db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", self._schema):
            await self._db.execute(f"CREATE SCHEMA {self._schema}")
        for name, key in self._tables.items():
            table = f"{self._schema}.{name}"
            present = {row[0] for row in await self._db.fetch(_PRESENT, table)}
            if not present:
                await self._db.execute(f"CREATE TABLE {table} ({_DEFINED}, PRIMARY KEY ({key}))")
                if key == _KEYS["reports"]:
                    index = f"{name}_message ON {table} (account, message_id)"
                    await self._db.execute(f"CREATE INDEX {index}")
            elif not present.issuperset(key.split(", ")):
                raise SinkError(f"cannot write to PostgreSQL: {NOT_OURS}")
            for field, kind in COLUMNS.items():
                if present and field not in present:
                    await self._db.execute(f"ALTER TABLE {table} ADD {field} {_TYPES[kind]}")


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
