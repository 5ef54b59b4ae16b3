"""What every sink owes the dispatcher."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.state import State
from engine.core.work import LogRow
from engine.dispatch.dispatcher import Dispatcher
from engine.machine.clock import RealClock
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import STATE_CODES
from engine.telemetry import Telemetry

from .records import batch, numbers, record, thousand
from .sink_case import PATIENCE_S, SinkCase, persist

MANY = 100_000
WARM = 10_000  # what a client library's buffers need by then is its own
STEP_S = 0.02
GIVEN_UP_S = 1.5  # how long a server that does not answer is waited for in a test
DELIVERED = STATE_CODES.index(State.DELIVERED)
TEXT = 'line\nbreak\r\n\t"quoted" \\ \u2028 😀 é'


class SinkSuite:
    """Inherit from it as `Test…`, with a fixture `case` that gives a `SinkCase`."""

    @pytest.fixture
    def hasty(self, case: SinkCase[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that does not answer is given up soon."""
        if case.patience is not None:
            monkeypatch.setattr(case.patience, GIVEN_UP_S)

    def test_accepts_all_in_order(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await sink.write(Batch([]))
            for start in range(0, 5000, 1250):
                await sink.write(batch(start, 1250))
            await sink.close()
            assert numbers(await place.read()) == list(range(5000))

        case.run(check)

    def test_a_record_comes_back_as_it_was(self, case: SinkCase[Any]) -> None:
        huge = {"deep": [{"n": 2**70, "text": TEXT}] * 3, "long": "x" * case.long}
        lines = [record(1, content=TEXT, message_id="é\n", extra=huge), record(2, parts=3)]

        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await sink.write(Batch(lines))
            await sink.close()
            found, wanted = await place.read(), [json.loads(line) for line in lines]
            assert numbers(found) == [1, 2]
            assert found == wanted or not case.whole

        case.run(check)

    def test_a_part_is_refused_and_the_rest_is_taken(self, case: SinkCase[Any]) -> None:
        """A sink that refuses nothing takes all of it."""
        odd = case.refuses or record
        lines = [record(0), odd(1), record(2), record(3), odd(4)]
        refused = [1, 4] if case.refuses is not None else []

        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            rejected: dict[int, str] = {}
            try:  # a server may have to say first how much it takes
                await persist(sink, Batch(lines))
            except PartialWrite as error:
                rejected = error.rejected
            await sink.write(batch(5, 1))
            await sink.close()
            assert sorted(rejected) == refused
            assert all(0 < len(cause) < 300 for cause in rejected.values())
            kept = [n for n in range(6) if n not in refused]
            assert list(dict.fromkeys(numbers(await place.read()))) == kept

        case.run(check)

    def test_the_same_batch_twice(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await sink.write(batch(0, 100))
            await sink.write(batch(0, 100))
            await sink.close()
            wanted = list(range(100)) * (1 if case.once else 2)
            assert numbers(await place.read()) == wanted

        case.run(check)

    @pytest.mark.usefixtures("hasty")
    def test_down_and_back(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            await sink.write(batch(0, 100))
            await place.cut()
            for _ in range(2):
                with anyio.fail_after(PATIENCE_S), pytest.raises(SinkError) as caught:
                    await sink.write(batch(100, 100))
                assert not isinstance(caught.value, PartialWrite)
                assert case.tells_no_secret(place, caught.value)
            await place.mend()
            await persist(sink, batch(100, 100))
            await sink.close()
            assert list(dict.fromkeys(numbers(await place.read()))) == list(range(200))

        case.run(check)

    @pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
    def test_cancelled_then_written_again(self, case: SinkCase[Any], native: bool) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            for turn in range(8):
                work, delay_s = batch(turn * 500, 500), turn * 0.003
                if native:
                    task = asyncio.ensure_future(sink.write(work))
                    await anyio.sleep(delay_s)
                    task.cancel()
                    await asyncio.wait([task])
                else:
                    with anyio.move_on_after(delay_s):
                        await sink.write(work)
                await persist(sink, work)
            await sink.close()
            found = numbers(await place.read())
            assert list(dict.fromkeys(found)) == list(range(4000))
            assert len(found) == 4000 or not case.once

        case.run(check)

    def test_a_restart_goes_on_from_the_position(self, case: SinkCase[Any]) -> None:
        """Behind the engine's own dispatcher, three lives of 200 records in batches of 40."""

        async def check(place: Any) -> None:
            with tempfile.TemporaryDirectory() as folder:
                store = SqliteStore(Path(folder) / "state.db")
                await store.open(own=True)
                try:
                    for life in range(3):
                        await _append(store, life)
                        assert await _deliver(case, place, store) == 200
                finally:
                    await store.close()
            assert numbers(await place.read()) == list(range(600))

        case.run(check)

    def test_many_records_in_bounded_memory(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            sink = case.make(place)
            await sink.open()
            found: list[int] = []
            before = 0
            for start in range(0, MANY, 1000):
                if start == WARM:
                    before = _memory_max()
                await sink.write(thousand(start))
                if case.keeps and (start + 1000) % case.keeps == 0:
                    found += numbers(await place.read())
            grown = _memory_max() - before
            await sink.close()
            assert grown < case.memory_max
            found += numbers(await place.read())
            assert found == list(range(MANY))

        case.run(check)

    def test_nothing_outlives_close(self, case: SinkCase[Any]) -> None:
        async def check(place: Any) -> None:
            await to_thread.run_sync(gc.collect)  # the threads of these two pools are not its own
            await asyncio.get_running_loop().run_in_executor(None, gc.collect)
            before, tasks = _threads(), set(asyncio.all_tasks())
            sink = case.make(place)
            await sink.open()
            await sink.write(batch(0, 10))
            await sink.close()
            await sink.close()
            assert await _soon(lambda: _threads() <= before)
            assert await _soon(lambda: asyncio.all_tasks() <= tasks)
            await sink.open()  # and it can be opened again
            await sink.write(batch(10, 10))
            await sink.close()
            assert numbers(await place.read()) == list(range(20))

        case.run(check)


async def _append(store: SqliteStore, life: int) -> None:
    rows = []
    for seq in range(life * 4, life * 4 + 4):
        body = b"\n".join(batch(seq * 50, 50).lines)
        rows.append(LogRow(seq=seq + 1, at_ms=0, states=bytes([DELIVERED] * 50), body=body))
    await store.write(lambda tx: tx.append_log("a", rows))


async def _deliver(case: SinkCase[Any], place: Any, store: SqliteStore) -> int:
    """Until the log's end; how many records were taken."""
    config = case.config(place, batch={"records": 40, "wait": 0})
    dispatcher = Dispatcher(
        config,
        config.build(),
        store=store,
        accounts=["a"],
        telemetry=Telemetry(),
        clock=RealClock(),
        rand=random.Random(1),
    )
    dispatcher.stop()
    with anyio.fail_after(PATIENCE_S):
        await dispatcher.run()
    return dispatcher.health.written


def _memory_max() -> int:
    """The most that the process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _threads() -> int:
    """Of the whole process, where the system tells also those that a library made by itself."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.exists() else threading.active_count()


async def _soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds before patience is at its end."""
    steps = 0
    while not holds() and steps < PATIENCE_S / STEP_S:
        await anyio.sleep(STEP_S)
        steps += 1
    return holds()
