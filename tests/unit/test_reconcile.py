"""What a further report makes of a message: news, a repetition, or one that loses.

Examples first, then properties over any order of reports. The event id is computed here a second
time, with the standard library alone; it must never be taken from the engine.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from itertools import pairwise, permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Traits
from engine.core.discovery import Discovery
from engine.core.reconcile import HISTORY_MAX, Fold, History, Known, fold, verdict
from engine.core.report import Report, decode, event_id
from engine.core.state import FINAL, Standing, State, wins
from engine.core.units import iso, iso_ms

T0 = 1_700_000_000_000
DATED = Traits(feed="drained", dated=True)
COUNTED = Traits()
Fact = tuple[State, str | None, int | None]  # state, error code, status time


def known(**fields: Any) -> Known:
    return Known(account="acc", message_id="m1", **fields)


def report(state: State, error: str | None = None, ms: int | None = None, **more: Any) -> Report:
    fields = {
        "message_id": "m1",
        "final": state in FINAL,
        "provider_status": f"P_{state.value}",
        "error_code": error,
        "done_at": iso(ms) if ms is not None else None,
    }
    return Report(state=state, **{**fields, **more})


def take(
    held: Known, told: Report, traits: Traits = DATED, at: int = T0 + 10**9, listed: bool = True
) -> Fold:
    return fold(held, told, provider="prov", traits=traits, observed_ms=at, listed=listed)


def identity(told: Report, t: int) -> str:
    fact = [told.account, told.message_id, told.direction, told.provider_status]
    fact += [told.error_code, told.verdict, t]
    text = json.dumps(fact, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=16).hexdigest()


words = st.text(st.characters(exclude_categories=["Cs"]))


@given(words, words, st.sampled_from(["mt", "mo"]), st.none() | words, st.integers(0, 2**53))
def test_the_event_id_is_the_documented_digest(
    account: str, message: str, direction: str, code: str | None, t: int
) -> None:
    text = json.dumps(
        [account, message, direction, code, None, code, t],
        separators=(",", ":"),
        ensure_ascii=False,
    )
    digest = blake2b(text.encode(), digest_size=16).hexdigest()
    assert event_id(account, message, direction, code, None, code, t) == digest


def test_the_first_report_is_a_record_completed_by_what_is_known() -> None:
    held = known(reference="order-1", sent_ms=T0, batch_id="b", recipient="+44 7700")
    result = take(held, report(State.ENROUTE, ms=T0 + 5))
    record = decode(result.record)
    assert not result.lost
    assert (record.account, record.provider, record.revision) == ("acc", "prov", 1)
    assert (record.reference, record.batch_id, record.recipient) == ("order-1", "b", "+44 7700")
    assert (record.msisdn, record.sent_at) == ("447700", iso(T0))
    assert record.observed_at == iso(T0 + 10**9)
    assert record.event_id == identity(record, T0 + 5)
    assert held.record == result.record
    assert held.report == record
    assert (held.state, held.final, held.open, held.status_ms) == (
        State.ENROUTE, False, True, T0 + 5,
    )  # fmt: skip


def test_what_the_provider_says_of_itself_stands() -> None:
    held = known(sent_ms=T0, batch_id="b", recipient="1234")
    told = report(State.ENROUTE, sent_at=iso(T0 + 7), batch_id="own", recipient="5678", msisdn="5")
    record = decode(take(held, told).record)
    assert (record.sent_at, record.batch_id, record.recipient) == (iso(T0 + 7), "own", "5678")
    assert record.msisdn == "5"
    assert (held.sent_ms, held.batch_id, held.recipient) == (T0 + 7, "own", "5678")


def test_the_reference_of_track_goes_before_the_providers() -> None:
    assert (
        decode(take(known(reference="t"), report(State.READ, reference="p")).record).reference
        == "t"
    )
    held = known()
    assert decode(take(held, report(State.READ, reference="p")).record).reference == "p"
    assert held.reference == "p"


@pytest.mark.parametrize("traits", [DATED, COUNTED])
def test_the_same_again_is_no_record(traits: Traits) -> None:
    held = known()
    take(held, report(State.ENROUTE, ms=T0), traits)
    before = msgspec.structs.asdict(held)
    assert take(held, report(State.ENROUTE, ms=T0), traits) == Fold()
    assert take(held, report(State.ENROUTE, ms=T0 - 9), traits) == Fold()
    assert msgspec.structs.asdict(held) == before
    assert take(held, report(State.ENROUTE, ms=T0 + 9), traits) == Fold()
    assert (held.revision, held.status_ms) == (1, T0 + 9)


def test_a_change_of_state_status_or_error_is_the_next_revision() -> None:
    held = known()
    take(held, report(State.ENROUTE))
    changes = [
        report(State.ENROUTE, "7"),
        report(State.ENROUTE, "7", provider_status="other"),
        report(State.EXPIRED, "7", provider_status="other"),
    ]
    revisions = [decode(take(held, told, COUNTED).record).revision for told in changes]
    assert revisions == [2, 3, 4]
    past = History.of(held).entries
    assert [entry["revision"] for entry in past] == [1, 2, 3]
    assert not any(entry["superseded"] for entry in past)


def test_a_loser_is_remembered_once_and_changes_nothing() -> None:
    for traits in (DATED, COUNTED):
        held = known()
        take(held, report(State.DELIVERED, ms=T0 + 5), traits)
        record = held.record
        assert take(held, report(State.ENROUTE, ms=T0 + 1), traits) == Fold(lost=True)
        assert take(held, report(State.ENROUTE, ms=T0 + 1), traits) == Fold()
        assert take(held, report(State.EXPIRED, ms=T0 + 2), traits) == Fold(lost=True)
        assert (held.state, held.revision, held.record) == (State.DELIVERED, 1, record)
        entries = History.of(held).entries
        assert [(entry["state"], entry["superseded"]) for entry in entries] == [
            ("enroute", True),
            ("expired", True),
        ]
        assert all(entry["revision"] is None for entry in entries)


def test_entering_a_status_again_counts_where_no_time_tells() -> None:
    held = known()
    states = [State.ACCEPTED, State.ENROUTE]
    seen = []
    for turn in range(4):
        told = report(
            states[turn % 2], provider_status=None, error_code=f"e{turn % 2}", final=False
        )
        told = msgspec.structs.replace(told, state=State.ENROUTE)
        seen.append(decode(take(held, told, COUNTED).record))
    assert [record.event_id for record in seen] == [
        identity(record, turn // 2 + 1) for turn, record in enumerate(seen)
    ]
    assert len({record.event_id for record in seen}) == 4


def test_a_fact_that_was_recorded_before_is_not_news_where_a_time_tells() -> None:
    held = known()
    take(held, report(State.UNDELIVERABLE, ms=T0))
    take(held, report(State.EXPIRED, ms=T0))
    assert take(held, report(State.UNDELIVERABLE, ms=T0)) == Fold()
    assert held.state is State.EXPIRED


@pytest.mark.parametrize("channel", ["sms", "push", "email", "whatsapp", "rcs"])
def test_delivered_stays_open_where_read_may_follow(channel: str) -> None:
    held = known()
    take(held, report(State.DELIVERED, channel=channel), Traits(feed="windowed"))
    assert held.open is (channel in {"email", "whatsapp", "rcs"})
    take(held, report(State.READ, channel=channel), Traits(feed="windowed"))
    assert not held.open
    held = known()
    take(held, report(State.DELIVERED, channel=channel), Traits(feed="drained"))
    assert not held.open


def test_the_verdict_of_a_message_never_heard_of() -> None:
    held = known(sent_ms=T0, reference="r", batch_id="b", recipient="447700900001")
    record = decode(take(held, verdict(held, code="24", text="not there"), COUNTED).record)
    assert (record.state, record.final, record.verdict) == (State.UNKNOWN, True, "never_reported")
    assert (record.provider_status, record.error_code, record.error_text) == (
        None,
        "24",
        "not there",
    )
    assert (record.reference, record.batch_id, record.sent_at) == ("r", "b", iso(T0))
    assert record.msisdn == "447700900001"
    assert record.event_id == identity(record, 1)
    assert (held.final, held.verdict, held.revision) == (True, "never_reported", 1)


@pytest.mark.parametrize("traits", [DATED, COUNTED])
def test_a_verdict_keeps_the_last_state_and_yields_to_a_correction(traits: Traits) -> None:
    held = known()
    take(held, report(State.ENROUTE, ms=T0, extra={"x": [1]}), traits)
    record = decode(take(held, verdict(held), traits).record)
    assert (record.state, record.final, record.verdict) == (State.ENROUTE, True, "last_known")
    assert (record.revision, record.extra, record.done_at) == (2, {"x": [1]}, iso(T0))
    assert record.event_id == identity(record, T0 if traits.dated else 1)
    assert take(held, report(State.ENROUTE, ms=T0), traits) == Fold()
    late = decode(take(held, report(State.DELIVERED, ms=T0 + 1), traits).record)
    assert (late.state, late.revision, late.verdict) == (State.DELIVERED, 3, None)
    assert (held.final, held.verdict) == (True, None)


def test_a_correction_of_a_verdict_may_be_pending_again() -> None:
    held = known()
    take(held, report(State.ACCEPTED), COUNTED)
    take(held, verdict(held), COUNTED)
    assert take(held, report(State.ENROUTE), COUNTED).record
    assert (held.final, held.verdict, held.open) == (False, None, True)
    again = decode(take(held, verdict(held), COUNTED).record)
    assert (again.state, again.verdict, again.revision) == (State.ENROUTE, "last_known", 4)


@pytest.mark.parametrize(
    ("sent_ms", "places"),
    [
        (T0 + 55, [T0 + 55, T0 + 55]),
        (T0 + 60, [T0 + 59, T0 + 59]),  # the next window begins with it
        (T0 + 90, [T0 + 59, T0 + 59]),  # as where the account's time zone is not the provider's
        (T0 - 90, [T0, T0 + 50]),
        (None, [T0 + 59, T0 + 59]),
    ],
)
def test_a_message_is_placed_in_the_window_that_it_was_found_in(
    sent_ms: int | None, places: list[int]
) -> None:
    """Read once more in the next slice's overlap, it does not leave for where it was not found."""
    held, found = known(), []
    for state, span in (
        (State.ACCEPTED, (T0, T0 + 60)),
        (State.ENROUTE, (T0 + 50, T0 + 120)),
    ):
        told = report(state, sent_at=iso(sent_ms) if sent_ms is not None else None)
        windowed = Traits(feed="windowed", sent_at_stays=True)
        assert fold(
            held, told, provider="prov", traits=windowed, observed_ms=T0 + 200, span=span
        ).report
        found.append(held.placed_ms)
    assert found == places


def test_history_is_bounded_and_still_counts() -> None:
    held = known()
    for turn in range(3 * HISTORY_MAX):
        assert take(held, report(State.ENROUTE, str(turn % 3)), COUNTED).record
    history = History.of(held)
    assert len(history.entries) == HISTORY_MAX
    assert held.revision == 3 * HISTORY_MAX
    assert set(history.entered.values()) == {HISTORY_MAX}


facts = st.tuples(st.sampled_from(State), st.sampled_from([None, "1"]), st.integers(T0, T0 + 6))
any_facts = st.tuples(
    st.sampled_from(State), st.sampled_from([None, "1"]), st.none() | st.integers(T0, T0 + 6)
)


def run(told: list[Fact], traits: Traits) -> tuple[Known, list[Report]]:
    held = known()
    results = [take(held, report(*fact), traits) for fact in told]
    return held, [decode(result.record) for result in results if result.record]


def beats(one: Fact, other: Fact) -> bool:
    """Whether the rule puts `one` first whichever of the two comes first."""
    a, b = (Standing(state, final=state in FINAL, status_ms=ms) for state, _, ms in (one, other))
    return wins(a, b) and not wins(b, a)


@given(st.data(), st.lists(facts, min_size=1, max_size=7, unique=True))
def test_any_order_and_repetition_ends_where_the_rule_does(
    data: st.DataObject, told: list[Fact]
) -> None:
    best = [one for one in told if all(one == other or beats(one, other) for other in told)]
    repeated = told + data.draw(st.lists(st.sampled_from(told), max_size=5))
    order = data.draw(st.permutations(repeated))
    held, records = run(order, DATED)
    if best:
        assert (held.state, held.error_code, held.status_ms) == best[0]
    assert len({record.event_id for record in records}) == len(records)
    again, more = run([*order, *order], DATED)
    assert [record.event_id for record in more] == [record.event_id for record in records]
    assert again.record == held.record


def test_a_life_in_any_order_ends_with_its_last_state() -> None:
    life: list[Fact] = [
        (State.ACCEPTED, None, T0),
        (State.ENROUTE, None, T0 + 1),
        (State.UNDELIVERABLE, "9", T0 + 2),
        (State.DELIVERED, None, T0 + 3),
        (State.READ, None, T0 + 4),
    ]
    for order in permutations(life):
        assert run(list(order), DATED)[0].state is State.READ


@given(
    st.lists(any_facts | st.just("verdict"), max_size=25),
    st.sampled_from([DATED, COUNTED]),
    st.sets(st.integers(0, 25)),
)
def test_records_of_any_life_are_numbered_unique_and_never_go_back(
    life: list[Any], traits: Traits, unlisted: set[int]
) -> None:
    held = known()
    records: list[Report] = []
    for turn, fact in enumerate(life):
        ends = fact == "verdict"
        if ends and held.final:
            continue
        told = verdict(held) if ends else report(*fact)
        result = take(held, told, traits, listed=turn not in unlisted)
        assert not (result.record and result.lost)
        assert result.record or not ends
        if result.record:
            records.append(decode(result.record))
        if records:
            assert (held.state, held.final) == (records[-1].state, records[-1].final)
            assert held.revision == records[-1].revision
    assert [record.revision for record in records] == list(range(1, len(records) + 1))
    assert len({record.event_id for record in records}) == len(records)
    for before, after in pairwise(records):
        if before.final and before.verdict is None:
            assert after.final
        assert before.state is not State.READ
        if after.done_at is not None and traits.dated:
            assert after.event_id == identity(after, iso_ms(after.done_at))


texts = st.none() | st.sampled_from(["a", "b"])


@given(
    any_facts,
    st.fixed_dictionaries({
        "channel": st.sampled_from(["sms", "email"]),
        "direction": st.sampled_from(["mt", "mo"]),
        "provider": st.sampled_from(["", "prov", "another"]),
        "reference": texts, "batch_id": texts, "recipient": texts,
        "sent_at": st.none() | st.integers(T0, T0 + 9).map(iso),
    }),
    st.sampled_from([DATED, COUNTED, Traits(feed="windowed"), Traits(feed="windowed", dated=True)]),
    st.none() | st.just((T0 + 3, T0 + 6)),
)  # fmt: skip
def test_a_discovery_is_what_folding_the_first_report_gives(
    fact: Fact, more: dict[str, Any], traits: Traits, span: tuple[int, int] | None
) -> None:
    folded, taken = report(*fact, **more), report(*fact, **more)
    held = Known(account="acc", message_id="m1", direction=more["direction"], mark=7)
    fold(held, folded, provider="prov", traits=traits, observed_ms=T0 + 50, span=span, write=False)
    sent_ms = iso_ms(more["sent_at"]) if more["sent_at"] else None
    found = Discovery("acc", "prov", traits, T0 + 50, span).take(taken, sent_ms, 7)
    assert (found, taken) == (held, folded)
