"""Who may make a store's file and bring it up to date: a worker's is not changed under it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib import resources
from pathlib import Path

import anyio
import pytest

from engine.core.errors import StoreBusy, StoreTrouble
from engine.stores import sqlite
from engine.stores.sqlite import SCHEMA_VERSION, SqliteStore


def first_release(path: Path) -> None:
    schema = resources.files("engine.stores") / "schema" / "sqlite-0001.sql"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema.read_text("utf-8"))
        db.executescript("PRAGMA user_version = 1")


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


async def test_a_command_does_not_bring_the_store_up_to_date_under_an_older_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCK_PATIENCE_S", 0.1)
    path = tmp_path / "state.db"
    worker, command = SqliteStore(path), SqliteStore(path)
    await worker.open(own=True)
    path.unlink()
    first_release(path)
    with pytest.raises(StoreBusy, match="a running worker of an older release: stop it"):
        await command.open(own=False)
    assert version(path) == 1
    await worker.close()
    await command.open(own=False)
    assert version(path) == SCHEMA_VERSION
    await worker.open(own=True)  # the command keeps no lock
    await worker.close()
    await command.close()


async def test_a_command_waits_for_a_worker_that_makes_the_file(tmp_path: Path) -> None:
    """Both begin on an empty folder: the worker has the lock, the file is still to come."""
    path = tmp_path / "state.db"
    worker, command = SqliteStore(path), SqliteStore(path)
    await worker._take_lock(own=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: command.open(own=False))
        await anyio.sleep(3 * sqlite.LOCK_STEP_S)
        assert not path.exists()
        sqlite.prepare(path)
    await command.read(lambda tx: tx.inbox_waits())
    await command.close()
    await worker.close()


async def test_commands_make_the_file_together(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "state.db") for _ in range(5)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(lambda store=store: store.open(own=False))
    for store in stores:
        assert not await store.read(lambda tx: tx.inbox_waits())
        await store.close()


async def test_a_worker_whose_lock_was_removed_writes_nothing_beside_another(
    tmp_path: Path,
) -> None:
    """Somebody takes `state.db.lock` for a leftover."""
    first, second = SqliteStore(tmp_path / "state.db"), SqliteStore(tmp_path / "state.db")
    await first.open(own=True)
    await first.write(lambda tx: tx.put_note("", "who", b"first"))
    (tmp_path / "state.db.lock").unlink()
    for _ in range(2):  # before there is another one, and after
        with pytest.raises(StoreTrouble, match=r"state\.db\.lock was moved away, removed"):
            await first.write(lambda tx: tx.put_note("", "who", b"first again"))
        await second.open(own=True)
        await second.close()
    await first.close()
    await second.open(own=True)
    assert await second.read(lambda tx: tx.notes("who")) == {"": b"first"}
    await second.close()
