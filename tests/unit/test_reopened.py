"""A correction after a verdict that is not final: the last rung once more, and a verdict again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.books.tracking import fit_schedule, take_tracked
from engine.core.contracts import Kind
from engine.core.report import Report
from engine.core.schedule import Ladder
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Page, Work
from engine.polling.poller import AccountPoller
from engine.stores import ledger
from engine.stores.tracked import Tracked
from tests.unit.parts import EMPTY, T0, Parts

LIMITS = {"requests": 100, "per": "1s"}
LADDER = {"ladder": ["10s", "40s"], "rescan": ["10s", "40s"]}
LAST_GAP_MS = 30_000
LATE_MS = T0 + 500_000
SENT_MS = T0 - 1000


async def tracked(parts: Parts, **keys: Any) -> list[Work]:
    """Tracked, and ended with a verdict that nothing was ever heard."""
    item = Tracked(sent_ms=SENT_MS, **keys)
    works = await parts.store.write(
        lambda tx: take_tracked(tx, parts.account, [item], redactor=None, now_ms=T0, chance=0.0)
    )
    parts.clock.ms = LATE_MS
    poller = AccountPoller(parts.asker)
    for work in works:
        page = await poller._verdicts.page(work)
        await parts.asker.commit(page)
    return works


async def report(parts: Parts, message_id: str, **keys: Any) -> None:
    """The provider says that it is under way, by whatever way."""
    page = parts.asker.page()
    page.reports = [
        Report(
            message_id=message_id, state=State.ENROUTE, final=False, provider_status="10",
            sent_at=iso(SENT_MS), **keys,
        )
    ]  # fmt: skip
    await parts.asker.commit(page)


async def works(parts: Parts) -> list[Work]:
    return await parts.store.read(lambda tx: tx.works_after("a", 0, 100))


async def end(parts: Parts, message_id: str) -> tuple[str, str | None]:
    found = await parts.store.read(lambda tx: tx.find_messages("message_id", message_id, 2))
    await balanced(parts)
    return found[0].state.value, found[0].verdict


async def balanced(parts: Parts) -> None:
    counts = (await parts.store.read(lambda tx: tx.tallies()))["a"]
    assert counts["known"] == counts.get("final", 0) + counts.get("pending", 0)


def text(code: int) -> bytes:
    return f"0|Returns to follow\n\n447700900001|{code}\n".encode()


@pytest.mark.parametrize(
    ("code", "outcome"), [(10, ("enroute", "last_known")), (11, ("delivered", None))]
)
async def test_a_batch_is_asked_for_once_more(code: int, outcome: tuple[str, str | None]) -> None:
    answers = [(200, text(code))]
    async with Parts("bulksms", *answers, limits=LIMITS, schedule=LADDER) as parts:
        await tracked(parts, batch_id="7", recipients=["447700900001"])
        assert await end(parts, "7:447700900001") == ("unknown", "never_reported")
        assert await works(parts) == []
        await report(parts, "7:447700900001", batch_id="7", recipient="447700900001")
        (work,) = await works(parts)
        assert (work.kind, work.key, work.due_ms) == (Kind.BATCH, "7", LATE_MS + LAST_GAP_MS)
        assert await end(parts, "7:447700900001") == ("enroute", None)
        parts.clock.ms = work.due_ms
        await AccountPoller(parts.asker)._rung(work, None)
        assert await end(parts, "7:447700900001") == outcome
        assert await works(parts) == []


async def test_a_message_of_a_drained_queue_gets_its_verdict_again() -> None:
    async with Parts("infobip", (200, {"results": []}), schedule=LADDER) as parts:
        await tracked(parts, message_id="m1")
        await report(parts, "m1")
        await report(parts, "m1")  # a repetition puts nothing into the schedule
        (work,) = await works(parts)
        assert (work.kind, work.key, work.due_ms) == (Kind.MESSAGE, "m1", LATE_MS + LAST_GAP_MS)
        parts.clock.ms = work.due_ms
        poller = AccountPoller(parts.asker)
        poller.feed_began_ms = parts.clock.ms
        await poller._end(work)
        assert await end(parts, "m1") == ("enroute", "last_known")
        assert await works(parts) == []


async def test_what_nobody_tracked_is_promised_no_end() -> None:
    async with Parts("infobip", (200, {"results": []}), schedule=LADDER) as parts:
        await report(parts, "m1")
        assert await works(parts) == []


async def test_a_message_of_a_windowed_feed_gets_a_window_of_its_own() -> None:
    async with Parts("avaamo", (200, EMPTY), limits=LIMITS, schedule=LADDER) as parts:
        await tracked(parts, message_id="m1")
        await report(parts, "m1")
        (work,) = await works(parts)
        assert (work.kind, work.due_ms) == (Kind.WINDOW, LATE_MS + LAST_GAP_MS)
        assert work.data == {"from": SENT_MS, "to": SENT_MS + 1}
        parts.clock.ms = work.due_ms
        visit = await AccountPoller(parts.asker)._again.visit([work])
        assert visit.failed is None
        assert await end(parts, "m1") == ("enroute", "last_known")
        assert await works(parts) == []


async def test_what_a_window_holds_needs_no_other() -> None:
    async with Parts("avaamo", (200, EMPTY), limits=LIMITS, schedule=LADDER) as parts:
        await tracked(parts, message_id="m1")
        data = {"from": SENT_MS - 5, "to": SENT_MS + 5}
        await parts.put(
            Work(account="a", kind=Kind.WINDOW, key="w", due_ms=T0, start_ms=T0, data=data)
        )
        await report(parts, "m1")
        assert [work.key for work in await works(parts)] == ["w"]


async def test_without_rescans_there_are_no_verdicts() -> None:
    async with Parts("avaamo", (200, EMPTY), schedule={"rescan": []}) as parts:
        ended = Report(message_id="m1", state=State.UNKNOWN, final=True, verdict="last_known")
        page = Page(
            account="a", provider="avaamo", traits=parts.account.provider.traits, observed_ms=T0,
            reports=[ended],
        )  # fmt: skip
        await parts.store.write(lambda tx: ledger.commit(tx, page))
        await report(parts, "m1")
        assert await end(parts, "m1") == ("enroute", None)
        assert await works(parts) == []


async def test_where_the_rescans_were_taken_out_there_are_none_any_more() -> None:
    """Also for what was under way: a window that is left is not read, and gives no verdict."""
    async with Parts("avaamo", (200, EMPTY), limits=LIMITS, schedule={"rescan": []}) as parts:
        rand, before = random.Random(1), Ladder.of((10.0, 40.0))
        await fit_schedule(parts.store, parts.account, before, rand)
        data = {"from": SENT_MS, "to": SENT_MS + 1}
        for kind, key in ((Kind.WINDOW, "w"), (Kind.MESSAGE, "m1"), (Kind.BACKFILL, "b")):
            await parts.put(
                Work(account="a", kind=kind, key=key, due_ms=T0, start_ms=T0, data=data)
            )
        await fit_schedule(parts.store, parts.account, Ladder.of(()), rand)
        assert [work.key for work in await works(parts)] == ["b"]
