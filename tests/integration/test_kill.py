"""`kill -9` under load: at most the answer on the wire is gone, nothing is recorded twice, and no
window is exceeded, by the simulator's own count."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio

MESSAGES = 1500
KILLS = 4

PROFILE = """
[[accounts]]
name = "one-time"
provider = "infobip"
api_key = "key"
latency = "20ms"
limits = { requests = 10, per = "1s" }
"""

CONFIG = """
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "one-time"
provider = "infobip"
base_url = "{url}/one-time"
api_key = "key"
limit = 50
limits = {{ requests = 10, per = "1s", slack = "150ms" }}  # two processes on a busy machine
schedule = {{ interval = "100ms" }}

[[sinks]]
name = "lines"
type = "jsonl"
path = "reports.jsonl"

[[sinks]]
name = "tables"
type = "sqlite"
path = "reports.db"
"""


async def test_killed_again_and_again(tmp_path: Path) -> None:
    rand = random.Random(7)
    async with simulator(tmp_path) as url, aiohttp.ClientSession() as client:

        async def told(what: str) -> Any:
            async with client.get(f"{url}/_sim/{what}") as answer:
                return await answer.json(content_type=None)

        async def requests() -> int:
            return int((await told("counts"))["one-time"]["requests"])

        (tmp_path / "engine.toml").write_text(CONFIG.format(url=url))
        order = {"account": "one-time", "n": MESSAGES, "plan": [[0, "DELIVERED_TO_HANDSET"]]}
        async with client.post(f"{url}/_sim/send", json=order) as answer:
            assert answer.status == 200
        for _ in range(KILLS):
            before = await requests()
            worker = await anyio.open_process(_run(tmp_path), stdout=None, stderr=None)
            with anyio.fail_after(30):  # it has taken up its work, whatever the machine's pace
                while await requests() < before + 2:  # noqa: ASYNC110 - it is another process
                    await anyio.sleep(0.01)
            await anyio.sleep(rand.uniform(0.0, 0.4))
            worker.send_signal(signal.SIGKILL)
            await worker.wait()
        with anyio.fail_after(60):
            await anyio.run_process([*_run(tmp_path), "--until-idle"], check=True, stderr=None)
        assert await told("violations/one-time") == []
        given = [report["message_id"] for report in await told("given/one-time")]
    assert len(given) == len(set(given)) == MESSAGES
    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_bytes().splitlines()]
    recorded = {line["message_id"] for line in lines}
    # One answer of 50 may have been on the wire at each kill, and nothing else may be missing.
    assert len(set(given) - recorded) <= 50 * KILLS
    assert recorded <= set(given)
    events = {line["event_id"] for line in lines}
    assert len(events) == len(recorded)  # what came twice came under the same event_id
    with sqlite3.connect(tmp_path / "reports.db") as tables:
        stored = [row[0] for row in tables.execute("SELECT event_id FROM reports")]
    tables.close()
    assert sorted(stored) == sorted(events)


@asynccontextmanager
async def simulator(folder: Path) -> AsyncIterator[str]:
    (folder / "profile.toml").write_text(PROFILE)
    command = [sys.executable, "-m", "engine", "simulate", "--port", "0"]
    command += ["--profile", str(folder / "profile.toml")]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        said = b""
        while b"http://" not in said or b"\n" not in said.partition(b"http://")[2]:
            said += await process.stdout.receive()
        try:
            yield "http://" + said.partition(b"http://")[2].split()[0].decode().rstrip("/")
        finally:
            process.terminate()
            await process.stdout.aclose()


def _run(folder: Path) -> list[str]:
    config = str(folder / "engine.toml")
    return [sys.executable, "-m", "engine", "run", "--config", config, "--quiet"]
