"""The commands for dead letters, and for a sink put back or forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread

from engine.config import load
from engine.core.units import iso
from engine.dispatch.reports import REPORTS_NAME
from engine.dispatch.sink_orders import SinkOrder
from engine.idle import until_idle
from engine.machine.clock import RealClock
from engine.registry import providers, sinks
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import InboxItem
from engine.worker import Engine
from tests.integration.harness import hasty, until
from tests.integration.receiver import WEBHOOK, Receiver, receiver
from tests.integration.standin import Standin
from tests.integration.test_cli import cli
from tests.integration.test_sinks_end_to_end import NUMBER, STEPS, stepping

__all__ = ["receiver"]


CONFIG = """\
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{base}"
username = "john"
password = "hunter2-hunter2"
limits = {{ requests = 1000, per = "1s" }}
schedule = {{ ladder = {rungs} }}
"""
# More than there are answers: on a busy machine one poll may answer several rungs.
RUNGS = [f"{n * 60}ms" for n in range(100)]


class Desk:
    """A folder with a configuration, and the commands in it."""

    def __init__(self, folder: Path, base: str, receiver: Receiver) -> None:
        self.folder, self.base, self.receiver = folder, base, receiver
        self.configure("crm")

    def configure(self, *names: str) -> None:
        sinks = "".join(WEBHOOK.format(name=name, url=self.receiver.url) for name in names)
        (self.folder / "engine.toml").write_text(
            CONFIG.format(base=self.base, rungs=json.dumps(RUNGS)) + sinks
        )

    async def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        head, *rest = words

        def run() -> subprocess.CompletedProcess[str]:
            return cli(head, "--config", "engine.toml", *rest, cwd=self.folder)

        done = await to_thread.run_sync(run)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    async def told(self, *words: str) -> Any:
        return json.loads((await self.run(*words, "--json")).stdout)

    @asynccontextmanager
    async def worker(self, *, through: bool = True) -> AsyncIterator[Engine]:
        config = load(self.folder / "engine.toml", providers=providers(), sinks=sinks())
        async with hasty(config) as poller:
            if through:
                await poller.track("bulk", batch_id="1", recipients=[NUMBER])
                await until(lambda: poller.pollers["bulk"].health.answered_ms is not None)
                assert await until_idle(poller, 10) == []
            yield poller


@pytest.fixture
def desk(tmp_path: Path, standin: Standin, receiver: Receiver) -> Desk:
    return Desk(tmp_path, stepping(standin), receiver)


@pytest.mark.parametrize("beside", [True, False], ids=["worker", "alone"])
async def test_the_commands_list_and_retry(desk: Desk, receiver: Receiver, beside: bool) -> None:
    assert "does not exist yet" in (await desk.run("dead-letter", "list")).stderr
    receiver.refuse = {"enroute", "delivered"}

    async def look_and_retry() -> None:
        shown = await desk.told("dead-letter", "list")
        (count,) = shown["sinks"]
        assert (count["sink"], count["letters"], count["configured"]) == ("crm", 4, True)
        assert [one["revision"] for one in shown["letters"]] == [2, 3, 4, 5]
        for one in shown["letters"]:
            assert one["record"]["event_id"] == one["event_id"]
            assert "422" in one["cause"]
            assert one["first_at"] >= count["since"]
        text = (await desk.run("dead-letter", "list", "--sink", "crm")).stdout
        assert text.startswith("sink crm: 4 dead letters, ")
        assert text.count(f"1:{NUMBER} #") == 4
        receiver.refuse = {"delivered"}
        done = await desk.run("dead-letter", "retry", "--sink", "crm")
        assert done.stdout == "sink crm: 3 taken, 1 refused again\n"
        (left,) = (await desk.told("dead-letter", "list"))["letters"]
        assert (left["revision"], left["times"]) == (5, 2)
        stats = await desk.told("stats")
        assert stats["sinks"]["crm"]["dead_letters"]["letters"] == 1
        assert "1 dead letter, " in (await desk.run("stats")).stdout
        receiver.down = True
        done = await desk.run("dead-letter", "retry", status=1)
        assert "sink crm: 0 taken, 0 refused again, 1 not offered: " in done.stdout
        assert "503" in done.stdout
        receiver.down, receiver.refuse = False, set()
        (told,) = (await desk.told("dead-letter", "retry"))["sinks"]
        assert (told["accepted"], told["cause"]) == (1, None)
        assert (await desk.run("dead-letter", "retry")).stdout == "there are no dead letters\n"
        assert (await desk.run("dead-letter", "list")).stdout == "there are no dead letters\n"

    async with desk.worker():
        if beside:
            await look_and_retry()
    if not beside:
        await look_and_retry()
    found = {one["event_id"] for one in receiver.taken}
    assert len(found) == len(receiver.taken) == len(STEPS)


async def test_a_retry_that_is_killed_loses_nothing(desk: Desk, receiver: Receiver) -> None:
    receiver.refuse = {"enroute", "delivered"}
    async with desk.worker():
        pass
    receiver.refuse, receiver.hold = set(), anyio.Event()
    before = len(receiver.taken)
    words = [sys.executable, "-m", "engine", "dead-letter", "--config", "engine.toml", "retry"]
    async with await anyio.open_process(words, cwd=desk.folder) as retry:
        await until(lambda: len(receiver.taken) == before + 4, 20)  # taken, and not acknowledged
        retry.kill()
    receiver.hold.set()
    receiver.hold = None
    assert len((await desk.told("dead-letter", "list"))["letters"]) == 4
    assert (await desk.run("dead-letter", "retry")).stdout.startswith("sink crm: 4 taken")
    again = [one["event_id"] for one in receiver.taken[before:]]
    assert again[:4] == again[4:]
    assert (await desk.told("dead-letter", "list"))["letters"] == []


async def test_a_sink_that_is_not_there_is_a_fault_of_the_command_line(desk: Desk) -> None:
    async with desk.worker():
        pass
    for words in (
        ("dead-letter", "list", "--sink", "crn"),
        ("dead-letter", "retry", "--sink", "crn"),
        ("sinks", "rewind", "--sink", "crn", "--to", "start"),
        ("sinks", "forget", "--sink", "crn"),
    ):
        done = await desk.run(*words, status=2)
        assert "there is no sink 'crn' (it has crm" in done.stderr
    for words, fault in (
        (("sinks", "rewind", "--sink", "crm"), "sinks rewind: needs --to"),
        (("sinks", "forget", "--to", "start"), "sinks forget: takes no --to"),
        (("sinks", "list", "--sink", "crm"), "sinks list: takes no --sink"),
        (("sinks", "rewind", "--sink", "crm", "--to", "noon"), "expected epoch seconds"),
        (("sinks", "rewind", "--sink", "crm", "--to", "0", "--account", "x"), "gets nothing of"),
        (("dead-letter", "bury"), "invalid choice: 'bury'"),
    ):
        assert fault in (await desk.run(*words, status=2)).stderr


@pytest.mark.parametrize("beside", [True, False], ids=["worker", "alone"])
async def test_the_commands_put_a_sink_back(desk: Desk, receiver: Receiver, beside: bool) -> None:
    async def look_and_rewind() -> None:
        (sink,) = (await desk.told("sinks", "list"))["sinks"]
        (at,) = sink["positions"]
        assert (sink["sink"], sink["type"], sink["state"]) == ("crm", "webhook", "ok")
        assert (at["place"], at["behind_records"], at["behind_bytes"]) == ([6, 0], 0, 0)
        assert sink["dead_letters"]["letters"] == 0
        text = (await desk.run("sinks", "list")).stdout
        assert text == "sink crm (webhook): ok\n  bulk: at 6.0, has everything\n"
        done = await desk.run("sinks", "rewind", "--sink", "crm", "--to", "4102444800")
        assert done.stdout == (
            "sink crm: bulk: back to 2100-01-01T00:00:00.000Z: was not past that; nothing changed\n"
        )
        third = iso(int(time.time() * 1000) - 3_600_000)
        told = await desk.told("sinks", "rewind", "--sink", "crm", "--to", third)
        assert told == {"sink": "crm", "to": third, "again": {"bulk": len(STEPS)}}
        if not beside:
            (sink,) = (await desk.told("sinks", "list"))["sinks"]
            assert sink["positions"][0]["behind_records"] == len(STEPS)
            text = (await desk.run("sinks", "list")).stdout
            assert "bulk: at 1.0, 5 records behind, " in text
            words = ("sinks", "rewind", "--sink", "crm", "--to", "start", "--account", "bulk")
            assert (await desk.told(*words))["again"] == {"bulk": 0}

    async with desk.worker():
        assert len(receiver.taken) == len(STEPS)
        if beside:
            await look_and_rewind()
            await until(lambda: len(receiver.taken) == 2 * len(STEPS))
    if not beside:
        await look_and_rewind()
        async with desk.worker(through=False):
            await until(lambda: len(receiver.taken) == 2 * len(STEPS))
    half = len(STEPS)
    assert receiver.taken[:half] == receiver.taken[half:]


async def test_a_sink_that_is_gone_is_forgotten(desk: Desk, receiver: Receiver) -> None:
    desk.configure("crm", "old")
    receiver.refuse = {"delivered"}
    async with desk.worker():
        done = await desk.run("sinks", "forget", "--sink", "old", status=2)
        assert "is still in the configuration" in done.stderr
        desk.configure("crm")
        done = await desk.run("sinks", "forget", "--sink", "old", status=1)
        assert "still writes to it: restart the worker first" in done.stderr
        done = await desk.run("dead-letter", "retry", status=0)
        assert "not in the configuration, left alone: old" in done.stderr
    rows = {one["sink"]: one for one in (await desk.told("sinks", "list"))["sinks"]}
    assert [rows[name]["state"] for name in ("crm", "old")] == ["ok", "gone"]
    assert rows["old"]["dead_letters"]["letters"] == 1
    assert "`sinks forget` removes what is kept" in (await desk.run("sinks", "list")).stdout
    desk.configure("crm", "new")
    assert "no worker has run with it yet" in (await desk.run("sinks", "list")).stdout
    desk.configure("crm")
    async with desk.worker(through=False) as poller:
        told = await desk.told("sinks", "forget", "--sink", "old")
        assert told == {"sink": "old", "accounts": 1, "dead_letters": 1}
        assert set(await poller.store.read(lambda tx: tx.notes("sink"))) == {"crm"}
        done = await desk.run("sinks", "rewind", "--sink", "crm", "--to", "start")
        assert "5 records come again" in done.stdout
        # The program around the engine is a reader of the log, too.
        async for _ in poller.reports():
            break
        done = await desk.run("sinks", "forget", "--sink", REPORTS_NAME, status=1)
        assert "still writes to it" in done.stderr
        desk.configure("crm", "newer")
        done = await desk.run("sinks", "rewind", "--sink", "newer", "--to", "start", status=1)
        assert "does not know it yet: restart the worker first" in done.stderr
    done = await desk.run("sinks", "forget", "--sink", REPORTS_NAME)
    assert (
        done.stdout
        == f"sink {REPORTS_NAME}: forgotten: its position in 1 accounts, 0 dead letters\n"
    )
    assert {one["sink"] for one in (await desk.told("sinks", "list"))["sinks"]} == {"crm", "newer"}


async def test_an_order_that_comes_too_late_is_not_begun(desk: Desk, receiver: Receiver) -> None:
    """Left in the inbox by a command that has given up, it would surprise everybody."""
    async with desk.worker():
        pass
    store = SqliteStore(desk.folder / "state.db")
    await store.open(own=True)
    now_ms = RealClock().now_ms()
    for until_ms in (now_ms - 1, now_ms + 60_000):
        order = SinkOrder(id=f"{until_ms}", sink="crm", until_ms=until_ms)
        item = InboxItem(
            account="bulk", kind="rewind", payload=msgspec.json.encode(order), at_ms=now_ms
        )
        await store.write(lambda tx, item=item: tx.put_inbox(item))  # type: ignore[misc]
    await store.close()
    async with desk.worker(through=False) as poller:
        await until(lambda: len(receiver.taken) >= 2 * len(STEPS))
        late, timely = await poller.store.read(
            lambda tx: [tx.notes(f"rewind:{ms}") for ms in (now_ms - 1, now_ms + 60_000)]
        )
        assert late == {}
        assert msgspec.json.decode(timely["bulk"])["again"] == len(STEPS)
    assert len(receiver.taken) == 2 * len(STEPS)
