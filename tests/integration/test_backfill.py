"""Past periods: by themselves, beside a running worker, killed, stopped, again; what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from engine.config import load
from engine.core.contracts import Kind
from engine.core.units import iso, iso_ms
from engine.idle import until_idle
from engine.periods import Progress, progress_of
from engine.registry import providers, sinks
from engine.sim import Profile, Simulator
from engine.stores.sqlite import SqliteStore
from engine.worker import Engine
from tests.integration.harness import balanced, lines, tallies, until
from tests.integration.standin import Answer, Standin
from tests.integration.test_avaamo import HOUR, Report, hourly
from tests.integration.test_redacted_accounts import kept
from tests.services import own_schema

DAY_S = 86400.0
SPAN_S = 20 * DAY_S  # how far back messages lie

CONFIG = """
[store]
url = "{store}"

[[accounts]]
name = "bot"
provider = "avaamo"
base_url = "{bot}"
agent_id = 5157
access_token = "t"
per_page = 20
lookback = "1s"
limits = {{ requests = {rate}, per = "1s", slack = "100ms" }}
schedule = {{ interval = "200ms", idle_interval = "200ms", rescan = {rescan} }}

[[accounts]]
name = "omni"
provider = "messangi"
base_url = "{omni}"
lookback = "1s"
limits = {{ requests = {rate}, per = "1s", slack = "100ms" }}
schedule = {{ interval = "200ms", idle_interval = "200ms", rescan = {rescan} }}
{more}

[[sinks]]
name = "lines"
type = "jsonl"
path = "r.jsonl"
batch = {{ wait = "20ms" }}
"""
MORE = """
[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "http://127.0.0.1:9"
username = "u"
password = "p"

[[accounts]]
name = "info"
provider = "infobip"
base_url = "http://127.0.0.1:9"
api_key = "k"
"""
DELIVERED = {"bot": "delivered", "omni": "DELIVRD"}

Done = tuple[int, str, str]


def simulator(**keys: Any) -> Simulator:
    limits = {"requests": 40, "per": 1.0}
    bot = {"name": "bot", "provider": "avaamo", "access_token": "t", "limits": limits}
    omni = {"name": "omni", "provider": "messangi", "limits": limits, **keys}
    return Simulator(msgspec.convert({"accounts": [bot, omni]}, Profile))


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    """An answer of the log has 30 messages at most, so that windows have to be halved."""
    async with simulator(report_max_items=60, page_max_items=30) as made:
        yield made


def configure(
    folder: Path, sim: Simulator | None, *, store: str = "sqlite:///state.db", rate: int = 40,
    rescan: str = "[]", more: str = "",
) -> None:  # fmt: skip
    urls = {name: sim.url(name) if sim else "http://127.0.0.1:9" for name in ("bot", "omni")}
    text = CONFIG.format(store=store, rate=rate, rescan=rescan, more=more, **urls)
    (folder / "engine.toml").write_text(text)


def send(sim: Simulator, account: str, count: int, *, plan: Any = None) -> None:
    """Evenly over the last days."""
    now = time.time()
    for n in range(count):
        at = now - SPAN_S + n * SPAN_S / count
        sim.send(account, 1, sent_at=at, plan=plan or [(0.0, DELIVERED[account])])


def words(account: str, *, ago_s: float = SPAN_S + 60, to_s: float = 60) -> list[str]:
    now = time.time() // 60 * 60
    period = ("--from", iso(round((now - ago_s) * 1000)), "--to", iso(round((now - to_s) * 1000)))
    return ["backfill", "--config", "engine.toml", "--account", account, *period, "--quiet"]


async def run(folder: Path, *arguments: str, python: str | None = None) -> Done:
    head = ["-c", python] if python is not None else ["-m", "engine"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *head, *arguments, cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[Engine]:
    config = load(folder / "engine.toml", providers=providers(), sinks=sinks())
    async with Engine(config) as engine:
        yield engine


async def progress(engine: Engine, account: str) -> list[Progress]:
    return list((await engine.store.read(lambda tx: progress_of(tx, account))).values())


def ids(folder: Path, account: str, *, once: bool = True) -> set[str]:
    """Of the messages that were recorded, each under one event_id; and once, unless the worker was
    killed over a batch."""
    found = [line for line in lines(folder) if line["account"] == account]
    events = {line["event_id"] for line in found}
    messages = {line["message_id"] for line in found}
    assert len(events) == len(messages)
    assert len(found) == len(events) or not once
    return messages


@pytest.mark.parametrize("account", ["bot", "omni"])
async def test_where_no_worker_runs(sim: Simulator, tmp_path: Path, account: str) -> None:
    """All of the period, in windows no longer than allowed, and inside the limit; its cursor is
    where the feed begins by itself. The sinks get it when a worker runs."""
    configure(tmp_path, sim)
    send(sim, account, 300)
    asked = words(account)
    status, out, err = await run(tmp_path, *asked)
    assert (status, err) == (0, "")
    assert out == f"{account}: {asked[6]} to {asked[8]} is read, 300 new records\n"
    assert sim.violations(account) == []
    longest = (7 if account == "bot" else 91) * DAY_S
    spans = [span_of(seen.query) for seen in sim.requests(account)]
    assert max(end - start for start, end in spans) <= longest + 1
    async with worker(tmp_path) as engine:
        await until(lambda: len(lines(tmp_path)) >= 300, 20)
        await balanced(engine)
        feed = (await engine.store.read(lambda tx: tx.find_works(account, Kind.FEED, [""])))[0]
        assert feed.data.get("start", feed.start_ms) > (time.time() - 120) * 1000
    assert len(ids(tmp_path, account)) == 300
    again = (await run(tmp_path, *asked))[1]
    assert again.endswith("is read, 0 new records\n")


async def test_on_postgresql_where_no_worker_runs(sim: Simulator, tmp_path: Path) -> None:
    """With every lease in hand; and a worker that starts right after has them at once."""
    async with own_schema() as url:
        configure(tmp_path, sim, store=url)
        send(sim, "omni", 100)
        status, out, err = await run(tmp_path, *words("omni"))
        assert (status, err) == (0, "")
        assert out.endswith(" is read, 100 new records\n")
        async with worker(tmp_path) as engine:
            await until(lambda: len(lines(tmp_path)) >= 100, 20)
            await balanced(engine)
            (told,) = await progress(engine, "omni")
            assert (told.state, told.records) == ("done", 100)


async def test_a_redacted_account_keeps_nobody(sim: Simulator, tmp_path: Path) -> None:
    configure(tmp_path, sim, more='redact = ["recipient"]')
    send(sim, "omni", 20)
    assert (await run(tmp_path, *words("omni")))[0] == 0
    async with worker(tmp_path):
        await until(lambda: len(lines(tmp_path)) >= 20, 20)
    numbers = {one.recipient.removeprefix("+") for one in sim.messages("omni")}
    assert len(numbers) == 20
    for name, raw in kept(tmp_path).items():
        assert not [number for number in numbers if number.encode() in raw], name


def span_of(query: Any) -> tuple[float, float]:
    if "from_timetoken" in query:
        return float(query["from_timetoken"]), float(query["to_timetoken"])
    return iso_ms(query["from"]) / 1000, iso_ms(query["to"]) / 1000


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_beside_a_worker_it_is_the_worker_that_reads(
    sim: Simulator, tmp_path: Path, kind: str
) -> None:
    """Inside its limits, and the feed goes on: its messages come, and its cursor moves."""
    if kind == "sqlite":
        await _beside(sim, tmp_path, "sqlite:///state.db")
        return
    async with own_schema() as url:
        await _beside(sim, tmp_path, url)


async def _beside(sim: Simulator, folder: Path, store: str) -> None:
    configure(folder, sim, store=store)
    send(sim, "omni", 1200)
    fresh = 0  # times that the feed has got on while the period was read

    async def feed(engine: Engine) -> None:
        nonlocal fresh
        while True:
            told = {one.message_id for one in sim.truth("omni")}
            sim.send("omni", 1, plan=[(0.0, "DELIVRD")])
            new = {one.message_id for one in sim.truth("omni")} - told
            assert len(new) == 1
            cursor = await cursor_of(engine)
            while await cursor_of(engine) <= cursor:  # noqa: ASYNC110 - it is the engine's part
                await anyio.sleep(0.05)
            fresh += 1

    async with worker(folder) as engine:
        await until(lambda: "omni" in engine.pollers, 20)
        async with anyio.create_task_group() as group:
            group.start_soon(feed, engine)
            status, out, err = await run(folder, *words("omni"))
            group.cancel_scope.cancel()
        assert (status, err) == (0, "")
        assert " is read, 1,200 new records" in out
        assert fresh >= 3
        assert await until_idle(engine, 30) == []
        await balanced(engine)
        assert (await tallies(engine))["omni"]["known"] == len(sim.truth("omni"))
        (told,) = await progress(engine, "omni")
        assert (told.state, told.incidents) == ("done", 0)
    assert sim.violations("omni") == []
    assert len(ids(folder, "omni")) == len(sim.truth("omni"))


async def cursor_of(engine: Engine) -> int:
    works = await engine.store.read(lambda tx: tx.find_works("omni", Kind.FEED, [""]))
    return int(works[0].data.get("cursor", 0)) if works else 0


DYING = """
import os, signal, sys
from engine.committing import Committer

left, commit = {left}, Committer.commit

async def dying(self, page):
    global left
    left -= any(work.kind == "backfill" for work in page.put)
    if left == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    done = await commit(self, page)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Committer.commit = dying
from engine.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("way", ["here", "worker"])
async def test_killed_in_the_middle_it_goes_on_from_there(
    sim: Simulator, tmp_path: Path, way: str
) -> None:
    """Nothing is lost or there twice; what had been read is not asked for again. Where it is the
    worker that is killed, the next one goes on by itself."""
    rand = random.Random(9)
    configure(tmp_path, sim)
    send(sim, "omni", 400)
    asked = words("omni")
    reached = 0.0
    watching: asyncio.subprocess.Process | None = None
    if way == "worker":
        order = [sys.executable, "-m", "engine", *asked]
        quiet = asyncio.subprocess.DEVNULL
        worker_words = ["run", "--config", "engine.toml", "--quiet"]
    for before in (True, False, True, False):
        code = DYING.format(left=rand.randint(2, 6), before=before)
        if way == "worker":
            dying = asyncio.create_task(run(tmp_path, *worker_words, python=code))
            if watching is None:
                await until((tmp_path / "state.db").exists, 20)
                watching = await asyncio.create_subprocess_exec(
                    *order, cwd=tmp_path, stdout=quiet, stderr=quiet
                )
                await until(lambda: backfills(sim, asked), 30)
                watching.kill()
            status = (await dying)[0]
        else:
            status = (await run(tmp_path, *asked, python=code))[0]
        assert status == -signal.SIGKILL
        async with reading(tmp_path) as told:
            assert told.state == "under way"
            assert told.reached_ms >= reached
            reached = told.reached_ms
    count = len(sim.requests("omni"))
    if way == "worker":
        async with worker(tmp_path) as engine:
            assert await until_idle(engine, 30) == []
    else:
        assert (await run(tmp_path, *asked))[:1] == (0,)
    later = [span_of(seen.query)[0] for seen in sim.requests("omni")[count:]]
    assert min(later) >= reached / 1000 - 1
    assert sim.violations("omni") == []
    async with worker(tmp_path) as engine:
        await until(lambda: len(lines(tmp_path)) >= 400, 20)
        await balanced(engine)
        assert (await tallies(engine))["omni"]["known"] == 400
    assert len(ids(tmp_path, "omni", once=way == "here")) == 400


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[Progress]:
    """The only period, as it stands in the store."""
    store = SqliteStore(folder / "state.db")
    await store.open(own=False)
    try:
        (told,) = (await store.read(lambda tx: progress_of(tx, "omni"))).values()
        yield told
    finally:
        await store.close()


@pytest.mark.parametrize("beside", [False, True])
async def test_stopped_by_a_signal_it_says_how_to_go_on(
    sim: Simulator, tmp_path: Path, beside: bool
) -> None:
    """And nothing takes it up again by itself, until the command is given once more."""
    configure(tmp_path, sim, rate=10)
    send(sim, "omni", 900)
    asked = words("omni")
    async with AsyncExitStack() as stack:
        if beside:
            engine = await stack.enter_async_context(worker(tmp_path))
            await until(lambda: "omni" in engine.pollers, 20)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine", *asked, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
        )
        await until(lambda: len(backfills(sim, asked)) > 8, 30)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        assert b"run the same command again to go on" in err
        async with reading(tmp_path) as told:  # a worker may have its order still to take
            pass
        with anyio.fail_after(10):
            while told.state != "stopped":
                await anyio.sleep(0.1)
                async with reading(tmp_path) as told:
                    pass
        assert told.from_ms < told.reached_ms < told.to_ms
        shown = json.loads((await run(tmp_path, "stats", "--config", "engine.toml", "--json"))[1])
        (one,) = shown["accounts"]["omni"]["backfills"]
        assert (one["state"], one["reached"]) == ("stopped", iso(told.reached_ms))
        text = (await run(tmp_path, "stats", "--config", "engine.toml"))[1]
        assert f": stopped, read up to {iso(told.reached_ms)}, {told.records:,} new" in text
        await anyio.sleep(1)
        count = len(backfills(sim, asked))
        await anyio.sleep(1)
        assert len(backfills(sim, asked)) == count
        if not beside:
            engine = await stack.enter_async_context(worker(tmp_path))
        assert await until_idle(engine, 30) == []
        assert (await tallies(engine))["omni"]["known"] < 900
        if beside:
            status, out, _ = await run(tmp_path, *asked)
            assert (status, " is read, " in out) == (0, True)
            later = [span_of(seen.query)[0] for seen in backfills(sim, asked)[count:]]
            assert min(later) >= told.reached_ms / 1000 - 1
            assert (await tallies(engine))["omni"]["known"] == 900


def backfills(sim: Simulator, asked: list[str]) -> list[Any]:
    """The requests that are no feed's."""
    end = iso_ms(asked[8]) / 1000
    return [seen for seen in sim.requests("omni") if span_of(seen.query)[1] <= end + 1]


async def test_a_worker_that_ends_is_taken_over_from(sim: Simulator, tmp_path: Path) -> None:
    configure(tmp_path, sim, rate=20)
    send(sim, "omni", 600)
    asked = words("omni")
    async with worker(tmp_path) as engine:
        await until(lambda: "omni" in engine.pollers, 20)
        command = asyncio.create_task(run(tmp_path, *asked))
        await until(lambda: len(backfills(sim, asked)) > 8, 30)
    status, out, err = await command
    assert (status, err) == (0, "")
    assert out.endswith(" is read, 600 new records\n")


async def test_once_reads_what_is_left_of_a_period(sim: Simulator, tmp_path: Path) -> None:
    """It was due at the start, and so is each of its slices: 20 days of avaamo are three."""
    configure(tmp_path, sim)
    send(sim, "bot", 100)
    code = DYING.format(left=1, before=False)
    assert (await run(tmp_path, *words("bot"), python=code))[0] == -signal.SIGKILL
    status, _, err = await run(tmp_path, "run", "--config", "engine.toml", "--once", "--quiet")
    assert (status, err) == (0, "")
    assert len(ids(tmp_path, "bot")) == 100
    shown = json.loads((await run(tmp_path, "stats", "--config", "engine.toml", "--json"))[1])
    (one,) = shown["accounts"]["bot"]["backfills"]
    assert (one["state"], one["reached"]) == ("done", one["to"])


async def test_what_is_open_is_read_again_and_until_idle_waits(
    sim: Simulator, tmp_path: Path
) -> None:
    """The rescans go on for longer than this takes: their last one would give verdicts."""
    configure(tmp_path, sim, rescan='["2s", "5s", "9s", "14s", "20s", "10m"]')
    plan = [(0.0, "SENT"), (DAY_S + 8, "DELIVRD")]
    sim.send("omni", 5, sent_at=time.time() - DAY_S, plan=plan)
    asked = words("omni")
    assert (await run(tmp_path, *asked))[0] == 0
    async with worker(tmp_path) as engine:
        assert await until_idle(engine, 60) == []
        counts = (await tallies(engine))["omni"]
    assert (counts["known"], counts["final"], counts.get("pending", 0)) == (5, 5, 0)
    found = lines(tmp_path)
    assert {line["verdict"] for line in found} == {None}
    last = {line["message_id"]: line["state"] for line in found}
    assert list(last.values()) == ["delivered"] * 5


async def test_a_window_that_stays_short_is_an_incident_and_no_success(tmp_path: Path) -> None:
    """Of a burst at one instant on one channel there is no more to be had."""
    async with simulator(page_max_items=3) as sim:
        configure(tmp_path, sim)
        for _ in range(5):
            sent_at = 1_790_000_000.0 - DAY_S
            sim.send("omni", 1, channel="S", sent_at=sent_at, plan=[(0, "DELIVRD")])
        start, end = iso(1_789_900_000_000), iso(1_789_930_000_000)
        options = ("--account", "omni", "--from", start, "--to", end, "--quiet")
        status, out, err = await run(tmp_path, "backfill", "--config", "engine.toml", *options)
    assert status == 1
    # Both halves that share the instant are short.
    rest = "3 new records, 2 gaps that could not be closed\n"
    assert out == f"omni: {start} to {end} is read, {rest}"
    assert "the gaps: dlr-engine stats --config engine.toml" in err


async def test_a_total_that_is_ignored_is_no_gap(tmp_path: Path, standin: Standin) -> None:
    class More(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            shown = found[(page - 1) * size : page * size]
            return self.page(shown, page, size, len(found) + 1)

    configure(tmp_path, None)
    config = tmp_path / "engine.toml"
    url = standin.answer("bot", More(*hourly(20)))
    config.write_text(config.read_text().replace("http://127.0.0.1:9", url, 1))
    period = ("--from", HOUR["start"], "--to", HOUR["end"])
    options = ("--config", "engine.toml", "--account", "bot", *period, "--quiet")
    status, out, err = await run(tmp_path, "backfill", *options)
    assert out.endswith("is read, 20 new records\n")
    assert status == 0
    assert "its total cannot prove completeness and is ignored" in err


@pytest.mark.parametrize(
    ("account", "start", "end", "said"),
    [
        ("omni", "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "--from: expected a time before"),
        ("omni", "2026-03-02T00:00:00Z", "2026-03-01T00:00:00Z", "--from: expected a time before"),
        ("bot", "2026-03-01T00:00:00", "2026-03-02T00:00:00Z", "a time with an offset such as"),
        ("bot", "2026-03-01T00:00:00Z", "9999-01-01T00:00:00Z", "--to: expected a time that has"),
        ("bulk", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z", "bulk: bulksms has no feed that"),
        ("info", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z", "gives each report once"),
        ("nobody", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z", "there is no account 'nobody'"),
    ],
)
async def test_what_cannot_be_read_is_refused(
    tmp_path: Path, account: str, start: str, end: str, said: str
) -> None:
    configure(tmp_path, None, more=MORE)
    options = ("--account", account, "--from", start, "--to", end)
    status, out, err = await run(tmp_path, "backfill", "--config", "engine.toml", *options)
    assert (status, out) == (2, "")
    assert said in err
    assert not (tmp_path / "state.db").exists()


async def test_an_account_that_is_paused_is_told(sim: Simulator, tmp_path: Path) -> None:
    configure(tmp_path, sim)
    text = (tmp_path / "engine.toml").read_text().replace('access_token = "t"', 'access_token="x"')
    (tmp_path / "engine.toml").write_text(text)
    status, _, err = await run(tmp_path, *words("bot"))
    assert status == 1
    assert "the account is paused: HTTP 401" in err
    assert "run the same command again to go on" in err


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """Nothing is to be had there; how far it is is shown all the same."""
    configure(tmp_path, None)
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *words("omni")[:-1]],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    shown = b""
    while b"0 new records" not in shown:
        shown += os.read(screen, 1 << 16)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    os.close(screen)
    assert b"omni" in shown
    assert b"0%" in shown
    assert (process.returncode, out) == (0, b"")
