"""`run --workers N`: one command that keeps N workers running, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from engine.cli import process, supervise
from engine.cli.parser import build
from engine.core.secret import Secret
from engine.leases import RENEW_S, TTL_S
from engine.stores.postgres import PostgresStore
from tests.integration.harness import until
from tests.integration.standin import Raw, Standin
from tests.integration.test_infobip import page, report
from tests.services import own_schema

ENGINE = [sys.executable, "-m", "engine"]
PATIENCE_S = 40.0

# Starts one worker, as the parent of several does, and waits for it.
PARENT = f"""
import os, subprocess, sys
env = {{**os.environ, {supervise.PARENT!r}: str(os.getpid())}}
subprocess.run(sys.argv[1:], env=env, start_new_session=True)
"""


@pytest.fixture
async def database() -> AsyncIterator[str]:
    async with own_schema() as url:
        yield url


def written(folder: Path, store: str, *accounts: str, path: str = "{worker}.jsonl") -> Path:
    config = folder / "engine.toml"
    parts = [f'[store]\nurl = "{store}"']
    parts += [
        f'[[accounts]]\nname = "i{n}"\nprovider = "infobip"\nbase_url = "{url}"\napi_key = "k"\n'
        'schedule = { interval = "100ms" }\nlimits = { requests = 100, per = "1s" }'
        for n, url in enumerate(accounts)
    ]
    parts.append(f'[[sinks]]\nname = "lines"\ntype = "jsonl"\npath = "{path}"\n')
    config.write_text("\n\n".join(parts))
    return config


async def said(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    with anyio.fail_after(PATIENCE_S):
        return await anyio.run_process([*ENGINE, *arguments], check=False, stderr=subprocess.PIPE)


async def workers(url: str) -> list[Any]:
    db = await asyncpg.connect(url)
    try:
        return list(
            await db.fetch("SELECT name, pid FROM worker WHERE until > now() ORDER BY name")
        )
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await db.close()


async def until_workers(url: str, count: int, without: int | None = None) -> list[Any]:
    end = time.monotonic() + PATIENCE_S
    while True:
        there = await workers(url)
        if len(there) == count and without not in [row["pid"] for row in there]:
            return there
        assert time.monotonic() < end, there
        await anyio.sleep(0.1)


def records(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


async def test_workers_are_kept_running_and_end_together(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    # The same answer for ever: the one that is killed may take one with it.
    urls = [standin.answer(f"i{n}", [page(report(f"m{n}"))]) for n in range(4)]
    config = written(tmp_path, database, *urls)
    parent = await anyio.open_process(
        [*ENGINE, "run", "--config", str(config), "--workers", "2"], stdout=None, stderr=None
    )
    try:
        first, second = await until_workers(database, 2)
        os.kill(second["pid"], signal.SIGKILL)
        again = await until_workers(database, 2, without=second["pid"])
        assert [row["name"] for row in again] == [first["name"], second["name"]]
        shown = json.loads((await said("stats", "--config", str(config), "--json")).stdout)
        assert [one["name"] for one in shown["workers"]] == [first["name"], second["name"]]
        assert all(one["alive"] for one in shown["workers"])
        assert {"worker", "since", "handovers"} == shown["accounts"]["i0"]["lease"].keys()
        text = (await said("stats", "--config", str(config))).stdout.decode()
        assert f"worker {first['name']}: " in text
        assert "handed over" in text
        await until(lambda: len({one["message_id"] for one in records(tmp_path)}) == 4, PATIENCE_S)
        parent.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE_S):
            assert await parent.wait() == 0
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()
    assert await workers(database) == []
    assert len({record["event_id"] for record in records(tmp_path)}) == 4


async def test_workers_end_by_themselves_once_there_is_nothing_left(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    urls = [standin.answer(f"i{n}", [page(report(f"m{n}")), b'{"results":[]}']) for n in range(3)]
    config = written(tmp_path, database, *urls)
    done = await said("run", "--config", str(config), "--workers", "3", "--until-idle")
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(record["message_id"] for record in records(tmp_path)) == ["m0", "m1", "m2"]


async def test_one_of_them_alone_does_what_is_due_once(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    url = standin.answer("i0", [page(report("m0")), b'{"results":[]}'])
    config = written(tmp_path, database, url)
    done = await said("run", "--config", str(config), "--once")
    assert done.returncode == 0, done.stderr.decode()
    assert [record["message_id"] for record in records(tmp_path)] == ["m0"]
    checked = await said("check", "--config", str(config), "--connect")
    assert checked.returncode == 0, checked.stdout
    assert b"account i0: ok" in checked.stdout


async def test_orphaned_workers_end(tmp_path: Path, database: str, standin: Standin) -> None:
    config = written(tmp_path, database, standin.answer("i0", b'{"results":[]}'))
    parent = await anyio.open_process(
        [*ENGINE, "run", "--config", str(config), "--workers", "2"], stdout=None, stderr=None
    )
    await until_workers(database, 2)
    parent.kill()
    await parent.wait()
    await until_workers(database, 0)


@asynccontextmanager
async def too_few_connections(database: str) -> AsyncIterator[str]:
    """The URL for a role that has not all the connections that a worker needs."""
    with_all = PostgresStore(Secret(database))
    await with_all.open(own=True)
    await with_all.close()
    schema = database.rpartition("=")[2]
    db = await asyncpg.connect(database)
    await db.execute(f"""
        CREATE ROLE {schema} LOGIN CONNECTION LIMIT 2;
        GRANT ALL ON SCHEMA {schema} TO {schema};
        GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {schema};
        GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {schema}""")
    try:
        yield database.replace("postgres@", f"{schema}@")
    finally:
        await db.execute(f"DROP OWNED BY {schema}; DROP ROLE {schema}")
        await db.close()


@pytest.mark.parametrize("orphaned", [False, True])
async def test_a_worker_that_cannot_begin_can_be_stopped(
    tmp_path: Path, database: str, standin: Standin, orphaned: bool
) -> None:
    """It waits for a connection of the store's that it does not get. Where it has a parent, that
    is killed."""
    async with too_few_connections(database) as store:
        config = written(tmp_path, store, standin.answer("i0", b'{"results":[]}'))
        command = [*ENGINE, "run", "--config", str(config)]
        if orphaned:
            command = [sys.executable, "-c", PARENT, *command]
        async with await anyio.open_process(command, stderr=subprocess.PIPE) as started:
            assert started.stderr is not None
            told = b""
            with anyio.fail_after(PATIENCE_S):
                while b"tried again" not in told:
                    told += await started.stderr.receive()
                started.send_signal(signal.SIGKILL if orphaned else signal.SIGTERM)
                assert await started.wait() == (-signal.SIGKILL if orphaned else 0)
                told += b"".join([piece async for piece in started.stderr])  # until all have ended
        assert b"stopped before it had begun" in told
        assert not standin.asked


async def test_all_are_signalled_at_once(tmp_path: Path, database: str, standin: Standin) -> None:
    """As a service manager does it: the parent's word is no second signal, which would end its
    workers on the spot, with what they are being told."""
    config = written(tmp_path, database, standin.answer("i0", b'{"results":[]}'))
    command = [*ENGINE, "run", "--config", str(config), "--workers", "2"]
    async with await anyio.open_process(command, stdout=None, stderr=None) as parent:
        await until_workers(database, 2)
        for pid in (parent.pid, *[row["pid"] for row in await workers(database)]):
            os.kill(pid, signal.SIGTERM)
        with anyio.fail_after(PATIENCE_S):
            assert await parent.wait() == 0


class Child:
    """A worker's process that ends when it is told to."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self._ended = anyio.Event()

    def send_signal(self, number: int) -> None:
        if self._ended.is_set():
            raise ProcessLookupError
        self.told.append(number)
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return -self.told[0]


def supervised(folder: Path) -> supervise.Supervisor:
    """Of two workers, whose processes are made by the test."""
    config = written(folder, "postgresql://nobody@127.0.0.1:1/none", "http://127.0.0.1:1/i")
    args = build().parse_args(["run", "--config", str(config), "--workers", "2"])
    return supervise.Supervisor(args, process.load_config(config))


async def test_a_worker_that_is_being_started_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Child] = []
    begun: list[int] = []

    async def opening(*_: object, **__: object) -> Child:
        begun.append(os.getpid())
        if len(begun) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: signalled(supervisor), PATIENCE_S)
        made.append(Child())
        return made[-1]

    def signalled(one: supervise.Supervisor) -> bool:
        return one._stopping.is_set()

    monkeypatch.setattr(supervise.anyio, "open_process", opening)
    supervisor = supervised(tmp_path)
    with anyio.fail_after(PATIENCE_S):
        assert await supervisor.run() == 0
    assert [child.told for child in made] == [[supervise.ORDER]] * 2


async def test_one_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Child] = []

    async def opening(*_: object, **__: object) -> Child:
        made.append(Child())
        if len(made) == 3:  # each is there; the first has died, and there is no process to be had
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if len(made) == 2:
            made[0].send_signal(signal.SIGKILL)
        if len(made) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return made[-1]

    monkeypatch.setattr(supervise, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(supervise.anyio, "open_process", opening)
    with anyio.fail_after(PATIENCE_S):
        assert await supervised(tmp_path).run() == 0
    assert [child.told for child in made] == [
        [signal.SIGKILL], [supervise.ORDER], [], [supervise.ORDER]
    ]  # fmt: skip


async def test_what_several_workers_cannot_do_is_refused(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    config = str(written(tmp_path, "sqlite:///state.db", "http://127.0.0.1:1/i"))
    done = await said("run", "--config", config, "--workers", "2")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"needs a store that processes can share" in done.stderr
    config = str(written(tmp_path, url, "http://127.0.0.1:1/i", path="all.jsonl"))
    done = await said("run", "--config", config, "--workers", "2")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"sink lines: path: with several workers it needs {worker}" in done.stderr
    checked = await said("check", "--config", config)
    assert b"WARNING: path holds no {worker}" in checked.stdout
    config = str(written(tmp_path, url, "http://127.0.0.1:1/i"))
    done = await said("run", "--config", config, "--workers", "2", "--once")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"--once goes with one worker" in done.stderr
    assert b"WARNING" not in (await said("check", "--config", config)).stdout


async def test_a_second_worker_of_a_machine_does_not_write_the_files_of_the_first(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    config = written(tmp_path, database, standin.answer("i0", b'{"results":[]}'), path="r.jsonl")
    first = await anyio.open_process([*ENGINE, "run", "--config", str(config)], stderr=None)
    try:
        await until_workers(database, 1)
        done = await said("run", "--config", str(config))
        assert done.returncode == 2
        assert b"put {worker} into it" in done.stderr
        await until_workers(database, 1)  # it has left no trace
    finally:
        first.terminate()
        await first.wait()
    assert first.returncode == 0


async def test_a_frozen_worker_can_write_nothing_and_loses_nothing(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    """Frozen with a one-time answer on its way, thawed when another worker has the account."""
    slow = Raw(page(*(report(f"m{n}") for n in range(30))), wait_s=1.0)
    config = written(tmp_path, database, standin.answer("i0", [slow, b'{"results":[]}']))
    command = [*ENGINE, "run", "--config", str(config)]
    first = await anyio.open_process(command, stderr=None)
    second = None
    try:
        await until(lambda: len(standin.asked["i0"]) == 1, PATIENCE_S)
        first.send_signal(signal.SIGSTOP)
        second = await anyio.open_process(command, stderr=None)
        # The second one takes the account, and asks, only when the first has run out.
        await until(lambda: len(standin.asked["i0"]) > 1, PATIENCE_S)
        assert records(tmp_path) == []
        asked = standin.times("i0")
        assert asked[1] - asked[0] > TTL_S - RENEW_S
        first.send_signal(signal.SIGCONT)
        await until(lambda: len(records(tmp_path)) == 30, PATIENCE_S)
        assert {record["message_id"] for record in records(tmp_path)} == {
            f"m{n}" for n in range(30)
        }
        assert standin.most["i0"] == 1
    finally:
        first.send_signal(signal.SIGCONT)
        for process in filter(None, (first, second)):
            process.terminate()
            await process.wait()
    db = await asyncpg.connect(database)
    assert await db.fetchval("SELECT count(*) FROM inbox") == 0
    tallies = "SELECT n FROM tally WHERE account = 'i0' AND name = 'records'"
    assert await db.fetchval(tallies) == 30
    await db.close()
