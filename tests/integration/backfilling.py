"""What the tests of past periods share: two accounts of the simulator, orders, and what came."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.books.periods import Progress, progress_of
from engine.core.units import iso, iso_ms
from engine.sim import Profile, Simulator
from engine.worker import Engine
from tests.integration.folder import Done, finished
from tests.integration.harness import lines

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
DELIVERED = {"bot": "delivered", "omni": "DELIVRD"}


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
    """The command; `python`: by this code instead."""
    head = ["-c", python] if python is not None else ["-m", "engine"]
    return await finished(folder, sys.executable, *head, *arguments)


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


def span_of(query: Any) -> tuple[float, float]:
    if "from_timetoken" in query:
        return float(query["from_timetoken"]), float(query["to_timetoken"])
    return iso_ms(query["from"]) / 1000, iso_ms(query["to"]) / 1000
