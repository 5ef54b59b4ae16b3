"""A worker on the PostgreSQL store from outside: killed, its server restarted, its line cut.

The simulator runs in this process and knows what it gave and what of it reached the wire.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from engine.sim import Simulator
from engine.sim.profile import Profile
from tests.integration import test_kill_points as kills
from tests.integration.harness import until
from tests.integration.test_limits_under_fire import command
from tests.postgres_server import PASSWORD, Server, own_postgres
from tests.services import HOST, Line, own_schema

# The worker as it is, but for one thing: it kills itself when it comes by a point so many times.
# Around the commit means: on the store's own thread, right before and right after the server made
# what it was given durable.
DYING = """
import os, signal, sys
from engine.sinks.jsonl import JsonlSink
from engine.stores.postgres_session import Session

point, left = {point!r}, {left}

def by(here):
    global left
    left -= here == point
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

commit, write = Session.commit, JsonlSink.write

def dying_commit(self):
    by("before commit")
    commit(self)
    by("after commit")

async def dying_write(self, batch):
    by("before sink")
    done = await write(self, batch)
    by("after sink")
    return done

Session.commit, JsonlSink.write = dying_commit, dying_write
from engine.cli import main
sys.exit(main(["run", "--config", "engine.toml", "--quiet"]))
"""
RUN = """
import sys
from engine.cli import main
sys.exit(main(["run", "--config", "engine.toml", "--quiet", "--until-idle"]))
"""


def config(url: str, urls: dict[str, str]) -> str:
    text = kills.CONFIG.replace("sqlite:///state.db", "{store}")
    return text.format_map({"store": url, **urls})


@asynccontextmanager
async def sending(folder: Path, url: str, odds: dict[str, float]) -> AsyncIterator[Simulator]:
    """The four providers with messages for the worker of `folder`, the tracked ones tracked."""
    limits = {"requests": 20, "per": 1.0}
    accounts = [
        {**keys, "odds": odds, "seed": n, "limits": limits if n else {"requests": 10, "per": 1.0}}
        for n, keys in enumerate(kills.ACCOUNTS)
    ]
    async with Simulator(msgspec.convert({"accounts": accounts}, Profile)) as sim:
        (folder / "engine.toml").write_text(config(url, {n: sim.url(n) for n in kills.SENT}))
        for name, count in kills.SENT.items():
            if name != "bulk":
                sim.send(name, count, plan=[(0, kills.DELIVERED[name])])
        plan = [(0.0, kills.DELIVERED["bulk"])]
        batches = [sim.send("bulk", 5, plan=plan).batch_id for _ in range(kills.SENT["bulk"])]
        (folder / "sent.csv").write_text("batch_id\n" + "\n".join(map(str, batches)))
        await command(folder, "track", "--account", "bulk", "--file", "sent.csv")
        yield sim


def check(folder: Path, sim: Simulator, lost_answers: int) -> None:
    """Nothing lost but so many answers of the one-time feed, nothing under two ids, no limit
    exceeded."""
    assert [violation for name in kills.SENT for violation in sim.violations(name)] == []
    lines = [json.loads(line) for line in (folder / "reports.jsonl").read_bytes().splitlines()]
    recorded: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in kills.SENT}
    for line in lines:  # what came twice came under the same event_id
        assert line == recorded[line["account"]].setdefault(line["message_id"], line)
        assert line["state"] == "delivered"
    for name in ("bulk", "bot"):
        assert set(recorded[name]) == {truth.message_id for truth in sim.truth(name)}
    assert len(recorded["omni"]) == len(sim.truth("omni"))
    given = sim.given("one-time")
    assert set(recorded["one-time"]) <= {report.message_id for report in given}
    lost = {
        report.answer
        for report in given
        if report.on_wire and report.message_id not in recorded["one-time"]
    }
    assert len(lost) <= lost_answers


async def books(url: str) -> None:
    """The tallies are what a recount of the messages gives."""
    database = await asyncpg.connect(url)
    try:
        for account, known, final in await database.fetch(
            "SELECT account, count(*), count(*) FILTER (WHERE final) FROM message GROUP BY account"
        ):
            kept = dict(
                await database.fetch("SELECT name, n FROM tally WHERE account = $1", account)
            )
            assert (kept["known"], kept["final"], kept.get("pending", 0)) == (
                known,
                final,
                known - final,
            )
        records = "SELECT sum(n) FROM tally WHERE name = 'records'"
        logged = "SELECT sum(length(states)) FROM log"
        assert await database.fetchval(records) == await database.fetchval(logged)
    finally:
        await database.close()


async def test_killed_around_commits_and_sink_writes(tmp_path: Path) -> None:
    rand = random.Random(5)
    points = ("before commit", "after commit", "before sink", "after sink")
    async with own_schema() as url, sending(tmp_path, url, kills.FAULTS) as sim:
        for point in points:
            left = rand.randint(8, 40) if "commit" in point else rand.randint(1, 5)
            code = DYING.format(point=point, left=left)
            assert await kills.run(tmp_path, code) == -signal.SIGKILL
        for name in kills.SENT:
            sim.fail(name, {})
        assert await kills.run(tmp_path, RUN) == 0
        check(tmp_path, sim, lost_answers=len(points))
        await books(url)


async def disturbed(
    folder: Path, trouble: Callable[[], Awaitable[None]], times: int, apart_s: float
) -> str:
    """A worker runs until it is idle, while `trouble` comes again and again; what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN.replace(', "--quiet"', ""), cwd=folder,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        saying = asyncio.create_task(process.communicate())
        begun = folder / "reports.jsonl"
        await until(lambda: begun.exists() and begun.stat().st_size > 0, 30, "it has not begun")
        for _ in range(times):
            await asyncio.sleep(apart_s)
            await trouble()
        said = (await asyncio.wait_for(saying, 120))[1].decode()
    finally:
        if process.returncode is None:
            process.kill()
            with suppress(ProcessLookupError):
                await process.wait()
    assert process.returncode == 0, said[-2000:]
    return said


async def restart(server: Server, how: str) -> None:
    await server.stop(how)
    await asyncio.sleep(0.5)
    await server.start()


async def test_the_server_is_restarted_and_crashes_in_the_middle(tmp_path: Path) -> None:
    hows = iter(["fast", "immediate", "fast", "immediate"])
    async with own_postgres() as server, sending(tmp_path, server.url, {}) as sim:
        said = await disturbed(tmp_path, lambda: restart(server, next(hows)), 4, 1.5)
        check(tmp_path, sim, lost_answers=0)
        await books(server.url)
    assert "tried again every" in said
    assert PASSWORD not in said


async def test_the_line_to_the_server_is_cut_in_the_middle(tmp_path: Path) -> None:
    async with own_schema() as url, Line(HOST, 5432) as line:
        through = url.replace(":5432", f":{line.port}")

        async def cut() -> None:
            line.cut_after(20_000)

        async with sending(tmp_path, through, {}) as sim:
            said = await disturbed(tmp_path, cut, 12, 0.4)
            check(tmp_path, sim, lost_answers=0)
            await books(url)
    assert "tried again every" in said
