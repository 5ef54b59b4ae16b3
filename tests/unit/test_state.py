"""The rule which of two reports wins, against a second statement of it and a table of cases.

The second statement is written from the public contract and shares nothing with the engine's: not
the ranks, not the order of the code. It must never be derived from `engine.core.state`.
"""

from __future__ import annotations

from itertools import product

import pytest

from engine.core.state import FINAL, RECEIPT_CHANNELS, Standing, State, wins

RANKS = {
    "unknown": 0, "accepted": 1, "enroute": 2, "undeliverable": 3, "expired": 3, "deleted": 3,
    "rejected": 3, "delivered": 4, "read": 5,
}  # fmt: skip
OLD_MS = 1_700_000_000_000
# The new report's status time and the old one's: none, one-sided, older, equal, newer.
TIMES = (
    (None, None), (OLD_MS, None), (None, OLD_MS),
    (OLD_MS - 1, OLD_MS), (OLD_MS, OLD_MS), (OLD_MS + 1, OLD_MS),
)  # fmt: skip


def should_win(new: Standing, old: Standing) -> bool:
    """The contract's sentence, clause by clause: the first that speaks decides."""
    both = None not in (new.status_ms, old.status_ms)
    clauses = (
        (old.state == "read", False),
        (old.final and not new.final, False),
        (not new.listed and not old.final, True),
        (both and (new.status_ms or 0) > (old.status_ms or 0), True),
        (both and (new.status_ms or 0) < (old.status_ms or 0), False),
        (RANKS[new.state] > RANKS[old.state], True),
        (RANKS[new.state] < RANKS[old.state], False),
    )
    return next((answer for applies, answer in clauses if applies), True)


@pytest.mark.parametrize("old_state", State)
@pytest.mark.parametrize("new_state", State)
def test_every_pair_follows_the_contract(new_state: State, old_state: State) -> None:
    cases = product(TIMES, (True, False), (True, False), (True, False))
    for (new_ms, old_ms), new_final, old_final, listed in cases:
        new = Standing(new_state, final=new_final, status_ms=new_ms, listed=listed)
        old = Standing(old_state, final=old_final, status_ms=old_ms)
        case = (new_ms, old_ms, new_final, old_final, listed)
        assert wins(new, old) is should_win(new, old), case


def standing(state: str, ms: int | None = None, *, verdict: bool = False) -> Standing:
    known = State(state)
    return Standing(known, final=known in FINAL and not verdict, status_ms=ms)


@pytest.mark.parametrize(
    ("new", "old", "won"),
    [
        (standing("accepted"), standing("unknown"), True),
        (standing("accepted"), standing("enroute"), False),
        (standing("enroute"), standing("enroute"), True),
        (standing("accepted", 2), standing("enroute", 1), True),
        (standing("enroute", 1), standing("accepted", 2), False),
        (standing("enroute", 9), standing("delivered", 1), False),
        (standing("delivered", 1), standing("enroute", 9), False),
        (standing("delivered"), standing("enroute", 9), True),
        (standing("delivered", 1), standing("enroute"), True),
        (standing("delivered"), standing("undeliverable"), True),
        (standing("undeliverable"), standing("delivered"), False),
        (standing("undeliverable", 9), standing("delivered", 1), True),
        (standing("expired", 1), standing("rejected", 1), True),
        (standing("read"), standing("delivered"), True),
        (standing("read", 1), standing("delivered", 2), False),
        (standing("delivered", 9), standing("read", 1), False),
        (standing("read", 9), standing("read", 1), False),
        (standing("enroute"), standing("expired", verdict=True), False),
        (standing("enroute"), standing("accepted", verdict=True), True),
        (standing("rejected"), standing("unknown", verdict=True), True),
    ],
)
def test_cases_written_out(new: Standing, old: Standing, won: bool) -> None:
    assert wins(new, old) is won


@pytest.mark.parametrize("state", State)
def test_an_unlisted_code_is_recorded_over_what_is_not_final(state: State) -> None:
    older = Standing(State.UNKNOWN, final=False, status_ms=OLD_MS - 5, listed=False)
    pending = Standing(state, final=False, status_ms=OLD_MS)
    assert wins(older, pending) is (state is not State.READ)
    ended = Standing(state, final=True, status_ms=OLD_MS)
    assert not wins(older, ended)


def test_names_ranks_and_ends() -> None:
    assert [state.value for state in State] == [
        "unknown", "accepted", "enroute", "delivered", "read", "undeliverable", "expired",
        "deleted", "rejected",
    ]  # fmt: skip
    assert {state.value for state in FINAL} == {name for name, rank in RANKS.items() if rank >= 3}
    assert {"email", "whatsapp", "rcs"} == RECEIPT_CHANNELS
