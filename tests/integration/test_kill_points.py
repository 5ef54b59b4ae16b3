"""`kill -9` at the very instants that matter: right before and after a commit and a sink's write.

All four providers at once, with cut and refused answers. The simulator runs in this process and
knows what it gave and what of it reached the wire.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from engine.sim import Simulator
from engine.sim.profile import Profile
from tests.integration.test_limits_under_fire import command

POINTS = ("before commit", "after commit", "before sink", "after sink") * 2
FAULTS = {"cut": 0.08, "cut_chunked": 0.05, "503": 0.05, "reset": 0.03, "lost": 0.02}

# The worker as it is, but for one thing: it kills itself when it comes by a point so many times.
DYING = """
import os, signal, sys
from engine.sinks.jsonl import JsonlSink
from engine.stores.sqlite import SqliteStore

point, left = {point!r}, {left}

def by(here):
    global left
    left -= here == point
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def dying(real, what):
    async def call(*args, **keys):
        by("before " + what)
        done = await real(*args, **keys)
        by("after " + what)
        return done
    return call

SqliteStore.write = dying(SqliteStore.write, "commit")
JsonlSink.write = dying(JsonlSink.write, "sink")
from engine.cli import main
sys.exit(main(["run", "--config", "engine.toml", "--quiet"]))
"""

CONFIG = """
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "one-time"
provider = "infobip"
base_url = "{one-time}"
api_key = "key"
limit = 50
limits = {{ requests = 10, per = "1s", slack = "200ms" }}
schedule = {{ interval = "50ms", idle_interval = "50ms" }}

[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{bulk}"
username = "u"
password = "p"
limits = {{ requests = 20, per = "1s", slack = "200ms" }}
schedule = {{ ladder = ["0s", "1s", "3s", "6s", "12s"] }}

[[accounts]]
name = "bot"
provider = "avaamo"
base_url = "{bot}"
agent_id = 5157
access_token = "t"
limits = {{ requests = 20, per = "1s", slack = "200ms" }}
schedule = {{ interval = "100ms", rescan = ["1s", "3s"] }}

[[accounts]]
name = "omni"
provider = "messangi"
base_url = "{omni}"
limits = {{ requests = 20, per = "1s", slack = "200ms" }}
schedule = {{ interval = "100ms", rescan = ["1s", "3s"] }}

[[sinks]]
name = "lines"
type = "jsonl"
path = "reports.jsonl"
batch = {{ records = 40, wait = "20ms" }}

[[sinks]]
name = "tables"
type = "sqlite"
path = "reports.db"
"""

ACCOUNTS = [
    {"name": "one-time", "provider": "infobip", "api_key": "key", "latency": 0.02},
    {"name": "bulk", "provider": "bulksms", "username": "u", "password": "p"},
    {"name": "bot", "provider": "avaamo", "access_token": "t"},
    {"name": "omni", "provider": "messangi"},
]
DELIVERED = {
    "one-time": "DELIVERED_TO_HANDSET", "bulk": "11", "bot": "delivered", "omni": "DELIVERED",
}  # fmt: skip
SENT = {"one-time": 4000, "bulk": 60, "bot": 400, "omni": 400}


async def test_killed_around_commits_and_sink_writes(tmp_path: Path) -> None:
    rand = random.Random(11)
    limits = {"requests": 20, "per": 1.0}
    first = {"requests": 10, "per": 1.0}
    accounts = [
        {**keys, "odds": FAULTS, "seed": n, "limits": limits if n else first}
        for n, keys in enumerate(ACCOUNTS)
    ]
    async with Simulator(msgspec.convert({"accounts": accounts}, Profile)) as sim:
        urls = {name: sim.url(name) for name in SENT}
        (tmp_path / "engine.toml").write_text(CONFIG.format_map(urls))
        for name, count in SENT.items():
            if name != "bulk":
                sim.send(name, count, plan=[(0, DELIVERED[name])])
        batches = [sim.send("bulk", 5, plan=[(0, DELIVERED["bulk"])]).batch_id for _ in range(60)]
        (tmp_path / "sent.csv").write_text("batch_id\n" + "\n".join(map(str, batches)))
        await command(tmp_path, "track", "--account", "bulk", "--file", "sent.csv")
        for point in POINTS:
            left = rand.randint(8, 40) if "commit" in point else rand.randint(1, 5)
            assert await run(tmp_path, DYING.format(point=point, left=left)) == -signal.SIGKILL
        for name in SENT:
            sim.fail(name, {})
        done = "from engine.cli import main; raise SystemExit(main("
        done += "['run', '--config', 'engine.toml', '--quiet', '--until-idle']))"
        assert await run(tmp_path, done) == 0
        given = sim.given("one-time")
        sent = {name: {truth.message_id for truth in sim.truth(name)} for name in SENT}
        broken = [violation for name in SENT for violation in sim.violations(name)]
    assert broken == []
    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_bytes().splitlines()]
    recorded: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in SENT}
    for line in lines:  # what came twice came under the same event_id
        before = recorded[line["account"]].setdefault(line["message_id"], line)
        assert before == line
        assert line["state"] == "delivered"
    for name in ("bulk", "bot"):
        assert (
            set(recorded[name]) == sent[name]
        )  # nothing at all is gone where it can be read again
    assert len(recorded["omni"]) == len(sent["omni"])
    # Of the one-time feed: every report that was written whole, but for one answer a kill.
    assert set(recorded["one-time"]) <= {report.message_id for report in given}
    arrived = [report for report in given if report.on_wire]
    lost = {report.answer for report in arrived if report.message_id not in recorded["one-time"]}
    assert len(lost) <= len(POINTS)
    with closing(sqlite3.connect(tmp_path / "reports.db")) as tables:
        stored = [row[0] for row in tables.execute("SELECT event_id FROM reports")]
    assert len(stored) == len(set(stored))
    assert set(stored) == {line["event_id"] for line in lines}


async def run(folder: Path, code: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=folder, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        return await asyncio.wait_for(process.wait(), 90)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
