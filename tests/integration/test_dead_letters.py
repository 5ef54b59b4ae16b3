"""What a sink refuses for good: kept, shown, offered again; and a sink put back, or forgotten."""

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
from aiohttp import web
from anyio import to_thread

from engine.clock import RealClock
from engine.config import load
from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.units import iso
from engine.idle import until_idle
from engine.registry import providers, sinks
from engine.reports import REPORTS_NAME
from engine.sink_orders import SinkOrder
from engine.stores import burying
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import DeadLetter, InboxItem, Store
from engine.worker import Engine
from tests.integration.harness import bulksms, configured, hasty, tallies, until
from tests.integration.standin import Standin
from tests.integration.test_cli import cli
from tests.integration.test_sinks_end_to_end import (
    LADDER,
    NUMBER,
    STEPS,
    Toy,
    in_order,
    stepping,
    with_toy,
)


async def letters(store: Store, sink: str = "toy") -> list[DeadLetter]:
    return await store.read(lambda tx: tx.dead_letters(sink, 0, 1000, bytes_max=1 << 30))


@asynccontextmanager
async def refusing(
    folder: Path, standin: Standin, *states: str
) -> AsyncIterator[tuple[Engine, Toy, set[str]]]:
    """A worker that has been through its ladder, its sink, and the states that this refuses."""
    config, toy = with_toy(configured(folder, bulksms(stepping(standin), schedule=LADDER)))
    refused = set(states)

    async def write(batch: Batch) -> None:
        if toy.dead:
            raise SinkError("is down")
        bad = {}
        for index, line in enumerate(batch.lines):
            record = msgspec.json.decode(line)
            if record["state"] in refused:
                bad[index] = f"no {record['state']}"
            else:
                toy.taken.append(record)
        if bad:
            raise PartialWrite(bad)

    toy.write = write  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: toy.opened)
        assert await until_idle(poller, 5) == []
        yield poller, toy, refused


async def test_what_is_refused_is_kept_whole_and_offered_again(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    async with refusing(tmp_path, standin, "accepted", "delivered") as (poller, toy, refused):
        kept = await letters(poller.store)
        assert [one.cause for one in kept] == ["no accepted", "no delivered"]
        assert (await tallies(poller))["bulk"]["refused"] == 2
        assert poller.telemetry.of("dead_letters", "toy") == 2
        rows = await poller.store.read(lambda tx: tx.log_rows("bulk", 0, 99, bytes_max=1 << 20))
        for one in kept:
            record = json.loads(one.record)
            facts = (one.event_id, one.message_id, one.revision)
            assert facts == (record["event_id"], record["message_id"], record["revision"])
            (row,) = (row for row in rows if row.seq == one.place[0])
            assert row.body.split(b"\n")[one.place[1]] == one.record
        assert [one.revision for one in kept] == [1, len(STEPS)]
        dispatcher = poller.dispatchers[-1]
        refused.discard("accepted")
        done = await dispatcher.retry()
        assert (done.accepted, done.refused, done.left, done.cause) == (1, 1, 0, None)
        (left,) = await letters(poller.store)
        assert (left.cause, left.times, left.id) == ("no delivered", 2, kept[1].id)
        assert left.last_ms >= left.first_ms == kept[1].first_ms
        refused.clear()
        done = await dispatcher.retry()
        assert (done.accepted, done.refused) == (1, 0)
        assert await letters(poller.store) == []
        assert await dispatcher.retry() == msgspec.structs.replace(done, accepted=0)
    assert len({one["event_id"] for one in toy.taken}) == len(toy.taken) == len(STEPS)
    assert "were refused for good and are dead letters" in caplog.text


async def test_a_retry_that_fails_or_is_cut_off_loses_nothing(
    tmp_path: Path, standin: Standin
) -> None:
    async with refusing(tmp_path, standin, "enroute", "accepted") as (poller, toy, refused):
        dispatcher = poller.dispatchers[-1]
        count = len(await letters(poller.store))
        assert count == len(STEPS) - 1
        toy.dead = True
        done = await dispatcher.retry()
        assert (done.accepted, done.left, done.cause) == (0, count, "is down")
        toy.dead = False
        refused.clear()
        before, write = len(toy.taken), toy.write

        async def taken_and_hung(batch: Batch) -> None:
            await write(batch)
            await anyio.sleep_forever()

        toy.write = taken_and_hung  # type: ignore[method-assign]
        dispatcher._timeout_s = 0.2
        done = await dispatcher.retry()
        assert (done.left, done.cause) == (count, "has not answered for 200ms")
        assert len(await letters(poller.store)) == count
        toy.write = write  # type: ignore[method-assign]
        assert (await dispatcher.retry()).accepted == count
        again = [one["event_id"] for one in toy.taken[before:]]
        assert again[:count] == again[count:]  # the same ones, twice
        assert await letters(poller.store) == []


async def test_nothing_is_asked_of_a_sink_that_is_failing_or_ending(
    tmp_path: Path, standin: Standin
) -> None:
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    toy.dead = True
    async with hasty(config) as poller:
        dispatcher = poller.dispatchers[-1]
        await until(lambda: dispatcher.health.failing)
        with pytest.raises(SinkError, match="it fails at present: cannot be opened"):
            await dispatcher.retry()
        assert await dispatcher.rewind("bulk", None) == 0  # that is possible all the same
        dispatcher.stop()
        with pytest.raises(SinkError, match="the worker is ending"):
            await dispatcher.retry()


async def test_a_wait_is_not_cut_short_by_an_errand(tmp_path: Path, standin: Standin) -> None:
    """A sink that said how long it wants to be left alone is left alone."""
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    tries = 0

    async def later(batch: Batch) -> None:
        nonlocal tries
        tries += 1
        error = SinkError("come back later")
        error.retry_after_s = 60.0
        raise error

    toy.write = later  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        dispatcher = poller.dispatchers[-1]
        await until(lambda: dispatcher.health.failing)
        for _ in range(3):
            await dispatcher.rewind("bulk", None)
        await anyio.sleep(0.3)
        assert tries == 1


async def test_too_many_dead_letters_are_told_and_counted(
    tmp_path: Path,
    standin: Standin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(burying, "DEAD_MAX", 2)
    async with refusing(tmp_path, standin, "enroute", "accepted", "delivered") as (poller, _, _):
        assert [one.revision for one in await letters(poller.store)] == [4, 5]
        counts = (await tallies(poller))["bulk"]
        assert (counts["refused"], counts["dead_dropped"]) == (5, 3)
        assert poller.telemetry.of("dead_dropped", "toy") == 3
    assert "are LOST to it" in caplog.text


async def test_a_sink_goes_back_in_time(tmp_path: Path, standin: Standin) -> None:
    async with refusing(tmp_path, standin) as (poller, toy, _):
        in_order(toy.taken)
        dispatcher, first = poller.dispatchers[-1], list(toy.taken)
        assert len(first) == len(STEPS)
        rows = await poller.store.read(lambda tx: tx.log_rows("bulk", 0, 99, bytes_max=1 << 20))
        assert await dispatcher.rewind("bulk", rows[-1].at_ms + 1) == 0
        assert await dispatcher.rewind("bulk", rows[2].at_ms) == 3
        await until(lambda: len(toy.taken) == len(STEPS) + 3)
        assert toy.taken[len(STEPS) :] == first[2:]
        assert await until_idle(poller, 5) == []
        assert await dispatcher.rewind("bulk", None) == len(STEPS)
        await until(lambda: len(toy.taken) == 2 * len(STEPS) + 3)
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    places = await store.read(lambda tx: tx.places())
    await store.close()
    assert places["toy"] == places["lines"] == {"bulk": (len(STEPS) + 1, 0)}


# The commands


class Receiver:
    """Where the webhook of a configuration posts to; it refuses what it is told to."""

    def __init__(self) -> None:
        self.refuse: set[str] = set()
        self.down = False
        self.hold: anyio.Event | None = None  # no answer before
        self.taken: list[dict[str, Any]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        if self.down:
            return web.Response(status=503)
        records = json.loads(await request.read())
        if any(one["state"] in self.refuse for one in records):
            return web.Response(status=422, text="unknown state")
        self.taken += records
        if self.hold is not None:
            await self.hold.wait()
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


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
WEBHOOK = """
[[sinks]]
name = "{name}"
type = "webhook"
url = "{url}"
secret = "whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0"
batch = {{ wait = "10ms" }}
timeout = "5s"
"""


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
