"""The ledger on every store: which reports become records."""

from __future__ import annotations

from engine.core.contracts import Kind
from engine.core.reconcile import History
from engine.core.state import State
from engine.stores import ledger
from engine.stores.transaction import Store
from tests.conformance.storing import T0, commit, get, records, report, tallies, work, works


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
    assert (first.records, first.repeated, first.lost, first.last_seq) == (2, 0, 0, 1)
    same = await commit(store, report(), report())
    assert (same.records, same.repeated, same.last_seq) == (0, 2, 0)
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
