"""The SQLite store: the default, one file, no server.

All writing happens on one thread of its own, in groups: what waits is taken together, each job in
a savepoint, and one commit (one fsync: WAL with synchronous = FULL) makes the group durable. The
event loop never waits for the disk. Reading has a second thread and connection, so that a sink
that catches up does not hold up the writer.

One process owns the store: it holds a lock on `<file>.lock` for as long as it lives, which the
kernel takes back even after `kill -9`. Others may read, and may write into the inbox.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import anyio

from engine.core.errors import StoreBusy, StoreError, StoreTrouble
from engine.offload import Offload
from engine.private import make_database, make_folder, open_file

from .sqlite_rows import SqliteTransaction
from .transaction import Transaction

T = TypeVar("T")

SCHEMA_VERSION = 1

# Jobs that one commit makes durable together, and how many may wait before callers do.
GROUP_MAX = 64
QUEUE_MAX = 4096

# A worker that takes over from one that is just ending waits this long for the lock.
LOCK_PATIENCE_S = 1.5
LOCK_STEP_S = 0.05

# Another process (a `track`) may hold the write lock for a moment.
BUSY_MS = 10_000

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    f"PRAGMA busy_timeout = {BUSY_MS}",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -16000",
    "PRAGMA temp_store = MEMORY",
)


class _Job:
    __slots__ = ("future", "loop", "run")

    def __init__(
        self,
        run: Callable[[Transaction], Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
    ) -> None:
        self.run = run
        self.loop = loop
        self.future = future

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Called on the store's thread: hand the outcome to the loop that waits for it."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:
            return  # the loop was closed; nobody waits any more

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Thread:
    """A connection and the one thread that uses it."""

    def __init__(self, path: Path, name: str, *, writes: bool) -> None:
        self._path = path
        self._writes = writes
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._accounts: dict[str, int] = {}
        self._places = asyncio.Semaphore(QUEUE_MAX)
        self._closed = False
        self._on_end: Callable[[], object] = lambda: None
        self._thread.start()

    async def run(self, job: Callable[[Transaction], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        async with self._places:
            if self._closed:
                raise StoreError(f"the store {self._path} is closed")
            self._jobs.put(_Job(job, loop, future))
            return await future

    async def close(self) -> None:
        loop, ended = asyncio.get_running_loop(), anyio.Event()
        self._on_end = lambda: loop.call_soon_threadsafe(ended.set)
        self._closed = True
        self._jobs.put(None)
        with anyio.CancelScope(shield=True):
            await ended.wait()
        self._thread.join()

    def _work(self) -> None:
        db: sqlite3.Connection | None = None
        while True:
            jobs, last = self._take()
            if jobs:
                try:
                    if db is None:
                        db = connect(self._path)
                    self._group(db, jobs)
                except sqlite3.Error as error:
                    passing = isinstance(error, sqlite3.OperationalError)
                    kind = StoreTrouble if passing else StoreError
                    for job in jobs:
                        job.settle(None, kind(f"{self._path}: {error}"))
                except BaseException as fault:  # the thread must live on: others wait for it
                    for job in jobs:
                        job.settle(None, fault)
            if last:
                break
        if db is not None:
            db.close()
        self._on_end()

    def _take(self) -> tuple[list[_Job], bool]:
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= GROUP_MAX:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _group(self, db: sqlite3.Connection, jobs: list[_Job]) -> None:
        """Run the jobs in one transaction; each is undone alone where it fails."""
        accounts = dict(self._accounts)
        tx = SqliteTransaction(db, accounts)
        results: list[tuple[_Job, Any, BaseException | None]] = []
        db.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        try:
            for job in jobs:
                known = dict(accounts)
                db.execute("SAVEPOINT job")
                try:
                    results.append((job, job.run(tx), None))
                except sqlite3.OperationalError:
                    raise  # the disk or the lock, not the job: the whole group failed
                except Exception as fault:  # the job's own fault: only it is undone
                    db.execute("ROLLBACK TO job")
                    accounts.clear()
                    accounts.update(known)
                    results.append((job, None, fault))
                db.execute("RELEASE job")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._accounts = accounts
        for job, result, error in results:
            job.settle(result, error)


class SqliteStore:
    """`Store` on one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: _Thread | None = None
        self._reader: _Thread | None = None
        self._lock: int | None = None

    async def open(self, *, own: bool) -> None:
        if own:
            await self._take_lock()
        try:
            preparing = Offload("dlr-store-opening")
            try:
                await preparing.run(prepare, self.path)
            finally:
                await preparing.close()
        except (sqlite3.Error, OSError) as error:
            self._drop_lock()
            raise StoreError(f"cannot open the store {self.path}: {error}") from error
        except StoreError:
            self._drop_lock()
            raise
        self._writer = _Thread(self.path, "dlr-store-writer", writes=True)
        self._reader = _Thread(self.path, "dlr-store-reader", writes=False)

    async def write(self, job: Callable[[Transaction], T]) -> T:
        if self._writer is None:
            raise StoreError(f"the store {self.path} is closed")
        return await self._writer.run(job)

    async def read(self, job: Callable[[Transaction], T]) -> T:
        if self._reader is None:
            raise StoreError(f"the store {self.path} is closed")
        return await self._reader.run(job)

    async def close(self) -> None:
        threads, self._reader, self._writer = (self._reader, self._writer), None, None
        for thread in threads:
            if thread is not None:
                await thread.close()
        self._drop_lock()

    async def _take_lock(self) -> None:
        try:
            make_folder(self.path.parent)
            lock = open_file(f"{self.path}.lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StoreError(f"cannot open the store {self.path}: {error}") from error
        waited_s = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waited_s >= LOCK_PATIENCE_S:
                    os.close(lock)
                    raise StoreBusy(
                        f"the store {self.path} belongs to a worker that is running"
                    ) from None
                await anyio.sleep(LOCK_STEP_S)
                waited_s += LOCK_STEP_S
            else:
                self._lock = lock
                return

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1e3)
    for pragma in _PRAGMAS:
        db.execute(pragma)
    return db


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
                f"the store {path} was written by a newer release (schema {version}, this one"
                f" knows {SCHEMA_VERSION}): update dlr-engine"
            )
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _statements(number):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    finally:
        db.close()


def _statements(number: int) -> list[str]:
    schema = resources.files("engine.stores") / "schema" / f"sqlite-{number:04d}.sql"
    text = schema.read_text(encoding="utf-8")
    lines = [line.partition("--")[0] for line in text.splitlines()]
    return [part for part in "\n".join(lines).split(";") if part.strip()]
