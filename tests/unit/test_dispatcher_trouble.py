"""A sink that keeps no rule is its own trouble; what is asked of a busy one waits its turn."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar

import anyio
import orjson
import pytest

from engine.config.model import BatchConfig, SinkConfig
from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.state import State
from engine.core.work import LogRow
from engine.dispatch.dispatcher import Dispatcher
from engine.machine.clock import RealClock
from engine.stores.memory import MemoryStore
from engine.stores.transaction import STATE_CODES, Store, Transaction
from engine.telemetry import Telemetry
from tests.conformance.places import record
from tests.integration.harness import until

PATIENCE_S = 30.0
DELIVERED = STATE_CODES.index(State.DELIVERED)
ACCOUNTS = [f"a{n}" for n in range(12)]


class Sink:
    """Fails once with what it is given, after it was let go on."""

    name: ClassVar[str] = "out"

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.go = anyio.Event()
        self.called = anyio.Event()
        self.taken = 0

    async def open(self) -> None: ...

    async def write(self, batch: Batch) -> None:
        self.called.set()
        await self.go.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.taken += len(batch.lines)

    async def close(self) -> None: ...


def _log_one(account: str, tx: Transaction) -> None:
    row = LogRow(seq=1, at_ms=1, states=bytes([DELIVERED]), body=record(1))
    tx.append_log(account, [row])


@asynccontextmanager
async def dispatched(sink: Sink) -> AsyncIterator[tuple[Dispatcher, Store]]:
    """A record in each account's log, and who brings them to the sink."""
    store = MemoryStore()
    await store.open(own=True)
    for account in ACCOUNTS:
        await store.write(partial(_log_one, account))
    config = SinkConfig(
        name="out", type="out", sink=None, sink_class=object,  # type: ignore[arg-type]
        batch=BatchConfig(wait_s=0),
    )  # fmt: skip
    dispatcher = Dispatcher(
        config, sink, store=store, accounts=ACCOUNTS, telemetry=Telemetry(), clock=RealClock(),
        rand=random.Random(1),
    )  # fmt: skip
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.run)
            yield dispatcher, store
            dispatcher.stop()
    await store.close()


@pytest.mark.parametrize(
    "error",
    [
        PartialWrite({len(ACCOUNTS): "one that was not offered"}),
        PartialWrite({-1: "one that was not offered"}),
        PartialWrite({0.0: "no number of a record"}),  # type: ignore[dict-item]
        PartialWrite({"0": "no number of a record"}),  # type: ignore[dict-item]
        SinkError("half of a \ud800 pair"),
        SinkError("it comes again", retry_after_s="7"),  # type: ignore[arg-type]
        SinkError("it comes again", retry_after_s=-7.0),
        SinkError("it comes again", retry_after_s=math.nan),
        SinkError("it comes again", retry_after_s=math.inf),
    ],
    ids=repr,
)
async def test_what_a_sink_should_not_raise_is_its_own_trouble(error: Exception) -> None:
    sink = Sink(error)
    async with dispatched(sink) as (dispatcher, _):
        sink.go.set()
        await until(lambda: dispatcher.health.failing is not None, PATIENCE_S)
        orjson.dumps(dispatcher.health.failing)  # as it is left for `stats`
        await until(lambda: sink.taken > 0, PATIENCE_S)
    assert sink.taken == len(ACCOUNTS)
    assert dispatcher._rand.getstate() != random.Random(1).getstate()  # it is left alone meanwhile


@pytest.mark.parametrize("cause", ["half of a \ud800 pair", "a \0 byte", "x" * 10_000, 7])
async def test_why_it_refuses_is_kept_as_it_can_be(cause: Any) -> None:
    sink = Sink(PartialWrite({3: cause}))
    sink.go.set()
    async with dispatched(sink) as (dispatcher, store):
        await until(lambda: dispatcher.health.written > 0, PATIENCE_S)
        [letter] = await store.read(lambda tx: tx.dead_letters("out", 0, 10, bytes_max=1 << 20))
    assert letter.cause.isprintable()
    assert len(letter.cause) <= 500
    assert dispatcher.health.written == len(ACCOUNTS) - 1


async def test_what_is_asked_of_a_busy_sink_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.dispatch.errands.ERRANDS_MAX", 2)
    sink = Sink()
    async with dispatched(sink) as (dispatcher, _):
        await sink.called.wait()
        async with anyio.create_task_group() as asking:
            for account in ACCOUNTS[:2]:
                asking.start_soon(dispatcher.rewind, account, None)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(SinkError, match="busy with what was asked of it before"):
                await dispatcher.rewind(ACCOUNTS[2], None)
            sink.go.set()


async def test_a_busy_sink_is_put_back_in_all_its_accounts() -> None:
    """Each account's rewind is asked by itself, and all of them wait for the batch under way."""
    sink = Sink()
    again: dict[str, int] = {}

    async def back(dispatcher: Dispatcher, account: str) -> None:
        again[account] = await dispatcher.rewind(account, None)

    async with dispatched(sink) as (dispatcher, _):
        await sink.called.wait()
        async with anyio.create_task_group() as asking:
            for account in ACCOUNTS:
                asking.start_soon(back, dispatcher, account)
            await anyio.wait_all_tasks_blocked()
            sink.go.set()
    assert again == dict.fromkeys(ACCOUNTS, 1)
    assert sink.taken == 2 * len(ACCOUNTS)
