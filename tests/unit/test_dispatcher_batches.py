"""When a batch ends: full, waited for long enough, or stopped; on a clock that does not wait."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.config.model import BatchConfig, SinkConfig
from engine.core.contracts import Batch
from engine.core.state import State
from engine.core.work import LogRow
from engine.dispatch.dispatcher import Dispatcher, Portion
from engine.machine.clock import RealClock
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import STATE_CODES
from engine.telemetry import Telemetry
from tests.conformance.places import record

DELIVERED = STATE_CODES.index(State.DELIVERED)


class Clock(RealClock):
    """Sleeps at once, and does something after each sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.after: Callable[[int], Awaitable[None]] | None = None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.after is not None:
            await self.after(len(self.slept))


class Sizes:
    """A sink that keeps how large its batches were."""

    name: ClassVar[str] = "sizes"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.looks = (
            -2
        )  # at the log while a batch is waited for: not the first, nor that for the end
        self.then: Callable[[], None] = lambda: None

    async def open(self) -> None: ...

    async def write(self, batch: Batch) -> None:
        self.sizes.append(len(batch.lines))
        self.then()

    async def close(self) -> None: ...


async def run(tmp_path: Path, clock: Clock, wait_s: float, **more: Any) -> tuple[Sizes, float]:
    """Fifty records in the log, batches of a hundred; the dispatcher ends after the first."""
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    sink = Sizes()
    config = SinkConfig(
        name="out", type="sizes", sink=None, sink_class=object,  # type: ignore[arg-type]
        batch=BatchConfig(records=100, wait_s=wait_s),
    )  # fmt: skip
    dispatcher = Dispatcher(
        config, sink, store=store, accounts=["a"], telemetry=Telemetry(), clock=clock,
        rand=random.Random(1),
    )  # fmt: skip
    sink.then = dispatcher.stop
    read = dispatcher.reader.read

    async def looking(records_max: int, bytes_max: int) -> Portion:
        sink.looks += 1
        return await read(records_max, bytes_max)

    dispatcher.reader.read = looking  # type: ignore[method-assign]
    await append(store, 0)

    async def after(sleeps: int) -> None:
        if sleeps == more.get("news_after"):
            await append(store, 1)
            await append(store, 2)
        if sleeps == more.get("stop_after"):
            dispatcher.stop()
        if sleeps == more.get("hastened_after"):
            dispatcher.hasten()

    clock.after = after
    await dispatcher.run()
    await store.close()
    return sink, sum(clock.slept)


async def append(store: SqliteStore, seq: int) -> None:
    body = b"\n".join(record(n) for n in range(seq * 50, seq * 50 + 50))
    row = LogRow(seq=seq + 1, at_ms=0, states=bytes([DELIVERED] * 50), body=body)
    await store.write(lambda tx: tx.append_log("a", [row]))


@pytest.mark.parametrize(("wait_s", "looks"), [(0.2, 1), (1.0, 1), (2.5, 3), (60.0, 20)])
async def test_a_batch_that_stays_small_waits_for_its_time(
    tmp_path: Path, wait_s: float, looks: int
) -> None:
    clock = Clock()
    sink, slept = await run(tmp_path, clock, wait_s)
    assert sink.sizes == [50]
    assert slept == pytest.approx(wait_s)
    assert sink.looks == looks
    assert max(clock.slept) <= 1.0  # it is seen within that when it is to wait no more


async def test_a_batch_that_fills_up_goes_at_once(tmp_path: Path) -> None:
    sink, slept = await run(tmp_path, Clock(), 60.0, news_after=2)
    assert sink.sizes == [100, 50]
    assert slept == pytest.approx(3.0)  # it looks every three seconds


async def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    sink, slept = await run(tmp_path, Clock(), 60.0, stop_after=1)
    assert sink.sizes == [50]
    assert slept == pytest.approx(1.0)


async def test_where_nothing_more_is_to_come_it_does_not_wait(tmp_path: Path) -> None:
    sink, slept = await run(tmp_path, Clock(), 60.0, hastened_after=1)
    assert sink.sizes == [50]
    assert slept == pytest.approx(1.0)
