"""Five days of ladders for 1,000 batches, in virtual time: each rung is asked once, when it is due.

With the real poller, limiter, schedule, provider and memory store. What looks from time to time for
what comes from outside (other processes, a stepped clock) has nothing to find in five days, and
looks seldom, or most of the steps would be its own. And an hour in which the clock is set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import anyio
import pytest

from engine.idle import until_idle
from engine.machine.clock import STEP_LASTS_S
from engine.stores.tracked import Tracked
from engine.worker import Engine
from tests.simulation.answering import (
    Answer,
    Provider,
    batch_report,
    engine_for,
    lone_process,
    run,
)
from tests.simulation.world import Process

BATCHES = 1000
LADDER_S = (300, 1800, 7200, 18_000, 86_400, 172_800, 432_000)
SELDOM_S = 3600.0
DAY_S = 86_400.0
LATE_S = 1.0
PER_S = 200  # requests a second: what is due at one moment is asked within LATE_S of it

T = TypeVar("T")


class Pacing(Provider):
    """BulkSMS: a batch of one recipient; every tenth is delivered in the end, at its own pace."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.asked: dict[int, list[float]] = defaultdict(list)

    def take(self, params: Mapping[str, str]) -> Answer:
        batch = int(params["batch_id"])
        asked = self.asked[batch]
        asked.append(self.world.now)
        delivered = batch % 10 == 0 and len(asked) > batch // 10 % len(LADDER_S)
        return Answer(batch_report(f"4477{batch:08d}", 11 if delivered else 10), "text/plain")


def test_five_days(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chores.INBOX_S", "chores.STATUS_S", "chores.ROOM_S", "chores.PRUNE_S",
                 "polling.poller.WAIT_MAX_S", "dispatch.dispatcher.LOOK_S"):  # fmt: skip
        monkeypatch.setattr(f"engine.{name}", SELDOM_S)
    monkeypatch.setattr("engine.polling.near.HORIZON_MS", round(4 * SELDOM_S * 1000))
    ended, asked = _run(_five_days)
    assert ended == []
    assert len(asked) == BATCHES
    for batch, times in asked.items():
        finals = batch % 10 == 0
        rungs = LADDER_S[: batch // 10 % len(LADDER_S) + 1] if finals else LADDER_S
        assert len(times) == len(rungs)
        assert all(0 <= at - rung <= LATE_S + 5 for at, rung in zip(times, rungs, strict=True))


@pytest.mark.parametrize("ahead_s", [-3 * DAY_S, 3 * DAY_S])
def test_a_clock_that_is_days_off_for_a_moment_asks_no_rung_early_and_none_late(
    ahead_s: float,
) -> None:
    left, asked = _run(partial(_an_hour, sets={100.0: ahead_s, 120.0: 0.0, 290.0: 2 * DAY_S}))
    assert left == {"known": 1, "final": 0}  # no verdict on the strength of such a clock
    first, *others = asked[1]
    assert 300 <= first <= 300 + LATE_S
    # What lasts is believed in the end: it is two days later, and all rungs by then are one.
    assert len(others) == 1
    assert 290 + STEP_LASTS_S <= others[0] <= 290 + STEP_LASTS_S + 2 * LATE_S


def test_a_clock_that_is_set_back_and_right_again_is_gone_by_at_once() -> None:
    left, asked = _run(partial(_an_hour, sets={100.0: -DAY_S, 400.0: 0.0}))
    assert left == {"known": 1, "final": 0}
    assert len(asked[1]) == 2
    assert all(0 <= at - due <= 2 * LATE_S for at, due in zip(asked[1], (400, 1800), strict=True))


async def _an_hour(
    process: Process, provider: Provider, sets: Mapping[float, float]
) -> dict[str, int]:
    """The wall clock is set at these times, to be so much ahead; the books at the end."""
    async with _engine(process, provider) as engine:
        await engine.track_all("bulk", [Tracked(batch_id="1", sent_ms=process.now_ms())])
        for at, ahead_s in {**sets, 2000.0: 0.0}.items():
            await anyio.sleep(at - process.world.now)
            process.wall_ahead_s = ahead_s
        tallies = (await engine.store.read(lambda tx: tx.tallies()))["bulk"]
        return {name: tallies.get(name, 0) for name in ("known", "final")}


def _run(
    main: Callable[[Process, Provider], Coroutine[Any, Any, T]],
) -> tuple[T, dict[int, list[float]]]:
    """What it returns, and when which batch was asked for."""
    process = lone_process("ladders")
    provider = Pacing(process)
    return run(process, main(process, provider)), provider.asked


def _engine(process: Process, provider: Provider) -> Engine:
    schedule = {"ladder": [f"{rung}s" for rung in LADDER_S]}
    account = {
        "name": "bulk", "provider": "bulksms", "base_url": "http://localhost", "username": "u",
        "password": "p", "limits": {"requests": PER_S, "per": "1s"}, "schedule": schedule,
    }  # fmt: skip
    return engine_for(process, provider, [account])


async def _five_days(process: Process, provider: Provider) -> list[str]:
    now_ms = process.now_ms()
    async with _engine(process, provider) as engine:
        await engine.track_all(
            "bulk", [Tracked(batch_id=str(n), sent_ms=now_ms) for n in range(1, BATCHES + 1)]
        )
        await anyio.sleep(LADDER_S[-1] + 60)
        left = await until_idle(engine, SELDOM_S)
        tallies = (await engine.store.read(lambda tx: tx.tallies()))["bulk"]
        assert tallies["known"] == tallies["final"] == BATCHES
        assert "pending" not in tallies or tallies["pending"] == 0
        return left
