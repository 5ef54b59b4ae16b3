"""Windowed feeds while a clock is set wrong, ours or the provider's: no time is passed over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.core.schedule import Ladder
from engine.core.work import Work
from engine.polling.feeds import Feed
from engine.polling.windowed import WindowReader
from tests.unit import parts as scripted
from tests.unit.parts import EMPTY, T0, HandClock, Parts, feed_work

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
STEP_MS = 20_000  # between two visits, less than the overlap


class Wrong(HandClock):
    """`ms` is the true time; the wall clock may be ahead of it."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return self.ms + self.ahead_ms

    def boot(self) -> tuple[str, float] | None:
        return "boot", (self.ms - T0) / 1000


class World:
    """A feed that is visited, and which times it has read when they were there to be read."""

    def __init__(self, parts: Parts, clock: Wrong, work: Work) -> None:
        self.parts, self.clock, self.work = parts, clock, work
        self.read: list[tuple[int, int]] = []
        self.shows = lambda: clock.ms  # the provider's clock
        self.restart()

    def restart(self) -> None:
        self.feed = Feed(self.parts.asker, WindowReader(self.parts.asker), Ladder.of(()))

    async def visit(self, times: int) -> None:
        for _ in range(times):
            self.clock.ms += STEP_MS
            shown: dict[str, Any] = {"time_token": self.shows() / 1000} if self.shows() else {}
            self.parts.network._answers = [(200, EMPTY | shown)]
            asked = len(self.parts.network.asked)
            assert (await self.feed.advance(self.work, None)).failed is None
            for request in self.parts.network.asked[asked:]:
                params = dict(request.params)
                ends = (float(params[name]) for name in ("from_timetoken", "to_timetoken"))
                from_ms, to_ms = (round(1000 * end) for end in ends)
                self.read.append((from_ms, min(to_ms, self.clock.ms)))

    def passed_over(self) -> list[tuple[int, int]]:
        """The gaps in what was read, up to the last visit."""
        gaps, reached = [], T0
        for from_ms, to_ms in sorted(self.read):
            if from_ms > reached:
                gaps.append((reached - T0, from_ms - T0))
            reached = max(reached, to_ms)
        return gaps if reached >= self.clock.ms - 1000 else [*gaps, (reached - T0, self.clock.ms)]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(scripted, "HandClock", Wrong)
    async with Parts("avaamo", overlap="30s") as parts:
        clock = parts.clock
        assert isinstance(clock, Wrong)
        yield World(parts, clock, await parts.put(feed_work(clock)))


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("ahead_ms", [2 * HOUR_MS, 300 * DAY_MS, -2 * HOUR_MS, -3 * DAY_MS])
async def test_a_wall_clock_that_is_set_wrong_and_right_again(
    world: World, ahead_ms: int, restarts: bool
) -> None:
    await world.visit(3)
    world.clock.ahead_ms = ahead_ms
    for _ in range(4):
        if restarts:
            world.restart()
        await world.visit(2)
    # What is new is read meanwhile, too.
    assert world.passed_over() == []
    world.clock.ahead_ms = 0
    await world.visit(4)
    assert world.passed_over() == []
    from_ms, to_ms = world.read[-1]
    assert to_ms - from_ms < 3 * STEP_MS


@pytest.mark.parametrize("shown_ms", [T0 - 2 * DAY_MS, T0 + 2 * DAY_MS])
async def test_a_clock_of_the_provider_that_stands_still_does_not_hold_the_feed(
    world: World, shown_ms: int
) -> None:
    world.shows = lambda: shown_ms
    await world.visit(6)
    assert world.passed_over() == []
    from_ms, to_ms = world.read[-1]
    assert to_ms - from_ms < 3 * STEP_MS


@pytest.mark.parametrize("ahead_ms", [5 * HOUR_MS, -5 * HOUR_MS])
async def test_a_clock_of_the_provider_that_is_hours_off_passes_nothing_over(
    world: World, ahead_ms: int
) -> None:
    """As in local time: the messages' own times may be right all the same."""
    world.shows = lambda: world.clock.ms + ahead_ms
    await world.visit(8)
    assert world.passed_over() == []


async def test_where_the_provider_shows_no_clock_the_feed_comes_back_with_ours(
    world: World,
) -> None:
    world.shows = lambda: 0
    await world.visit(3)
    world.clock.ahead_ms = 2 * HOUR_MS
    await world.visit(1)
    world.clock.ahead_ms = 0
    await world.visit(4)
    assert world.passed_over() == []
