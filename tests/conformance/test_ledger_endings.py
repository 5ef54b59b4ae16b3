"""The ledger on every store: how tracked work ends, with a final state or with a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.contracts import Kind
from engine.core.report import Report
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Committed, Expire, Work
from engine.stores import ledger, settling
from engine.stores.transaction import Store, Transaction
from tests.conformance.storing import (
    ASKED,
    DAY,
    DERIVED,
    DRAINED,
    R1,
    R2,
    T0,
    WINDOWED,
    commit,
    get,
    records,
    report,
    settle,
    tallies,
    track,
    tracked,
    works,
)


async def test_a_batch_climbs_its_ladder_to_its_verdicts(store: Store) -> None:
    [asked] = await track(store, tracked("b1", R1, R2), traits=DERIVED)
    heard = report(f"b1:{R1}", batch_id="b1", recipient=R1)
    done = await settle(store, asked, heard, traits=DERIVED)
    assert (done.records, done.ended, done.put[0].due_ms) == (1, [], T0 + 1_800_000)
    assert done.put[0].answered_ms == 300_000
    done = await settle(store, done.put[0], traits=DERIVED, after_s=2000, code="24", text="gone")
    assert (done.verdicts, done.ended, await works(store)) == (2, [asked.id], [])
    told = [(t.message_id, t.state, t.verdict, t.error_code) for t in await records(store)]
    assert told[0] == (f"b1:{R1}", State.ENROUTE, None, None)
    assert sorted(told[1:]) == [
        (f"b1:{R1}", State.ENROUTE, "last_known", "24"),
        (f"b1:{R2}", State.UNKNOWN, "never_reported", "24"),
    ]
    counts = await tallies(store)
    assert (counts["known"], counts["final"], counts["pending"]) == (2, 2, 0)
    await commit(store, report(f"b1:{R2}", State.DELIVERED), traits=DERIVED)
    assert (await get(store, f"b1:{R2}")).revision == 2
    assert (await tallies(store))["verdict:never_reported"] == 0


async def test_a_verdict_on_what_the_last_answer_has_just_brought(store: Store) -> None:
    """The record that it follows from is in the same page, and in no log row yet."""
    (work,) = await track(store, tracked("b1"), traits=ASKED)
    told = [report(f"m{n}", batch_id="b1", extra={"n": n}) for n in range(1200)]
    done = await settle(store, work, *told, traits=ASKED, after_s=1800)
    assert (done.records, done.verdicts) == (2400, 1200)
    last = {one.message_id: one for one in await records(store)}
    assert {one.verdict for one in last.values()} == {"last_known"}
    assert all(one.extra == {"n": int(name[1:])} for name, one in last.items())


@pytest.mark.parametrize("short", ["fewer rows", "a flaw", "no row of the one asked for"])
async def test_no_verdict_on_an_answer_that_is_visibly_not_whole(store: Store, short: str) -> None:
    """Its end is missing, and nothing else says so: the last rung is asked for again, twice."""
    [asked] = await track(store, tracked("b1", R1, R2), traits=DERIVED)

    def rows(*states: State) -> list[Report]:
        pairs = zip((R1, R2), states, strict=False)
        return [report(f"b1:{r}", state, batch_id="b1", recipient=r) for r, state in pairs]

    done = await settle(store, asked, *rows(State.DELIVERED, State.ENROUTE), traits=DERIVED)
    more: dict[str, Any] = {"flaws": int(short == "a flaw")}
    more["alone"] = short == "no row of the one asked for"
    given = [] if more["alone"] else rows(State.DELIVERED)
    for wait_s in (1, 30):
        step = done.put[0]
        done = await settle(store, step, *given, traits=DERIVED, after_s=2000, **more)
        assert (done.verdicts, done.ended) == (0, [])
        assert [one.due_ms for one in await works(store)] == [T0 + (2000 + wait_s) * 1000]
    last = done.put[0]
    assert last.answered_ms == 300_000
    if short == "fewer rows":  # the third time it is whole
        ends = rows(State.DELIVERED, State.DELIVERED)
        done = await settle(store, last, *ends, traits=DERIVED, after_s=2040)
        assert (done.verdicts, done.ended, done.records) == (0, [asked.id], 1)
    else:
        done = await settle(store, last, *given, traits=DERIVED, after_s=2040, **more)
        assert (done.verdicts, done.ended) == (1, [asked.id])
        assert (await get(store, f"b1:{R2}")).verdict == "last_known"


async def test_a_batch_with_recipients_ends_when_each_is_final(store: Store) -> None:
    for traits, ids in ((DERIVED, [f"b1:{R1}", f"b1:{R2}"]), (ASKED, ["x", "y"])):
        [asked] = await track(store, tracked("b1", R1, R2), traits=traits, account=ids[0])
        rows = [
            report(i, State.DELIVERED, batch_id="b1", recipient=r)
            for i, r in zip(ids, (R1, R2), strict=True)
        ]
        assert not (await settle(store, asked, rows[0], traits=traits)).ended
        assert (await settle(store, asked, rows[1], traits=traits)).ended == [asked.id]
        assert (await tallies(store, ids[0]))["known"] == 2


async def test_a_batch_without_recipients_ends_when_all_rows_are_final(store: Store) -> None:
    [asked] = await track(store, tracked("b1"), traits=DERIVED)
    rows = [report(f"b1:{r}", batch_id="b1", recipient=r) for r in (R1, R2)]
    assert not (await settle(store, asked, traits=DERIVED)).ended
    assert not (await settle(store, asked, *rows, traits=DERIVED)).ended
    rows = [report(f"b1:{r}", State.EXPIRED, batch_id="b1", recipient=r) for r in (R1, R2)]
    assert (await settle(store, asked, *rows, traits=DERIVED)).ended == [asked.id]


@pytest.mark.parametrize(("over", "after_s"), [(True, 300), (False, 1800)])
async def test_a_batch_of_which_nothing_was_heard_gives_one_verdict(
    store: Store, over: bool, after_s: int
) -> None:
    [asked] = await track(store, tracked("b1", reference="r"), traits=ASKED)
    done = await settle(store, asked, traits=ASKED, after_s=after_s, over=over)
    assert (done.verdicts, done.ended) == (1, [asked.id])
    [told] = await records(store)
    assert (told.message_id, told.batch_id, told.reference) == ("b1", "b1", "r")
    assert (told.state, told.verdict, told.provider_status) == (
        State.UNKNOWN,
        "never_reported",
        None,
    )
    assert (await tallies(store))["known"] == 1


async def test_recipients_that_were_never_heard_of_get_their_verdicts(store: Store) -> None:
    [asked] = await track(store, tracked("b1", R1, R2), traits=ASKED)
    await settle(store, asked, report("x", batch_id="b1", recipient=f"+{R1}"), traits=ASKED)
    done = await settle(store, asked, traits=ASKED, after_s=1800)
    assert (done.verdicts, done.ended) == (2, [asked.id])
    told = {(t.msisdn or t.recipient, t.verdict) for t in (await records(store))[1:]}
    assert told == {(f"+{R1}", "last_known"), (R2, "never_reported")}
    counts = await tallies(store)
    assert (counts["known"], counts["pending"]) == (2, 0)


async def test_recipients_that_are_no_numbers_are_heard_of_too(store: Store) -> None:
    address = "one@example.org"
    [asked] = await track(store, tracked("b1", address), traits=ASKED)
    row = report("x", State.DELIVERED, batch_id="b1", recipient=address)
    assert (await settle(store, asked, row, traits=ASKED)).ended == [asked.id]
    assert (await tallies(store))["known"] == 1


async def test_a_tracked_message_ends_with_a_drained_report_or_a_verdict(store: Store) -> None:
    items = [tracked(None, message_id=f"m{n}") for n in range(3)]
    asked = {one.key: one for one in await track(store, *items)}
    assert {one.due_ms for one in asked.values()} == {T0 + 1_800_000}
    assert not (await commit(store, report("m0"), report("m1"))).ended
    done = await commit(store, report("m0", State.DELIVERED), report("other", State.DELIVERED))
    assert done.ended == [asked["m0"].id]
    for key in ("m1", "m2"):
        await settle(store, asked[key], traits=DRAINED, after_s=1800)
    verdicts = [(told.message_id, told.verdict) for told in (await records(store))[-2:]]
    assert verdicts == [("m1", "last_known"), ("m2", "never_reported")]
    late = await settle(store, asked["m0"], traits=DRAINED, after_s=1800)
    assert (late.ended, late.verdicts) == ([asked["m0"].id], 0)
    assert await works(store) == []


async def test_a_drained_batch_ends_when_its_reports_are_final(store: Store) -> None:
    both, none = await track(store, tracked("b1", R1, R2, reference="r"), tracked("b2"))
    done = await commit(store, report("x", State.DELIVERED, batch_id="b1", recipient=R1))
    assert done.ended == []
    assert (await get(store, "x")).reference == "r"
    assert (await get(store, "x")).sent_ms == T0
    done = await commit(
        store,
        report("y", State.EXPIRED, batch_id="b1", recipient=R2),
        report("z", State.EXPIRED, batch_id="b2", recipient=R2),
    )
    assert sorted(done.ended) == sorted([both.id or 0, none.id or 0])


@pytest.mark.parametrize("recipients", [(), (R1,)])
async def test_what_comes_of_a_batch_after_its_end_has_what_was_tracked(
    store: Store, recipients: tuple[str, ...]
) -> None:
    """Its first page can end it, and of a provider's queue the next one brings the others."""
    [asked] = await track(store, tracked("b1", *recipients, reference="r"))
    done = await commit(store, report("x", State.DELIVERED, batch_id="b1", recipient=R1))
    assert (done.ended, await works(store)) == ([asked.id], [])
    [kept] = done.put
    assert (kept.kind, kept.due_ms) == (Kind.ENDED, T0 + settling.LATE_MS)
    assert await track(store, tracked("b1", *recipients, reference="r")) == []
    theirs = {"batch_id": "b1", "reference": "theirs"}
    await commit(store, report("y", **theirs), report("z", State.EXPIRED, **theirs))
    assert [(t.message_id, t.reference) for t in await records(store)][1:] == [
        ("y", "r"),
        ("z", "r"),
    ]
    assert (await get(store, "y")).sent_ms == T0
    done = await settle(store, kept, traits=DRAINED, after_s=settling.LATE_MS // 1000, over=True)
    assert (done.ended, done.put, done.verdicts) == ([kept.id], [], 1)
    assert (await get(store, "y")).verdict == "last_known"
    await commit(store, report("later", **theirs))
    assert (await get(store, "later")).reference == "theirs"


async def test_what_is_left_of_a_batch_gives_no_verdict_where_something_else_will(
    store: Store,
) -> None:
    """A message with a ladder of its own, or all of them where the batch is tracked once more."""
    later = settling.LATE_MS // 1000
    pending = report("y", batch_id="b1", recipient=R2)
    for account, again in (("a", tracked("b1", R2)), ("b", tracked(None, message_id="y"))):
        await track(store, tracked("b1", R1), account=account)
        first = report("x", State.DELIVERED, batch_id="b1", recipient=R1)
        [kept] = (await commit(store, first, account=account)).put
        [own] = await track(store, again, account=account)
        await commit(store, pending, account=account)
        done = await settle(store, kept, traits=DRAINED, after_s=later, over=True)
        assert (done.ended, done.verdicts) == ([kept.id], 0)
        assert [work.id for work in await works(store, account)] == [own.id]
        done = await settle(store, own, traits=DRAINED, after_s=later, over=True)
        assert done.verdicts == 1
        assert (await get(store, "y", account)).verdict == "last_known"


async def test_what_comes_after_a_batch_has_its_verdict_has_what_was_tracked(
    store: Store,
) -> None:
    [asked] = await track(store, tracked("b1", reference="r"))
    [kept] = (await settle(store, asked, traits=DRAINED, after_s=1800, over=True)).put
    await commit(store, report("x", State.DELIVERED, batch_id="b1"))
    assert (await get(store, "x")).reference == "r"
    after_s = settling.LATE_MS // 1000 + 1800
    done = await settle(store, kept, traits=DRAINED, after_s=after_s, over=True)
    assert (done.ended, done.verdicts) == ([kept.id], 0)


async def test_a_batch_whose_messages_are_known_leaves_nothing_behind(store: Store) -> None:
    [asked] = await track(store, tracked("b1", R1, reference="r"), traits=DERIVED)
    row = report(f"b1:{R1}", State.DELIVERED, batch_id="b1", recipient=R1)
    done = await settle(store, asked, row, traits=DERIVED)
    assert (done.ended, done.put) == ([asked.id], [])


async def test_a_batch_that_is_asked_for_ends_with_what_comes_another_way(store: Store) -> None:
    """Pushed, or handed over; without its recipients only an answer tells that it is whole."""
    for traits, ids in ((DERIVED, [f"b1:{R1}", f"b1:{R2}"]), (ASKED, ["x", "y"])):
        asked, bare = await track(
            store, tracked("b1", R1, R2), tracked("b2"), traits=traits, account=ids[0]
        )
        rows = [
            report(i, State.DELIVERED, batch_id="b1", recipient=r)
            for i, r in zip(ids, (R1, R2), strict=True)
        ]
        other = report("b2:x", State.DELIVERED, batch_id="b2", recipient=R1)
        first = await commit(store, rows[0], other, traits=traits, account=ids[0], source="push")
        assert first.ended == []
        last = await commit(store, rows[1], traits=traits, account=ids[0], source="push")
        assert last.ended == [asked.id]
        assert [work.id for work in await works(store, ids[0])] == [bare.id]


async def test_the_ends_of_a_batch_are_counted_down(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted when it may be over, not at each report; an answer, or a recipient more, has it
    counted anew."""
    numbers = [f"4477009000{n:02}" for n in range(40)]
    counted: list[int] = []

    def counting(tx: Transaction, work: Work, *more: Any) -> bool:
        before = work.data.get(settling.OWING, 0)
        looks = settling.count_down(tx, work, *more)
        if looks or work.data[settling.OWING] > before - 1:
            counted.append(work.data.get(settling.OWING, 0))
        return looks

    monkeypatch.setattr(ledger, "count_down", counting)

    async def push(number: str) -> Committed:
        one = report(f"b1:{number}", State.DELIVERED, batch_id="b1", recipient=number)
        return await commit(store, one, traits=DERIVED, source="push")

    [asked] = await track(store, tracked("b1", *numbers[:30]), traits=DERIVED)
    for number in numbers[:10]:
        assert not (await push(number)).ended
    assert counted == [29]
    polled = [
        report(f"b1:{number}", State.DELIVERED, batch_id="b1", recipient=number)
        for number in numbers[10:20]
    ]
    await settle(store, asked, *polled, traits=DERIVED)
    assert not (await push(numbers[20])).ended
    assert counted == [29, 9]
    await track(store, tracked("b1", *numbers), traits=DERIVED)
    for number in numbers[21:39]:
        assert not (await push(number)).ended
    assert counted == [29, 9, 18]
    (work,) = await works(store)
    assert work.due_ms == asked.start_ms + 1_800_000  # nothing else of it has moved
    assert (await push(numbers[39])).ended == [asked.id]
    assert await works(store) == []


async def test_a_window_expires_in_pieces(store: Store) -> None:
    [watched] = await track(store, tracked(None, message_id="m0"), traits=WINDOWED)
    told = [report(f"m{n}", sent_at=iso(T0 + n)) for n in range(7)]
    told.append(report("read-may-follow", State.DELIVERED, channel="rcs", sent_at=iso(T0)))
    await commit(store, *told, traits=WINDOWED)
    span = Expire(from_ms=T0, to_ms=T0 + 4, limit=2)
    done = [await commit(store, traits=WINDOWED, at=T0 + DAY, expire=span) for _ in range(3)]
    assert [(one.verdicts, one.remaining) for one in done] == [(2, True), (2, True), (1, False)]
    assert done[0].ended == [watched.id]
    assert {(t.message_id, t.verdict) for t in (await records(store))[8:]} == {
        (f"m{n}", "last_known") for n in range(5)
    }
    counts = await tallies(store)
    assert (counts["final"], counts["pending"]) == (6, 2)
    assert not (await get(store, "m0")).open
