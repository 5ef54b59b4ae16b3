"""A period is read completely, whatever comes up between two answers, or it is said where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.core import reading as core_reading
from engine.core.contracts import Outcome, Traits
from engine.core.reading import (
    PAGES_MAX,
    PASSES_MAX,
    ROWS_MAX,
    SHORT_WINDOW,
    TOTAL_IGNORED,
    Progress,
    Reading,
    Span,
    Totals,
    decide,
    divide_short,
)
from engine.core.work import Incident

ENTIRE = Traits(feed="windowed", window_max_ms=60_000, window_min_ms=1)
PAGED = Traits(feed="windowed", window_max_ms=60_000, window_min_ms=1000, paged=True)
PERIOD_MS = 16_000
TESTS = 3


class Sent(NamedTuple):
    at_ms: int
    shows: int = 0  # with which question it comes up


class Found(NamedTuple):
    rows: set[int]  # places in the list of what was sent
    incidents: list[Incident]
    questions: int
    totals: Totals

    def says(self, at_ms: int) -> bool:
        """Whether an incident covers the time."""
        return any(
            one.kind == SHORT_WINDOW and (one.from_ms or 0) <= at_ms <= (one.to_ms or 0)
            for one in self.incidents
        )


def read(
    sent: list[Sent],
    traits: Traits,
    most: int,
    *,
    total: Callable[[int, int], int] = lambda inside, _: inside,
    totals: Totals | None = None,
    everywhere: bool = False,
    most_asked: int = 400,
) -> Found:
    """Read a period of a provider whose answers, or pages, have so many rows at most, the newest
    first; `total(inside, ever)` is what it says there are. `everywhere`: it ignores the window."""
    reading = Reading.of(0, PERIOD_MS, traits)
    reading.totals = totals or Totals()
    progress, rows, incidents, questions = Progress(), set[int](), list[Incident](), 0
    order = sorted(range(len(sent)), key=lambda n: (-sent[n].at_ms, -n))
    while reading.spans:
        assert questions < most_asked
        left = divide_short(reading, traits)
        if left is not None:
            incidents += left.incidents
            continue
        span: Span = reading.spans[0]
        shown = [n for n in order if sent[n].shows <= questions]
        inside = shown
        if not everywhere:
            inside = [n for n in shown if span.from_ms <= sent[n].at_ms <= span.to_ms]
        first = (progress.page - 1) * most if traits.paged else 0
        given = inside[first : first + most]
        said = total(len(inside), len(shown))
        outcome = Outcome(total=said, page=progress.page, pages=-(-said // most))
        keys = set(given)
        step = decide(reading, progress, outcome, traits, rows=len(given), flaws=0, keys=keys)
        if not span.told:
            rows |= keys
        incidents += step.incidents
        if not step.same_span:
            progress = Progress()
        questions += 1
    return Found(rows, incidents, questions, reading.totals)


times = st.one_of(st.integers(0, PERIOD_MS), st.sampled_from((0, 1000, 8000, 8001, PERIOD_MS)))
messages = st.lists(st.builds(Sent, times, st.sampled_from((0, 0, 0, 1, 2, 3, 5, 8))), max_size=24)


@given(sent=messages, traits=st.sampled_from((ENTIRE, PAGED)), most=st.integers(1, 6))
@example(  # both halves tell what the whole has told: one was there, the other came up meanwhile
    sent=[*[Sent(7000 + n) for n in range(6)], *[Sent(9000 + n, 2) for n in range(6)]],
    traits=ENTIRE,
    most=4,
)
@example(  # the second time the first page is new and the one after it is not: there is a third
    sent=[Sent(100), Sent(200), Sent(300), Sent(400, 1), Sent(500, 1)], traits=PAGED, most=2
)
def test_what_was_there_is_found_or_said(sent: list[Sent], traits: Traits, most: int) -> None:
    found = read(sent, traits, most)
    assert all(one.kind == SHORT_WINDOW for one in found.incidents)
    for n, one in enumerate(sent):
        assert n in found.rows or one.shows > 0 or found.says(one.at_ms)


@given(sent=st.lists(st.builds(Sent, times, st.just(0)), max_size=24), most=st.integers(1, 6))
def test_only_a_crowded_instant_stays_hidden(sent: list[Sent], most: int) -> None:
    """Of the shortest window, a millisecond with both its ends, more than an answer holds."""
    found = read(sent, ENTIRE, most)
    for n, one in enumerate(sent):
        crowd = sum(one.at_ms <= other.at_ms <= one.at_ms + 1 for other in sent)
        assert n in found.rows or crowd > most


@given(sent=st.lists(st.builds(Sent, times, st.just(0)), max_size=24), most=st.integers(1, 6))
def test_pages_bring_all(sent: list[Sent], most: int) -> None:
    found = read(sent, PAGED, most)
    assert (found.rows, found.incidents) == (set(range(len(sent))), [])
    assert found.questions == max(1, -(-len(sent) // most))


def test_a_total_that_is_capped_is_a_total() -> None:
    """The whole and both its halves have more than the provider counts."""
    sent = [Sent(n * 100) for n in range(160)]
    found = read(sent, ENTIRE, 10, total=lambda inside, _: min(inside, 20))
    assert (len(found.rows), found.incidents, found.totals.follow) == (160, [], True)


@given(
    sent=messages,
    traits=st.sampled_from((ENTIRE, PAGED)),
    beyond=st.integers(30, 3_000_000),
    growth=st.integers(0, 3),
)
def test_a_total_of_all_ever_sent_is_said_once(
    sent: list[Sent], traits: Traits, beyond: int, growth: int
) -> None:
    """Of others in other windows as well, and more with each question."""
    asked = 0

    def total(inside: int, ever: int) -> int:
        nonlocal asked
        asked += 1
        return ever + beyond + growth * asked

    found = read(sent, traits, 100, total=total)
    assert [one.kind for one in found.incidents] == [TOTAL_IGNORED]
    assert all(n in found.rows or one.shows > 0 for n, one in enumerate(sent))
    most = 2 if traits.paged else 1  # it says that there are more pages, and the next one is empty
    assert found.questions <= most * PASSES_MAX + TESTS + most  # once more as if it told none
    again = read(sent, traits, 100, total=total, totals=found.totals)
    assert again.incidents == []
    assert again.questions <= most


@pytest.mark.parametrize("rows", [PAGES_MAX * 2 + 10, ROWS_MAX + 10_000])
def test_a_provider_that_ignores_the_window_is_read_to_its_last_page(rows: int) -> None:
    """Each window has all there is: no split would ever make it less."""
    per_page = 2 if rows < ROWS_MAX else 100
    found = read([Sent(0)] * rows, PAGED, per_page, everywhere=True, most_asked=2000)
    assert (len(found.rows), [one.kind for one in found.incidents]) == (rows, [TOTAL_IGNORED])
    again = read(
        [Sent(0)] * rows, PAGED, per_page, everywhere=True, most_asked=2000, totals=found.totals
    )
    assert (len(again.rows), again.incidents) == (rows, [])
    assert again.questions == rows // per_page


def test_a_second_with_more_than_a_window_may_hold_is_read_to_its_last_page() -> None:
    rows = ROWS_MAX + 1000
    found = read([Sent(8000 + n % 2) for n in range(rows)], PAGED, 100, most_asked=5000)
    assert (len(found.rows), found.incidents) == (rows, [])


def test_a_total_is_put_to_the_test_once() -> None:
    sent = [Sent(n * 1000) for n in range(16)]
    first = read(sent, ENTIRE, 4)
    later = read(sent, ENTIRE, 4, totals=first.totals)
    assert first.totals.follow
    assert first.questions == later.questions + 1


@pytest.mark.parametrize("told_apart", [1, ROWS_MAX])
def test_pages_that_are_read_again_are_no_proof_of_more_rows(
    monkeypatch: pytest.MonkeyPatch, told_apart: int
) -> None:
    """Neither what cannot be read, nor what is not told apart, counts once more with each pass."""
    monkeypatch.setattr(core_reading, "ROWS_MAX", told_apart)
    reading, progress = Reading(spans=[Span(from_ms=0, to_ms=1000)]), Progress()
    pages = {1: (2, 1, {1}), 2: (1, 0, {2}), 3: (0, 0, set[int]())}
    asked = []
    for total in (3, 4, 4, 4, 4, 4):  # the fourth never comes
        asked.append(progress.page)
        rows, flaws, keys = pages[progress.page]
        told = Outcome(total=total, page=progress.page, pages=2)
        step = decide(reading, progress, told, PAGED, rows=rows, flaws=flaws, keys=keys)
        if not step.same_span:
            break
    assert asked == [1, 2, 3, 1, 2, 3]
    assert step.cause == "3 of 4 rows came"
