"""How much of the allowance the engine uses while there is work, and that it never uses more.

Counted at the provider by its own clock, in virtual time: what is missing here is what the engine
gives away by its design, whatever else the machine does meanwhile. A request is on its way for up
to `slack`, and its answer comes when the provider has thought about it. The first window is left
out: at a start answers are waited for until it is known that the provider always takes so long.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from engine.stores.tracked import Tracked
from tests.simulation.answering import (
    Answer,
    Provider,
    batch_report,
    engine_for,
    lone_process,
    run,
)
from tests.simulation.loop import Loop
from tests.simulation.world import Process

SHARE = 0.99
DAY_S = 86_400.0
SLACK_S = 0.005  # of a window of a second; longer ones have more
WAIT_S = 0.1  # a feed is read as often as its limit allows
NEARBY_S, SLOW_S = 0.001, 0.2  # what a provider takes at most: within slack, and far beyond it
SELDOM_S = 3600.0  # see test_ladders: of a day most steps would be looks for what is not there

Limit = tuple[int, float]


class Late(Provider):
    """Takes every request after a time on its way, and says that there is nothing new."""

    def __init__(self, process: Process, latency_s: float) -> None:
        super().__init__(process)
        self._latency_s = latency_s
        self._rand = random.Random("provider")
        self.arrivals: list[float] = []

    def take(self, params: Mapping[str, str]) -> Answer:
        transit_s = self._rand.random() * SLACK_S
        self.arrivals.append(self.world.now + transit_s)
        after_s = transit_s + self._rand.random() * self._latency_s
        if (batch := params.get("batch_id")) is None:
            return Answer(b'{"results":[]}', "application/json", after_s)
        return Answer(batch_report(f"4477{batch}", 10), "text/plain", after_s)


def polls(name: str, limits: Sequence[Limit], concurrency: int, **more: Any) -> dict[str, Any]:
    """An account whose batches are all due at once."""
    return {
        "name": name, "provider": "bulksms", "base_url": "http://localhost", "username": "u",
        "password": "p", "limits": _limits(limits, concurrency, more),
        "schedule": {"ladder": ["0s", "30d"]},
    }  # fmt: skip


def feed(name: str, limits: Sequence[Limit], **more: Any) -> dict[str, Any]:
    return {
        "name": name, "provider": "infobip", "base_url": "http://localhost", "api_key": "k",
        "limits": _limits(limits, 1, more),
        "schedule": {"interval": WAIT_S, "idle_interval": WAIT_S},
    }  # fmt: skip


def _limits(limits: Sequence[Limit], concurrency: int, more: dict[str, Any]) -> dict[str, Any]:
    (requests, per_s), *also = limits
    further = [{"requests": r, "per": p} for r, p in also]
    return {"requests": requests, "per": per_s, "concurrency": concurrency, "also": further, **more}


# What is limited, by which windows, and for how many of the first one's it runs.
CASES = {
    "1 a minute": ([feed("a", [(1, 60.0)])], [(1, 60.0)], 20),
    "5 in 11 s": ([feed("a", [(5, 11.0)])], [(5, 11.0)], 20),
    "10 a second": ([polls("a", [(10, 1.0)], 10)], [(10, 1.0)], 20),
    "100 a second": ([polls("a", [(100, 1.0)], 40)], [(100, 1.0)], 8),
    "1,000 a second": ([polls("a", [(1000, 1.0)], 400)], [(1000, 1.0)], 4),
    "5,000 a second": ([polls("a", [(5000, 1.0)], 2000)], [(5000, 1.0)], 3),
    "300 a day": ([feed("a", [(300, DAY_S)])], [(300, DAY_S)], 3),
    "a minute beside a second": (
        [polls("a", [(20, 1.0), (300, 60.0)], 10)], [(300, 60.0), (20, 1.0)], 4,
    ),
    "a group": (
        [polls(name, [(30, 3.0)], 10, group="all") for name in "abc"], [(30, 3.0)], 12,
    ),
}  # fmt: skip


PAIRS = [(case, latency_s) for case in CASES for latency_s in (NEARBY_S, SLOW_S)]
PAIRS.remove(("5,000 a second", NEARBY_S))  # the same again, and 15,000 polls


@pytest.mark.parametrize(("case", "latency_s"), PAIRS)
def test_the_allowance_is_used(
    monkeypatch: pytest.MonkeyPatch, case: str, latency_s: float
) -> None:
    accounts, limits, windows = CASES[case]
    requests, per_s = limits[0]
    if per_s > SELDOM_S:
        for name in ("chores.INBOX_S", "chores.STATUS_S", "chores.ROOM_S", "chores.PRUNE_S",
                     "polling.poller.WAIT_MAX_S", "dispatch.dispatcher.LOOK_S"):  # fmt: skip
            monkeypatch.setattr(f"engine.{name}", SELDOM_S)
    arrivals = _run(accounts, requests * (windows + 1), per_s, windows, latency_s)
    for most, length_s in limits:
        assert _worst(arrivals, length_s) == most
    assert _share(arrivals[requests:], requests, per_s) >= SHARE


def _share(arrivals: Sequence[float], requests: int, per_s: float) -> float:
    """Each place of the window is used once in `per_s` at best: how often is it?"""
    rounds = [then - at for at, then in zip(arrivals, arrivals[requests:], strict=False)]
    return per_s * len(rounds) / sum(rounds)


def _worst(arrivals: Sequence[float], per_s: float) -> int:
    """The most arrivals in any closed window."""
    first = most = 0
    for place, when in enumerate(arrivals):
        while when - arrivals[first] > per_s:
            first += 1
        most = max(most, place - first + 1)
    return most


def _run(
    accounts: list[dict[str, Any]], batches: int, per_s: float, windows: int, latency_s: float
) -> list[float]:
    """When requests arrived, while there was work for more."""
    process = lone_process("allowance")
    process.loop.close()
    process.loop = Loop(process.world)  # its timers are in time
    provider = Late(process, latency_s)
    run(process, _main(process, provider, accounts, batches, windows * per_s))
    return sorted(provider.arrivals)


async def _main(
    process: Process,
    provider: Provider,
    accounts: list[dict[str, Any]],
    batches: int,
    seconds: float,
) -> None:
    now_ms = process.now_ms()
    async with engine_for(process, provider, accounts) as engine:
        for account in accounts:
            if account["provider"] == "bulksms":
                sent = [Tracked(batch_id=str(n), sent_ms=now_ms) for n in range(1, batches + 1)]
                await engine.track_all(account["name"], sent)
        await asyncio.sleep(seconds)
