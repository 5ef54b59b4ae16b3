"""The SQLite store: the default, one file, no server.

All writing happens on one thread of its own, in groups: what waits is taken together, each job in
a savepoint, and one commit (one fsync of the WAL) makes the group durable. At the level `normal` a
group of jobs that may be lost to a power cut goes without the fsync; the next one that may not
makes them durable, too, for they are before it in the same WAL. The event loop never waits for the
disk. Reading has a second thread and connection, so that a sink that catches up does not hold up
the writer.

One process owns the store: it holds a lock on `<file>.lock` for as long as it lives, which the
kernel takes back even after `kill -9`. Others may read, and may write into the inbox.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

import anyio

from engine.core.errors import StoreBusy, StoreError, StoreTrouble
from engine.machine.disk_causes import cause, code, file_cause, passing
from engine.machine.offload import Offload, Outcome, hand_over
from engine.machine.private import make_database, make_folder, open_file

from .grouping import Grouping, Job
from .sqlite_accounts import Account
from .sqlite_rows import SqliteTransaction
from .sqlite_upgrade import upgrade_messages
from .transaction import Transaction

T = TypeVar("T")

SCHEMA_VERSION = 6

# A worker that takes over from one that is just ending waits this long for the lock.
LOCK_PATIENCE_S = 1.5
LOCK_STEP_S = 0.05

# Another process may hold the write lock for a moment. The owner tries again by itself, and is not
# to be held up at its end.
BUSY_MS = 10_000
OWNER_BUSY_MS = 1000

# Who holds the lock, for who wants the store for good, and for who only wants to use it.
_OWNER = {
    True: "a worker that is running",
    False: "a running worker of an older release: stop it, then start it with this one",
}

# After these a connection may stay spoiled (one that was opened read-only stays so).
_REOPEN = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
)


class _Thread:
    """A connection and the one thread that uses it."""

    def __init__(
        self,
        path: Path,
        shown: str,
        name: str,
        *,
        writes: bool,
        busy_ms: int,
        synchronous: str = "full",
        lock: int | None = None,
    ) -> None:
        self.unsynced = False  # a commit has been made that is not on the disk for certain
        self._synchronous = synchronous
        self._level = ""  # the connection's, at present
        self._path = path
        self._shown = shown
        # As they were opened first: no others will do.
        self._files = {str(path): os.stat(path)}
        if lock is not None:  # without it, another worker may have the store by now
            self._files[f"{path}.lock"] = os.fstat(lock)
        self._writes = writes
        self._busy_ms = busy_ms
        self._accounts: dict[str, Account] = {}
        self._db: sqlite3.Connection | None = None
        self._jobs: Grouping[Job] = Grouping(name, shown, self._serve, self._drop)

    async def run(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        result: T = await self._jobs.run(Job(job, lazy))
        return result

    async def close(self) -> None:
        await self._jobs.close()

    # On the thread

    def _serve(self, jobs: list[Job]) -> None:
        try:
            self._check_files()
            if self._db is None:
                self._db, self._level = connect(self._path, self._busy_ms), ""
            if self._writes:
                self._set_level(self._db, lazy=all(job.lazy for job in jobs))
            self._group(self._db, jobs)
        except sqlite3.Error as error:
            if code(error) in _REOPEN:
                self._drop()
            kind = StoreTrouble if passing(error) else StoreError
            said = f"the store {self._shown}: {cause(error)}"
            hand_over([job.ended(None, kind(said)) for job in jobs])

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _set_level(self, db: sqlite3.Connection, *, lazy: bool) -> None:
        """How the next commit is made durable; between transactions this may change."""
        level = "full" if self._synchronous == "normal" and not lazy else self._synchronous
        if level != self._level:
            db.execute(f"PRAGMA synchronous = {level}")
            self._level = level
        if level == "normal":
            self.unsynced = True  # before anybody can read what the commit holds

    def _check_files(self) -> None:
        """What is written to a file that was moved away, nobody would find."""
        for path, opened in self._files.items():
            shown = self._shown + path.removeprefix(str(self._path))
            trouble = ""
            try:
                there = os.path.samestat(opened, os.stat(path))
            except FileNotFoundError:
                there = False
            except OSError as error:
                there, trouble = False, file_cause(error)
            if trouble:
                raise StoreTrouble(f"the store {shown}: {trouble}")
            if not there:
                raise StoreTrouble(
                    f"the store {shown} was moved away, removed or replaced while it is in use;"
                    " put the file back, or restart the worker to go on with what is there"
                )

    def _group(self, db: sqlite3.Connection, jobs: list[Job]) -> None:
        """Run the jobs in one transaction; each is undone alone where it fails."""
        accounts = dict(self._accounts)
        tx = SqliteTransaction(db, accounts, writes=self._writes)
        results: list[Outcome] = []
        db.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        try:
            for job in jobs:
                known = dict(accounts)
                db.execute("SAVEPOINT job")
                try:
                    results.append(job.ended(job.run(tx), None))
                except Exception as fault:
                    if isinstance(fault, sqlite3.Error) and _is_whole(fault):
                        raise  # the disk or the lock, not the job: the whole group failed
                    # The job's own fault: only it is undone.
                    db.execute("ROLLBACK TO job")
                    accounts.clear()
                    accounts.update(known)
                    results.append(job.ended(None, fault))
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._accounts = accounts
        self.unsynced = self.unsynced and self._level != "full"
        hand_over(results)


class SqliteStore:
    """`Store` on one SQLite file."""

    def __init__(self, path: Path, synchronous: str = "full", *, shown: str | None = None) -> None:
        """`shown`: what errors call it, where its path is nobody's business."""
        self.path = path
        self._synchronous = synchronous
        self._shown = str(path) if shown is None else shown
        self._writer: _Thread | None = None
        self._reader: _Thread | None = None
        self._lock: int | None = None

    async def open(self, *, own: bool) -> None:
        if own or await self._outdated():
            await self._take_lock(own=own)
        try:
            await self._offload(prepare)
        except BaseException:  # also cancelled: nobody closes what was never opened
            self._drop_lock()
            raise
        if not own:
            self._drop_lock()
        busy_ms, level = OWNER_BUSY_MS if own else BUSY_MS, self._synchronous
        make = partial(
            _Thread, self.path, self._shown, busy_ms=busy_ms, synchronous=level, lock=self._lock
        )
        self._writer = make("dlr-store-writer", writes=True)
        self._reader = make("dlr-store-reader", writes=False)

    async def _outdated(self) -> bool:
        """Whether this release is to bring the file up to date, or to make it."""
        return await self._offload(outdated)

    async def _offload(self, job: Callable[[Path], T]) -> T:
        trouble = ""  # the system's own error, which names the path, is left behind
        thread = Offload("dlr-store-opening")
        try:
            return await thread.run(job, self.path)
        except sqlite3.Error as error:
            trouble = f"cannot open the store {self._shown}: {cause(error)}"
        except OSError as error:
            trouble = f"cannot open the store {self._shown}: {file_cause(error)}"
        except StoreError as error:
            trouble = f"the store {self._shown} {error}"
        finally:
            await thread.close()
        raise StoreError(trouble)

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        if self._writer is None:
            raise StoreError(f"the store {self._shown} is closed")
        return await self._writer.run(job, lazy=lazy)

    async def sync(self) -> None:
        if self._writer is not None and self._writer.unsynced:
            # SQLite syncs only where something changed: the same value again would be nothing.
            mark = os.urandom(8)
            await self.write(lambda tx: tx.put_note("", "synced", mark))

    async def read(self, job: Callable[[Transaction], T]) -> T:
        if self._reader is None:
            raise StoreError(f"the store {self._shown} is closed")
        return await self._reader.run(job)

    async def close(self) -> None:
        threads, self._reader, self._writer = (self._reader, self._writer), None, None
        for thread in threads:
            if thread is not None:
                await thread.close()
        self._drop_lock()

    async def _take_lock(self, *, own: bool) -> None:
        """`own`: for good; else only where there is something to be brought up to date."""
        trouble = ""
        try:
            make_folder(self.path.parent)
            lock = open_file(f"{self.path}.lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            trouble = file_cause(error)
        if trouble:
            raise StoreError(f"cannot open the store {self._shown}: {trouble}")
        waited_s = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                self._lock = lock
                return
            try:
                if not own and not await self._outdated():  # its owner has made it meanwhile
                    os.close(lock)
                    return
                if waited_s >= LOCK_PATIENCE_S:
                    raise StoreBusy(f"the store {self._shown} belongs to {_OWNER[own]}")
                await anyio.sleep(LOCK_STEP_S)
            except BaseException:
                os.close(lock)
                raise
            waited_s += LOCK_STEP_S

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def connect(path: Path, busy_ms: int = BUSY_MS) -> sqlite3.Connection:
    """A connection to a file that is there: none is made in the place of one that has gone."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_ms / 1000,
    )
    try:
        for pragma in _PRAGMAS:
            db.execute(pragma)
    except BaseException:
        db.close()
        raise
    return db


def _is_whole(error: sqlite3.Error) -> bool:
    """Whether an error in one job concerns all of its group."""
    return passing(error) or code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def prepare(path: Path) -> None:
    """Create the file, its owner's alone, and bring its schema up to date.

    Raises StoreError where a newer release has written it.
    """
    make_folder(path.parent)
    make_database(path)
    db = connect(path)
    try:
        db.execute("BEGIN IMMEDIATE")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"was written by a newer release (schema {version}, this one knows"
                f" {SCHEMA_VERSION}): update dlr-engine"
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _statements(number):
                db.execute(statement)
            if number == 6:
                upgrade_messages(db, version)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    finally:
        db.close()


def outdated(path: Path) -> bool:
    """Whether `prepare` would change the file's schema, or make the file."""
    if not path.exists():
        return True
    db = connect(path)
    try:
        return int(db.execute("PRAGMA user_version").fetchone()[0]) < SCHEMA_VERSION
    finally:
        db.close()


def _statements(number: int) -> list[str]:
    schema = resources.files("engine.stores") / "schema" / f"sqlite-{number:04d}.sql"
    text = schema.read_text(encoding="utf-8")
    lines = [line.partition("--")[0] for line in text.splitlines()]
    return [part for part in "\n".join(lines).split(";") if part.strip()]
