"""Past periods: by themselves, and beside a running worker; what is left open; what is refused."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.core.contracts import Kind
from engine.core.units import iso
from engine.idle import until_idle
from engine.sim import Simulator
from engine.worker import Engine
from tests.integration.avaamo_agent import HOUR, Report, hourly
from tests.integration.backfilling import (
    DAY_S,
    configure,
    ids,
    progress,
    run,
    send,
    sim,
    simulator,
    span_of,
    words,
)
from tests.integration.folder import worker
from tests.integration.harness import balanced, lines, tallies, until
from tests.integration.standin import Answer, Standin
from tests.integration.test_redacted_accounts import kept
from tests.services import own_schema

__all__ = ["sim"]


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
