"""Records into two tables of a PostgreSQL database, exactly once.

`reports` takes each event once, `messages` keeps the newest record of each message. A batch is
copied into a temporary table and from there into both in one transaction: repeated it changes
nothing, broken it leaves nothing. Rows go in in the order of their keys, lest two workers wait for
each other. Any error ends the connection, and the next write makes another. What the database
refuses for good is found by halving the batch.
"""

from __future__ import annotations

import re
from contextlib import AsyncExitStack, suppress
from typing import Any, ClassVar

import asyncpg
import msgspec

from engine.network.sqlstate import ERRORS, NOT_OURS, cause, refusal

from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.rows import COLUMNS, Kind, Row, read_rows
from ..core.secret import Secret
from ..core.two_tables import EVENT, FIELDS, MESSAGE, TwoTables
from ..targets.line import Line

CONNECT_S = 30.0
COMMAND_S = 60.0  # a server that is silent for so long is given up
CLOSE_S = 5.0
LOCK_S = 10  # how long a write waits for another program's transaction

_TYPES: dict[Kind, str] = {
    "text": "text", "flag": "boolean", "integer": "bigint", "time": "timestamptz",
}  # fmt: skip
_SESSION = """
    SET lock_timeout = '{}s';
    SET default_transaction_isolation = 'read committed';
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') = 'off';
    CREATE TEMP TABLE dlr_batch ({}) ON COMMIT DELETE ROWS"""
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
        self._tables = TwoTables(options.table_prefix, _TYPES, f"{self._schema}.")
        once = f"SELECT {FIELDS} FROM dlr_batch ORDER BY {EVENT}"
        newest = f"""
            SELECT DISTINCT ON ({MESSAGE}) {FIELDS} FROM dlr_batch
                ORDER BY {MESSAGE}, revision DESC"""
        self._take = f"{self._tables.take_once(once)}; {self._tables.keep_newest(newest)}"
        self._line = Line[Any](
            "cannot write to PostgreSQL",
            self._connect,
            ERRORS,
            cause,
            lambda db: not db.is_closed(),
        )

    async def open(self) -> None:
        await self._line.use(self._store, [], {})

    async def write(self, batch: Batch) -> None:
        rows, rejected = read_rows(batch.lines)
        for index in rows:
            if b"\\u0000" in batch.lines[index]:  # no text of PostgreSQL can hold it
                rows[index] = tuple(map(_without_nul, rows[index]))
        if rows:
            await self._line.use(self._store, list(rows.items()), rejected)
        if rejected:
            raise PartialWrite(rejected)

    async def close(self) -> None:
        if self._line.held is not None:
            with suppress(*ERRORS):
                await self._line.held.close(timeout=CLOSE_S)
        await self._line.drop()

    async def _store(self, db: Any, rows: list[tuple[int, Row]], rejected: dict[int, str]) -> None:
        if not rows:
            return
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
        await self._store(db, rows[:middle], rejected)
        await self._store(db, rows[middle:], rejected)

    async def _connect(self, closing: AsyncExitStack) -> Any:
        db = await asyncpg.connect(self._url.reveal(), timeout=CONNECT_S, command_timeout=COMMAND_S)
        closing.callback(db.terminate)  # cancelled or failed: the server rolls back
        await db.execute(_SESSION.format(LOCK_S, self._tables.definition))
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(hashtext('dlr-engine'))")
            await self._make_tables(db)
        return db

    async def _make_tables(self, db: Any) -> None:
        """Make what is missing; where nothing is, no right to do so is needed."""
        if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", self._schema):
            await db.execute(f"CREATE SCHEMA {self._schema}")
        for table, key in self._tables.keys.items():
            present = {row[0] for row in await db.fetch(_PRESENT, table)}
            if not self._tables.owns(table, present):
                raise SinkError(f"cannot write to PostgreSQL: {NOT_OURS}")
            for statement in self._tables.making(table, present, f", PRIMARY KEY ({key})"):
                await db.execute(statement)


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
