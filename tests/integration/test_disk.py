"""Disks that are full, read-only or locked, for real: nothing is lost, doubled, torn or silent."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.idle import until_idle
from tests.integration.disks import Disk, small_disk
from tests.integration.harness import BATCH, configured, hasty, infobip, lines, until
from tests.integration.standin import Asked, Standin, json_of
from tests.integration.test_cli import cli

LINES = {"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH}
NO_FLOOR = {"min_free_disk": 0}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "8m") as made:
        yield made


class Queue:
    """A one-time provider: each report is given once, 20 an answer."""

    def __init__(self, standin: Standin) -> None:
        self._standin = standin
        self._numbers = count()
        self.given: list[str] = []
        self.dry = False
        self.url = standin.answer("info", self)

    def __call__(self, asked: Asked) -> bytes:
        status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
        ids = [f"m{next(self._numbers)}" for _ in range(0 if self.dry else 20)]
        self.given += ids
        filler = "x" * 1000
        results = [
            {"messageId": one, "to": "447900000001", "status": status, "campaign": filler}
            for one in ids
        ]
        return json_of({"results": results})

    @property
    def asked(self) -> int:
        return len(self._standin.asked["info"])

    def account(self) -> dict[str, Any]:
        return infobip(self.url)


def said(caplog: pytest.LogCaptureFixture, subject: str) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.name == "dlr_engine"]
    return [text for text in texts if text.startswith(f"{subject}: ")]


def sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the database's write lock."""
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n"
        "db.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate(timeout=30)


async def all_arrives(queue: Queue, poller: Any, folder: Path) -> None:
    """What was handed out is in the sink, each once, when it is mended."""
    await until(lambda: poller.store.trouble is None, 20)
    before = queue.asked
    await until(lambda: queue.asked > before + 2, 20, "it does not go on")
    queue.dry = True
    with anyio.fail_after(30):
        assert await until_idle(poller, 20) == []
    assert sorted(one["message_id"] for one in lines(folder)) == sorted(queue.given)


async def stands_still(queue: Queue, standin: Standin) -> None:
    """At most the one answer that is in memory: nothing more is asked."""
    await until(lambda: not standin.running["info"])
    before = queue.asked
    await anyio.sleep(1.5)
    assert queue.asked == before


# The store


async def test_a_store_on_a_full_disk(
    tmp_path: Path, disk: Disk, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(standin)
    caplog.set_level("INFO", "dlr_engine")
    store = {"url": "sqlite:///disk/state.db", **NO_FLOOR}
    config = configured(tmp_path, queue.account(), store=store, sinks=[LINES])
    async with hasty(config) as poller:
        await until(lambda: queue.asked > 3)
        disk.fill()
        await until(lambda: poller.store.trouble is not None, 20)
        await stands_still(queue, standin)
        await anyio.sleep(1.5)
        (loud,) = said(caplog, "store")
        assert str(tmp_path / "disk" / "state.db") in loud
        assert "free some space" in loud
        assert "nothing can be stored" in poller.status("info")["waits"]
        disk.free()
        await all_arrives(queue, poller, tmp_path)
        assert said(caplog, "store")[1:] == ["store: goes on"]
    sound(tmp_path / "disk" / "state.db")


async def test_the_end_on_a_full_disk_comes_within_the_grace(
    tmp_path: Path, disk: Disk, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(standin)
    store = {"url": "sqlite:///disk/state.db", **NO_FLOOR}
    config = configured(tmp_path, queue.account(), store=store, sinks=[LINES], shutdown_grace="3s")
    async with hasty(config) as poller:
        await until(lambda: queue.asked > 3)
        disk.fill()
        await until(lambda: poller.store.trouble is not None, 20)
        await until(lambda: not standin.running["info"])
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 30, "it would have waited for ever"
    lost = said(caplog, "info")  # an answer was in memory, or none
    for line in lost:
        assert line.endswith("not yet stored when the worker ended; the provider gives them once")
    disk.free()
    sound(tmp_path / "disk" / "state.db")
    queue.dry = True
    async with hasty(config) as poller:
        assert await until_idle(poller, 20) == []
    known = {one["message_id"] for one in lines(tmp_path)}
    assert len(set(queue.given) - known) == 20 * len(lost) <= 20, "what is lost is said"


@pytest.mark.parametrize("how", ["full", "read-only", "read-only, with a state"])
def test_a_start_on_a_disk_that_cannot_be_written(tmp_path: Path, disk: Disk, how: str) -> None:
    (tmp_path / "engine.toml").write_text(
        '[store]\nurl = "sqlite:///disk/state.db"\n'
        '[[accounts]]\nname = "b"\nprovider = "bulksms"\nbase_url = "http://127.0.0.1:9"\n'
        'username = "u"\npassword = "a-secret-word"\n'
        '[[sinks]]\nname = "s"\ntype = "jsonl"\npath = "r.jsonl"\n'
    )
    run = ("run", "--config", "engine.toml", "--once")
    if how == "read-only, with a state":
        assert cli(*run, cwd=tmp_path).returncode == 0
    if how == "full":
        disk.fill()
    else:
        disk.remount("ro")
    done = cli(*run, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "state.db" in line]
    assert "cannot open the store" in line or "the store" in line
    assert "Traceback" not in done.stderr
    wanted = ("free some space",) if how == "full" else ("read-only", "allow this user")
    assert any(hint in line for hint in wanted), line
    if how == "full":
        disk.free()
    else:
        disk.remount("rw")
    assert cli(*run, cwd=tmp_path).returncode == 0
    sound(disk.path / "state.db")


async def test_a_locked_store_is_waited_for(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(standin)
    caplog.set_level("INFO", "dlr_engine")
    async with hasty(configured(tmp_path, queue.account(), sinks=[LINES])) as poller:
        await until(lambda: queue.asked > 3)
        with locked(tmp_path / "state.db"):
            await until(lambda: poller.store.trouble is not None, 20)
            await stands_still(queue, standin)
            await anyio.sleep(2)
            (loud,) = said(caplog, "store")
            assert "locked by another program" in loud
        await all_arrives(queue, poller, tmp_path)


async def test_the_end_of_a_worker_whose_store_is_locked(tmp_path: Path, standin: Standin) -> None:
    queue = Queue(standin)
    config = configured(tmp_path, queue.account(), sinks=[LINES], shutdown_grace="3s")
    async with hasty(config) as poller:
        await until(lambda: queue.asked > 3)
        lock = locked(tmp_path / "state.db")
        lock.__enter__()
        await until(lambda: poller.store.trouble is not None, 20)
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 30
    lock.__exit__(None, None, None)


@pytest.mark.parametrize("what", ["moved", "replaced", "removed"])
async def test_a_store_that_goes_away_under_the_worker(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    queue = Queue(standin)
    caplog.set_level("INFO", "dlr_engine")
    state, aside = tmp_path / "state.db", tmp_path / "aside.db"
    async with hasty(configured(tmp_path, queue.account(), sinks=[LINES])) as poller:
        await until(lambda: queue.asked > 3)
        os.link(state, aside)
        state.unlink()
        if what == "replaced":
            state.write_bytes(b"something else")
        await until(lambda: poller.store.trouble is not None, 20)
        await stands_still(queue, standin)
        (loud,) = said(caplog, "store")
        assert "was moved away, removed or replaced" in loud
        assert what == "replaced" or not state.exists(), "none is made in its place"
        os.replace(aside, state)
        await all_arrives(queue, poller, tmp_path)
    sound(state)


# Sinks

ON_DISK: list[dict[str, Any]] = [
    {"name": "plain", "type": "jsonl", "path": "disk/plain.jsonl", "batch": BATCH},
    {"name": "packed", "type": "jsonl", "path": "disk/packed.gz", "compress": "gzip",
     "batch": BATCH},
    {"name": "db", "type": "sqlite", "path": "disk/r.db", "batch": BATCH},
]  # fmt: skip


def on_disk(disk: Disk) -> dict[str, list[str]]:
    """The ids of the records in each of the files; a torn line would not be read."""
    import gzip

    plain = (disk.path / "plain.jsonl").read_bytes().splitlines()
    packed = gzip.decompress((disk.path / "packed.gz").read_bytes()).splitlines()
    with closing(sqlite3.connect(disk.path / "r.db")) as db:
        rows = db.execute("SELECT message_id FROM reports").fetchall()
    ids = {name: [json.loads(one)["message_id"] for one in every]
           for name, every in (("plain", plain), ("packed", packed))}  # fmt: skip
    return {**ids, "db": [row[0] for row in rows]}


async def test_sinks_on_a_disk_that_is_full_and_then_read_only(
    tmp_path: Path, disk: Disk, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(standin)
    config = configured(tmp_path, queue.account(), sinks=[LINES, *ON_DISK])
    async with hasty(config) as poller:
        sinks = {dispatcher.name: dispatcher for dispatcher in poller.dispatchers}
        failing = [sinks[str(sink["name"])] for sink in ON_DISK]
        await until(lambda: all(sink.health.written for sink in failing), 20)
        disk.fill(leave=3 * 4096)  # some lines of a batch still fit
        await until(lambda: all(sink.health.failing for sink in failing), 30)
        for sink in failing:
            assert str(disk.path) in (sink.health.failing or "")
            assert "free some space" in (sink.health.failing or "")
        before = queue.asked
        await until(lambda: queue.asked > before + 3, 10, "polling goes on")
        assert sinks["lines"].health.failing is None
        disk.free()
        await until(lambda: not any(sink.health.failing for sink in failing), 30)

        disk.fill()
        await until(lambda: all(sink.health.failing for sink in failing), 30)
        for _ in range(500):  # each lets go of its file when it fails
            try:
                disk.remount("ro")
            except subprocess.CalledProcessError:
                await anyio.sleep(0.01)
            else:
                break
        await until(lambda: all("mounted read" in (s.health.failing or "") for s in failing), 30)
        disk.remount("rw")
        disk.free()
        queue.dry = True
        with anyio.fail_after(60):
            assert await until_idle(poller, 30) == []
    for name, ids in on_disk(disk).items():
        assert sorted(set(ids)) == sorted(queue.given), name
        assert len(ids) == len(set(ids)), name
    sound(disk.path / "r.db")
    for sink in ON_DISK:
        told = said(caplog, f"sink {sink['name']}")
        assert 1 <= len(told) <= 12, "a cause is told when it changes, not at each try"


async def test_a_locked_database_holds_up_its_own_sink(tmp_path: Path, standin: Standin) -> None:
    queue = Queue(standin)
    sinks = [LINES, {"name": "db", "type": "sqlite", "path": "r.db", "batch": BATCH}]
    async with hasty(configured(tmp_path, queue.account(), sinks=sinks)) as poller:
        db = poller.dispatchers[1]
        await until(lambda: db.health.written, 20)
        with locked(tmp_path / "r.db"):
            await until(lambda: db.health.failing, 30)
            assert "locked by another program" in (db.health.failing or "")
            before = len(lines(tmp_path))
            await until(lambda: len(lines(tmp_path)) > before + 20)
        queue.dry = True
        with anyio.fail_after(60):
            assert await until_idle(poller, 30) == []
    with closing(sqlite3.connect(tmp_path / "r.db")) as found:
        rows = found.execute("SELECT message_id FROM reports").fetchall()
    assert sorted(row[0] for row in rows) == sorted(queue.given)
    sound(tmp_path / "r.db")
