"""What went wrong, in every store: set-aside pieces, incidents, and what sinks refused for good."""

from __future__ import annotations

import msgspec
import pytest

from engine.core.contracts import Flaw, Form, Head, Kind, Poll
from engine.core.report import decode
from engine.core.state import State
from engine.core.work import Asked, Incident
from engine.stores import burying, ledger
from engine.stores.kept import SHOWN_MAX, read_asked
from engine.stores.transaction import (
    DeadCount,
    Piece,
    Store,
)
from tests.conformance.storing import (
    T0,
    commit,
    dead,
    letters_of,
    lines_of,
    report,
    rows_of,
    tallies,
)


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


async def test_set_aside_incidents_and_unlisted_codes_are_counted(store: Store) -> None:
    gap = Incident(kind="short_window", text="t", from_ms=1, to_ms=2)
    for _ in range(2):
        await commit(
            store, report(state=State.UNKNOWN), unlisted=frozenset({0}), incidents=[gap],
            flaws=[Flaw("bad", "1", b"x")],
        )  # fmt: skip
    counts = await tallies(store)
    assert (counts["unlisted"], counts["incident:short_window"], counts["set_aside"]) == (1, 1, 1)
