"""What every sink with a server of its own owes the dispatcher, as one suite over all of them.

It runs against the real servers (`tests/services.py`); a `Case` says how a sink's place is made,
read back, and cut off.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from engine.clock import RealClock
from engine.config.model import BatchConfig, SinkConfig
from engine.core.contracts import Batch, Sink
from engine.core.errors import PartialWrite, SinkError
from engine.core.state import State
from engine.core.work import LogRow
from engine.dispatcher import Dispatcher
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import STATE_CODES
from engine.telemetry import Telemetry
from tests.conformance.messages import MESSAGES
from tests.conformance.places import PASSWORD, Case, Place, batch, number, numbers, record
from tests.conformance.receivers import RECEIVERS

CASES: list[Case] = [*MESSAGES, *RECEIVERS]

MANY = 100_000
WARM = 10_000  # what a client library's buffers need by then is its own
MEMORY_MAX = 64 << 20  # of which a client library's own buffers are the most
PATIENCE_S = 60.0
STEP_S = 0.02
DELIVERED = STATE_CODES.index(State.DELIVERED)


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def hasty(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is given up soon."""
    assert case.patience is not None
    monkeypatch.setattr(f"engine.sinks.{case.patience}", 1.5)


@pytest.fixture
async def place(case: Case) -> AsyncIterator[Place]:
    async with case.place(case.id) as made:
        yield made


def threads() -> int:
    """Of the whole process, also those that a library started outside Python."""
    return len(os.listdir("/proc/self/task"))


async def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds before patience is at its end."""
    steps = 0
    while not holds() and steps < PATIENCE_S / STEP_S:
        await anyio.sleep(STEP_S)
        steps += 1
    return holds()


async def persist(sink: Sink, work: Batch) -> int:
    """Offer a batch until it is taken, as the dispatcher does; how often that failed."""
    failures = 0
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await sink.write(work)
            except PartialWrite:
                raise
            except SinkError:
                failures += 1
                await anyio.sleep(0.05)
            else:
                return failures


def tells_no_secret(error: BaseException) -> bool:
    told = f"{error} {error!r} {error.__cause__!r}"
    return PASSWORD not in told and "://" not in told and "127.0.0.1" not in told


async def test_accepts_all_in_order(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    await sink.write(Batch([]))
    for start in range(0, 5000, 1250):
        await sink.write(batch(start, 1250))
    await sink.close()
    assert numbers(await place.read()) == list(range(5000))


async def test_a_record_comes_back_as_it_was(case: Case, place: Place) -> None:
    text = 'line\nbreak\r\n\t"quoted" \\ \u2028 😀 é'
    huge = {"deep": [{"n": 2**70, "text": text}] * 3, "long": "x" * case.long}
    lines = [record(1, content=text, message_id="é\n", extra=huge), record(2, parts=3)]
    sink = case.make(place)
    await sink.open()
    await sink.write(Batch(lines))
    await sink.close()
    assert await place.read() == [json.loads(line) for line in lines]


async def test_a_part_is_refused_and_the_rest_is_taken(case: Case, place: Place) -> None:
    if case.refuses is None:
        pytest.skip("there is nothing that it would refuse for good")
    lines = [record(0), case.refuses(1), record(2), record(3), case.refuses(4)]
    sink = case.make(place)
    await sink.open()
    with anyio.fail_after(PATIENCE_S):
        while True:  # a server may have to say first how much it takes
            try:
                await sink.write(Batch(lines))
            except PartialWrite as error:
                rejected = error.rejected
                break
            except SinkError:
                continue
    await sink.write(batch(5, 1))
    await sink.close()
    assert sorted(rejected) == [1, 4]
    assert all(len(cause) < 300 for cause in rejected.values())
    assert list(dict.fromkeys(numbers(await place.read()))) == [0, 2, 3, 5]


async def test_the_same_batch_twice(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    await sink.write(batch(0, 100))
    await sink.write(batch(0, 100))
    await sink.close()
    assert numbers(await place.read()) == list(range(100)) * (1 if case.once else 2)


@pytest.mark.usefixtures("hasty")
async def test_down_and_back(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    await sink.write(batch(0, 100))
    await place.cut()
    for _ in range(2):
        with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
            await sink.write(batch(100, 100))
        assert tells_no_secret(caught.value)
    await place.mend()
    await persist(sink, batch(100, 100))
    await sink.close()
    assert list(dict.fromkeys(numbers(await place.read()))) == list(range(200))


@pytest.mark.usefixtures("hasty")
async def test_down_at_the_start(case: Case, place: Place) -> None:
    await place.cut()
    sink = case.make(place)
    with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
        await sink.open()
    assert tells_no_secret(caught.value)
    await place.mend()
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await sink.open()
                break
            except SinkError:
                await anyio.sleep(0.05)
    await persist(sink, batch(0, 10))
    await sink.close()
    assert set(numbers(await place.read())) == set(range(10))


async def test_cut_in_the_middle_of_a_batch(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    failures = 0
    for turn in range(4):
        await place.cut_soon()
        failures += await persist(sink, batch(turn * 1000, 1000))
    await sink.close()
    assert failures or case.id == "kafka"  # librdkafka sends again by itself, each once
    found = numbers(await place.read())
    assert list(dict.fromkeys(found)) == list(range(4000))
    assert len(found) == 4000 or not case.once


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_hangs(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    await sink.write(batch(0, 10))
    await place.hang()
    with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
        await sink.write(batch(10, 10))
    assert tells_no_secret(caught.value)
    await place.cut()
    await place.mend()
    await persist(sink, batch(10, 10))
    await sink.close()
    assert list(dict.fromkeys(numbers(await place.read()))) == list(range(20))


@pytest.mark.usefixtures("hasty")
async def test_closing_beside_a_server_that_hangs(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    await place.hang()
    with anyio.move_on_after(0.2):
        await sink.write(batch(0, 10))
    with anyio.fail_after(PATIENCE_S / 2):
        await sink.close()


@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
async def test_cancelled_then_written_again(case: Case, place: Place, native: bool) -> None:
    sink = case.make(place)
    await sink.open()
    for turn in range(8):
        work = batch(turn * 500, 500)
        delay = turn * 0.004
        if native:
            task = asyncio.create_task(sink.write(work))  # type: ignore[arg-type]
            await anyio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
        else:
            with anyio.move_on_after(delay):
                await sink.write(work)
        await persist(sink, work)
    await sink.close()
    found = numbers(await place.read())
    assert list(dict.fromkeys(found)) == list(range(4000))
    assert len(found) == 4000 or not case.once


async def test_a_restart_goes_on_from_the_position(
    case: Case, place: Place, tmp_path: Path
) -> None:
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    config = SinkConfig(
        name="out", type=case.id, sink=None, sink_class=object,  # type: ignore[arg-type]
        batch=BatchConfig(records=40, wait_s=0.0),
    )  # fmt: skip
    try:
        for turn in range(3):
            rows = [
                LogRow(seq=seq + 1, at_ms=0, states=bytes([DELIVERED] * 50), body=chunk(seq))
                for seq in range(turn * 4, turn * 4 + 4)
            ]
            await store.write(lambda tx, rows=rows: tx.append_log("a", rows))  # type: ignore[misc]
            sink = case.make(place)
            dispatcher = Dispatcher(
                config, sink, store=store, accounts=["a"], telemetry=Telemetry(),
                clock=RealClock(), rand=random.Random(1),
            )  # fmt: skip
            dispatcher.stop()
            with anyio.fail_after(PATIENCE_S):
                await dispatcher.run()
            assert dispatcher.health.written == 200
    finally:
        await store.close()
    assert numbers(await place.read()) == list(range(600))


def chunk(seq: int) -> bytes:
    return b"\n".join(record(n) for n in range(seq * 50, seq * 50 + 50))


async def test_many_records_in_bounded_memory(case: Case, place: Place) -> None:
    sink = case.make(place)
    await sink.open()
    template = record(0, event_id="@", message_id="m@")

    def thousand(start: int) -> Batch:
        return Batch([template.replace(b"@", b"%032x" % (start + n)) for n in range(1000)])

    found: list[int] = []
    before = 0
    for start in range(0, MANY, 1000):
        if start == WARM:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await sink.write(thousand(start))
        if case.keeps and (start + 1000) % case.keeps == 0:
            found += numbers(await place.read())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    await sink.close()
    assert grown < MEMORY_MAX
    found += numbers(await place.read())
    assert found == list(range(MANY))


async def test_nothing_outlives_close(case: Case, place: Place) -> None:
    gc.collect()
    before, tasks = threads(), set(asyncio.all_tasks())
    sink = case.make(place)
    await sink.open()
    await sink.write(batch(0, 10))
    await sink.close()
    await sink.close()
    assert await soon(lambda: threads() <= before)
    assert await soon(lambda: asyncio.all_tasks() <= tasks)
    await sink.open()  # and it can be opened again
    await sink.write(batch(10, 10))
    await sink.close()
    assert numbers(await place.read()) == list(range(20))


MESSAGE_CASES: Sequence[Case] = [found for found in CASES if found.envelope]


@pytest.mark.parametrize("case", MESSAGE_CASES, ids=lambda case: case.id, indirect=True)
async def test_as_cloudevents(case: Case, place: Place) -> None:
    sink = case.make(place, envelope="cloudevents")
    await sink.open()
    await sink.write(batch(0, 100))
    await sink.close()
    found = await place.read()
    assert [number(each["data"]) for each in found] == list(range(100))
    for each in found:
        event = JSONFormat().read(CloudEvent, json.dumps(each))
        assert event.get_id() == each["data"]["event_id"]
        assert event.get_type() == "dlr.report.delivered"
        assert event.get_data() == json.loads(record(number(each["data"])))
