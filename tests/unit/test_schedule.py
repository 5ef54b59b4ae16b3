"""Ladders: rungs, gaps, jitter, late polls, edited ladders and giving up.

Every time here is made up: a test of five days takes no time, and none may look at a clock.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.schedule import NEVER_MS, Ladder

START = 1_700_000_000_000
GUIDE_S = (300, 1800, 7200, 18000, 86400, 172800, 432000)

offsets = st.lists(st.integers(0, 500_000), min_size=1, max_size=9, unique=True).map(sorted)
shares = st.floats(0, 1)
chances = st.floats(0, 1, exclude_max=True)


def walk(ladder: Ladder, late_ms: int = 0) -> list[int]:
    """Offsets at which a message is asked for when each poll is `late_ms` late."""
    asked: list[int] = []
    answered = NEVER_MS
    while (due := ladder.next_due_ms(START, answered, 0.0)) is not None:
        now = max(due + late_ms, START + (asked[-1] if asked else 0))
        asked.append(now - START)
        answered = ladder.reached_ms(START, now)
    return asked


def test_offsets_count_from_the_start() -> None:
    ladder = Ladder.of(GUIDE_S)
    assert ladder.offsets_ms == tuple(s * 1000 for s in GUIDE_S)
    assert walk(ladder) == [s * 1000 for s in GUIDE_S]
    assert ladder.last_ms == 432_000_000


def test_gaps_count_from_the_rung_before() -> None:
    assert Ladder.of((300, 1500, 5400), gaps=True) == Ladder.of((300, 1800, 7200))
    assert Ladder.of((0, 0.25), gaps=True).offsets_ms == (0, 250)


def test_a_rung_at_zero_is_asked_at_once() -> None:
    ladder = Ladder.of((0, 60))
    assert ladder.next_due_ms(START, NEVER_MS, 0.9) == START
    assert ladder.reached_ms(START, START) == 0
    assert walk(ladder) == [0, 60_000]


def test_nothing_is_reached_before_the_first_rung() -> None:
    ladder = Ladder.of((60, 120))
    assert ladder.reached_ms(START, START + 59_999) == NEVER_MS
    assert ladder.reached_ms(START, START + 60_000) == 60_000
    assert ladder.reached_ms(START, START - 5) == NEVER_MS


def test_a_late_poll_answers_every_rung_that_is_due() -> None:
    ladder = Ladder.of(GUIDE_S)
    reached = ladder.reached_ms(START, START + 20_000_000)
    assert reached == 18_000_000
    assert ladder.next_due_ms(START, reached, 0.0) == START + 86_400_000
    assert ladder.reached_ms(START, START + 10**12) == ladder.last_ms
    assert ladder.next_due_ms(START, ladder.last_ms, 0.0) is None


@given(offsets, st.integers(0, 600_000))
def test_however_late_each_rung_is_answered_once(steps: list[int], late_ms: int) -> None:
    asked = walk(Ladder.of([step / 1000 for step in steps]), late_ms)
    assert len(asked) <= len(steps)
    assert asked == sorted(set(asked)) or late_ms == 0
    assert asked[-1] >= steps[-1]


@given(offsets, shares, chances)
def test_jitter_is_never_early_and_at_most_its_share_of_the_gap(
    steps: list[int], share: float, chance: float
) -> None:
    ladder = Ladder(tuple(steps), share)
    before = 0
    answered = NEVER_MS
    for step in steps:
        due = ladder.next_due_ms(START, answered, chance)
        assert due is not None
        delay = due - START - step
        assert 0 <= delay <= (step - before) * share
        assert delay == int((step - before) * share * chance)
        before = answered = step
    assert ladder.next_due_ms(START, answered, chance) is None


@given(offsets, offsets)
def test_an_edited_ladder_fits_what_is_under_way(old: list[int], new: list[int]) -> None:
    for answered in (NEVER_MS, *old):
        due = Ladder(tuple(new)).next_due_ms(START, answered, 0.0)
        ahead = [step for step in new if step > answered]
        assert due == (START + ahead[0] if ahead else None)


def test_gaps_ahead_bound_what_a_retry_may_wait() -> None:
    ladder = Ladder.of((60, 100, 300))
    assert ladder.gap_ms(NEVER_MS) == 40_000
    assert ladder.gap_ms(60_000) == 200_000
    assert ladder.gap_ms(100_000) == 300_000
    assert ladder.gap_ms(300_000) == 0


def test_giving_up_counts_from_the_last_rung() -> None:
    ladder = Ladder.of((60, 300), give_up_s=100)
    assert not ladder.given_up(START, START + 399_999)
    assert ladder.given_up(START, START + 400_000)


def test_an_empty_ladder_has_no_rung() -> None:
    ladder = Ladder.of(())
    assert ladder.next_due_ms(START, NEVER_MS, 0.0) is None
    assert ladder.reached_ms(START, START + 5) == NEVER_MS
    assert ladder.last_ms == 0


@pytest.mark.parametrize("chance", [0.0, 0.999])
def test_without_jitter_chance_says_nothing(chance: float) -> None:
    assert Ladder.of((5,)).next_due_ms(START, NEVER_MS, chance) == START + 5000
