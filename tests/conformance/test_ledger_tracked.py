"""The ledger on every store: what is tracked, before and after it was heard of."""

from __future__ import annotations

import msgspec
import pytest

from engine.core.contracts import Traits
from engine.core.state import State
from engine.stores.tracked import Tracked
from engine.stores.transaction import Store
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
    picture,
    report,
    settle,
    tallies,
    track,
    tracked,
    work,
    works,
)


async def test_tracking_is_known_at_once_and_again_changes_nothing(store: Store) -> None:
    for traits, item in (
        (DERIVED, tracked("b1", R1, R2, reference="r")),
        (ASKED, tracked("b2", R1)),
        (ASKED, tracked("b9")),
        (ASKED, tracked(None, R1, message_id="m1", reference="r")),
    ):
        new = await track(store, item, traits=traits)
        assert [(one.due_ms, one.start_ms) for one in new] == [(T0 + 300_000, T0)]
        before = await store.read(lambda tx: picture(tx, ["m1", f"b1:{R1}", f"b1:{R2}"]))
        item.sent_ms += 5
        assert await track(store, item, item, traits=traits, now=T0 + 9) == []
        assert await store.read(lambda tx: picture(tx, ["m1", f"b1:{R1}", f"b1:{R2}"])) == before
    assert (await tallies(store))["known"] == 3
    told = await get(store, f"b1:{R2}")
    assert (told.reference, told.recipient, told.sent_ms, told.tracked) == ("r", R2, T0, True)


async def test_tracking_adds_recipients(store: Store) -> None:
    for traits in (DERIVED, DRAINED):
        account = "d" if traits.derives_ids else "e"
        await track(store, tracked("b1", R1), traits=traits, account=account)
        new = await track(store, tracked("b1", f"+{R2}", R1), traits=traits, account=account)
        assert [one.key for one in new] == ["b1"]
        assert len(await works(store, account)) == 1
    assert (await works(store, "e"))[0].data["recipients"] == [R1, R2]
    twice = tracked("b2", R1, R1, R1)
    await track(store, twice, traits=DERIVED, account="d")
    for suffix in ("", "#2", "#3"):
        assert (await get(store, f"b2:{R1}{suffix}", "d")).recipient == R1
    assert (await tallies(store, "d"))["pending"] == 5


async def test_a_message_that_was_reported_before_it_was_tracked(store: Store) -> None:
    await commit(store, report(), report("m2", State.DELIVERED), traits=ASKED)
    items = [tracked(None, message_id=key, reference="r") for key in ("m1", "m2")]
    assert [one.key for one in await track(store, *items, traits=ASKED)] == ["m1"]
    known = [await get(store, key) for key in ("m1", "m2")]
    assert [(one.tracked, one.reference) for one in known] == [(True, "r"), (False, "r")]
    assert (await tallies(store))["known"] == 2


@pytest.mark.parametrize("recipients", [(), (R1,), (R1, R2)])
async def test_a_batch_that_was_reported_before_it_was_tracked(
    store: Store, recipients: tuple[str, ...]
) -> None:
    """A report that is pushed may be faster than `track`: the batch is asked for all the same."""
    early, again = (report(f"b1:{R1}", batch_id="b1", recipient=R1) for _ in range(2))
    await commit(store, early, traits=DERIVED)
    new = await track(store, tracked("b1", *recipients), traits=DERIVED)
    assert [one.key for one in new] == ["b1"]
    rows = [report(f"b1:{r}", State.DELIVERED, batch_id="b1", recipient=r) for r in recipients[1:]]
    assert not (await settle(store, new[0], *rows, traits=DERIVED)).ended
    rows = [report(f"b1:{r}", State.DELIVERED, batch_id="b1", recipient=r) for r in recipients[1:]]
    await settle(store, new[0], again, *rows, traits=DERIVED, after_s=1800)
    assert (await get(store, f"b1:{R1}")).verdict == "last_known"
    assert (await tallies(store))["pending"] == 0


async def test_what_has_ended_is_not_put_on_another_time(store: Store) -> None:
    """A verdict that waits, and the message's end, are committed side by side."""
    item = Tracked(message_id="m1", recipients=[R1], sent_ms=T0)
    (held,) = await track(store, item, traits=WINDOWED)
    await commit(store, report(state=State.DELIVERED), traits=WINDOWED, span=(T0, T0 + 1))
    later = msgspec.structs.replace(held, due_ms=T0 + 5000)
    done = await commit(store, traits=WINDOWED, put=[later, work("new", due_ms=T0 + 1)])
    assert done.ended == [held.id]
    left = await store.read(lambda tx: tx.works_due("a", T0 + DAY, 10))
    assert [one.key for one in done.put] == [one.key for one in left] == ["new"]


@pytest.mark.parametrize("traits", [DERIVED, ASKED])
async def test_tracking_after_the_ladder_ended(store: Store, traits: Traits) -> None:
    asked = await track(store, tracked("b1", R1), tracked("b2"), traits=traits)
    for one in asked:
        assert (await settle(store, one, traits=traits, after_s=1800)).ended == [one.id]
    assert await track(store, tracked("b2"), traits=traits) == []
    assert await track(store, tracked("b1", R1), traits=traits) == []
    assert await works(store) == []
    more = await track(store, tracked("b1", R1, R2, sent_ms=T0 + DAY), traits=traits)
    assert [(one.key, one.start_ms) for one in more] == [("b1", T0 + DAY)]
