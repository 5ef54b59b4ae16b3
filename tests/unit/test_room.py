"""Which accounts may ask, by what waits in the log and what is left of the disk."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.errors import StoreTrouble
from engine.machine.clock import RealClock
from engine.polling.room import Consumer, Disk, Room
from engine.stores.memory import MemoryStore
from engine.stores.patient import PatientStore
from engine.telemetry import Telemetry

MIB = 1 << 20
FEEDS = {"bulk": False, "bot": False, "info": True}
ALL = [Consumer("archive"), Consumer("failures", frozenset({"bot"}))]
ROOMY = Disk(total=100 << 30, free=50 << 30)


class Case:
    """A room of 100 MiB, and what it has said."""

    def __init__(self, floor: int | None = 10 * MIB) -> None:
        self.telemetry = Telemetry()
        self.store = PatientStore(MemoryStore(), self.telemetry, RealClock())
        self.room = Room(FEEDS, self.store, self.telemetry, log_max=100 * MIB, floor=floor)

    def judge(
        self, waits: dict[str, dict[str, int]], disk: Disk | None = ROOMY, who: Any = ALL
    ) -> list[str]:
        """The accounts that may not ask, when so many MiB wait."""
        sizes = {name: {a: n * MIB for a, n in of.items()} for name, of in waits.items()}
        self.room.judge(sizes, who, disk)
        return [name for name in FEEDS if self.room.shut(name) is not None]

    def said(self) -> list[str]:
        said = [f"{subject}: {text}" for subject, text in self.telemetry.events]
        self.telemetry.events.clear()
        return said


@pytest.fixture
def case() -> Case:
    return Case()


def test_below_the_bound_all_ask(case: Case) -> None:
    assert case.judge({}) == []
    assert case.judge({"archive": {"bulk": 60, "info": 39}}) == []
    assert case.room.waiting_bytes == 99 * MIB
    assert case.said() == []


def test_at_the_bound_what_can_be_read_again_waits_until_a_share_below(case: Case) -> None:
    assert case.judge({"archive": {"bulk": 60, "info": 40}}) == ["bulk", "bot"]
    (said,) = case.said()
    assert said.startswith(
        "log: 100 MiB of records wait in the log, store.log_max is 100 MiB: sink archive is"
        " 100 MiB behind"
    )
    assert "until it is below 80 MiB" in said
    assert case.telemetry.total("log_full") == 1
    assert case.judge({"archive": {"bulk": 60, "info": 90}}) == ["bulk", "bot"]
    assert case.judge({"archive": {"bulk": 0, "info": 80}}) == ["bulk", "bot"]
    assert case.said() == [], "the same trouble is said once"
    assert "sink archive is 80 MiB behind" in (case.room.shut("bulk") or "")
    assert case.judge({"archive": {"info": 79}}) == []
    assert case.said() == ["log: polling goes on: the sinks have caught up"]


def test_a_record_that_two_sinks_have_not_taken_waits_once(case: Case) -> None:
    both = {"archive": {"bot": 60}, "failures": {"bot": 70}}
    assert case.judge(both) == []
    assert case.room.waiting_bytes == 70 * MIB
    assert case.room.behind == {"archive": 60 * MIB, "failures": 70 * MIB}


def test_what_a_sink_does_not_take_is_not_its_backlog(case: Case) -> None:
    assert case.judge({"failures": {"bulk": 500, "bot": 1}}) == []
    assert case.judge({"removed": {"bulk": 500}}) == []
    assert case.judge({"archive": {"gone": 500}}) == [], "an account that is not configured"


def test_only_accounts_that_the_sink_behind_takes_wait(case: Case) -> None:
    assert case.judge({"archive": {"bulk": 0.5}, "failures": {"bot": 120}}) == ["bot"]
    assert "sink failures is 120 MiB behind" in case.said()[0]


def test_a_disk_below_its_floor_holds_all(case: Case) -> None:
    assert case.judge({}, Disk(total=1 << 40, free=11 * MIB)) == []
    assert case.judge({}, Disk(total=1 << 40, free=9 * MIB)) == ["bulk", "bot", "info"]
    (said,) = case.said()
    assert said.startswith(
        "disk: 9 MiB are free on the store's disk, store.min_free_disk is 10 MiB"
    )
    assert case.telemetry.total("disk_short") == 1
    assert case.judge({}, Disk(total=1 << 40, free=12 * MIB)) == ["bulk", "bot", "info"]
    assert case.said() == []
    assert case.judge({}, Disk(total=1 << 40, free=13 * MIB)) == []
    assert case.said() == ["disk: polling goes on: there is room again"]


def test_both_at_once_end_one_after_the_other(case: Case) -> None:
    waits = {"archive": {"bulk": 200}}
    assert case.judge(waits, Disk(total=1 << 40, free=MIB)) == ["bulk", "bot", "info"]
    assert case.judge(waits) == ["bulk", "bot"]
    assert case.judge({}) == []


@pytest.mark.parametrize(
    ("total", "least"),
    [(16 * MIB, round(0.8 * MIB)), (4000 * MIB, 200 * MIB), (1 << 40, 256 * MIB)],
)
def test_the_floor_by_default_is_a_share_of_the_disk(total: int, least: int) -> None:
    case = Case(floor=None)
    assert case.judge({}, Disk(total, least + 1024)) == []
    assert len(case.judge({}, Disk(total, least - 1024))) == 3


def test_a_store_that_is_not_on_disk_has_no_floor(case: Case) -> None:
    assert case.judge({}, None) == []


def test_without_sinks_nothing_waits(case: Case) -> None:
    assert case.judge({"archive": {"bulk": 500}}, who=[]) == []


async def test_nobody_asks_while_the_store_is_in_trouble(case: Case) -> None:
    tries = 0

    class Store(MemoryStore):
        async def write(self, job: Any, *, lazy: bool = False) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise StoreTrouble("the disk is full")
            assert case.room.shut("info") == "nothing can be stored: the disk is full"
            return await super().write(job)

    class Now(RealClock):
        async def sleep(self, seconds: float) -> None:
            assert seconds == 1.0

    case.store = PatientStore(Store(), case.telemetry, Now())
    case.room = Room(FEEDS, case.store, case.telemetry, log_max=MIB, floor=0)
    await case.store.open(own=True)
    assert case.room.shut("info") is None
    await case.store.write(lambda tx: tx.put_note("a", "n", b""))
    assert case.room.shut("info") is None
    assert [said.partition(";")[0] for said in case.said()] == [
        "store: the disk is full",
        "store: goes on",
    ]
