"""Exported files: by themselves, beside a running worker, killed in the middle, and again."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from engine.core.contracts import Kind
from engine.core.units import iso
from engine.sim import AccountProfile, Profile, Simulator
from tests.integration.exports import configure, ingest
from tests.integration.folder import finished, worker
from tests.integration.harness import balanced, lines, tallies, until
from tests.services import own_schema

HOUR_S = 3600.0


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    profile = AccountProfile(name="omni", provider="messangi")
    async with Simulator(Profile([profile])) as made:
        yield made


async def mailed(sim: Simulator, folder: Path, name: str = "log.csv") -> bytes:
    """What the simulator exports of the last day, in a file."""
    now = time.time()
    window = {
        "from": iso(round((now - 24 * HOUR_S) * 1000)),
        "to": iso(round(now * 1000)),
    }
    order = {"emails": ["a@example.com"], "from": "b@example.com", "timezone": "GMT"}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{sim.url('omni')}/v3/mlog", params=window, json=order) as answer:
            assert answer.status == 200
        async with http.get(f"{sim.base_url}/_sim/mailed/omni") as answer:
            body = await answer.read()
    (folder / name).write_bytes(body)
    return body


def send(sim: Simulator, count: int, *plan: tuple[float, str], ago_s: float = HOUR_S) -> None:
    """In all channels, so long ago."""
    for n, channel in enumerate("SEPWR"):
        sent_at = time.time() - ago_s + n
        sim.send("omni", count, channel=channel, sent_at=sent_at, plan=plan)


def events(folder: Path) -> set[str]:
    found = [line["event_id"] for line in lines(folder)]
    assert len(found) == len(set(found))
    return set(found)


async def test_a_file_gives_what_a_poll_gives_and_no_record_twice(
    sim: Simulator, tmp_path: Path
) -> None:
    """The same messages under the same event_ids; a poll after the file is no news."""
    file, polled = tmp_path / "file", tmp_path / "polled"
    for folder in (file, polled):
        folder.mkdir()
        configure(folder, sim.url("omni"))
    send(sim, 40, (0, "SENT"), (1, "DELIVERED"))
    await mailed(sim, file)
    assert await ingest(file, "log.csv") == (0, "omni: log.csv: 200 rows: 200 new records\n", "")
    again = "omni: log.csv: 200 rows: 0 new records, 200 known already\n"
    assert await ingest(file, "log.csv") == (0, again, "")
    text = (polled / "engine.toml").read_text().replace('lookback = "1s"', 'lookback = "1d"')
    (polled / "engine.toml").write_text(text)
    async with worker(polled):
        await until(lambda: len(lines(polled)) >= 200, 20)
    (file / "engine.toml").write_text(text)
    async with worker(file) as engine:
        await until(lambda: engine.telemetry.of("repeated", "omni") >= 200, 20)
        await until(lambda: len(lines(file)) >= 200, 20)
        await balanced(engine)
    assert events(file) == events(polled)
    bare = ("observed_at", "content")
    both = [
        sorted(
            ({k: v for k, v in line.items() if k not in bare} for line in lines(folder)),
            key=lambda line: line["event_id"],
        )
        for folder in (file, polled)
    ]
    assert both[0] == both[1]


async def test_what_is_open_is_read_again(sim: Simulator, tmp_path: Path) -> None:
    """A message that comes up in a file gets the rescans of what comes up in a window."""
    configure(tmp_path, sim.url("omni"))
    send(sim, 3, (0, "SENT"), (HOUR_S + 4, "DELIVERED"))
    await mailed(sim, tmp_path)
    assert (await ingest(tmp_path, "log.csv"))[0] == 0
    async with worker(tmp_path) as engine:
        windows = await engine.store.read(lambda tx: tx.find_works("omni", Kind.WINDOW, None))
        assert 1 <= len(windows) <= 2  # by the day of sending, which may be yesterday's
        until_states = {"delivered", "enroute"}
        await until(lambda: {line["state"] for line in lines(tmp_path)} >= until_states, 20)
        await balanced(engine)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_beside_a_running_worker_it_is_the_worker_that_records(
    sim: Simulator, tmp_path: Path, kind: str
) -> None:
    """Portion by portion through its inbox; it does not get more than it takes."""
    if kind == "sqlite":
        await _beside(sim, tmp_path, "sqlite:///state.db")
        return
    async with own_schema() as url:
        await _beside(sim, tmp_path, url)


async def _beside(sim: Simulator, folder: Path, store: str) -> None:
    configure(folder, sim.url("omni"), store=store)
    send(sim, 1200, (0, "SENT"), (1, "READ"))
    await mailed(sim, folder)
    async with worker(folder) as engine:
        await until(lambda: "omni" in engine.pollers, 20)
        status, out, err = await ingest(folder, "log.csv", "log.csv")
        assert (status, err) == (0, "")
        first, second = out.splitlines()
        assert first == "omni: log.csv: 6,000 rows: 6,000 new records"
        assert second == "omni: log.csv: 6,000 rows: 0 new records, 6,000 known already"
        await until(lambda: engine.telemetry.of("written", "lines") >= 6000, 60)
        await balanced(engine)
        assert not await engine.store.read(lambda tx: tx.inbox_waits())
    assert len(events(folder)) == 6000


async def test_on_postgresql_where_no_worker_runs(sim: Simulator, tmp_path: Path) -> None:
    async with own_schema() as url:
        configure(tmp_path, sim.url("omni"), store=url)
        send(sim, 3, (0, "SENT"), (1, "DELIVERED"))
        await mailed(sim, tmp_path)
        for told in ("15 new records", "0 new records, 15 known already"):
            assert await ingest(tmp_path, "log.csv") == (
                0, f"omni: log.csv: 15 rows: {told}\n", ""
            )  # fmt: skip


DYING = """
import os, signal, sys
from engine.stores.sqlite import SqliteStore

left, write = {left}, SqliteStore.write

async def dying(self, job, *, lazy=False):
    global left
    left -= 1
    if left == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    done = await write(self, job, lazy=lazy)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

SqliteStore.write = dying
from engine.cli import main
sys.exit(main(["ingest", "--config", "engine.toml", "--account", "omni", "log.csv"]))
"""


@pytest.mark.parametrize("beside", [False, True])
async def test_killed_in_the_middle_and_run_again(
    sim: Simulator, tmp_path: Path, beside: bool
) -> None:
    """Nothing is lost and nothing is there twice, wherever it was."""
    rand = random.Random(3)
    configure(tmp_path, sim.url("omni"))
    send(sim, 1500, (0, "SENT"), (1, "READ"))
    await mailed(sim, tmp_path)

    async def kills() -> None:
        for before in (False, True, False, True):
            code = DYING.format(left=rand.randint(2, 7), before=before)
            assert (await finished(tmp_path, sys.executable, "-c", code))[0] == -signal.SIGKILL
        status, out, err = await ingest(tmp_path, "log.csv")
        assert (status, err) == (0, "")
        assert out.startswith("omni: log.csv: 7,500 rows: ")

    if not beside:
        await kills()
    async with worker(tmp_path) as engine:
        if beside:
            await kills()
        await until(lambda: engine.telemetry.of("written", "lines") >= 7500, 60)
        await balanced(engine)
        counts = (await tallies(engine))["omni"]
    assert (counts["known"], counts["records"]) == (7500, 7500)
    assert len(events(tmp_path)) == 7500
    assert {line["revision"] for line in lines(tmp_path)} == {1}
