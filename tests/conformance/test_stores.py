"""What a store is: one suite over every driver, and the ledger's rules on each of them.

A driver is right when it passes this file; nothing here may know which driver it runs on, nor
reach behind the `Transaction`. The last tests run one random life on all drivers and compare.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.contracts import Flaw, Form, Head, Kind, Poll, Traits
from engine.core.errors import StoreBusy, StoreError
from engine.core.reconcile import History, Known
from engine.core.report import Report, decode, recipient_key
from engine.core.schedule import Ladder
from engine.core.secret import Secret
from engine.core.state import FINAL, State
from engine.core.units import iso
from engine.core.work import Asked, Committed, Expire, Incident, LogRow, Page, Settle, Work
from engine.stores import burying, ledger, sqlite_lots
from engine.stores.kept import SHOWN_MAX, read_asked
from engine.stores.memory import MemoryStore
from engine.stores.sqlite import SqliteStore
from engine.stores.tracked import Tracked
from engine.stores.tracked import track as take_tracked
from engine.stores.transaction import (
    STATE_CODES,
    DeadCount,
    DeadLetter,
    InboxItem,
    Piece,
    Store,
    Transaction,
)
from tests.services import own_schema

T0 = 1_700_000_000_000
DAY = 86_400_000
BOTH = frozenset({"batch", "message"})
DRAINED = Traits(feed="drained", one_time=True, dated=True, tracks=BOTH)
ASKED = Traits(dated=True, tracks=BOTH, asks=BOTH)
DERIVED = Traits(tracks=frozenset({"batch"}), asks=frozenset({"batch"}), derives_ids=True)
WINDOWED = Traits(feed="windowed", tracks=frozenset({"message"}))
LADDER = Ladder.of((300, 1800))
R1, R2 = "447700900001", "447700900002"


@asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Store]:
    yield MemoryStore()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Store]:
    yield SqliteStore(folder / "state.db")


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[Store]:
    async with own_schema() as url:
        from engine.stores.postgres import PostgresStore

        yield PostgresStore(Secret(url))


DRIVERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "postgres": postgres,
}


@pytest.fixture(params=DRIVERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with DRIVERS[request.param](tmp_path) as opened:
        await opened.open(own=True)
        yield opened
        await opened.close()


def message(message_id: str = "m1", account: str = "a", **fields: Any) -> Known:
    return Known(account=account, message_id=message_id, **fields)


def work(key: str = "k", account: str = "a", kind: Kind = Kind.BATCH, **fields: Any) -> Work:
    return Work(
        **{"account": account, "kind": kind, "key": key, "due_ms": T0, "start_ms": T0, **fields}
    )


def report(message_id: str = "m1", state: State = State.ENROUTE, **fields: Any) -> Report:
    told = {"message_id": message_id, "state": state, "final": state in FINAL}
    return Report(**{**told, "provider_status": state.value, **fields})


async def commit(
    store: Store,
    *reports: Report,
    traits: Traits = DRAINED,
    at: int = T0,
    account: str = "a",
    **more: Any,
) -> Committed:
    page = Page(
        account=account, provider="p", traits=traits, observed_ms=at, reports=list(reports), **more
    )
    return await store.write(lambda tx: ledger.commit(tx, page))


async def track(
    store: Store, *items: Tracked, traits: Traits = DRAINED, account: str = "a", now: int = T0
) -> list[Work]:
    return await store.write(
        lambda tx: take_tracked(tx, account, traits, items, ladder=LADDER, now_ms=now, chance=0.0)
    )


async def settle(
    store: Store, asked: Work, *reports: Report, traits: Traits, after_s: int = 300, **more: Any
) -> Committed:
    now = asked.start_ms + after_s * 1000
    finals = sum(told.final for told in reports)
    step = Settle(work=asked, ladder=LADDER, now_ms=now, rows=len(reports), finals=finals, **more)
    return await commit(store, *reports, traits=traits, at=now, account=asked.account, settle=step)


async def prune(store: Store, now: int, *sinks: tuple[str, frozenset[str] | None]) -> int:
    return await store.write(
        lambda tx: ledger.prune(
            tx, now_ms=now, retention_ms=30 * DAY, log_retention_ms=DAY, sinks=sinks
        )
    )


def tracked(key: str | None, *recipients: str, **fields: Any) -> Tracked:
    return Tracked(**{"batch_id": key, "recipients": list(recipients), "sent_ms": T0, **fields})


def rows_of(tx: Transaction, account: str = "a") -> list[LogRow]:
    return tx.log_rows(account, 0, 10**6, bytes_max=1 << 40)


def lines_of(row: LogRow) -> list[bytes]:
    lines = row.body.split(b"\n")
    assert [STATE_CODES[code] for code in row.states] == [decode(line).state for line in lines]
    return lines


async def records(store: Store, account: str = "a") -> list[Report]:
    rows = await store.read(lambda tx: rows_of(tx, account))
    return [decode(line) for row in rows for line in lines_of(row)]


async def get(store: Store, message_id: str = "m1", account: str = "a") -> Known:
    found = await store.read(lambda tx: tx.messages(account, [(message_id, "mt")]))
    return found[message_id, "mt"]


async def works(store: Store, account: str = "a") -> list[Work]:
    return await store.read(lambda tx: tx.works_due(account, 1 << 50, 10**6))


async def tallies(store: Store, account: str = "a") -> dict[str, int]:
    return (await store.read(lambda tx: tx.tallies())).get(account, {})


# The store around the transactions


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
    assert (await commit(store, report("m2"))).last_seq == 2


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


def dead(n: int, sink: str = "s", account: str = "a", **fields: Any) -> DeadLetter:
    told = {
        "place": (1, n), "message_id": f"m{n}", "revision": n, "event_id": f"e{n}",
        "cause": "too ugly", "record": b"{%d}" % n, "first_ms": T0 + n, "last_ms": T0 + n,
    }  # fmt: skip
    return DeadLetter(sink=sink, account=account, **{**told, **fields})


def letters_of(tx: Transaction, sink: str = "s") -> list[DeadLetter]:
    return tx.dead_letters(sink, 0, 10**6, bytes_max=1 << 40)


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
    tx.take_inbox(1)
    tx.put_inbox(InboxItem(account="a", kind="track", payload=b"2", at_ms=T0))
    tx.put_note("a", "limit", b"2")
    tx.drop_note("a", "gone")
    tx.add_tallies("never-seen", {"known": 1})


def picture(tx: Transaction, ids: list[str], accounts: str = "a") -> dict[str, Any]:
    """Whatever can be read of a store, without the driver's own numbers."""
    shot: dict[str, Any] = {"places": tx.places(), "troubles": tx.troubles(None, 99)}
    shot["pieces"] = [
        msgspec.structs.replace(one, id=0) for one in tx.pieces("a", 0, 0, 99, bytes_max=1 << 20)
    ]
    shot["dead"] = [
        msgspec.structs.replace(one, id=0) for sink in "st" for one in letters_of(tx, sink)
    ]
    shot["notes"] = [tx.notes(name) for name in ("limit", "gone")]
    for account in accounts:
        found = tx.messages(account, [(message_id, "mt") for message_id in ids])
        tx.newest(list(found.values()))
        unnumbered = {key: msgspec.structs.replace(one, row=None) for key, one in found.items()}
        due = tx.works_due(account, 1 << 50, 10**6)
        spans = tx.open_in_span(account, 0, 1 << 50, pending=False, limit=999)
        shot[account] = {
            "messages": unnumbered,
            "open": sorted(known.message_id for known in spans),
            "batches": {b: tx.batch_counts(account, b) for b in ("b1", "b2", "b9")},
            "works": sorted(str(msgspec.structs.replace(one, id=None)) for one in due),
            "bounds": tx.log_bounds().get(account, (1, 1)),
            "log": [(row.seq, row.at_ms, sorted(lines_of(row))) for row in rows_of(tx, account)],
            "tallies": {name: n for name, n in tx.tallies().get(account, {}).items() if n},
        }
    return shot


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
    items = await store.write(lambda tx: tx.take_inbox(9))
    assert [item.payload for item in items] == [b"0", b"1", b"2"]
    assert (await commit(store, report("m3"))).last_seq == 3


# Primitives


async def test_messages_are_found_by_what_they_are_known_by(store: Store) -> None:
    odd = "m\x00\u2028'\"😀"
    kept = [
        message("1", batch_id="b1", recipient="+44 7700 900001", reference="r"),
        message("1", "b", batch_id="b1", recipient="Some.One@example.org"),
        message("1", direction="mo"),
        message(odd, state=State.DELIVERED, final=True, tracked=True, status_ms=T0, error_code="e",
                record=b"\x00r", history=b"h", verdict="v", provider_status="s", open=False),
    ]  # fmt: skip
    await store.write(lambda tx: tx.put_messages(kept))
    ids = [("1", "mt"), (odd, "mt"), ("1", "mo"), ("2", "mt"), ("1", "mt")]
    found = await store.read(lambda tx: tx.messages("a", ids))
    assert not any(known.record for known in found.values())
    await store.read(lambda tx: tx.newest(list(found.values())))
    assert set(found) == {("1", "mt"), ("1", "mo"), (odd, "mt")}
    rows = [known.row for known in found.values()]
    assert None not in rows
    assert len(set(rows)) == 3
    assert msgspec.structs.replace(found[odd, "mt"], row=None) == kept[3]
    for by, value, count in (
        ("message_id", "1", 3), ("message_id", odd, 1), ("batch_id", "b1", 2),
        ("reference", "r", 1),
        ("recipient", recipient_key("0044 (7700) 900-001"), 1), ("reference", "none", 0),
        ("recipient", recipient_key("some.one@EXAMPLE.org"), 1),
    ):  # fmt: skip
        hits = await store.read(lambda tx, by=by, value=value: tx.find_messages(by, value, 9))
        assert len(hits) == count, (by, value)
    assert len(await store.read(lambda tx: tx.find_messages("message_id", "1", 2))) == 2


async def test_what_is_handed_out_is_a_copy(store: Store) -> None:
    mine, task = message(state=State.ENROUTE), work(data={"recipients": ["1"]})
    stored = await store.write(lambda tx: (tx.put_messages([mine]), tx.put_works([task]))[1])
    mine.state = State.READ
    task.data["recipients"].append("2")
    (await get(store)).state = State.DELETED
    (await works(store))[0].data["recipients"].append("3")
    assert (await get(store)).state is State.ENROUTE
    assert (await works(store))[0].data == {"recipients": ["1"]}
    assert stored[0].id is not None


async def test_batches_and_spans_follow_each_change(store: Store) -> None:
    held = [message(f"m{n}", batch_id="b1", placed_ms=T0 + n, tracked=n < 2) for n in range(4)]
    held.append(message("timeless", batch_id="b2"))
    await store.write(lambda tx: tx.put_messages(held))
    done = await get(store, "m1")
    done.final, done.open = True, False
    heard = await get(store, "m2")
    heard.final = True
    moved = await get(store, "m3")
    moved.batch_id, moved.placed_ms = "b2", T0 + 9
    await store.write(lambda tx: tx.put_messages([done, heard, moved]))

    def look(tx: Transaction) -> list[Any]:
        def span(start: int, end: int, pending: bool = False, limit: int = 9) -> list[str]:
            found = tx.open_in_span("a", T0 + start, T0 + end, pending=pending, limit=limit)
            return [known.message_id for known in found]

        counts = [tx.batch_counts("a", batch) for batch in ("b1", "b2", "none")]
        pending = tx.batch_messages("a", "b1", pending=True, limit=9)
        both = tx.batch_messages("a", "b1", pending=False, limit=2)
        spans = [span(0, 9), span(0, 2, True), span(2, 8), span(0, 9, limit=1), span(3, 3)]
        return [counts, [known.message_id for known in pending], len(both), spans]

    assert await store.read(look) == [
        [(3, 1, 1), (2, 2, 0), (0, 0, 0)], ["m0"], 2,
        [["m0", "m2", "m3"], ["m0"], ["m2"], ["m0"], []],
    ]  # fmt: skip


async def test_ended_messages_are_dropped_by_age(store: Store) -> None:
    held = [message(f"m{n}", final=True, seen_ms=n, record=b"r", history=b"h") for n in range(5)]
    await store.write(lambda tx: tx.put_messages([*held, message("open", seen_ms=0)]))
    gone = await store.write(lambda tx: tx.drop_ended(3, 2))
    gone += await store.write(lambda tx: tx.drop_ended(3, 9))
    assert sorted(known.message_id for known in gone) == ["m0", "m1", "m2"]
    assert {(known.record, known.history) for known in gone} == {(b"", b"")}
    left = await store.read(lambda tx: picture(tx, ["open", *(f"m{n}" for n in range(5))]))
    assert {key[0] for key in left["a"]["messages"]} == {"open", "m3", "m4"}


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


async def test_the_log_is_numbered_for_good(store: Store) -> None:
    rows = [LogRow(seq=n, at_ms=T0 + n, states=b"\x01", body=b"x" * n) for n in range(1, 6)]
    await store.write(lambda tx: [tx.append_log("a", rows[:3]), tx.append_log("a", rows[3:])])
    await store.write(lambda tx: tx.append_log("b", rows[:1]))

    def seqs(start: int, limit: int = 9, bytes_max: int = 1 << 20) -> Callable[..., list[int]]:
        return lambda tx: [row.seq for row in tx.log_rows("a", start, limit, bytes_max=bytes_max)]

    assert await store.read(lambda tx: tx.log_rows("a", 2, 1, bytes_max=99)) == [rows[1]]
    assert await store.read(seqs(0)) == [1, 2, 3, 4, 5]
    assert await store.read(seqs(4)) == [4, 5]
    assert await store.read(seqs(6)) == []
    assert await store.read(seqs(2, bytes_max=1)) == [2]
    assert await store.write(lambda tx: tx.drop_log("a", 4, T0 + 3, 9)) == 2
    assert await store.write(lambda tx: tx.drop_log("a", 5, T0 + 99, 1)) == 1
    assert (await store.read(lambda tx: tx.log_bounds()))["a"] == (4, 6)
    assert await store.read(seqs(0)) == [4, 5]
    assert await store.write(lambda tx: tx.drop_log("a", 6, T0 + 99, 9)) == 2
    assert await store.read(lambda tx: tx.log_bounds()) == {"a": (6, 6), "b": (1, 2)}


async def test_what_waits_for_a_sink_is_known_in_bytes(store: Store) -> None:
    rows = [LogRow(seq=n, at_ms=T0, states=b"\x01", body=b"x" * 10 * n) for n in range(1, 5)]

    async def waits() -> dict[str, dict[str, int]]:
        return await store.read(lambda tx: tx.backlog())

    assert await waits() == {}
    await store.write(lambda tx: tx.put_places("s", {"a": (1, 0), "none": (1, 0)}))
    await store.write(lambda tx: [tx.append_log("a", rows[:3]), tx.append_log("b", rows[:1])])
    assert await waits() == {"s": {"a": 60, "none": 0}}, "b is not taken by it"
    await store.write(lambda tx: tx.put_places("s", {"a": (3, 7)}))
    await store.write(lambda tx: tx.append_log("a", rows[3:]))
    await store.write(lambda tx: tx.put_places("t", {"a": (2, 0), "b": (1, 0)}))
    assert await waits() == {"s": {"a": 70, "none": 0}, "t": {"a": 90, "b": 10}}
    assert await store.write(lambda tx: tx.drop_log("a", 3, T0 + 1, 9)) == 2
    assert await waits() == {"s": {"a": 70, "none": 0}, "t": {"a": 70, "b": 10}}
    await store.write(lambda tx: tx.put_places("s", {"a": (5, 0)}))
    await store.write(lambda tx: tx.put_places("t", {"a": (5, 0)}))
    assert (await waits())["s"] == {"a": 0, "none": 0}
    await store.write(lambda tx: tx.drop_log("a", 5, T0 + 1, 9))
    await store.write(lambda tx: tx.append_log("a", [msgspec.structs.replace(rows[0], seq=5)]))
    assert (await waits())["t"] == {"a": 10, "b": 10}


async def test_places_tallies_and_notes(store: Store) -> None:
    await store.write(lambda tx: tx.put_places("s", {"a": (1, 2), "b": (3, 4)}))
    await store.write(
        lambda tx: [tx.put_places("s", {"a": (5, 0)}), tx.put_places("t", {"a": (0, 0)})]
    )
    assert await store.read(lambda tx: tx.places()) == {
        "s": {"a": (5, 0), "b": (3, 4)},
        "t": {"a": (0, 0)},
    }
    await store.write(
        lambda tx: [tx.add_tallies("a", {"x": 2, "y": 1}), tx.add_tallies("a", {"x": -3})]
    )
    assert await tallies(store) == {"x": -1, "y": 1}
    await store.write(lambda tx: [tx.put_note(name, "n", name.encode()) for name in "abc"])
    await store.write(
        lambda tx: [tx.put_note("a", "n", b"\x00"), tx.drop_note("b", "n"), tx.drop_note("z", "n")]
    )
    assert await store.read(lambda tx: tx.notes("n")) == {"a": b"\x00", "c": b"c"}
    assert await store.read(lambda tx: tx.notes("other")) == {}


async def test_the_same_trouble_again_only_counts(store: Store) -> None:
    flaws = [
        Flaw("cut", "row 1", b"\xff{"),
        Flaw("cut", "row 9", b"\xff{"),
        Flaw("cut", "row 2", b"{"),
    ]
    assert await store.write(lambda tx: tx.put_flaws("a", "poll", flaws, T0)) == 2
    assert await store.write(lambda tx: tx.put_flaws("a", "poll", flaws[:1], T0 + 5)) == 0
    assert await store.write(lambda tx: tx.put_flaws("a", "file", flaws[:1], T0 + 1)) == 1
    assert await store.write(lambda tx: tx.put_flaws("b", "poll", flaws[:1], T0 + 2)) == 1
    gap = Incident(kind="short_window", text="9 of 10", from_ms=1, to_ms=2, channel="S")
    other = msgspec.structs.replace(gap, channel=None)
    news = [
        await store.write(lambda tx, one=one: tx.put_incident("c", one, T0))
        for one in (gap, other, gap)
    ]
    assert news == [True, True, False]
    kept = await store.read(lambda tx: tx.troubles("a", 9))
    assert [(t.kind, t.cause, t.raw, t.first_ms, t.last_ms, t.times) for t in kept] == [
        ("set_aside", "cut", b"\xff{", T0, T0 + 5, 3),
        ("set_aside", "cut", b"\xff{", T0 + 1, T0 + 1, 1),
        ("set_aside", "cut", b"{", T0, T0, 1),
    ]
    assert "row 1" in kept[0].position
    gaps = await store.read(lambda tx: tx.troubles("c", 9))
    assert sorted((t.kind, t.cause, t.times) for t in gaps) == [
        ("short_window", "9 of 10", n) for n in (1, 2)
    ]
    assert len(await store.read(lambda tx: tx.troubles(None, 4))) == 4


async def test_pieces_are_kept_whole_until_they_are_digested(store: Store) -> None:
    asked = Asked(poll=Poll(kind=Kind.FEED, now_ms=T0, from_ms=1, to_ms=2), head=Head(200, {}))
    big = bytes(range(256)) * 4096
    flaws = [
        Flaw("bad", "record 1", b"{}"),
        Flaw("no JSON", "whole answer", big, form=Form.ANSWER),
        Flaw("cut", "whole answer", b"a", True, Form.ANSWER),
        Flaw("cut", "whole answer", b"b", True, Form.ANSWER),  # a beginning is kept once
    ]
    assert await store.write(lambda tx: tx.put_flaws("a", "poll", flaws, T0, asked)) == 3
    other = [Flaw("bad", "record 2", b"[]", form=Form.VALUE)]
    later = msgspec.structs.replace(asked, poll=Poll(kind=Kind.FEED, now_ms=T0 + 5))
    assert await store.write(lambda tx: tx.put_flaws("a", "poll", other, T0 + 5, later)) == 1
    assert await store.write(lambda tx: tx.put_flaws("b", "poll", other, T0, asked)) == 1
    refused = [Flaw("too long", "record", b"line")]
    assert await store.write(lambda tx: tx.put_flaws("a", "sink x", refused, T0)) == 1

    async def kept(account: str = "a", **limits: int) -> list[Piece]:
        wanted = {"after_id": 0, "since_ms": 0, "limit": 99, "bytes_max": 1 << 30, **limits}
        return await store.read(lambda tx: tx.pieces(account, **wanted))

    found = await kept()
    assert [(one.form, one.raw, one.size) for one in found] == [
        ("record", b"{}", 2), ("answer", big, len(big)), ("answer", b"a", 1), ("value", b"[]", 2),
    ]  # fmt: skip
    assert [one.truncated for one in found] == [False, False, True, False]
    assert found[2].times == 2
    assert [read_asked(one.asked) for one in found] == [asked] * 3 + [later]
    assert [one.at_ms for one in found] == [T0, T0, T0, T0 + 5]
    shown = await store.read(lambda tx: tx.troubles("a", 9))
    assert max(len(trouble.raw) for trouble in shown) == SHOWN_MAX < len(big)
    assert len(await kept(since_ms=T0 + 1)) == 1
    assert len(await kept(limit=2)) == 2
    assert [one.size for one in await kept(bytes_max=3)] == [2, len(big)]
    assert len(await kept(after_id=found[1].id)) == 2
    # A whole answer that was digested takes along what was set aside of it, and nothing else.
    done = await commit(store, report(), source=ledger.REPLAY, replayed=[found[1].id])
    assert done.records == 1
    assert [one.form for one in await kept()] == ["value"]
    assert [one.form for one in await kept("b")] == ["value"]
    assert (await tallies(store))["replayed"] == 3
    assert await store.write(lambda tx: tx.drop_pieces([found[1].id])) == 0
    await store.write(lambda tx: tx.put_flaws("a", "poll", flaws[1:2], T0 + 9, asked))
    assert await store.write(lambda tx: tx.drop_troubles(0, 99, len(big), 99)) == 3
    assert [one.raw == big for one in await kept()] == [True]  # the newest stay


async def test_dead_letters_are_kept_once_and_in_order(store: Store) -> None:
    assert await store.read(lambda tx: tx.count_dead_letters()) == {}
    new = await store.write(
        lambda tx: tx.put_dead_letters([dead(1), dead(2, record=b"x" * 10), dead(1, "t"), dead(1)])
    )
    assert new == 3
    again = dead(1, cause="still", place=(2, 5), first_ms=T0 + 50, last_ms=T0 + 50)
    assert await store.write(lambda tx: tx.put_dead_letters([again, dead(3, account="b")])) == 1
    found = await store.read(letters_of)
    assert [msgspec.structs.replace(one, id=0) for one in found] == [
        dead(1, cause="still", place=(2, 5), last_ms=T0 + 50, times=3),
        dead(2, record=b"x" * 10),
        dead(3, account="b"),
    ]
    ids = [one.id for one in found]
    assert ids == sorted(set(ids))
    for after, limit, size, wanted in (
        (0, 2, 99, [1, 2]), (ids[0], 9, 99, [2, 3]), (0, 9, 3, [1]), (0, 9, 4, [1, 2]),
        (ids[2], 9, 99, []),
    ):  # fmt: skip
        part = await store.read(
            lambda tx, *a, s=size, after=after, limit=limit: tx.dead_letters(  # type: ignore[misc]
                "s", after, limit, bytes_max=s
            )
        )
        assert [one.revision for one in part] == wanted, (after, limit, size)
    counts = await store.read(lambda tx: tx.count_dead_letters())
    assert counts == {
        "s": DeadCount(letters=3, bytes=16, first_ms=T0 + 1, last_id=ids[2]),
        "t": DeadCount(letters=1, bytes=3, first_ms=T0 + 1, last_id=counts["t"].last_id),
    }
    assert await store.write(lambda tx: tx.drop_dead_letters([ids[0], ids[0], 10**9])) == 1
    assert [one.revision for one in await store.read(letters_of)] == [2, 3]
    await store.write(lambda tx: tx.put_dead_letters([dead(1)]))
    assert [one.revision for one in await store.read(letters_of)] == [2, 3, 1]  # a new one
    assert (await store.read(letters_of))[-1].id > max(ids)


async def test_the_oldest_dead_letters_go_first(store: Store) -> None:
    kept = [dead(n, account="ab"[n % 2], record=b"x" * 10) for n in range(8)]
    await store.write(lambda tx: tx.put_dead_letters([*kept, dead(1, "t")]))
    for keep, size, gone, left in (
        (9, 99, {}, 8), (6, 60, {"a": 1, "b": 1}, 6), (99, 39, {"a": 2, "b": 1}, 3),
        (0, 99, {"a": 1, "b": 2}, 0),
    ):  # fmt: skip
        went = await store.write(lambda tx, k=keep, b=size: tx.trim_dead_letters("s", k, b))
        assert went == gone
        found = await store.read(letters_of)
        assert [one.revision for one in found] == list(range(8 - left, 8))
    assert len(await store.read(lambda tx: letters_of(tx, "t"))) == 1


async def test_what_was_refused_is_buried_and_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burying, "DEAD_MAX", 3)
    await commit(store, report("m1"), report("m2"))
    lines = [line for row in await store.read(rows_of) for line in lines_of(row)]
    refused = [
        burying.letter("s", "a", (1, n), line, "no" * 900, T0) for n, line in enumerate(lines)
    ]
    assert [one.message_id for one in refused] == ["m1", "m2"]
    assert refused[0].event_id == decode(lines[0]).event_id
    assert len(refused[0].cause) == burying.CAUSE_MAX
    odd = burying.letter("s", "b", (1, 0), b"no record", "odd", T0)
    assert (odd.message_id, len(odd.event_id)) == ("", 32)
    done = await store.write(lambda tx: burying.bury(tx, "s", [*refused, odd]))
    assert done == burying.Buried(new=3)
    done = await store.write(lambda tx: burying.bury(tx, "s", [refused[0], dead(7)]))
    assert done == burying.Buried(new=1, dropped=1)
    assert (await tallies(store))["refused"] == 3
    assert (await tallies(store))["dead_dropped"] == 1
    assert (await tallies(store, "b"))["refused"] == 1
    gone = await store.write(lambda tx: burying.forget(tx, "s"))
    assert gone == burying.Gone(accounts=0, dead_letters=3)


async def test_a_sink_goes_back_and_never_forward(store: Store) -> None:
    for n in range(4):
        told = [report(f"{n}-{each}") for each in range(5)]
        await commit(store, *told, at=T0 + 10 * n)
    await store.write(lambda tx: tx.drop_log("a", 2, T0 + 1, 9))
    for at, seq in ((T0 - 1, 2), (T0 + 10, 2), (T0 + 11, 3), (T0 + 30, 4), (T0 + 31, 5)):
        assert await store.read(lambda tx, at=at: tx.log_since("a", at)) == seq
    for seq, count, at in ((0, 15, 10), (2, 15, 10), (3, 10, 20), (4, 5, 30)):
        assert await store.read(lambda tx, seq=seq: tx.log_records("a", seq)) == (count, T0 + at)
    for account, seq in (("a", 5), ("z", 0)):
        records = await store.read(lambda tx, a=account, seq=seq: tx.log_records(a, seq))
        assert records == (0, None)
    assert await store.read(lambda tx: tx.log_since("z", 0)) == 1

    async def back(to: int | None, sink: str = "s") -> Any:
        return await store.write(lambda tx: burying.rewind(tx, sink, "a", to))

    async def behind(sink: str = "s", start: str = "oldest") -> Any:
        lags = await store.read(lambda tx: burying.lags(tx, {sink: (["a"], start)}))
        (found,) = lags[sink]
        return (found.place, found.records, found.oldest_ms)

    assert await behind() == (None, 15, T0 + 10)
    assert await behind(start="now") == (None, 0, None)
    await store.write(lambda tx: tx.put_places("s", {"a": (4, 2), "b": (1, 0)}))
    assert await behind() == ((4, 2), 3, T0 + 30)
    assert await back(T0 + 31) == ((4, 2), 0)
    assert await back(T0 + 30) == ((4, 0), 2)
    assert await back(T0 + 11) == ((3, 0), 5)
    assert await back(None) == ((2, 0), 5)
    assert await behind() == ((2, 0), 15, T0 + 10)
    lags = await store.read(lambda tx: burying.lags(tx, {"s": (["a"], "oldest")}))
    assert lags["s"][0].bytes == sum(len(row.body) for row in await store.read(rows_of))
    assert await back(None, "new") == ((2, 0), 15)
    assert (await store.read(lambda tx: tx.places()))["new"] == {"a": (2, 0)}
    gone = await store.write(lambda tx: burying.forget(tx, "s"))
    assert gone == burying.Gone(accounts=2)
    assert list(await store.read(lambda tx: tx.places())) == ["new"]


async def test_an_older_report_does_not_replace_a_newer_one_of_its_rank(store: Store) -> None:
    await commit(store, report(provider_status="12"), at=T0 + 9)
    replayed = {"source": ledger.REPLAY, "at": T0}
    done = await commit(store, report(provider_status="10"), **replayed)
    assert (done.records, done.lost) == (0, 1)
    done = await commit(store, report(provider_status="11", state=State.DELIVERED), **replayed)
    assert (done.records, done.lost) == (1, 0)
    assert [one.provider_status for one in await records(store)] == ["12", "11"]


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


async def test_the_inbox_is_taken_once_and_in_order(store: Store) -> None:
    items = [
        InboxItem(account="a", kind="track", payload=b"%d" % n, at_ms=T0 - n) for n in range(5)
    ]
    ids = [await store.write(lambda tx, item=item: tx.put_inbox(item)) for item in items]
    assert ids == sorted(set(ids))
    assert await store.read(lambda tx: tx.inbox_waits())
    first = await store.write(lambda tx: tx.take_inbox(2))
    assert [(item.payload, item.id) for item in first] == [(b"0", ids[0]), (b"1", ids[1])]
    rest = await store.write(lambda tx: tx.take_inbox(9))
    assert [item.payload for item in rest] == [b"2", b"3", b"4"]
    assert await store.write(lambda tx: tx.take_inbox(9)) == []
    assert not await store.read(lambda tx: tx.inbox_waits())


# The ledger: reports


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


async def test_set_aside_incidents_and_unlisted_codes_are_counted(store: Store) -> None:
    gap = Incident(kind="short_window", text="t", from_ms=1, to_ms=2)
    for _ in range(2):
        await commit(
            store, report(state=State.UNKNOWN), unlisted=frozenset({0}), incidents=[gap],
            flaws=[Flaw("bad", "1", b"x")],
        )  # fmt: skip
    counts = await tallies(store)
    assert (counts["unlisted"], counts["incident:short_window"], counts["set_aside"]) == (1, 1, 1)


async def test_the_log_is_cut_into_bounded_rows(store: Store) -> None:
    done = await commit(store, *(report(f"m{n}") for n in range(2500)))
    assert (done.records, done.last_seq) == (2500, 3)
    big = [report(f"big{n}", extra={"x": "y" * 400_000}) for n in range(5)]
    assert (await commit(store, *big)).last_seq == 5
    rows = await store.read(rows_of)
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert [len(row.states) for row in rows] == [1000, 1000, 500, 3, 2]
    assert all(len(b"".join(lines_of(row)[:-1])) < 1 << 20 for row in rows)


async def test_put_and_drop_go_with_the_page(store: Store) -> None:
    done = await commit(store, report(), put=[work("1-2", kind=Kind.WINDOW), work("")])
    assert [item.key for item in done.put] == ["1-2", ""]
    gone = done.put[0].id or 0
    assert (await commit(store, drop=[gone])).ended == [gone]
    assert [item.key for item in await works(store)] == [""]


# The ledger: what is tracked


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


# The ledger: how tracked work ends


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


async def test_nothing_goes_before_every_sink_has_it(store: Store) -> None:
    for n in range(3):
        await commit(store, report(f"m{n}", State.DELIVERED), at=T0 + n)
    await commit(store, report("other", State.DELIVERED), account="b")
    sinks = (("s", frozenset({"a"})), ("t", None))
    await store.write(lambda tx: tx.put_places("t", {"a": (4, 0), "b": (2, 0)}))
    late = T0 + 2 * DAY
    assert await prune(store, late, *sinks) == 1  # account b, of which s takes nothing
    await store.write(lambda tx: tx.put_places("s", {"a": (2, 0)}))
    assert await prune(store, T0 + DAY, *sinks) == 0
    assert await prune(store, late, *sinks) == 1
    assert [row.seq for row in await store.read(rows_of)] == [2, 3]
    await store.write(lambda tx: tx.put_places("s", {"a": (4, 0)}))
    assert await prune(store, T0 + 31 * DAY, *sinks) == 2 + 4
    assert (await tallies(store))["known"] == 0
    assert (await tallies(store))["final"] == 0
    assert (await commit(store, report("next"))).last_seq == 4


# Random lives

IDS = [f"m{n}" for n in range(6)]
IDS += [f"{batch}{rest}" for batch in ("b1", "b2") for rest in ("", f":{R1}", f":{R2}")]
TIMED = msgspec.structs.replace(DRAINED, sent_at_stays=True)
LIVES = {"d": DRAINED, "e": ASKED, "f": DERIVED, "g": WINDOWED, "h": TIMED}


def some_report(dice: random.Random, traits: Traits) -> Report:
    fields: dict[str, Any] = {"error_code": dice.choice([None, None, "9"])}
    state = dice.choice(list(State))
    if traits.dated:
        fields["done_at"] = dice.choice([None, iso(T0 + dice.randrange(50) * 1000)])
    if dice.random() < 0.5:
        fields["sent_at"] = iso(T0 + dice.randrange(100))
    if traits.derives_ids or dice.random() < 0.3:
        batch, recipient = dice.choice(["b1", "b2"]), dice.choice([R1, R2])
        fields |= {"batch_id": batch, "recipient": recipient}
        message_id = f"{batch}:{recipient}" if traits.derives_ids else f"m{dice.randrange(3)}"
    else:
        fields["channel"] = dice.choice(["sms", "rcs"])
        message_id = f"m{dice.randrange(6)}"
    if traits.sent_at_stays and "sent_at" in fields:
        fields["sent_at"] = iso(T0 + int(message_id[1:]) * 1000)
    return report(message_id, state, **fields)


async def live(store: Store, dice: random.Random, now: int) -> Any:
    """One step; the same dice take the same step on every driver."""
    account = dice.choice(list(LIVES))
    traits = LIVES[account]
    step = dice.random()
    told = [some_report(dice, traits) for _ in range(dice.randrange(1, 5))]
    chosen, batch, number = dice.random(), dice.choice(["b1", "b2"]), dice.randrange(6)
    recipients = dice.choice([[], [R1], [R2, R1]])
    if step < 0.5:
        unlisted = frozenset({0} if chosen < 0.1 else ())
        return await commit(store, *told, traits=traits, at=now, account=account, unlisted=unlisted)
    if step < 0.65:
        by_batch = ("batch" in traits.tracks and chosen < 0.5) or traits.derives_ids
        item = tracked(
            batch if by_batch else None, *recipients[: None if by_batch else 1], sent_ms=now,
            message_id=None if by_batch else f"m{number}", reference="r" if chosen < 0.3 else None,
        )  # fmt: skip
        new = await track(store, item, traits=traits, account=account, now=now)
        return [(one.key, one.due_ms) for one in new]
    if step < 0.85:
        due = sorted(await works(store, account), key=lambda one: (one.kind, one.key))
        if due:
            asked = due[int(chosen * len(due))]
            after_s = max(0, now - asked.start_ms) // 1000
            await settle(store, asked, *told, traits=traits, after_s=after_s, over=chosen > 0.95)
        return len(due)
    if step < 0.9:
        span = Expire(from_ms=T0, to_ms=T0 + int(chosen * 100), limit=number + 1)
        return (await commit(store, traits=traits, at=now, account=account, expire=span)).verdicts
    if step < 0.95:
        ages = {"retention_ms": 600_000, "log_retention_ms": 300_000}
        return await store.write(lambda tx: ledger.prune(tx, now_ms=now, sinks=[], **ages))

    def fails(tx: Transaction) -> None:
        page = Page(account=account, provider="p", traits=traits, observed_ms=now, reports=told)
        ledger.commit(tx, page)
        raise LookupError(account)

    with pytest.raises(LookupError):
        await store.write(fails)
    return None


def balance(shot: dict[str, Any]) -> None:
    recount: Counter[str] = Counter()
    for known in shot["messages"].values():
        recount.update(["known", "final" if known.final else "pending", f"state:{known.state}"])
        recount.update([f"verdict:{known.verdict}"] if known.verdict else [])
    sides = {k: n for k, n in shot["tallies"].items() if k.split(":")[0] in
             {"known", "final", "pending", "state", "verdict"}}  # fmt: skip
    assert sides == dict(recount)
    assert recount["known"] == recount["final"] + recount["pending"]
    first, end = shot["bounds"]
    assert [row[0] for row in shot["log"]] == list(range(first, end))


@pytest.mark.parametrize("seed", range(8))
async def test_a_random_life_balances_and_is_the_same_everywhere(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # lots of a few, or none
        monkeypatch.setattr(sqlite_lots, "LOT_MIN", 1)
        monkeypatch.setattr(sqlite_lots, "LOT_MAX", 3)
    dice = {name: random.Random(seed) for name in DRIVERS}
    async with AsyncExitStack() as stack:
        stores: dict[str, Store] = {}
        for name, make in DRIVERS.items():
            stores[name] = one = await stack.enter_async_context(make(tmp_path))
            await one.open(own=True)
            stack.push_async_callback(one.close)
        for step in range(150):
            now = T0 + step * 30_000
            results = [await live(one, dice[name], now) for name, one in stores.items()]
            if not isinstance(results[0], Committed):
                assert results[1:] == results[:1] * 2, step
            if step % 10 == 9:
                shots = [
                    await one.read(lambda tx: picture(tx, IDS, "".join(LIVES)))
                    for one in stores.values()
                ]
                for account in LIVES:
                    balance(shots[0][account])
                assert shots[1:] == shots[:1] * 2, step


async def test_what_becomes_known_later_finds_a_message_as_well(store: Store) -> None:
    """Also after so many others came that a driver has sorted the first ones away."""
    await track(store, tracked(None, message_id="m1"))
    for start in range(0, 9000, 1000):
        await commit(store, *(report(f"n{n}") for n in range(start, start + 1000)), at=T0)
    await commit(store, report(recipient="+44 7700 900001", reference="late"), at=T0 + 1)

    async def found(by: str, value: str) -> list[str]:
        hits = await store.read(lambda tx: tx.find_messages(by, value, 9))
        return [known.message_id for known in hits]

    assert await found("recipient", recipient_key(R1)) == ["m1"]
    assert await found("reference", "late") == ["m1"]
    assert await found("message_id", "n17") == ["n17"]
    assert await found("message_id", "n8999") == ["n8999"]
    assert await found("message_id", "none") == []
    again = await commit(store, report("n17"), report("m1", recipient="+44 7700 900001"), at=T0 + 2)
    assert (again.records, again.repeated) == (0, 2)
    await commit(store, report("m1", State.DELIVERED, recipient=R1), report("n17", State.READ))
    assert await prune(store, T0 + 31 * DAY) > 0
    assert await found("recipient", recipient_key(R1)) == []
    assert await found("message_id", "n17") == []
    assert await found("message_id", "n18") == ["n18"]


async def test_a_message_is_the_same_with_its_time_and_without(store: Store) -> None:
    def told(n: int, **fields: Any) -> Report:
        return report(f"n{n}", **{"sent_at": iso(T0 + 1000 * (n % 60)), **fields})

    for start in range(0, 9000, 1000):
        await commit(store, *(told(n) for n in range(start, start + 1000)), traits=TIMED)
    again = await commit(store, *(told(n) for n in range(1000)), traits=TIMED)
    assert (again.records, again.repeated) == (0, 1000)
    without = await commit(store, report("n5"), report("n8500"), report("new"), traits=TIMED)
    assert (without.records, without.repeated) == (1, 2)
    assert (
        await track(store, tracked(None, message_id="n6")) != []
    )  # it is pending: a verdict waits
    assert (await get(store, "n6")).tracked
    assert (await tallies(store))["known"] == 9001
    later = [told(n, state=State.DELIVERED) for n in (5, 6, 8500)]
    new = report("new", sent_at=iso(T0), state=State.READ)
    done = await commit(store, *later, new, traits=TIMED)
    assert (done.records, done.repeated) == (4, 0)
    assert (await tallies(store))["known"] == 9001
    assert (await get(store, "n6")).revision == 2
    assert {record.message_id for record in (await records(store))[-4:]} == {
        "n5", "n6", "n8500", "new",
    }  # fmt: skip


async def test_a_page_that_is_undone_and_done_again_is_found_as_it_came(store: Store) -> None:
    """A commit completes its reports by what was tracked: the second one must not take that for the
    provider's own time."""
    await track(store, tracked("b1", R1))
    told = report("m1", batch_id="b1", recipient=R1)
    page = Page(account="a", provider="p", traits=TIMED, observed_ms=T0, reports=[told])

    def fails(tx: Transaction) -> None:
        ledger.commit(tx, page)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        await store.write(fails)
    await store.write(lambda tx: ledger.commit(tx, page))
    own = report("m1", State.DELIVERED, batch_id="b1", recipient=R1, sent_at=iso(T0 + 7000))
    done = await commit(store, own, traits=TIMED)
    assert done.records == 1
    assert (await get(store, "m1")).revision == 2
    assert (await tallies(store))["known"] == 1


async def test_what_had_ended_when_it_was_new_is_found_changed_and_dropped(store: Store) -> None:
    """Drivers may keep such messages by the many; what becomes of one is its own."""

    def told(n: int, state: State = State.DELIVERED, **fields: Any) -> Report:
        named = {"batch_id": f"b{n % 2}", "recipient": f"+{n + 100}", "reference": f"r{n}"}
        return report(f"n{n}", state, sent_at=iso(T0 + n % 7 * 1000), **{**named, **fields})

    async def found(by: str, value: str) -> list[tuple[str, State]]:
        hits = await store.read(lambda tx: tx.find_messages(by, value, 999))
        return [(known.message_id, known.state) for known in hits]

    async def counts() -> list[tuple[int, int, int]]:
        batches = ("b0", "b1", "b7")
        return [await store.read(lambda tx, b=b: tx.batch_counts("a", b)) for b in batches]

    many = [told(n) for n in range(300)]
    assert (await commit(store, *many, traits=TIMED)).records == 300
    assert (await commit(store, *(told(n) for n in range(300)), traits=TIMED)).repeated == 300
    others = [told(n) for n in range(20, 40)]
    assert (await commit(store, *others, traits=TIMED, account="b")).records == 20
    assert await counts() == [(150, 0, 0), (150, 0, 0), (0, 0, 0)]

    changed = [told(7, State.READ, recipient="+9", batch_id="b7"), told(8, State.READ), told(300)]
    assert (await commit(store, *changed, traits=TIMED, at=T0 + DAY)).records == 3
    assert (await commit(store, *changed, traits=TIMED, at=T0 + DAY)).repeated == 3
    assert await counts() == [(151, 0, 0), (149, 0, 0), (1, 0, 0)]
    assert (await get(store, "n7")).revision == 2
    known = await get(store, "n9")
    await store.read(lambda tx: tx.newest([known]))
    assert decode(known.record).message_id == "n9"
    assert await found("message_id", "n8") == [("n8", State.READ)]
    assert await found("recipient", "9") == [("n7", State.READ)]
    assert await found("recipient", "107") == []
    assert await found("reference", "r21") == [("n21", State.DELIVERED)] * 2  # of two accounts
    listed = await store.read(lambda tx: tx.batch_messages("a", "b1", pending=False, limit=999))
    names = [known.message_id for known in listed]
    assert sorted(names) == sorted(f"n{n}" for n in range(1, 300, 2) if n != 7)
    first = await store.read(lambda tx: tx.batch_messages("a", "b1", pending=False, limit=4))
    assert [known.message_id for known in first] == names[:4]

    await store.write(lambda tx: tx.put_works([work("b1", kind=Kind.BATCH, account="a")]))
    retention = {"retention_ms": DAY // 2, "log_retention_ms": 1 << 50, "sinks": []}
    gone = [
        await store.write(lambda tx, at=at: ledger.prune(tx, now_ms=at, limit=60, **retention))
        for at in [T0 + DAY] * 20 + [T0 + 3 * DAY] * 3
    ]
    assert sum(gone) == 149 + 20 + 3
    assert await counts() == [(0, 0, 0), (149, 0, 0), (0, 0, 0)]
    assert await found("message_id", "n8") == []
    assert await found("recipient", "9") == []
    assert (await tallies(store))["known"] == 149
    assert (await commit(store, told(8), told(9), traits=TIMED)).records == 1


async def test_messages_of_the_release_before_are_found_after_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    told = [report(f"n{n}", State.DELIVERED, sent_at=iso(T0 + n * 1000)) for n in range(7)]
    store = SqliteStore(path)
    await store.open(own=True)
    await commit(store, *told, traits=TIMED)
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "DROP TABLE lot; DROP TABLE by_key; CREATE INDEX message_key ON message (key);"
            "PRAGMA user_version = 5"
        )
    await store.open(own=True)
    try:
        assert (await commit(store, *told, traits=TIMED)).repeated == 7
        await prune(store, T0 + 31 * DAY)
        assert (await commit(store, *told, traits=TIMED)).records == 7
    finally:
        await store.close()
