"""The ledger on every store: which reports become records."""

from __future__ import annotations

from engine.core.contracts import Kind
from engine.core.reconcile import History
from engine.core.report import Report
from engine.core.schedule import Ladder
from engine.core.state import State
from engine.core.units import iso
from engine.stores import ledger
from engine.stores.transaction import Store
from tests.conformance.storing import (
    DAY,
    LADDER,
    T0,
    WINDOWED,
    commit,
    get,
    next_seq,
    records,
    report,
    tallies,
    work,
    works,
)


async def test_an_older_report_does_not_replace_a_newer_one_of_its_rank(store: Store) -> None:
    await commit(store, report(provider_status="12"), at=T0 + 9)
    replayed = {"source": ledger.REPLAY, "at": T0}
    done = await commit(store, report(provider_status="10"), **replayed)
    assert (done.records, done.lost) == (0, 1)
    done = await commit(store, report(provider_status="11", state=State.DELIVERED), **replayed)
    assert (done.records, done.lost) == (1, 0)
    assert [one.provider_status for one in await records(store)] == ["12", "11"]


async def test_news_repetitions_changes_and_losers(store: Store) -> None:
    first = await commit(store, report(), report("m2"))
    assert (first.records, first.repeated, first.lost) == (2, 0, 0)
    same = await commit(store, report(), report())
    assert (same.records, same.repeated) == (0, 2)
    assert await next_seq(store) == 2  # a repetition leaves no row
    assert (await commit(store, report(state=State.DELIVERED))).records == 1
    late = await commit(store, report(state=State.ACCEPTED), report(state=State.ACCEPTED))
    assert (late.records, late.lost, late.repeated) == (0, 1, 1)
    known = await get(store)
    assert (known.revision, known.state, known.final) == (2, State.DELIVERED, True)
    entries = [(entry["state"], entry["superseded"]) for entry in History.of(known).entries]
    assert entries == [("enroute", False), ("accepted", True)]
    assert [(told.message_id, told.revision) for told in await records(store)] == [
        ("m1", 1), ("m2", 1), ("m1", 2),
    ]  # fmt: skip
    assert await tallies(store) == {
        "known": 2, "pending": 1, "final": 1, "state:enroute": 1, "state:delivered": 1,
        "records": 3, "superseded": 1,
    }  # fmt: skip


async def test_one_message_twice_in_a_page_is_folded_in_order(store: Store) -> None:
    done = await commit(store, report(), report(state=State.DELIVERED), report(direction="mo"))
    assert done.records == 3
    assert [told.revision for told in await records(store)] == [1, 2, 1]
    assert (await tallies(store))["known"] == 2


async def test_put_and_drop_go_with_the_page(store: Store) -> None:
    done = await commit(store, report(), put=[work("1-2", kind=Kind.WINDOW), work("")])
    assert [item.key for item in done.put] == ["1-2", ""]
    gone = done.put[0].id or 0
    assert (await commit(store, drop=[gone])).ended == [gone]
    assert [item.key for item in await works(store)] == [""]


async def test_what_came_by_another_way_gets_windows_by_the_day(store: Store) -> None:
    """Only where something is open; a day that has its window keeps that, today ends now."""
    midnight = T0 // DAY * DAY
    now = midnight + 5000
    sent = {"m1": -3 * DAY, "m2": -3 * DAY + 9, "m3": -DAY, "m4": -2 * DAY, "m5": 4000, "m6": 6000}

    def told(*names: str) -> list[Report]:
        return [
            report(
                name,
                State.UNDELIVERABLE if name == "m4" else State.ENROUTE,
                sent_at=iso(midnight + sent[name]),
            )
            for name in names
        ]

    ways = {"traits": WINDOWED, "source": ledger.FILE, "revisit_ms": now, "ladder": LADDER}
    done = await commit(store, *told("m1", "m2", "m3", "m4", "m5"), **ways)
    assert [one.key for one in done.put] == [
        f"{midnight - 3 * DAY}-{midnight - 2 * DAY}",
        f"{midnight - DAY}-{midnight}",
        f"{midnight}-{now}",
    ]
    assert {(one.kind, one.start_ms, one.due_ms) for one in done.put} == {
        (Kind.WINDOW, now, now + 300_000)
    }
    assert done.put[0].data == {"from": midnight - 3 * DAY, "to": midnight - 2 * DAY}
    more = [report("m7", sent_at=iso(midnight - DAY + 1))]
    done = await commit(store, *told("m1", "m6"), *more, **ways)
    assert [one.key for one in done.put] == [f"{midnight}-{midnight + 6001}"]
    assert len(await works(store)) == 4
    other = await commit(store, report("m8", sent_at=iso(T0)), **{**ways, "ladder": Ladder(())})
    assert other.put == []
