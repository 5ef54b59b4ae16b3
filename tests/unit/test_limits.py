"""The limiter on a virtual clock: what a provider would count, over many random schedules."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import pytest

from engine.limits.limiter import AccountLimiter, Limiter, Rate


class Instant(selectors.SelectSelector):
    """Waits by moving the clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.instant = Instant()
        super().__init__(self.instant)

    def time(self) -> float:
        return self.instant.now


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def run(loop: VirtualLoop, work: Coroutine[Any, Any, Any], wait_s: float = 1e6) -> Any:
    return loop.run_until_complete(asyncio.wait_for(work, wait_s))


def limiter(loop: VirtualLoop, *rates: tuple[int, float, float]) -> Limiter:
    return Limiter([Rate(*rate) for rate in rates], monotonic=loop.time, wall=loop.time)


def worst(arrivals: Sequence[float], per_s: float) -> int:
    """The most arrivals in any closed window."""
    times, first, most = sorted(arrivals), 0, 0
    for place, when in enumerate(times):
        while when - times[first] > per_s:
            first += 1
        most = max(most, place - first + 1)
    return most


async def load(
    account: AccountLimiter,
    loop: VirtualLoop,
    seconds: float,
    workers: int,
    seed: int,
    latency_s: float = 0.02,
    connect_s: float = 0.01,
) -> list[float]:
    """Workers who send as fast as they may, over a network that delays at random."""
    rand, arrivals, end = random.Random(seed), list[float](), loop.time() + seconds
    slack = min(rate.slack_s for rate, _ in account.limiter.usage())

    async def worker() -> None:
        while loop.time() < end:
            with await account.slot() as slot:
                assert account.active <= account.concurrency
                if loop.time() >= end:
                    slot.unused()
                    return
                kind = rand.random()
                if kind < 0.05:
                    await asyncio.sleep(rand.uniform(0, connect_s))  # connects
                if kind < 0.03:
                    slot.unused()
                    continue
                slot.sent()
                delay = rand.choice((0.0, slack, rand.uniform(0, slack)))
                arrivals.append(loop.time() + delay)
                if kind > 0.97:
                    continue  # it is released while the request may be on its way
                await asyncio.sleep(delay + rand.uniform(0, latency_s))
                if kind < 0.95:
                    slot.answered()

    await asyncio.gather(*(worker() for _ in range(workers)))
    return arrivals


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("requests", "per_s", "slack_s"),
    [(1, 60.0, 0.3), (10, 1.0, 0.005), (7, 10.0, 0.05), (80, 3.0, 0.015), (3, 0.5, 0.005)],
)
def test_no_window_is_ever_exceeded_and_little_is_wasted(
    loop: VirtualLoop, requests: int, per_s: float, slack_s: float, seed: int
) -> None:
    account = limiter(loop, (requests, per_s, slack_s)).for_account(requests + 20)
    periods = 15
    arrivals = run(
        loop,
        load(account, loop, periods * per_s, requests + 20, seed, latency_s=0.003),
    )
    assert worst(arrivals, per_s) == requests
    assert len(arrivals) >= 0.98 * requests * periods


@pytest.mark.parametrize(("requests", "per_s"), [(1, 60.0), (10, 1.0), (100, 1.0), (5000, 1.0)])
def test_the_allowance_is_used(loop: VirtualLoop, requests: int, per_s: float) -> None:
    account = limiter(loop, (requests, per_s, max(0.005, per_s / 200))).for_account(requests)
    periods = 3 if requests > 1000 else 20
    count, seconds = 0, periods * per_s

    async def worker() -> None:
        nonlocal count
        while True:
            with await account.slot() as slot:
                slot.sent()
                count += 1
                await asyncio.sleep(0.002)
                slot.answered()

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(worker()) for _ in range(requests)]
        await asyncio.sleep(seconds - 0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(loop, all_of_them())
    assert 0.99 * periods * requests <= count <= periods * requests
    assert account.active == 0


def test_several_rates_at_once(loop: VirtualLoop) -> None:
    account = limiter(loop, (10, 1.0, 0.005), (100, 30.0, 0.15)).for_account(20)
    arrivals = run(loop, load(account, loop, 90.0, 15, 1, latency_s=0.003))
    assert worst(arrivals, 1.0) == 10
    assert worst(arrivals, 30.0) == 100
    assert len(arrivals) >= 295


def test_slow_answers_cost_no_allowance(loop: VirtualLoop) -> None:
    account = limiter(loop, (10, 1.0, 0.005)).for_account(100)
    arrivals = run(loop, load(account, loop, 30.0, 100, 2, latency_s=2.0))
    assert worst(arrivals, 1.0) == 10
    assert len(arrivals) >= 0.95 * 300


def test_a_request_that_is_long_in_connecting_is_booked_when_it_goes_out(
    loop: VirtualLoop,
) -> None:
    account = limiter(loop, (1, 1.0, 0.005)).for_account(2)

    async def story() -> None:
        first = await account.slot()
        await asyncio.sleep(5)
        assert account.try_slot() is None
        first.sent()
        sent = loop.time()
        await account.slot()  # per, slack, guard, and a tenth of the window of patience
        assert loop.time() - sent == pytest.approx(1.106, abs=0.0011)

    run(loop, story())


@pytest.mark.parametrize("requests", [1, 5, 50])
def test_a_request_that_lay_somewhere_is_no_excess(loop: VirtualLoop, requests: int) -> None:
    """A machine is busy now and then: some requests arrive far later than slack, as their answers
    show."""
    account = limiter(loop, (requests, 1.0, 0.005)).for_account(4)
    rand, arrivals, end = random.Random(requests), list[float](), loop.time() + 60

    async def worker() -> None:
        while loop.time() < end:
            with await account.slot() as slot:
                slot.sent()
                lies = rand.random() < 0.02
                await asyncio.sleep(rand.uniform(0.02, 0.09) if lies else 0.001)
                arrivals.append(loop.time())
                slot.answered()

    async def all_of_them() -> None:
        await asyncio.gather(*(worker() for _ in range(4)))

    run(loop, all_of_them())
    assert worst(arrivals, 1.0) == requests
    assert len(arrivals) >= 0.99 * 60 * requests


@pytest.mark.parametrize("requests", [1, 50])
def test_a_provider_that_is_always_slow_costs_slack_alone(loop: VirtualLoop, requests: int) -> None:
    account = limiter(loop, (requests, 1.0, 0.005)).for_account(requests)
    sent, end = list[float](), loop.time() + 120

    async def worker() -> None:
        while loop.time() < end:
            with await account.slot() as slot:
                slot.sent()
                sent.append(loop.time())
                await asyncio.sleep(0.4)
                slot.answered()

    async def all_of_them() -> None:
        await asyncio.gather(*(worker() for _ in range(requests)))

    run(loop, all_of_them())
    assert len(sent) >= 0.99 * 120 * requests
    rounds = [then - at for at, then in zip(sent, sent[requests:], strict=False)]
    known = rounds[20 * requests :]  # by then nothing is left to wait for answers with
    assert sum(known) / len(known) == pytest.approx(1.006, abs=0.0011)  # per, slack, guard


def test_an_answer_frees_the_place_sooner(loop: VirtualLoop) -> None:
    account = limiter(loop, (1, 10.0, 2.0)).for_account(2)

    async def story() -> None:
        with await account.slot() as slot:
            slot.sent()
            waiting = asyncio.ensure_future(account.slot())
            await asyncio.sleep(0.5)
            slot.answered()
            answered = loop.time()
        await waiting
        assert loop.time() - answered == pytest.approx(10.001, abs=0.0011)

    run(loop, story())


def test_concurrency_is_never_exceeded(loop: VirtualLoop) -> None:
    account = limiter(loop, (1000, 1.0, 0.005)).for_account(3)
    run(loop, load(account, loop, 2.0, 20, 3))
    assert account.active == 0


def test_first_come_first_served(loop: VirtualLoop) -> None:
    account = limiter(loop, (2, 1.0, 0.005)).for_account(1)
    order: list[int] = []

    async def worker(number: int) -> None:
        with await account.slot() as slot:
            slot.sent()
            order.append(number)
            await asyncio.sleep(0.01)

    async def all_of_them() -> None:
        await asyncio.gather(*(worker(number) for number in range(20)))

    run(loop, all_of_them())
    assert order == list(range(20))


def test_cancelling_gives_everything_back(loop: VirtualLoop) -> None:
    account = limiter(loop, (3, 100.0, 0.5)).for_account(3)
    rand = random.Random(4)

    async def story() -> None:
        for _ in range(200):
            tasks = [asyncio.ensure_future(account.slot()) for _ in range(8)]
            for _turn in range(rand.randrange(3)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for got in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(got, BaseException):
                    got.unused()
            assert (account.active, account.waiting()) == (0, 0)
            assert account.limiter.usage()[0][1] == 0
        # A grant whose waiter is cancelled before it wakes goes to the next one.
        slots = [await account.slot() for _ in range(3)]
        first, second = (asyncio.ensure_future(account.slot()) for _ in range(2))
        await asyncio.sleep(0)
        slots[0].unused()
        first.cancel()
        (await second).release()

    run(loop, story())


def test_a_cancelled_queue_leaves_no_timer_and_no_memory(loop: VirtualLoop) -> None:
    account = limiter(loop, (1, 1000.0, 5.0)).for_account(5)

    async def story() -> None:
        (await account.slot()).release()
        for _ in range(50):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(account.slot(), 0.01)
        assert account.waiting() == 0
        assert account.limiter._timer is None

    run(loop, story())


def test_accounts_of_a_group_share_the_limit_and_take_turns(loop: VirtualLoop) -> None:
    shared = limiter(loop, (10, 1.0, 0.005))
    one, two = shared.for_account(10, "one"), shared.for_account(10, "two")
    counts = {"one": 0, "two": 0}

    async def worker(account: AccountLimiter, until: float) -> None:
        while loop.time() < until:
            with await account.slot() as slot:
                slot.sent()
                counts[account.name] += 1

    async def both() -> None:
        until = loop.time() + 20
        many = [worker(one, until) for _ in range(100)]
        await asyncio.gather(*many, *(worker(two, until) for _ in range(10)))

    run(loop, both())
    total = sum(counts.values())
    assert 195 <= total <= 320  # the last ones of 110 workers drain after the end
    assert abs(counts["one"] - counts["two"]) <= 110


def test_a_hold_stops_one_account_only(loop: VirtualLoop) -> None:
    shared = limiter(loop, (100, 1.0, 0.005))
    held, other = shared.for_account(10, "held"), shared.for_account(10, "other")

    async def story() -> None:
        began = loop.time()
        held.hold(30, "429")
        held.hold(5, "shorter")
        held.hold(-1, "nonsense")
        held.hold(float("nan"), "nonsense")
        assert held.hold_why == "429"
        assert held.try_slot() is None
        assert held.wait_s() == pytest.approx(30)
        waiting = asyncio.ensure_future(held.slot())
        await asyncio.sleep(0)
        (await other.slot()).release()
        assert loop.time() == began
        await asyncio.sleep(20)
        held.hold(60, "again")  # while someone waits
        (await waiting).release()
        assert 80 <= loop.time() - began < 80.01
        held.hold(1e12, "a provider's mistake")
        assert held.hold_s() == 86_400

    run(loop, story())


def test_wait_and_usage(loop: VirtualLoop) -> None:
    account = limiter(loop, (2, 10.0, 0.05)).for_account(9)

    async def story() -> None:
        assert account.wait_s() == 0
        for _ in range(2):
            with await account.slot() as slot:
                slot.sent()
                slot.answered()
        assert account.limiter.usage() == [(Rate(2, 10.0, 0.05), 2)]
        assert account.wait_s() == pytest.approx(10.001)
        tasks = [asyncio.ensure_future(account.slot()) for _ in range(5)]
        await asyncio.sleep(0)
        assert account.wait_s() == pytest.approx(30, abs=0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(11)
        assert account.limiter.usage()[0][1] == 0

    run(loop, story())


def test_memory_is_bounded_whatever_the_limit(loop: VirtualLoop) -> None:
    account = limiter(loop, (1_000_000, 86_400.0, 432.0)).for_account(10)
    for _ in range(15_000):
        slot = account.try_slot()
        assert slot is not None
        slot.sent()
        slot.answered()
        slot.release()
        slot.release()
        slot.unused()
        loop.instant.now += 5.5
    (window,) = account.limiter._windows
    assert len(window._runs) <= 2050
    assert account.limiter.usage()[0][1] == 15_000


def test_no_rate_is_no_limit(loop: VirtualLoop) -> None:
    account = limiter(loop).for_account(1)

    async def story() -> None:
        slot = await account.slot()
        waiting = asyncio.ensure_future(account.slot())
        await asyncio.sleep(0)
        slot.release()
        (await waiting).release()

    run(loop, story())
