"""What a store is, over every driver: jobs that are whole or undone, scheduled work, the inbox.

A driver is right when it passes this and `test_store_*.py` and `test_ledger_*.py`; nothing in them
may know which driver it runs on, nor reach behind the `Transaction`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.contracts import Flaw, Head, Kind, Poll
from engine.core.errors import StoreBusy, StoreError
from engine.core.state import State
from engine.core.work import Asked, Incident, LogRow, Page, Work
from engine.stores import ledger
from engine.stores.kept import read_asked
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import (
    InboxItem,
    Store,
    Transaction,
)
from tests.conformance.storing import (
    T0,
    WINDOWED,
    commit,
    dead,
    get,
    message,
    next_seq,
    picture,
    records,
    report,
    rows_of,
    tallies,
    work,
    works,
)


@pytest.mark.parametrize("store", ["memory", "sqlite"], indirect=True)
async def test_one_worker_owns_a_store(store: Store) -> None:
    other = SqliteStore(store.path) if isinstance(store, SqliteStore) else store
    with pytest.raises(StoreBusy):
        await other.open(own=True)
    await store.write(lambda tx: tx.put_note("a", "n", b"still there"))


async def test_what_was_written_is_there_after_reopening(store: Store) -> None:
    await commit(store, report(), put=[work()])
    await store.close()
    with pytest.raises(StoreError):
        await store.read(lambda tx: tx.tallies())
    await store.open(own=True)
    assert (await get(store)).revision == 1
    assert len(await works(store)) == 1
    await commit(store, report("m2"))
    assert await next_seq(store) == 3


async def test_a_page_that_was_undone_is_taken_whole_the_second_time(store: Store) -> None:
    """After a full disk the same page is committed again: a window that it puts into the schedule
    must not be taken for one that has ended since."""
    page = Page(
        account="a",
        provider="p",
        traits=WINDOWED,
        observed_ms=T0,
        reports=[report("m1"), report("m1", State.DELIVERED), report("m2")],
        put=[work("1-2", kind=Kind.WINDOW, data={"from": 1, "to": 2})],
    )

    def undone(tx: Transaction) -> None:
        ledger.commit(tx, page)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        await store.write(undone)
    assert await works(store) == []
    done = await store.write(lambda tx: ledger.commit(tx, page))
    assert ([one.key for one in done.put], done.ended) == (["1-2"], [])
    assert [one.key for one in await works(store)] == ["1-2"]
    assert [one.revision for one in await records(store)] == [1, 2, 1]


async def test_nobody_hangs_on_a_store_that_closes(store: Store) -> None:
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    late = [store.write(lambda tx: tx.tallies()), store.read(lambda tx: tx.tallies())]
    results = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 5)
    assert all(isinstance(result, (dict, StoreError)) for result in results)
    await closing


async def test_many_writes_at_once_are_each_whole(store: Store) -> None:
    tasks = [
        commit(store, report(f"m{n}"), report(f"n{n}"), account="ab"[n % 2]) for n in range(120)
    ]
    await asyncio.gather(*tasks)
    for account in "ab":
        assert (await tallies(store, account))["known"] == 120
        rows = await store.read(lambda tx, account=account: rows_of(tx, account))
        assert [row.seq for row in rows] == list(range(1, 61))
        assert len(await records(store, account)) == 120


def everything(tx: Transaction) -> None:
    """Changes every table, in every way."""
    known = tx.messages("a", [("m1", "mt")])["m1", "mt"]
    known.state, known.batch_id, known.final, known.sent_ms = State.READ, "b9", True, T0 - 1
    tx.put_messages([known, message("new", batch_id="b1", sent_ms=T0, reference="r")])
    tx.drop_ended(1 << 50, 100)
    ids = [item.id for item in tx.works_due("a", 1 << 50, 9) if item.id is not None]
    tx.put_works([work("k", due_ms=5, data={"x": 1}), work("other")])
    tx.drop_works(ids[:1])
    tx.append_log("a", [LogRow(seq=3, at_ms=T0, states=b"\0", body=b"{}")])
    tx.drop_log("a", 2, 1 << 50, 9)
    tx.put_places("s", {"a": (9, 9), "z": (1, 0)})
    tx.add_tallies("a", {"known": 5, "fresh": 1})
    tx.put_flaws("a", "poll", [Flaw("cause", "1", b"raw"), Flaw("cause", "1", b"more")], T0 + 9)
    tx.drop_pieces([one.id for one in tx.pieces("a", 0, 0, 9, bytes_max=99)])
    asked = Asked(poll=Poll(kind=Kind.FEED, now_ms=T0), head=Head(200, {}))
    tx.put_flaws("a", "poll", [Flaw("cause", "1", b"again")], T0 + 9, asked)
    tx.put_incident("a", Incident(kind="short_window", text="t", from_ms=1, to_ms=2), T0)
    tx.put_dead_letters([dead(1, cause="other"), dead(9)])
    tx.drop_dead_letters([tx.dead_letters("s", 0, 1, bytes_max=1)[0].id])
    tx.trim_dead_letters("t", 0, 0)
    tx.drop_places("t")
    tx.drop_inbox([tx.inbox(1)[0].id])
    tx.put_inbox(InboxItem(account="a", kind="track", payload=b"2", at_ms=T0))
    tx.put_note("a", "limit", b"2")
    tx.put_notes({("a", "more"): b"3", ("b", "limit"): b"4"})
    tx.drop_note("a", "gone")
    tx.add_tallies("never-seen", {"known": 1})


async def test_a_job_that_fails_leaves_no_trace(store: Store) -> None:
    await commit(store, report(batch_id="b1", reference="r"), put=[work("k"), work("l")])
    await commit(store, report("m2", State.READ), flaws=[Flaw("cause", "1", b"raw")])
    await store.write(lambda tx: [tx.put_places(sink, {"a": (2, 0)}) for sink in "st"])
    await store.write(lambda tx: tx.put_dead_letters([dead(1), dead(2), dead(3, "t")]))
    for number in range(3):
        item = InboxItem(account="a", kind="track", payload=b"%d" % number, at_ms=T0)
        await store.write(lambda tx, item=item: tx.put_inbox(item))
    await store.write(lambda tx: [tx.put_note("a", name, b"1") for name in ("limit", "gone")])

    def fails(tx: Transaction) -> None:
        everything(tx)
        raise RuntimeError("in the middle")

    before = await store.read(lambda tx: picture(tx, ["m1", "m2", "new"]))
    results = await asyncio.gather(
        store.write(lambda tx: tx.add_tallies("y", {"known": 1})),
        store.write(fails),
        store.write(lambda tx: tx.add_tallies("z", {"known": 2})),
        return_exceptions=True,
    )
    assert isinstance(results[1], RuntimeError)
    assert await store.read(lambda tx: picture(tx, ["m1", "m2", "new"])) == before
    fresh = {name: (await tallies(store, name)).get("known") for name in ("y", "z", "never-seen")}
    assert fresh == {"y": 1, "z": 2, "never-seen": None}
    items = await store.write(lambda tx: tx.inbox(9))
    assert [item.payload for item in items] == [b"0", b"1", b"2"]
    await commit(store, report("m3"))
    assert await next_seq(store) == 4


async def test_batches_are_found_by_their_reference(store: Store) -> None:
    odd = 'or"der\\ é\x00-17'
    new = [work(f"k{n}", data={"sent": 1, "reference": odd, "x": n}) for n in range(3)]
    new += [work("other", data={"reference": odd + "8"}), work("none", data={"text": odd})]
    new += [work("told", data={"text": f'"reference":"{odd}"'}), work("k9", "b", data=new[0].data)]
    new += [work("m", kind=Kind.MESSAGE, data=new[0].data)]
    await store.write(lambda tx: tx.put_works(new))

    def look(tx: Transaction) -> list[list[str]]:
        asked = (("a", odd, 9), ("a", odd, 2), ("b", odd, 9), ("a", "", 9), ("c", odd, 9))
        return [[item.key for item in tx.find_batches(*one)] for one in asked]

    assert await store.read(look) == [["k0", "k1", "k2"], ["k0", "k1"], ["k9"], [], []]


async def test_works_are_found_by_id_key_and_time(store: Store) -> None:
    new = [work(f"k{n}", due_ms=T0 - n, data={"n": n, "text": "é"}) for n in range(4)]
    new += [work("k0", kind=Kind.MESSAGE, due_ms=T0 + 5), work("k0", "b")]
    stored = await store.write(lambda tx: tx.put_works(new))
    ids = [item.id for item in stored]
    assert len(set(ids)) == 6
    assert None not in ids
    moved = msgspec.structs.replace(stored[1], due_ms=T0 + 1, answered_ms=7)
    again = await store.write(lambda tx: tx.put_works([moved, work("k2", due_ms=T0 - 50)]))
    assert [item.id for item in again] == [ids[1], ids[2]]

    def look(tx: Transaction) -> list[Any]:
        def keys(found: list[Work]) -> list[str]:
            return [item.key for item in found]

        return [
            keys(tx.works_due("a", T0, 9)), keys(tx.works_due("a", T0, 2)),
            sorted(keys(tx.find_works("a", Kind.BATCH, ["k0", "k3", "none"]))),
            sorted(keys(tx.find_works("a", Kind.BATCH, None))),
            keys(tx.find_works("a", Kind.FEED, None)), tx.find_works("a", Kind.BATCH, []),
            tx.work(ids[1] or 0), tx.work(10**9),
        ]  # fmt: skip

    assert await store.read(look) == [
        ["k2", "k3", "k0"], ["k2", "k3"], ["k0", "k3"], ["k0", "k1", "k2", "k3"], [], [], moved,
        None,
    ]  # fmt: skip
    assert await store.read(lambda tx: tx.count_works(T0)) == {
        "a": {Kind.BATCH: (4, 3, T0 - 50), Kind.MESSAGE: (1, 0, T0 + 5)},
        "b": {Kind.BATCH: (1, 1, T0)},
    }
    await store.write(lambda tx: tx.drop_works([ids[0] or 0, 10**9]))
    assert "k0" not in [item.key for item in await works(store) if item.kind is Kind.BATCH]


async def test_the_id_of_a_work_is_never_given_again(store: Store) -> None:
    """Or an answer that was under way when its work ended would settle another one."""
    first = (await store.write(lambda tx: tx.put_works([work("old")])))[0]
    await store.write(lambda tx: tx.drop_works([first.id or 0]))
    second = (await store.write(lambda tx: tx.put_works([work("new")])))[0]
    assert second.id != first.id


async def test_a_store_of_an_older_release_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as db:
        schema = Path(ledger.__file__).parent / "schema" / "sqlite-0001.sql"
        db.executescript(schema.read_text(encoding="utf-8"))
        db.execute("INSERT INTO account (id, name) VALUES (1, 'a')")
        db.executemany(
            "INSERT INTO trouble (account, kind, identity, cause, position, raw, first_ms,"
            " last_ms, times) VALUES (1, ?, ?, 'bad', ?, ?, 5, 6, 1)",
            [
                ("set_aside", "x", "poll: record 3", b"raw"),
                ("set_aside", "y", "sink s: record", b"line"),
                ("short_window", "z", "1-2", b""),
            ],
        )
        db.execute("PRAGMA user_version = 1")
        db.commit()
    store = SqliteStore(path)
    await store.open(own=True)
    try:
        assert len(await store.read(lambda tx: tx.troubles("a", 9))) == 3
        (piece,) = await store.read(lambda tx: tx.pieces("a", 0, 0, 9, bytes_max=99))
        assert (piece.raw, piece.form, piece.at_ms) == (b"raw", "record", 5)
        assert read_asked(piece.asked) is None  # what had been asked is not known
        assert (await commit(store, report(), flaws=[Flaw("bad", "1", b"x")])).records == 1
    finally:
        await store.close()


async def test_the_inbox_is_read_in_order_and_keeps_what_is_not_dropped(store: Store) -> None:
    items = [
        InboxItem(account="a", kind="track", payload=b"%d" % n, at_ms=T0 - n) for n in range(5)
    ]
    ids = [await store.write(lambda tx, item=item: tx.put_inbox(item)) for item in items]
    assert ids == sorted(set(ids))
    assert await store.read(lambda tx: tx.inbox_waits())
    first = await store.write(lambda tx: tx.inbox(2))
    assert [(item.payload, item.id) for item in first] == [(b"0", ids[0]), (b"1", ids[1])]
    assert await store.write(lambda tx: tx.inbox(2)) == first  # they stay until they are dropped
    rest = await store.write(lambda tx: tx.inbox(9, [*ids[:2], ids[3]]))
    assert [item.payload for item in rest] == [b"2", b"4"]
    await store.write(lambda tx: tx.drop_inbox([ids[0], *ids[2:], 1 << 40]))
    assert [item.payload for item in await store.write(lambda tx: tx.inbox(9))] == [b"1"]
    assert await store.read(lambda tx: tx.inbox_waits([ids[0]]))
    assert not await store.read(lambda tx: tx.inbox_waits([ids[1]]))
    await store.write(lambda tx: tx.drop_inbox(ids))
    assert not await store.read(lambda tx: tx.inbox_waits())
