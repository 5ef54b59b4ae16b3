"""How far a wall clock that is set is believed."""

from __future__ import annotations

import pytest

from engine.machine.clock import STEP_LASTS_S, SteadyClock
from tests.unit.parts import T0, HandClock

DAY_MS = 86_400_000
LASTS_MS = round(STEP_LASTS_S * 1000)


class Set(HandClock):
    """`ms` is the true time; the wall clock may be ahead of it."""

    ahead_ms = 0
    tells = True

    def now_ms(self) -> int:
        return self.ms + self.ahead_ms

    def boot(self) -> tuple[str, float] | None:
        return ("boot", (self.ms - T0) / 1000) if self.tells else None


class Seen:
    def __init__(self) -> None:
        self.clock = Set()
        self.said: list[str] = []
        self.steady = SteadyClock(self.clock, self.said.append)
        assert self.ahead() == 0

    def ahead(self, ms: int | None = None, *, after_ms: int = 0) -> int:
        """How far the steady clock is ahead, once the wall is set and time has passed."""
        if ms is not None:
            self.clock.ahead_ms = ms
        before_ms = self.steady.now_ms()
        self.clock.ms += after_ms
        now_ms = self.steady.now_ms()
        assert now_ms >= before_ms + after_ms or self.clock.ahead_ms < 0
        return now_ms - self.clock.ms


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_ahead_for_a_moment_is_never_seen(seen: Seen) -> None:
    assert seen.ahead(3 * DAY_MS) == 0
    assert seen.ahead(after_ms=LASTS_MS - 1) == 0
    assert seen.ahead(0, after_ms=1) == 0
    assert seen.ahead(3 * DAY_MS, after_ms=LASTS_MS - 1) == 0  # a moment of its own
    [first, second] = seen.said
    assert first == second
    assert first.startswith("the wall clock was set forward by 3d: ")


def test_what_lasts_is_believed(seen: Seen) -> None:
    assert seen.ahead(DAY_MS, after_ms=LASTS_MS) == DAY_MS
    assert seen.ahead(after_ms=DAY_MS) == DAY_MS


def test_one_that_is_set_forward_again_and_again_is_believed_in_the_end(seen: Seen) -> None:
    steps = [seen.ahead(n * 60_000, after_ms=LASTS_MS // 10) for n in range(1, 12)]
    assert steps == [0] * 9 + [10 * 60_000] + [10 * 60_000]


def test_set_back_is_gone_by_at_once_and_so_is_the_way_back(seen: Seen) -> None:
    assert seen.ahead(-DAY_MS) == -DAY_MS
    assert seen.ahead(0) == 0
    assert seen.said == []
    assert seen.ahead(-DAY_MS, after_ms=LASTS_MS) == -DAY_MS
    assert seen.ahead(0) == -DAY_MS  # by now that is a step forward


def test_time_that_it_was_behind_is_none_that_it_was_ahead(seen: Seen) -> None:
    assert seen.ahead(-DAY_MS, after_ms=LASTS_MS - 1000) == -DAY_MS
    assert seen.ahead(DAY_MS, after_ms=LASTS_MS - 1) == 0
    assert len(seen.said) == 1
    assert seen.ahead(after_ms=1) == DAY_MS


def test_small_steps_and_drift_are_followed(seen: Seen) -> None:
    for n in range(1, 100):
        assert seen.ahead(n * 900, after_ms=1000) == n * 900
    assert seen.said == []


def test_a_machine_that_sleeps_has_not_been_set(seen: Seen) -> None:
    """The time since its start goes on meanwhile, as its wall clock does."""
    assert seen.ahead(after_ms=30 * DAY_MS) == 0
    assert seen.said == []


def test_where_the_time_since_the_start_is_not_known_the_wall_is_believed(seen: Seen) -> None:
    seen.clock.tells = False
    assert seen.ahead(3 * DAY_MS) == 3 * DAY_MS


def test_snapshots_are_no_older_than_either_clock_says(seen: Seen) -> None:
    seen.clock.ahead_ms = DAY_MS
    true_s = seen.clock.ms / 1000
    assert seen.steady.wall() == (true_s, true_s + DAY_MS / 1000)
