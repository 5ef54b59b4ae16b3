"""Messages in every store: found by whatever they are known by, changed, and dropped by age."""

from __future__ import annotations

import random
import sqlite3
import string
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.contracts import Kind
from engine.core.report import Report, decode, recipient_key
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Page
from engine.stores import ledger
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import (
    Store,
    Transaction,
)
from tests.conformance.storing import (
    DAY,
    R1,
    T0,
    TIMED,
    commit,
    get,
    message,
    picture,
    prune,
    records,
    report,
    tallies,
    track,
    tracked,
    work,
    works,
)


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


async def test_a_reference_may_be_long(store: Store) -> None:
    """Infobip's callbackData has up to 4,000 characters; an index of PostgreSQL holds fewer."""
    rand = random.Random(1)
    begun = "".join(rand.choices(string.ascii_letters, k=300))
    one, other = (begun + "".join(rand.choices("ab\u20ac\U0001f600xyz", k=3700)) for _ in range(2))
    told = [report("1", reference=one), report("2", reference=other), report("3", reference=one)]
    assert (await commit(store, *told)).records == 3
    for text, ids in ((one, ["1", "3"]), (other, ["2"]), (begun, [])):
        hits = await store.read(lambda tx, text=text: tx.find_messages("reference", text, 9))
        assert sorted(known.message_id for known in hits) == ids


async def test_a_batch_is_counted_right_whatever_was_looked_at_before(store: Store) -> None:
    def told(n: int, state: State = State.REJECTED) -> Report:
        return report(f"n{n}", state, sent_at=iso(T0), batch_id="b")

    def look_and_take(tx: Transaction) -> None:  # as where a batch is looked through to its end
        tx.batch_messages("a", "b", pending=False, limit=999)
        again = [told(3, State.READ)]
        page = Page(account="a", provider="p", traits=TIMED, observed_ms=T0 + 2, reports=again)
        ledger.commit(tx, page)

    await commit(store, *map(told, range(20)), traits=TIMED)
    await commit(store, told(3, State.DELIVERED), traits=TIMED, at=T0 + 1)
    await store.write(look_and_take)
    assert await store.read(lambda tx: tx.batch_counts("a", "b")) == (20, 0, 0)


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
