"""The leases of a fleet in PostgreSQL: who is alive, who holds what, and news for all.

A worker's row says until when it is alive, by the server's clock, and a lease names the worker that
holds it: to renew is one row, however many accounts a worker has. Who is dead is taken out; what
names nobody who is there is free. Claims, and joining anew, are made one after the other under one
lock, so that each sees what was decided before it; a renewal that finds its row needs no lock, for
burying it had to wait for that row.

It has a connection of its own: what the store's connections wait for must not cost a lease. Any
error ends it, and the next call makes another.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import asyncpg
import msgspec

from engine.network.sqlstate import ERRORS, cause

from ..core.errors import StoreTrouble
from ..core.secret import Secret

T = TypeVar("T")

ANSWER_S = 2.0  # of one statement: a server that is silent for longer costs the lease
CLOSE_S = 1.0
FREE, INBOX = "dlr_free", "dlr_inbox"  # channels: something is free; an account's inbox has news

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('dlr-engine leases'))"
_NOW = "clock_timestamp()"
_RENEW = f"""
    UPDATE worker SET seen = {_NOW}, until = {_NOW} + make_interval(secs => $2), load = $3,
        idle = $4, leaving = $5
        WHERE id = $1 RETURNING extract(epoch FROM {_NOW})::float8"""
_JOIN = f"""
    INSERT INTO worker (id, name, host, place, pid, seen, until, load)
        VALUES ($1, $2, $3, $4, $5, {_NOW}, {_NOW} + make_interval(secs => $6), 0)"""
# After the server was away all rows have run out: those who are alive get time to renew.
_BURY = f"""
    DELETE FROM worker WHERE id <> $1 AND until < {_NOW}
        AND {_NOW} > pg_postmaster_start_time() + make_interval(secs => $2) RETURNING id"""
_PEERS = "SELECT id, name, load, idle, leaving FROM worker ORDER BY id"
_MINE = "SELECT account, fence FROM lease WHERE worker = $1"
# From one holder to the next by the index: leases are many, those who hold them are few.
_FREE = """
    WITH RECURSIVE holder (id) AS (
        SELECT min(worker) FROM lease
        UNION ALL
        SELECT (SELECT min(worker) FROM lease WHERE worker > holder.id) FROM holder
            WHERE holder.id IS NOT NULL
    )
    SELECT account FROM lease WHERE worker IS NULL
    UNION ALL
    SELECT lease.account FROM holder JOIN lease ON lease.worker = holder.id
        WHERE NOT EXISTS (SELECT FROM worker WHERE worker.id = holder.id)"""
_LOCK_FREE = """
    SELECT account FROM lease WHERE account = ANY($1)
        AND (worker IS NULL OR NOT EXISTS (SELECT FROM worker w WHERE w.id = lease.worker))
        FOR UPDATE SKIP LOCKED"""
_TAKE = f"""
    WITH me AS (UPDATE worker SET idle = false WHERE id = $1 RETURNING id)
    UPDATE lease SET worker = me.id, fence = fence + 1, since = {_NOW}
        FROM me WHERE account = ANY($2) RETURNING account, fence"""
_GIVE = "UPDATE lease SET worker = NULL WHERE worker = $1 AND account = ANY($2)"
_ADD = "INSERT INTO lease (account) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
_WORKERS = f"""
    SELECT name, host, pid, (extract(epoch FROM started) * 1000)::bigint AS started_ms,
        extract(epoch FROM {_NOW} - seen)::float8 AS seen_s, until > {_NOW} AS alive,
        load, idle, leaving,
        (SELECT count(*) FROM lease WHERE lease.worker = worker.id) AS accounts
    FROM worker ORDER BY name"""
_LEASES = """
    SELECT account, name AS worker, (extract(epoch FROM since) * 1000)::bigint AS since_ms, fence
    FROM lease LEFT JOIN worker ON worker.id = lease.worker ORDER BY account"""
# A frozen process may stand in the middle of a transaction; its fence would refuse it, but the rows
# that it has locked could not be taken.
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY($1)"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is alive."""

    id: str
    name: str
    load: float
    idle: bool
    leaving: bool


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a renewal brings."""

    members: tuple[Member, ...]
    mine: dict[str, int]  # fence by name
    free: frozenset[str]  # also names that another configuration knows
    database_s: float  # the server's clock, epoch seconds, some time between the two:
    asked_at: float  # monotonic
    answered_at: float
    name: str


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, for people."""

    name: str
    host: str
    pid: int
    started_ms: int
    seen_s: float  # so long ago
    alive: bool
    load: float
    idle: bool
    leaving: bool
    accounts: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease, for people."""

    account: str
    worker: str | None  # its name; None: nobody has it
    since_ms: int | None
    fence: int  # how often it has been given to somebody


class Survey(msgspec.Struct, kw_only=True):
    """Who is there and who has what."""

    workers: list[Worker] = []
    leases: list[Lease] = []


async def survey(url: Secret) -> Survey:
    """Look, and change nothing. Raises StoreTrouble."""
    db = None
    try:
        db = await asyncpg.connect(url.reveal(), timeout=ANSWER_S, command_timeout=ANSWER_S)
        return Survey(
            workers=[Worker(**row) for row in await db.fetch(_WORKERS)],
            leases=[Lease(**row) for row in await db.fetch(_LEASES)],
        )
    except ERRORS as error:
        why = cause(error)
    finally:
        if db is not None:
            db.terminate()
    raise StoreTrouble(f"the leases cannot be read: {why}")


def session_name(worker: str) -> str:
    """What the store's connections of a worker are called, so that they can be ended."""
    return f"dlr-engine {worker}"


class LeaseBook:
    """One worker's way to the leases. Every call raises StoreTrouble where it did not work."""

    def __init__(
        self,
        url: Secret,
        worker: str,
        names: Sequence[str],
        *,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`names`: of all leases that this worker's configuration knows."""
        self.worker = worker
        self._url = url
        self._names = list(names)
        self._ttl_s = ttl_s
        self._clock = clock
        self._db: Any = None
        self._turn = anyio.Lock()  # a connection does one thing at a time
        self._name = ""
        self.on_news: Callable[[str, str], None] = lambda channel, payload: None

    async def renew(self, *, load: float, idle: bool, leaving: bool) -> Seen:
        """Say that we are alive, and see who else is. Joins where our row is not there."""
        return await self._guarded(lambda: self._renew(load, idle, leaving))

    async def claim(self, units: Sequence[Sequence[str]]) -> dict[str, int]:
        """Take those of the units that are free, each whole; fence by name."""
        return await self._guarded(lambda: self._claim(units))

    async def give(self, names: Sequence[str]) -> None:
        """Give back, and let the others know."""
        await self._guarded(lambda: self._give(names))

    async def leave(self) -> None:
        """Give everything back and be gone."""
        await self._guarded(self._leave)

    async def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(*ERRORS):
                await db.close(timeout=CLOSE_S)
            db.terminate()

    # Inside

    async def _guarded(self, act: Callable[[], Awaitable[T]]) -> T:
        async with self._turn:
            try:
                if self._db is None or self._db.is_closed():
                    await self._connect()
                return await act()
            except ERRORS as error:
                why = cause(error)
            except BaseException:  # cancelled: the server rolls back
                self._drop()
                raise
            self._drop()
        raise StoreTrouble(f"the leases cannot be reached: {why}")

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    async def _connect(self) -> None:
        self._db = db = await asyncpg.connect(
            self._url.reveal(),
            timeout=ANSWER_S,
            command_timeout=ANSWER_S,
            server_settings={"application_name": "dlr-engine leases"},
        )
        await db.execute("SET default_transaction_isolation = 'read committed'")

        def heard(_db: object, _pid: int, channel: str, payload: str) -> None:
            self.on_news(channel, payload)

        for channel in (FREE, INBOX):
            await db.add_listener(channel, heard)
        await db.execute(_ADD, self._names)

    async def _renew(self, load: float, idle: bool, leaving: bool) -> Seen:
        db, asked_at = self._db, self._clock()
        said = (self.worker, self._ttl_s, load, idle, leaving)
        database_s = await db.fetchval(_RENEW, *said)
        if database_s is None:
            await self._join()
            asked_at = self._clock()
            database_s = await db.fetchval(_RENEW, *said)
        answered_at = self._clock()
        buried = [row["id"] for row in await db.fetch(_BURY, self.worker, self._ttl_s)]
        if buried:
            await self._end_sessions(buried)
        return Seen(
            members=tuple(Member(**row) for row in await db.fetch(_PEERS)),
            mine={row["account"]: row["fence"] for row in await db.fetch(_MINE, self.worker)},
            free=frozenset(row["account"] for row in await db.fetch(_FREE)),
            database_s=database_s or 0.0,
            asked_at=asked_at if database_s is not None else float("-inf"),
            answered_at=answered_at,
            name=self._name,
        )

    async def _end_sessions(self, buried: Sequence[str]) -> None:
        with suppress(asyncpg.InsufficientPrivilegeError):
            await self._db.execute(_END, [session_name(worker) for worker in buried])

    async def _join(self) -> None:
        """Be there, under the lowest number that is free on this host: the same one again after a
        restart. Processes of this very machine that are gone are not waited for."""
        host, place = socket.gethostname(), _place()
        async with self._db.transaction():
            await self._db.execute(_LOCK)
            gone, taken = [], set()
            for row in await self._db.fetch("SELECT id, name, place, pid FROM worker"):
                if row["place"] == place and place and not _runs(row["pid"]):
                    gone.append(row["id"])
                else:
                    taken.add(row["name"])
            await self._db.execute("DELETE FROM worker WHERE id = ANY($1)", gone)
            if not self._name or self._name in taken:
                numbers = range(1, len(taken) + 2)
                self._name = next(n for k in numbers if (n := f"{host}-{k}") not in taken)
            said = (self.worker, self._name, host, place, os.getpid(), self._ttl_s)
            await self._db.execute(_JOIN, *said)
        if gone:
            await self._end_sessions(gone)

    async def _claim(self, units: Sequence[Sequence[str]]) -> dict[str, int]:
        async with self._db.transaction():
            await self._db.execute(_LOCK)
            wanted = [name for unit in units for name in unit]
            rows = await self._db.fetch(_LOCK_FREE, wanted)
            free = {row["account"] for row in rows}
            whole = [name for unit in units if free.issuperset(unit) for name in unit]
            # One that was buried meanwhile takes nothing.
            taken = await self._db.fetch(_TAKE, self.worker, whole)
        return {row["account"]: row["fence"] for row in taken}

    async def _give(self, names: Sequence[str]) -> None:
        async with self._db.transaction():
            await self._db.execute(_GIVE, self.worker, list(names))
            await self._db.execute("SELECT pg_notify($1, '')", FREE)

    async def _leave(self) -> None:
        async with self._db.transaction():
            await self._db.execute("UPDATE lease SET worker = NULL WHERE worker = $1", self.worker)
            await self._db.execute("DELETE FROM worker WHERE id = $1", self.worker)
            await self._db.execute("SELECT pg_notify($1, '')", FREE)


def _place() -> str:
    """Where process ids mean the same: this start of this machine, and this space of processes.
    Empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and somebody else's
        return True
    return True
