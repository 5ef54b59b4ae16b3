"""A worker that is killed again and again within a window: it comes to ask all the same, and the
window holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.limits.limiter import AccountLimiter, Limiter, Rate

SECOND = Rate(10, 1.0, 0.005)
MINUTE = Rate(100, 60.0, 0.3)


class Machine:
    """Time since the machine's start, which all its processes have in common."""

    def __init__(self) -> None:
        self.name, self.now = "boot 0", 1000.0
        self.wall_off = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_off

    def boot(self) -> tuple[str, float] | None:
        return self.name, self.now

    def reboot(self) -> None:
        self.name += "'"


class Worker:
    """A process after an unclean end; what it keeps is kept as JSON, as the store has it."""

    def __init__(self, machine: Machine, kept: dict[str, Any] | None, *rates: Rate) -> None:
        self.machine = machine
        self.kept = kept
        self.limiter = Limiter(
            rates,
            monotonic=machine.monotonic,
            wall=machine.wall,
            boot=machine.boot,
            call_later=lambda _s, _call: _Timer(),
            reserve=self.reserve,
        )
        self.limiter.restore(kept, clean=kept is None)
        self.kept = json.loads(json.dumps(self.limiter.snapshot()))
        self.account: AccountLimiter = self.limiter.for_account(1000)

    async def reserve(self, snapshot: dict[str, Any]) -> None:
        self.kept = json.loads(json.dumps(snapshot))

    async def send(self, count: int) -> list[float]:
        sent: list[float] = []
        while len(sent) < count and self.limiter._has_place(self.machine.now):
            with await self.account.slot() as slot:
                slot.sent()
                sent.append(self.machine.now)
                slot.answered()
        return sent


class _Timer:
    def cancel(self) -> None:
        pass


async def test_killed_within_each_window_it_still_comes_to_ask() -> None:
    machine = Machine()
    worker = Worker(machine, None, SECOND)
    sent = await worker.send(10)
    for _ in range(8):
        machine.now += 0.3
        sent += await worker.send(10)
        worker = Worker(machine, worker.kept, SECOND)
    # The first kill is waited out, and so is the one in the life that had a place.
    assert len(sent) == 20
    assert sent[10] - sent[0] > 1.3


async def test_who_had_a_place_may_have_used_it() -> None:
    machine = Machine()
    worker = Worker(machine, None, SECOND)
    await worker.send(10)
    worker = Worker(machine, worker.kept, SECOND)
    machine.now += 1.007  # there is a place now, and nobody knows whether it was used
    worker = Worker(machine, worker.kept, SECOND)
    assert await worker.send(1) == []
    machine.now += 1.005
    assert await worker.send(1) == []
    machine.now += 0.002
    assert len(await worker.send(20)) == 10


async def test_a_reboot_proves_nothing() -> None:
    machine = Machine()
    worker = Worker(machine, Worker(machine, None, SECOND).kept, SECOND)
    machine.now += 1.5  # it may have asked in the last half second
    machine.reboot()
    machine.wall_off -= 1.0  # the clock says that it was before its first place
    worker = Worker(machine, worker.kept, SECOND)
    machine.now += 0.9
    assert await worker.send(1) == []
    machine.now += 0.2
    assert len(await worker.send(20)) == 10


async def test_an_open_place_may_go_out_at_any_moment() -> None:
    machine = Machine()
    worker = Worker(machine, None, Rate(2, 1.0, 0.005))
    assert worker.account.try_slot() is not None
    await worker.send(1)
    assert worker.limiter.snapshot()["silent_s"] == 0
    kept = worker.limiter.snapshot()
    worker = Worker(machine, kept, Rate(2, 1.0, 0.005))
    assert worker.limiter.snapshot()["silent_s"] == pytest.approx(1.006)


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 1.4),  # how long after its start it is killed
            st.lists(st.integers(1, 12), min_size=1, max_size=4),  # what it sends meanwhile
        ),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
async def test_no_window_overflows_over_kills(
    lives: list[tuple[float, list[int]]], long: bool
) -> None:
    rates = (SECOND, MINUTE) if long else (SECOND,)
    machine = Machine()
    worker = Worker(machine, None, *rates)
    sent: list[float] = []
    for life_s, bursts in lives:
        for burst in bursts:
            sent += await worker.send(burst)
            machine.now += life_s / len(bursts)
        worker = Worker(machine, worker.kept, *rates)
    for rate in rates:
        pairs = zip(sent, sent[rate.requests :], strict=False)
        assert all(later - sooner > rate.per_s for sooner, later in pairs)
