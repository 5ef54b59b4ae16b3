"""Portions of a file in the inbox: taken once, counted, and what cannot be recorded is kept."""

from __future__ import annotations

import msgspec
import pytest

from engine.books.ingesting import PORTIONS_MAX, Worker
from engine.books.portions import RUNS_MAX, Counts, Portion, counts_of, portion_item, take_portion
from engine.core.contracts import Flaw, Form, Head, Kind, Poll
from engine.core.errors import EngineError
from engine.core.report import Report
from engine.core.state import State
from engine.core.work import Asked, Page
from tests.unit.parts import T0, Parts


def page(parts: Parts, *ids: str, flaws: int = 0) -> Page:
    told = {"state": State.ENROUTE, "final": False, "provider_status": "SENT"}
    reports = [Report(message_id=one, **told) for one in ids]
    return Page(
        account="a",
        provider="messangi",
        traits=parts.account.provider.traits,
        observed_ms=T0,
        reports=reports,
        asked=Asked(poll=Poll(kind=Kind.FILE, now_ms=T0), head=Head(200, {})),
        flaws=[Flaw("no row", f"line {n}", b"%d" % n) for n in range(flaws)],
    )


async def take(parts: Parts, *pages: Page, run: str = "r", first: int = 1, **more: bool) -> Counts:
    def job(tx: object) -> Counts:
        for number, one in enumerate(pages, first):
            item = portion_item(one, run, number, T0)
            take_portion(tx, parts.account, item, **{"apart": False, **more})
        return counts_of(tx, "a")[run]

    return await parts.store.write(job)


async def test_portions_are_counted_by_reading() -> None:
    async with Parts("messangi", (200, {})) as parts:
        counts = await take(parts, page(parts, "m1", "m2"), page(parts, "m2", "m3", flaws=2))
        assert counts == Counts(portions=2, new=3, repeated=1)
        assert await take(parts, page(parts, "m1"), run="s") == Counts(portions=1, repeated=1)
        counts = await take(parts, page(parts, "m9"), first=3)
        assert counts == Counts(portions=3, new=4, repeated=1)
        pieces = await parts.store.read(lambda tx: tx.pieces("a", 0, 0, 10, bytes_max=1 << 20))
        assert [(piece.cause, piece.position) for piece in pieces] == [
            ("no row", "file: line 0"), ("no row", "file: line 1"),
        ]  # fmt: skip
        tallies = (await parts.store.read(lambda tx: tx.tallies()))["a"]
        assert (tallies["known"], tallies["set_aside"]) == (4, 2)


async def test_only_the_latest_readings_are_noted() -> None:
    async with Parts("messangi", (200, {})) as parts:
        for n in range(RUNS_MAX + 3):
            await take(parts, page(parts, f"m{n}"), run=f"r{n}")
        runs = await parts.store.read(lambda tx: counts_of(tx, "a"))
        assert list(runs) == [f"r{n}" for n in range(3, RUNS_MAX + 3)]


async def test_what_cannot_be_recorded_is_kept_to_be_read_one_by_one() -> None:
    async with Parts("messangi", (200, {})) as parts:
        counts = await take(parts, page(parts, "m1", "m2"), apart=True)
        assert counts == Counts(portions=1, apart=2)
        pieces = await parts.store.read(lambda tx: tx.pieces("a", 0, 0, 10, bytes_max=1 << 20))
        assert {piece.form for piece in pieces} == {Form.REPORT}
        assert len(pieces) == 2


async def test_an_item_is_what_was_read() -> None:
    async with Parts("messangi", (200, {})) as parts:
        item = portion_item(page(parts, "m1"), "r", 7, T0 - 5)
        portion = msgspec.msgpack.decode(item.payload, type=Portion)
        assert (portion.run, portion.number, portion.began_ms) == ("r", 7, T0 - 5)
        assert [report.message_id for report in portion.reports] == ["m1"]
        with pytest.raises(msgspec.ValidationError):
            msgspec.msgpack.decode(msgspec.msgpack.encode({"run": "r"}), type=Portion)


async def test_a_worker_that_takes_nothing_is_not_waited_for_for_ever() -> None:
    """What was handed over waits; and no more was than it takes in one transaction."""
    async with Parts("messangi", (200, {})) as parts:
        worker = Worker("a", parts.store, parts.clock, T0)
        for n in range(PORTIONS_MAX - 1):
            await worker.keep(page(parts, f"m{n}"))
        with pytest.raises(EngineError, match="has taken nothing for 60 s"):
            await worker.keep(page(parts, "last"))
        items = await parts.store.read(lambda tx: tx.inbox(100, ()))
        assert len(items) == PORTIONS_MAX
        assert worker.counts == Counts()
