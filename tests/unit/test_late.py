"""A one-time answer whose lease was lost, into the inbox and out of it: nothing of it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import engine
from engine.books.late import late_answer, take_late
from engine.books.replaying import Order, Replayer
from engine.core.contracts import Flaw, Form, Head, Kind, Poll, Traits
from engine.core.errors import LeaseLost
from engine.core.report import Report
from engine.core.state import State
from engine.core.work import Asked, Page
from engine.machine.clock import RealClock
from engine.stores.ledger import commit
from engine.stores.memory import MemoryStore
from engine.telemetry import Telemetry
from tests.integration.harness import infobip

ONCE = Traits(feed="drained", one_time=True, dated=True)
AT = 1_700_000_000_000
ASKED = Asked(poll=Poll(kind=Kind.FEED, now_ms=AT), head=Head(200, {"date": "now"}))


def account() -> Any:
    config = engine.configure({"accounts": [infobip("https://x.example")]}, base=Path("/"))
    return config.accounts[0]


def page(*reports: Report, traits: Traits = ONCE, flaws: list[Flaw] | None = None) -> Page:
    return Page(
        account="info",
        provider="infobip",
        traits=traits,
        observed_ms=AT,
        reports=list(reports),
        flaws=flaws or [],
        asked=ASKED if flaws else None,
    )


def report(message_id: str, state: State = State.DELIVERED, second: int = 1) -> Report:
    return Report(
        message_id=message_id,
        state=state,
        final=state is State.DELIVERED,
        provider_status=state.value,
        done_at=f"2023-11-14T22:13:{second:02d}.000Z",
        extra={"nested": {"a": [1, None]}},
    )


async def opened() -> MemoryStore:
    store = MemoryStore()
    await store.open(own=True)
    return store


async def test_what_can_be_asked_for_again_is_not_handed_over() -> None:
    assert late_answer(page(report("1"), traits=Traits(feed="windowed")), AT) is None
    assert late_answer(page(), AT) is None


async def test_it_comes_to_what_it_would_have_come_to() -> None:
    flaw = Flaw("broken", "report 3", b'{"messageId": ', form=Form.RECORD)
    straight, late = await opened(), await opened()
    handed = page(report("1"), report("2"), flaws=[flaw])
    item = late_answer(handed, AT + 60_000)
    assert item is not None
    await straight.write(lambda tx: commit(tx, handed))
    done = await late.write(lambda tx: take_late(tx, account(), item, apart=False))
    assert done.records == 2

    def look(tx: Any) -> Any:
        pieces = tx.pieces("info", 0, 0, 10, bytes_max=1000)
        return (
            tx.tallies(),
            [row.body for row in tx.log_rows("info", 1, 10, bytes_max=1 << 20)],
            [(piece.raw, piece.asked, piece.at_ms) for piece in pieces],
        )

    assert await late.read(look) == await straight.read(look)
    again = await late.write(lambda tx: take_late(tx, account(), item, apart=False))
    assert (again.records, again.repeated) == (0, 2)


async def test_what_was_heard_since_stands() -> None:
    store = await opened()
    item = late_answer(page(report("1", State.ENROUTE, 1)), AT)
    assert item is not None
    await store.write(lambda tx: commit(tx, page(report("1", State.DELIVERED, 5))))
    done = await store.write(lambda tx: take_late(tx, account(), item, apart=False))
    assert (done.records, done.lost) == (0, 1)
    found = await store.read(lambda tx: tx.find_messages("message_id", "1", 1))
    assert found[0].state is State.DELIVERED


async def test_where_it_cannot_be_recorded_each_report_is_set_aside_to_be_replayed() -> None:
    store = await opened()
    item = late_answer(page(report("1"), report("2")), AT)
    assert item is not None
    await store.write(lambda tx: take_late(tx, account(), item, apart=True))
    replayer = Replayer(
        account(),
        store,
        telemetry=Telemetry(),
        clock=RealClock(),
        redactor=None,
    )
    (line,) = await replayer.run(Order())
    assert (line.pieces, line.digested, line.new, line.left) == (2, 2, 2, 0)


async def test_a_lease_that_is_lost_meanwhile_is_no_fault_of_the_reader() -> None:
    store, telemetry = await opened(), Telemetry()
    item = late_answer(page(report("1")), AT)
    assert item is not None
    await store.write(lambda tx: take_late(tx, account(), item, apart=True))

    async def lost(job: object, *, lazy: bool = False) -> None:
        raise LeaseLost("info")

    replayer = Replayer(
        account(),
        store,
        telemetry=telemetry,
        clock=RealClock(),
        redactor=None,
    )
    store.write = lost  # type: ignore[assignment]
    with pytest.raises(LeaseLost):  # whoever has the account now answers the order
        await replayer.run(Order())
    assert not telemetry.of("faults", "info")
