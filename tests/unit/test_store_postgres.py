"""The PostgreSQL store's own matters, against a real server: leases, many writers, odd values."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any

import pytest

from engine.core.contracts import Kind
from engine.core.errors import LeaseLost, StoreError
from engine.core.reconcile import Known
from engine.core.secret import Secret
from engine.core.work import Work
from engine.stores import ledger
from engine.stores.patient import PatientStore
from engine.stores.postgres import PostgresStore
from engine.stores.transaction import InboxItem, Transaction
from engine.telemetry import Telemetry
from tests.unit.postgres_parts import (
    T0,
    Database,
    Quick,
    database,
    newest,
    page,
    store,
    tallied,
    tally,
    url,
)

__all__ = ["database", "store", "url"]


async def lease(database: Database, account: str, fence: int) -> None:
    await database.execute(
        "INSERT INTO lease (account, fence) VALUES ($1, $2)"
        " ON CONFLICT (account) DO UPDATE SET fence = excluded.fence",
        account,
        fence,
    )


WRITES: dict[str, Any] = {
    "a page": lambda tx, a: ledger.commit(tx, page(uuid.uuid4().hex, account=a)),
    "messages": lambda tx, a: tx.put_messages([Known(account=a, message_id="m")]),
    "works": lambda tx, a: tx.put_works(
        [Work(account=a, kind=Kind.FEED, key="", due_ms=T0, start_ms=T0)]
    ),
    "a tally": lambda tx, a: tx.add_tallies(a, {"known": 1}),
    "a note": lambda tx, a: tx.put_note(a, "n", b"1"),
    "notes": lambda tx, a: tx.put_notes({("", "n"): b"1", (a, "n"): b"1"}),
    "no note": lambda tx, a: tx.drop_note(a, "n"),
    "places": lambda tx, a: tx.put_places("s", {a: (1, 0)}),
}


@pytest.mark.parametrize("what", WRITES)
async def test_who_has_lost_the_lease_writes_nothing(
    store: PostgresStore, database: Database, what: str
) -> None:
    await lease(database, "a", 7)
    await lease(database, "b", 3)
    store.fences = {"a": 7, "b": 3}
    write = WRITES[what]
    await store.write(lambda tx: write(tx, "a"))
    await lease(database, "a", 8)
    results = await asyncio.gather(
        *(store.write(lambda tx, a=a: write(tx, a)) for a in "baxb"), return_exceptions=True
    )
    lost = [result for result in results if isinstance(result, BaseException)]
    assert [type(one) for one in lost] == [LeaseLost, LeaseLost]
    assert [getattr(one, "account", "") for one in lost] == ["a", "x"]
    kept = await database.fetch(
        "SELECT account FROM message UNION ALL SELECT account FROM work UNION ALL"
        " SELECT account FROM tally UNION ALL SELECT account FROM note UNION ALL"
        " SELECT account FROM place"
    )
    assert "x" not in {row[0] for row in kept}


async def test_works_and_pieces_are_ended_by_the_leases_holder_alone(
    store: PostgresStore, database: Database
) -> None:
    [kept] = await store.write(lambda tx: WRITES["works"](tx, "a"))
    await lease(database, "a", 2)
    store.fences = {"a": 1}
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.drop_works([kept.id or 0]))
    assert await store.read(lambda tx: tx.work(kept.id or 0)) == kept
    store.fences = {"a": 2}
    await store.write(lambda tx: tx.drop_works([kept.id or 0]))
    assert await store.read(lambda tx: tx.work(kept.id or 0)) is None


async def test_a_lease_does_not_change_hands_under_a_write(
    store: PostgresStore, database: Database
) -> None:
    await lease(database, "a", 1)
    store.fences = {"a": 1}
    inside, go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        tx.add_tallies("a", {"known": 1})
        inside.set()
        go_on.wait(10)

    writing = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(inside.wait, 10)
    taking = asyncio.create_task(lease(database, "a", 2))
    await asyncio.sleep(0.2)
    assert not taking.done()
    go_on.set()
    await writing
    await taking
    assert await tallied(store, "known") == 1
    with pytest.raises(LeaseLost):
        await store.write(tally("known"))


async def test_the_inbox_takes_from_anybody_and_gives_to_the_holder(
    store: PostgresStore, database: Database
) -> None:
    await lease(database, "a", 1)
    store.fences = {"a": 1}
    for account in "ba":
        item = InboxItem(account=account, kind="track", payload=b"1", at_ms=T0)
        await store.write(lambda tx, item=item: tx.put_inbox(item))
    assert await store.read(lambda tx: tx.inbox_waits())
    (item,) = await store.write(lambda tx: tx.inbox(9))
    assert item.account == "a"
    await store.write(lambda tx: tx.drop_inbox([item.id]))
    assert not await store.read(lambda tx: tx.inbox_waits())
    store.fences = None
    assert [item.account for item in await store.write(lambda tx: tx.inbox(9))] == ["b"]


async def test_what_is_pruned_is_the_holders(store: PostgresStore, database: Database) -> None:
    ended = [Known(account=a, message_id="m", final=True, seen_ms=1) for a in "ab"]
    await store.write(lambda tx: tx.put_messages(ended))
    await lease(database, "a", 1)
    store.fences = {"a": 1, "b": 1}
    gone = await store.write(lambda tx: tx.drop_ended(T0, 9))
    assert [known.account for known in gone] == ["a"]
    assert await store.write(lambda tx: tx.drop_log("b", 9, T0, 9)) == 0


# Workers that know nothing of each other


async def test_two_that_write_one_account_lose_nothing(url: str) -> None:
    stores = [PostgresStore(Secret(url)) for _ in range(2)]
    await asyncio.gather(*(one.open(own=True) for one in stores))
    try:
        works = [page(f"m{n}", "both", at=T0 + n) for n in range(80)]
        await asyncio.gather(
            *(
                stores[n % 2].write(lambda tx, work=work: ledger.commit(tx, work))
                for n, work in enumerate(works)
            )
        )
        assert await tallied(stores[0], "known") == 81
        rows = await stores[0].read(lambda tx: tx.log_rows("a", 0, 999, bytes_max=1 << 30))
        assert [row.seq for row in rows] == list(range(1, 81))
        assert sum(len(row.states) for row in rows) == 81
    finally:
        for one in stores:
            await one.close()


async def test_jobs_over_many_accounts_do_not_lock_each_other_out(url: str) -> None:
    """Each of them over two accounts in one order or the other, from two processes at once."""
    stores = [PostgresStore(Secret(url)) for _ in range(2)]
    await asyncio.gather(*(one.open(own=True) for one in stores))

    def both(tx: Transaction, first: str, second: str, n: int) -> None:
        for account in (first, second):
            ledger.commit(tx, page(f"m{n}", account=account))

    try:
        patient = [PatientStore(one, Telemetry(), Quick()) for one in stores]
        await asyncio.gather(
            *(
                patient[n % 2].write(lambda tx, n=n: both(tx, *("ab" if n % 3 else "ba"), n))
                for n in range(60)
            )
        )
        assert [await tallied(stores[0], "known", a) for a in "ab"] == [60, 60]
    finally:
        for one in stores:
            await one.close()


# Values


async def test_a_value_that_cannot_be_kept_is_its_own_jobs_trouble(store: PostgresStore) -> None:
    many = [f"{n}" for n in range(100)]
    endless = "".join(f"{n:x}" for n in range(4000))  # longer than an index takes
    works = [page("m1"), page(*many, endless), page("m2"), page("\ud800"), page("m3")]
    results = await asyncio.gather(
        *(store.write(lambda tx, work=work: ledger.commit(tx, work)) for work in works),
        return_exceptions=True,
    )
    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(failed) == 2
    assert not any(isinstance(fault, StoreError) for fault in failed)  # they would end the worker
    assert endless not in str(failed[0])
    assert await tallied(store, "known") == 3


async def test_new_messages_that_are_there_already_are_put_over_them(store: PostgresStore) -> None:
    """By COPY, which knows no such thing, and then once more with care."""
    for revision in (1, 2):
        many = [
            Known(account="a", message_id=f"m{n}", revision=revision, record=b"r" * revision)
            for n in range(200)
        ]
        await store.write(lambda tx, many=many: tx.put_messages(many))
    assert await newest(store, "m7") == [(2, b"rr")]


async def test_a_record_that_is_left_out_stays(store: PostgresStore) -> None:
    for count in (1, 100):
        ids = [f"{count}-{n}" for n in range(count)]
        many = [Known(account="a", message_id=one, record=b"r") for one in ids]
        await store.write(lambda tx, many=many: tx.put_messages(many))
        found = await store.write(lambda tx, ids=ids: tx.messages("a", [(i, "mt") for i in ids]))
        for known in found.values():
            known.revision = 2
        await store.write(lambda tx, found=found: tx.put_messages(list(found.values())))
        assert set(await newest(store, *ids)) == {(2, b"r")}
