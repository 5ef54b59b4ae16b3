"""The limiter over a restart."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from engine.limits.limiter import AccountLimiter, Limiter, Rate


class Clock:
    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self.mono, self._wall = 50.0, wall

    def monotonic(self) -> float:
        return self.mono

    def wall(self) -> float:
        return self._wall

    def pass_s(self, seconds: float) -> None:
        self.mono += seconds
        self._wall += seconds

    def next_process(self, away_s: float = 0.0) -> Clock:
        clock = Clock(self._wall + away_s)
        clock.mono = random.Random(7).uniform(0, 1e6)
        return clock


def make(clock: Clock, *rates: Rate, **more: Any) -> Limiter:
    return Limiter(rates, monotonic=clock.monotonic, wall=clock.wall, **more)


def send(account: AccountLimiter, count: int) -> int:
    done = 0
    while done < count and (slot := account.try_slot()) is not None:
        slot.sent()
        slot.answered()
        slot.release()
        done += 1
    return done


def stored(limiter: Limiter) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(json.dumps(limiter.snapshot()))
    return state


MINUTE = Rate(100, 60.0, 0.3)
SECOND = Rate(10, 1.0, 0.005)


def test_a_clean_restart_goes_on_where_it_was() -> None:
    clock = Clock()
    limiter = make(clock, MINUTE)
    account = limiter.for_account(100)
    assert send(account, 30) == 30
    clock.pass_s(20)
    assert send(account, 50) == 50

    clock = clock.next_process(away_s=10)
    again = make(clock, MINUTE)
    again.restore(stored(limiter), clean=True)
    account = again.for_account(100)
    assert send(account, 100) == 20
    clock.pass_s(29.9)
    assert send(account, 100) == 0
    clock.pass_s(0.2)
    assert send(account, 100) == 30


def test_requests_in_flight_at_a_clean_end_count_until_they_have_arrived() -> None:
    clock = Clock()
    limiter = make(clock, MINUTE)
    account = limiter.for_account(100)
    slots = [account.try_slot() for _ in range(100)]
    assert all(slots)
    for slot in slots[:50]:
        assert slot is not None
        slot.sent()
    state = stored(limiter)
    clock = clock.next_process()
    again = make(clock, MINUTE)
    again.restore(state, clean=True)
    account = again.for_account(100)
    clock.pass_s(60.1)
    assert send(account, 1) == 0
    clock.pass_s(0.3)
    assert send(account, 100) == 100


def test_the_books_of_two_limits_that_are_one_now() -> None:
    """Each request is free again when its own window ends, whichever of the two it went by."""
    clock = Clock()
    first, second = make(clock, MINUTE), make(clock, MINUTE)
    one, other = first.for_account(100), second.for_account(100)
    for _ in range(2):
        assert send(one, 30) == 30
        clock.pass_s(10)
        assert send(other, 15) == 15
        clock.pass_s(10)

    states = [stored(first), stored(second)]
    clock = clock.next_process(away_s=1)
    both = make(clock, MINUTE)
    for state in states:
        both.restore(state, clean=True)
    account = both.for_account(100)
    assert send(account, 100) == 10
    for wait_s, freed in ((19.1, 30), (10, 15), (10, 30), (10, 15)):
        clock.pass_s(wait_s)
        assert send(account, 100) == freed


def test_an_unclean_end_waits_out_short_windows() -> None:
    for state in (None, stored(make(Clock(), SECOND))):
        clock = Clock()
        limiter = make(clock, SECOND)
        limiter.restore(state, clean=False)
        account = limiter.for_account(10)
        assert send(account, 1) == 0
        assert account.wait_s() == pytest.approx(1.006)
        clock.pass_s(1.007)
        assert send(account, 20) == 10


def test_every_unclean_end_waits_out_short_windows() -> None:
    """Also the second in a row, whose books are those of the first one's wait."""
    clock = Clock()
    sent: list[float] = []
    state: dict[str, Any] | None = None
    for away_s in (0.4, 0.0, 0.7, 1.2, 0.3, 0.3):
        limiter = make(clock, SECOND)
        limiter.restore(state, clean=state is None)
        account = limiter.for_account(10)
        state = stored(limiter)  # as a worker keeps it at its start
        clock.pass_s(account.wait_s() + 0.001)
        sent += [clock.wall()] * send(account, 10)
        assert len(sent) % 10 == 0
        clock = clock.next_process(away_s)
    assert len(sent) == 60
    assert all(later - sooner > 1.0 for sooner, later in zip(sent, sent[10:], strict=False))


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_wall_clock_that_was_set_meanwhile_frees_nothing_early(jump_s: float) -> None:
    """Nor late: within one boot of the machine the time since then tells how long it was."""
    clock = Clock()
    limiter = make(clock, MINUTE, boot=lambda: ("boot", 1000.0))
    account = limiter.for_account(100, "a")
    send(account, 100)
    account.hold(30, "429")
    state = stored(limiter)
    clock = clock.next_process(away_s=40 + jump_s)
    again = make(clock, MINUTE, boot=lambda: ("boot", 1040.0))
    again.restore(state, clean=True)
    account = again.for_account(100, "a")
    assert account.hold_s() == 0
    clock.pass_s(19)
    assert send(account, 1) == 0
    clock.pass_s(2)
    assert send(account, 200) == 100


def test_books_that_say_nothing_of_their_age_free_nothing() -> None:
    clock = Clock()
    limiter = make(clock, MINUTE)
    limiter.restore({"wall": 1.0, "windows": []}, clean=True)
    account = limiter.for_account(100)
    clock.pass_s(60)
    assert send(account, 1) == 0
    clock.pass_s(1)
    assert send(account, 200) == 100


def test_a_hold_of_an_account_that_is_not_asked_now_is_kept_on() -> None:
    clock = Clock()
    limiter = make(clock, SECOND)
    limiter.for_account(1, "a").hold(600, "429")
    again = make(clock, SECOND)
    again.restore(stored(limiter), clean=True)
    third = make(clock, SECOND)
    third.restore(stored(again), clean=True)
    assert third.for_account(1, "a").hold_s() == pytest.approx(600)


def test_a_first_start_owes_nothing() -> None:
    limiter = make(Clock(), SECOND)
    limiter.restore(None, clean=True)
    assert send(limiter.for_account(10), 20) == 10


def test_a_clock_that_was_put_back_frees_nothing_early() -> None:
    clock = Clock()
    limiter = make(clock, MINUTE)
    send(limiter.for_account(100), 100)
    state = stored(limiter)
    clock = clock.next_process(away_s=-3600)
    again = make(clock, MINUTE)
    again.restore(state, clean=True)
    account = again.for_account(100)
    clock.pass_s(59)
    assert send(account, 1) == 0
    clock.pass_s(2)
    assert send(account, 200) == 100


def test_a_rate_that_was_edited_takes_the_books_along() -> None:
    clock = Clock()
    limiter = make(clock, SECOND, MINUTE)
    send(limiter.for_account(100), 10)
    state = stored(limiter)
    for rate, left in ((Rate(8, 60.0, 0.3), 0), (Rate(12, 30.0, 0.1), 2), (Rate(15, 90.0, 1), 5)):
        again = make(clock, rate)
        again.restore(state, clean=True)
        assert send(again.for_account(100), 100) == left


def test_a_snapshot_is_small_and_errs_on_the_late_side() -> None:
    clock = Clock()
    rate = Rate(5000, 86_400.0, 432.0)
    limiter = make(clock, rate)
    account = limiter.for_account(1)
    for _ in range(5000):
        assert send(account, 1) == 1
        clock.pass_s(17)
    state = stored(limiter)
    assert len(state["windows"][0]["runs"]) <= 260
    assert sum(count for _, count in state["windows"][0]["runs"]) == 5000
    again = make(clock, rate)
    again.restore(state, clean=True)
    for _ in range(50):
        clock.pass_s(100)
        assert again.usage()[0][1] >= limiter.usage()[0][1]
        assert again.usage()[0][1] - limiter.usage()[0][1] <= 40


def test_a_hold_outlives_the_process() -> None:
    clock = Clock()
    limiter = make(clock, SECOND)
    limiter.for_account(1, "a").hold(600, "429")
    limiter.for_account(1, "b")
    state = stored(limiter)
    clock = clock.next_process(away_s=100)
    again = make(clock, SECOND)
    early = again.for_account(1, "a")
    again.restore(state, clean=False)
    assert early.hold_s() == pytest.approx(500, abs=0.01)
    assert again.for_account(1, "a").hold_s() == pytest.approx(500, abs=0.01)
    assert again.for_account(1, "b").hold_s() == 0


class Disk:
    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.writes = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def reserve(self, state: dict[str, Any]) -> None:
        await self.gate.wait()
        self.state = json.loads(json.dumps(state))
        self.writes += 1


LONG = Rate(1000, 86_400.0, 432.0)


async def ask(account: AccountLimiter, count: int) -> int:
    done = 0
    while done < count and account.wait_s() == 0:
        with await account.slot() as slot:
            slot.sent()
            slot.answered()
            done += 1
    return done


@pytest.mark.parametrize("before", [1, 9, 10, 11, 255, 990, 999])
async def test_a_crash_costs_a_block_and_never_exceeds(before: int) -> None:
    clock, disk = Clock(), Disk()
    limiter = make(clock, LONG, reserve=disk.reserve)
    assert await ask(limiter.for_account(5), before) == before
    assert disk.writes == -(-before // 10)

    clock = clock.next_process(away_s=5)
    again = make(clock, LONG, reserve=disk.reserve)
    again.restore(disk.state, clean=False)
    left = await ask(again.for_account(5), 2000)
    assert before + left <= 1000
    assert before + left >= 1000 - 10


async def test_many_crashes_in_a_row_never_exceed() -> None:
    rand, clock, disk = random.Random(8), Clock(), Disk()
    total = 0
    for _ in range(60):
        limiter = make(clock, LONG, reserve=disk.reserve)
        limiter.restore(disk.state, clean=disk.state is None)
        total += await ask(limiter.for_account(5), rand.randrange(40))
        clock = clock.next_process(away_s=rand.uniform(0, 5))
    assert total <= 1000
    assert total >= 400


async def test_nothing_goes_out_before_it_is_durable() -> None:
    clock, disk = Clock(), Disk()
    disk.gate.clear()
    limiter = make(clock, LONG, reserve=disk.reserve)
    account = limiter.for_account(50)
    tasks = [asyncio.create_task(account.slot()) for _ in range(25)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in tasks)
    assert account.try_slot() is None
    assert limiter.snapshot()["reserved"] == 10  # it may become durable at any moment
    tasks[3].cancel()
    disk.gate.set()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, asyncio.CancelledError) for one in got) == 1
    assert disk.writes == 3
    assert account.active == 24
    assert limiter.snapshot()["reserved"] == 6
    assert limiter.snapshot()["windows"][0]["unresolved"] == 24


async def test_a_store_that_fails_lets_nothing_out() -> None:
    async def broken(_: dict[str, Any]) -> None:
        raise OSError("disk full")

    limiter = make(Clock(), LONG, reserve=broken)
    account = limiter.for_account(1)
    for _ in range(3):
        with pytest.raises(OSError, match="disk full"):
            await account.slot()
    assert account.active == 0
    assert limiter.usage()[0][1] == 0
    assert limiter.snapshot()["reserved"] == 0


async def test_short_windows_reserve_nothing() -> None:
    disk = Disk()
    assert await ask(make(Clock(), SECOND, reserve=disk.reserve).for_account(5), 10) == 10
    assert disk.writes == 0
