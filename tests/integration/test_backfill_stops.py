"""Past periods whose reading ends in the middle: killed, stopped, taken over from a worker."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.books.periods import Progress, progress_of
from engine.core.units import iso, iso_ms
from engine.idle import until_idle
from engine.sim import Simulator
from engine.stores.sqlite import SqliteStore
from tests.integration.backfilling import configure, ids, run, send, sim, span_of, words
from tests.integration.folder import worker
from tests.integration.harness import balanced, lines, tallies, until

__all__ = ["sim"]


DYING = """
import os, signal, sys
from engine.books.committing import Committer

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
