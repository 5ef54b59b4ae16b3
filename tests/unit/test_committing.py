"""Making pages durable: what cannot be recorded takes no other along, polled or pushed."""

from __future__ import annotations

from typing import Any

import pytest

from engine.books.committing import Committer
from engine.core.contracts import Form, Head
from engine.core.report import Report
from engine.core.state import State
from engine.core.work import Asked, Committed, Page, Work
from engine.stores import ledger
from engine.telemetry import Telemetry
from tests.unit.parts import T0, Parts

WAYS = pytest.mark.parametrize("way", [Committer.commit, Committer.take_pushed])


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger with a fault: it cannot take one certain report, nor a page that moves one work."""

    def commit(tx: Any, page: Page) -> Committed:
        if any(report.message_id == "bad" for report in page.reports):
            raise OverflowError
        if any(work.key == "bad" for work in page.put):
            raise ZeroDivisionError
        return ledger.commit(tx, page)

    monkeypatch.setattr("engine.books.committing.commit", commit)


def committer(parts: Parts, telemetry: Telemetry) -> Committer:
    return Committer(parts.account, parts.store, telemetry, parts.clock, None)


def work(key: str) -> Work:
    return Work(account="a", kind="feed", key=key, start_ms=T0, due_ms=T0 + 5)


@WAYS
async def test_a_report_that_cannot_be_recorded_takes_no_other_along(way: Any, picky: None) -> None:
    telemetry = Telemetry()
    async with Parts("infobip", (200, {})) as parts:
        made = committer(parts, telemetry)
        page = made.page()
        told = {"state": State.ENROUTE, "final": False, "provider_status": "SENT"}
        page.reports = [Report(message_id=one, **told) for one in ("m1", "bad", "m2")]
        page.asked = Asked(poll=parts.poll(), head=Head(200, {"set-cookie": "x", "date": "d"}))
        page.put = [work("good")]
        assert (await way(made, page)).records == 0  # those came before the rest of the page
        (piece,) = await parts.store.read(lambda tx: tx.pieces("a", 0, 0, 9, bytes_max=1 << 20))
        moved = await parts.store.read(lambda tx: tx.find_works("a", "feed", None))
        tallies = (await parts.store.read(lambda tx: tx.tallies()))["a"]
    assert (piece.form, piece.cause) == (Form.REPORT, "cannot be recorded (OverflowError)")
    assert piece.position.endswith("report 2")
    assert [(one.key, one.due_ms) for one in moved] == [("good", T0 + 5)]
    assert (tallies["known"], tallies["set_aside"]) == (2, 1)
    assert (telemetry.of("records", "a"), telemetry.of("set_aside", "a")) == (2, 1)


@WAYS
async def test_a_fault_that_is_no_reports_is_raised(way: Any, picky: None) -> None:
    async with Parts("infobip", (200, {})) as parts:
        made = committer(parts, Telemetry())
        page = made.page()
        page.put = [work("bad")]
        with pytest.raises(ZeroDivisionError):
            await way(made, page)
