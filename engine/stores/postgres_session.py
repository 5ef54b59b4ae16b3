"""A connection to PostgreSQL with the event loop that it lives in, for one thread.

The store's jobs are plain functions, its client library is asynchronous: each call runs the loop
until the answer is there. What fails is told in words of our own (`sqlstate`), never in the
server's, which may hold the user, the host or a value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from importlib import resources
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from engine.core.errors import EngineError, StoreError, StoreTrouble
from engine.core.secret import Secret
from engine.network.sqlstate import ERRORS, SHARED, cause, refusal

T = TypeVar("T")

SCHEMA_VERSION = 3

CONNECT_S = 10.0
COMMAND_S = 60.0  # a server that is silent for so long is given up
CLOSE_S = 2.0

# How long a statement waits for another transaction, and how long the server keeps a transaction
# open for a worker that is silent: one that is frozen holds the locks of its leases no longer.
LOCK_S = 10
SILENT_S = 10

_FAILURES = (*ERRORS, asyncpg.InternalClientError)

# Every statement here has an index, in whose order its rows come: what has a limit ends with it.
# Before a table has been analysed the planner may think otherwise, and a plan is kept.
_SESSION = f"""
    SET lock_timeout = '{LOCK_S}s';
    SET idle_in_transaction_session_timeout = '{SILENT_S}s';
    SET statement_timeout = 0;
    SET default_transaction_isolation = 'read committed';
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET jit = off;
    SET client_min_messages = error;
"""
_DURABLE = """
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') = 'off'
"""

# What takes every character; the second takes bytes as they are.
_ENCODINGS = frozenset({"UTF8", "SQL_ASCII"})

_LOST = frozenset({"08", "57"})  # the connection is gone, or is going
_PASSING = frozenset({"08", "25", "40", "53", "55", "57"})
_WORDS = {
    "3F": "none of the schemas is there that search_path names (in the url, else that of the user"
    " or the database); create one",
    "42P05": SHARED,
    "42501": "rights are missing; grant USAGE and CREATE on the schema, TEMPORARY on the database,"
    " and SELECT, INSERT, UPDATE and DELETE on the store's tables",
    "42P07": "a table that is not the store's has the name of one of its tables; give the store a"
    " schema of its own with ?search_path=name in the url",
    "42": "its tables are not as the store makes them",
}


class Refused(EngineError):
    """A value that PostgreSQL cannot take; the same again would be refused again."""

    def __init__(self, cause: str, *, taken: bool) -> None:
        super().__init__(f"PostgreSQL cannot take it: {cause}")
        self.taken = taken  # what was to be new is there already


class Session:
    """Calls block. After StoreTrouble the connection may be gone: `connect` makes another."""

    def __init__(self, url: Secret, shown: str) -> None:
        self._url = url
        self.shown = shown
        self._loop = _new_loop(url)
        self._db: Any = None
        self.failed = False  # a statement of the transaction under way has failed
        self.staged = False  # its temporary table has rows

    def connect(self, settings: str = "") -> bool:
        """True where a new connection was made. Raises StoreError, and StoreTrouble where another
        try may do."""
        if self._db is not None:
            self._loop.run_until_complete(asyncio.sleep(0))  # to hear of its end
            if not self._db.is_closed():
                return False
            self.drop()
        self.failed = False
        self._db = self._run(
            asyncpg.connect(
                self._url.reveal(),
                timeout=CONNECT_S,
                command_timeout=COMMAND_S,
                max_cached_statement_lifetime=0,
            )
        )
        try:
            self.execute(f"{_SESSION}; {_DURABLE}; {settings}")
        except BaseException:
            self.drop()
            raise
        return True

    @property
    def pooled(self) -> bool:
        """Whether something stands between us and the server: who answered was not its process."""
        return bool(self.process() != self._db.get_server_pid())

    def process(self) -> int:
        """The server's process that answers now."""
        return int(self.fetch("SELECT pg_backend_pid()")[0][0])

    def fetch(self, statement: str, *values: Any) -> list[Any]:
        rows: list[Any] = self._run(self._db.fetch(statement, *values))
        return rows

    def execute(self, statement: str, *values: Any) -> None:
        self._run(self._db.execute(statement, *values))

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        self._run(self._db.copy_records_to_table(table, columns=columns, records=rows))

    def begin(self, how: str = "") -> None:
        self.failed = self.staged = False
        self.execute(f"BEGIN{how}")

    def commit(self) -> None:
        self.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo the transaction; a connection that cannot even do that is dropped."""
        if self._db is None:
            return
        with suppress(StoreError, Refused):
            self.execute("ROLLBACK")
            self.failed = False
            return
        self.drop()

    def drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()
            self._loop.run_until_complete(_end_others())

    def close(self) -> None:
        """End the connection and the loop."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(*_FAILURES):
                self._loop.run_until_complete(db.close(timeout=CLOSE_S))
            db.terminate()
        self._loop.run_until_complete(_end_others())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _run(self, work: Awaitable[T]) -> T:
        try:
            return self._loop.run_until_complete(_awaited(work))
        except _FAILURES as error:
            self.failed = True
            fault = self._fault(error)
        if isinstance(fault, StoreTrouble) and self._db is not None and self._db.is_closed():
            self.drop()
        raise fault  # nothing leads back to the library's error

    def _fault(self, error: BaseException) -> EngineError:
        state = (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""
        if state:
            why = refusal(error) if self._db is not None else None  # else it is of the url
            if why is not None:
                return Refused(why, taken=state == "23505")
            words = _WORDS.get(state) or _WORDS.get(state[:2])
            why = f"{words} ({state})" if words else cause(error)
            kind = StoreTrouble if state[:2] in _PASSING else StoreError
            return kind(f"the store {self.shown}: {why}")
        if isinstance(error, ValueError) and self._db is not None:
            return Refused("a value cannot be written in its column's type", taken=False)
        # A configuration error of the library's is both kinds of error.
        kind = StoreError if isinstance(error, ValueError) else StoreTrouble
        return kind(f"the store {self.shown}: {cause(error)}")


def _new_loop(url: Secret) -> asyncio.AbstractEventLoop:
    """The faster kind, where no name has to be looked up: its look-ups have threads that stay."""
    try:
        ip_address(urlsplit(url.reveal()).hostname or "")
        from uvloop import new_event_loop
    except (ValueError, ImportError):
        return asyncio.new_event_loop()
    return new_event_loop()


async def _end_others() -> None:
    """What the library still has under way: telling a silent server that nobody waits for it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # for what was closed to be gone


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def own_session(session: Session, other: Session) -> None:
    """Raises StoreError behind a pooler that takes a session away between two transactions: what
    is set, listened for and locked in it would be somebody else's. `other` is to be connected."""
    if not session.pooled:
        return
    before = session.process()
    other.connect()
    other.begin()  # it gets a process for as long as that lasts: the one that is free now
    taken = other.process()
    after = session.process()
    other.roll_back()
    if before != after or taken in (before, after):
        raise StoreError(f"the store {session.shown}: {SHARED}")


def prepare(session: Session) -> None:
    """Bring the schema up to date. Several workers may do so at once: one of them does it.

    Raises StoreError where a newer release has written it, or where text of providers would not
    fit: each of their characters has to, also in an id or a recipient.
    """
    encoding = session.fetch("SHOW server_encoding")[0][0]
    if encoding not in _ENCODINGS:
        raise StoreError(
            f"the database's encoding is {encoding}, which has not all characters; make one with"
            " ENCODING 'UTF8'"
        )
    if _version(session) == SCHEMA_VERSION:
        return  # no right to make tables is needed
    session.begin()
    try:
        session.execute(
            "SELECT pg_advisory_xact_lock(hashtext('dlr-engine store ' || current_schema()))"
        )
        version = _version(session)
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"was written by a newer release (schema {version}, this one knows"
                f" {SCHEMA_VERSION}): update dlr-engine"
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            name = f"postgres-{number:04d}.sql"
            schema = resources.files("engine.stores") / "schema" / name
            session.execute(schema.read_text(encoding="utf-8"))
            session.execute("INSERT INTO dlr_schema (version, made) VALUES ($1, now())", number)
        session.commit()
    except BaseException:
        session.roll_back()
        raise


def _version(session: Session) -> int:
    """The newest migration that was made here; 0 where there is none."""
    # Not by to_regclass, which remembers what was not there before another worker made it.
    there = """
        SELECT FROM pg_class
        WHERE relname = 'dlr_schema' AND relnamespace = (
            SELECT oid FROM pg_namespace WHERE nspname = current_schema()
        )
    """
    if not session.fetch(there):
        return 0
    return int(session.fetch("SELECT coalesce(max(version), 0) FROM dlr_schema")[0][0])
