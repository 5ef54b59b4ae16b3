"""Pushes in trouble: what was answered is durable, what cannot be kept has to come again."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.integration.harness import lines, tallies, until
from tests.integration.pushes import INFO, SECRET, bulk, info, pushed
from tests.integration.test_infobip import page, report
from tests.integration.webbing import NOWHERE, Asker, asking, served


async def test_while_the_store_is_in_trouble_it_has_to_come_again(tmp_path: Path) -> None:
    async with served(tmp_path, bulk()) as (poller, web):
        assert await pushed(web, status="0") == 200
        moved = tmp_path / "moved.db"
        (tmp_path / "state.db").rename(moved)
        assert await pushed(web) == 503  # found out by this very push, or before it
        await until(lambda: poller.store.trouble is not None)
        assert await pushed(web) == 503
        moved.rename(tmp_path / "state.db")
        await until(lambda: poller.store.trouble is None)
        assert await pushed(web) == 200
        assert (await tallies(poller))["bulk"]["state:delivered"] == 1


async def test_a_store_that_takes_too_long_is_in_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.web import push

    monkeypatch.setattr(push, "STORE_S", 1.0)
    async with served(tmp_path, bulk()) as (poller, web):
        assert await pushed(web, status="0") == 200
        write = poller.store.write

        async def slow(job: Any, *, lazy: bool = False) -> Any:
            await anyio.sleep(30.0)
            return await write(job, lazy=lazy)

        with monkeypatch.context() as patch:
            patch.setattr(poller.store, "write", slow)
            assert await pushed(web) == 503


async def test_where_no_room_is_left_it_has_to_come_again(tmp_path: Path) -> None:
    async with served(tmp_path, bulk()) as (poller, web):
        poller.disk_usage = lambda path: (100 << 20, 100 << 20, 0)
        await until(lambda: poller.room.short)
        assert await pushed(web) == 503
        poller.disk_usage = lambda path: (100 << 20, 0, 100 << 20)
        await until(lambda: not poller.room.short)
        assert await pushed(web) == 200


async def test_a_push_is_synced_also_where_polls_need_not_be(tmp_path: Path) -> None:
    store = {"url": "sqlite:///state.db", "synchronous": "normal"}
    async with served(tmp_path, bulk(), store=store) as (poller, web):
        written: list[bool] = []
        write = poller.store.write

        async def watched(job: Any, *, lazy: bool = False) -> Any:
            if "_store_page" in job.__qualname__:
                written.append(lazy)
            return await write(job, lazy=lazy)

        poller.store.write = watched  # type: ignore[method-assign]
        assert await pushed(web) == 200
        assert written == [False]


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "engine", words[0], "--config", str(folder / "engine.toml"),
            *words[1:]]  # fmt: skip


async def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "engine.toml").write_text(
        f'[http]\nlisten = "127.0.0.1:0"\n[[accounts]]\nname = "bulk"\nprovider = "bulksms"\n'
        f'base_url = "{NOWHERE}"\nusername = "j"\npassword = "p"\npush_secret = "{SECRET}"\n'
        '[[sinks]]\nname = "lines"\ntype = "jsonl"\npath = "r.jsonl"\n'
    )
    answered: list[str] = []
    for life in range(3):
        worker = await anyio.open_process(command(tmp_path, "run"), stdout=None)
        assert worker.stderr is not None
        said = b""
        while b"listening on " not in said or b"\n" not in said.partition(b"listening on ")[2]:
            said += await worker.stderr.receive()
        place = said.partition(b"listening on ")[2].split()[0].decode()
        async with asking(f"http://{place}") as web:

            async def push(number: str, web: Asker = web) -> None:
                if await pushed(web, to=number) == 200:
                    answered.append(number)

            async with anyio.create_task_group() as group:
                for n in range(40):
                    group.start_soon(push, f"44770090{life}{n:03}")
            worker.send_signal(signal.SIGKILL)
        await worker.wait()
        await worker.stderr.aclose()
    assert len(answered) == 120
    done = await anyio.run_process(command(tmp_path, "run", "--once"), check=False)
    assert done.returncode == 0, done.stderr
    assert {line["msisdn"] for line in lines(tmp_path)} == set(answered)
    events = [line["event_id"] for line in lines(tmp_path)]
    assert len(set(events)) == 120
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_bodies_of_pushes_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.web import push

    monkeypatch.setattr(push, "PUSH_MAX", 2000)
    async with served(tmp_path, info()) as (poller, web):
        many = page(*(report(f"m{n}") for n in range(20)))
        assert (await web.ask(INFO, "POST", data=many))[0] == 413
        assert await tallies(poller) == {}  # all of it or nothing
        assert (await web.ask(INFO, "POST", data=page(report("m1"))))[0] == 200


async def test_who_hangs_up_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, info()) as (poller, web):
        assert poller.surface is not None
        _, writer = await asyncio.open_connection(*poller.surface.port.address)
        body = page(report("m1"), report("m2"))
        head = f"POST {INFO} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:-10])
        await writer.drain()
        writer.close()
        await anyio.sleep(0.2)
        assert await tallies(poller) == {}
        assert (await web.ask("/healthz"))[0] == 200
        assert poller.telemetry.of("faults", "") == 0
