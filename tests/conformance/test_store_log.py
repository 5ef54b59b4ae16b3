"""The log in every store, and where sinks stand in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.core.state import State
from engine.core.work import LogRow
from engine.stores import burying
from engine.stores.transaction import Store
from tests.conformance.storing import (
    DAY,
    T0,
    commit,
    lines_of,
    next_seq,
    prune,
    report,
    rows_of,
    tallies,
)


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
    await store.write(lambda tx: tx.put_notes({(name, "n"): name.encode() for name in "abc"}))
    await store.write(
        lambda tx: [tx.put_note("a", "n", b"\x00"), tx.drop_note("b", "n"), tx.drop_note("z", "n")]
    )
    assert await store.read(lambda tx: tx.notes("n")) == {"a": b"\x00", "c": b"c"}
    assert await store.read(lambda tx: tx.notes("other")) == {}


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


async def test_the_log_is_cut_into_bounded_rows(store: Store) -> None:
    done = await commit(store, *(report(f"m{n}") for n in range(2500)))
    assert done.records == 2500
    assert await next_seq(store) == 4
    big = [report(f"big{n}", extra={"x": "y" * 400_000}) for n in range(5)]
    await commit(store, *big)
    assert await next_seq(store) == 6
    rows = await store.read(rows_of)
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5]
    assert [len(row.states) for row in rows] == [1000, 1000, 500, 3, 2]
    assert all(len(b"".join(lines_of(row)[:-1])) < 1 << 20 for row in rows)


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
    await commit(store, report("next"))
    assert await next_seq(store) == 5
