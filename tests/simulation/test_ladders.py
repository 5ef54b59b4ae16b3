"""Five days of ladders for 1,000 batches, in virtual time: each rung is asked once, when it is due.

With the real poller, limiter, schedule, provider and memory store. What looks from time to time for
what comes from outside (other processes, a stepped clock) has nothing to find here, and looks
seldom, or most of the steps of five days would be its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from engine import registry
from engine.config import parse
from engine.core.contracts import Head, Request
from engine.failures import Timeouts
from engine.idle import until_idle
from engine.stores.memory import MemoryStore
from engine.stores.tracked import Tracked
from engine.transport import Transport
from engine.worker import Engine
from tests.simulation.world import Machine, Process, World

BATCHES = 1000
LADDER_S = (300, 1800, 7200, 18_000, 86_400, 172_800, 432_000)
SELDOM_S = 3600.0
LATE_S = 1.0
PER_S = 200  # requests a second: what is due at one moment is asked within LATE_S of it


class Provider(Transport):
    """BulkSMS: a batch of one recipient; every tenth is delivered in the end, at its own pace."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.asked: dict[int, list[float]] = defaultdict(list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Any:
        batch = int(dict(request.params)["batch_id"])
        asked = self.asked[batch]
        asked.append(self._process.world.now)
        if on_sent is not None:
            on_sent()
        delivered = batch % 10 == 0 and len(asked) > batch // 10 % len(LADDER_S)
        return Answer(f"0|Returns to follow\n\n4477{batch:08d}|{11 if delivered else 10}\n")


class Answer:
    def __init__(self, text: str) -> None:
        self.head = Head(200, {"content-type": "text/plain"})
        self._body = text.encode()

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


def test_five_days(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chores.INBOX_S", "chores.STATUS_S", "chores.ROOM_S", "chores.PRUNE_S",
                 "poller.WAIT_MAX_S", "dispatcher.LOOK_S"):  # fmt: skip
        monkeypatch.setattr(f"engine.{name}", SELDOM_S)
    monkeypatch.setattr("engine.near.HORIZON_MS", round(4 * SELDOM_S * 1000))
    world = World("ladders")
    process = Process(
        world, 1, machine=Machine("boot", -100.0, tells=True), wall_ahead_s=0.0, drift=0.0
    )
    provider = Provider(process)
    loop = process.loop
    loop.set_task_factory(None)  # nothing here is drawn: asyncio's own tasks are quicker
    ended = loop.run_until_complete(loop.create_task(_main(process, provider)))
    loop.bury()
    assert ended == []
    assert len(provider.asked) == BATCHES
    for batch, asked in provider.asked.items():
        finals = batch % 10 == 0
        rungs = LADDER_S[: batch // 10 % len(LADDER_S) + 1] if finals else LADDER_S
        assert len(asked) == len(rungs)
        assert all(0 <= at - rung <= LATE_S + 5 for at, rung in zip(asked, rungs, strict=True))


async def _main(process: Process, provider: Provider) -> list[str]:
    schedule = {"ladder": [f"{rung}s" for rung in LADDER_S]}
    account = {
        "name": "bulk", "provider": "bulksms", "base_url": "http://localhost", "username": "u",
        "password": "p", "limits": {"requests": PER_S, "per": "1s"}, "schedule": schedule,
    }  # fmt: skip
    config = parse(
        {"store": {"url": "memory://"}, "accounts": [account]},
        providers=registry.providers(), sinks={},
    )  # fmt: skip
    engine = Engine(
        config, clock=process, rand=process.rand, store=MemoryStore(), transport=provider
    )
    now_ms = process.now_ms()
    async with engine:
        await engine.track_all(
            "bulk", [Tracked(batch_id=str(n), sent_ms=now_ms) for n in range(1, BATCHES + 1)]
        )
        await anyio.sleep(LADDER_S[-1] + 60)
        left = await until_idle(engine, SELDOM_S)
        tallies = (await engine.store.read(lambda tx: tx.tallies()))["bulk"]
        assert tallies["known"] == tallies["final"] == BATCHES
        assert "pending" not in tallies or tallies["pending"] == 0
        return left
