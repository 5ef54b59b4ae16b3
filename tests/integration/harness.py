"""What the tests of the whole engine share: configurations, waiting, and reading what came out."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import anyio

import engine
from engine.core.clock import Clock
from engine.idle import until_idle
from engine.machine.clock import RealClock
from engine.worker import Engine

FREE = {"requests": 1000, "per": "1s"}
STORES = ["sqlite:///state.db", "memory://"]
BATCH = {"wait": "10ms"}

# How long an event is waited for: a bound on a test that fails, not on the engine's pace, so that a
# busy machine fails none. Shorter than the pause after a refusal, which is not to be waited out.
PATIENCE_S = 30.0


class Hasty(random.Random):
    """Backoffs of a fiftieth, no jitter: chance is not what these tests are about."""

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * 0.02

    def random(self) -> float:
        return 0.0


class Leaping(RealClock):
    """The machine's clock, which a test moves on by hours: what lies between is not waited for."""

    def __init__(self) -> None:
        self._ahead_ms = 0

    def leap(self, ms: int) -> None:
        self._ahead_ms += ms

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_ms

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_ms / 1000

    def boot(self) -> tuple[str, float] | None:
        boot = super().boot()
        return boot and (boot[0], boot[1] + self._ahead_ms / 1000)


def bulksms(base_url: str, **keys: Any) -> dict[str, Any]:
    schedule = {"ladder": ["0s", "150ms", "300ms"], "give_up": "5s"}
    return {
        "name": "bulk", "provider": "bulksms", "base_url": base_url, "username": "john",
        "password": "s3cret&%", "limits": FREE, "schedule": schedule, **keys,
    }  # fmt: skip


def infobip(base_url: str, **keys: Any) -> dict[str, Any]:
    schedule = {"interval": "50ms", "idle_interval": "50ms", "ladder": ["0s", "400ms"]}
    return {
        "name": "info", "provider": "infobip", "base_url": base_url, "api_key": "k3y-canary",
        "limits": FREE, "schedule": schedule, **keys,
    }  # fmt: skip


def avaamo(base_url: str, **keys: Any) -> dict[str, Any]:
    schedule = {"interval": "50ms", "idle_interval": "50ms", "rescan": []}
    return {
        "name": "bot", "provider": "avaamo", "base_url": base_url, "agent_id": 5157,
        "access_token": "t0ken-canary", "limits": FREE, "schedule": schedule, **keys,
    }  # fmt: skip


def messangi(base_url: str, **keys: Any) -> dict[str, Any]:
    schedule = {"interval": "50ms", "idle_interval": "50ms", "rescan": []}
    return {
        "name": "omni", "provider": "messangi", "base_url": base_url,
        "headers": {"Authorization": "Bearer h3ader-canary"}, "limits": FREE,
        "schedule": schedule, **keys,
    }  # fmt: skip


def configured(
    folder: Path,
    *accounts: dict[str, Any],
    store: str | dict[str, Any] = "sqlite:///state.db",
    sinks: list[dict[str, Any]] | None = None,
    **more: Any,
) -> engine.Config:
    """A configuration whose records go to `r.jsonl` and `r.db`, unless `sinks` says otherwise."""
    if sinks is None:
        sinks = [
            {"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH},
            {"name": "db", "type": "sqlite", "path": "r.db", "batch": BATCH},
        ]
    kept = {"url": store} if isinstance(store, str) else store
    data = {"store": kept, "accounts": list(accounts), "sinks": sinks, **more}
    return engine.configure(data, base=folder)


def hasty(config: engine.Config, clock: Clock | None = None) -> Engine:
    """An engine that waits but little after failures."""
    return Engine(config, rand=Hasty(), clock=clock)


async def until(check: Callable[[], Any], seconds: float = PATIENCE_S, what: str = "") -> None:
    """Wait until it holds; an AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what or "it did not come to pass"
        await anyio.sleep(0.01)


async def patiently(
    look: Callable[[], Awaitable[Any]], wanted: object, seconds: float = PATIENCE_S
) -> None:
    """Look until it is as wanted; a TimeoutError after `seconds`."""
    with anyio.fail_after(seconds):
        while await look() != wanted:  # noqa: ASYNC110 - nobody tells when it is so
            await anyio.sleep(0.01)


def lines(folder: Path, name: str = "r.jsonl") -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def table(folder: Path, which: str = "reports", name: str = "r.db") -> list[dict[str, Any]]:
    """The rows of the sqlite sink."""
    with closing(sqlite3.connect(folder / name)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f'SELECT * FROM "{which}"')]


def identity(record: dict[str, Any], t: int) -> str:
    """The event_id as the contract defines it, made without the engine."""
    names = ("account", "message_id", "direction", "provider_status", "error_code", "verdict")
    fact = [*(record[name] for name in names), t]
    text = json.dumps(fact, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


async def tallies(poller: Engine) -> dict[str, dict[str, int]]:
    return await poller.store.read(lambda tx: tx.tallies())


async def causes(poller: Engine, account: str | None = None) -> list[tuple[str, str]]:
    """Kind and cause of what was set aside, and of incidents."""
    found = await poller.store.read(lambda tx: tx.troubles(account, 1000))
    return [(trouble.kind, trouble.cause) for trouble in found]


async def read_to_end(
    folder: Path, account: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Run an account until it is idle; the records, and the troubles."""
    async with hasty(configured(folder, account)) as poller:
        with anyio.fail_after(20):
            assert await until_idle(poller, 10) == []
        await balanced(poller)
        troubles = await causes(poller, account["name"])
    return lines(folder), troubles


async def balanced(poller: Engine) -> None:
    """known = final + pending, for every account."""
    for account, counts in (await tallies(poller)).items():
        both = counts.get("final", 0) + counts.get("pending", 0)
        assert counts.get("known", 0) == both, (account, counts)
