"""Past periods on every store: ordered once, stopped, gone on with, and what is noted of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import engine
from engine.books.periods import (
    NOTED_MAX,
    Period,
    Progress,
    check,
    end_period,
    period_item,
    progress_of,
    take_period,
)
from engine.core.contracts import Kind
from engine.core.work import Committed
from engine.stores.transaction import Store
from tests.conformance.storing import T0, works

ACCOUNT = engine.configure(
    {"accounts": [{"name": "a", "provider": "messangi", "base_url": "http://p"}]}
).accounts[0]
PERIOD = Period(id="one", from_ms=1000, to_ms=9000)


async def take(store: Store, period: Period = PERIOD, at: int = T0, **more: Any) -> Committed:
    changed = msgspec.structs.replace(period, **more)
    return await store.write(lambda tx: take_period(tx, ACCOUNT, changed, at))


async def told(store: Store) -> list[Progress]:
    return list((await store.read(lambda tx: progress_of(tx, "a"))).values())


async def move(store: Store, **data: Any) -> None:
    (work,) = await works(store)
    work.data = {**work.data, **data}
    await store.write(lambda tx: tx.move_works([work]))


async def test_an_order_is_one_work_however_often_it_comes(store: Store) -> None:
    (work,) = (await take(store)).put
    assert (work.kind, work.key, work.due_ms) == (Kind.BACKFILL, "1000-9000", T0)
    assert (await take(store)).put == []
    assert (await take(store, id="another")).put == []
    (one,) = await told(store)
    assert (one.state, one.reached_ms, one.records) == ("under way", 1000, 0)
    assert len((await take(store, to_ms=9001)).put) == 1


async def test_stopped_it_goes_on_from_where_it_was(store: Store) -> None:
    """With another order; the one that was stopped does not come back, however late it is taken."""
    await take(store)
    spans = [{"from_ms": 5000, "to_ms": 6000}]
    await move(store, cursor=4000, end=6000, spans=spans, records=7, incidents=1)
    (work,) = await works(store)
    done = await take(store, id="x", stop=True, at=T0 + 5)
    assert (done.ended, await works(store)) == ([work.id], [])
    (one,) = await told(store)
    assert (one.state, one.reached_ms, one.ended_ms) == ("stopped", 5000, T0 + 5)
    assert (await take(store)).put == []
    (again,) = (await take(store, id="two")).put
    assert again.data == {**work.data, "order": "two"}
    (one,) = await told(store)
    assert (one.state, one.reached_ms, one.records, one.incidents) == ("under way", 5000, 7, 1)
    assert (await take(store, id="x", stop=True)).ended == [again.id]
    assert (await take(store, id="x", stop=True)).ended == []


async def test_what_is_over_is_noted_and_begins_anew(store: Store) -> None:
    await take(store)
    await move(store, cursor=9000, records=3)
    (work,) = await works(store)
    await store.write(lambda tx: end_period(tx, work, T0 + 1))
    await store.write(lambda tx: end_period(tx, work, T0 + 2))  # once
    (one,) = await told(store)
    assert (one.state, one.reached_ms, one.records, one.ended_ms) == ("done", 9000, 3, T0 + 1)
    assert (await take(store)).put == []  # its own order, taken late
    (again,) = (await take(store, id="two")).put
    assert again.data["cursor"] == 1000
    assert len(await told(store)) == 1


async def test_only_the_latest_are_noted(store: Store) -> None:
    for n in range(NOTED_MAX + 3):
        await take(store, id=f"o{n}", to_ms=9000 + n)
        await take(store, id="", to_ms=9000 + n, stop=True)
    assert [one.to_ms for one in await told(store)] == [9000 + n for n in range(3, NOTED_MAX + 3)]


def test_what_is_no_order() -> None:
    check(period_item("a", PERIOD, T0))
    backwards = msgspec.structs.replace(PERIOD, from_ms=9000)
    with pytest.raises(ValueError, match="ends before it begins"):
        check(period_item("a", backwards, T0))
