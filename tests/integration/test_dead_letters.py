"""What a sink refuses for good: kept whole and offered again; and a sink that goes back in time."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.idle import until_idle
from engine.stores import burying
from engine.stores.sqlite import SqliteStore
from engine.stores.transaction import DeadLetter, Store
from engine.worker import Engine
from tests.integration.harness import bulksms, configured, hasty, tallies, until
from tests.integration.standin import Standin
from tests.integration.test_sinks_end_to_end import (
    LADDER,
    NUMBER,
    STEPS,
    Toy,
    in_order,
    stepping,
    with_toy,
)


async def letters(store: Store, sink: str = "toy") -> list[DeadLetter]:
    return await store.read(lambda tx: tx.dead_letters(sink, 0, 1000, bytes_max=1 << 30))


@asynccontextmanager
async def refusing(
    folder: Path, standin: Standin, *states: str
) -> AsyncIterator[tuple[Engine, Toy, set[str]]]:
    """A worker that has been through its ladder, its sink, and the states that this refuses."""
    config, toy = with_toy(configured(folder, bulksms(stepping(standin), schedule=LADDER)))
    refused = set(states)

    async def write(batch: Batch) -> None:
        if toy.dead:
            raise SinkError("is down")
        bad = {}
        for index, line in enumerate(batch.lines):
            record = msgspec.json.decode(line)
            if record["state"] in refused:
                bad[index] = f"no {record['state']}"
            else:
                toy.taken.append(record)
        if bad:
            raise PartialWrite(bad)

    toy.write = write  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: toy.opened)
        assert await until_idle(poller, 5) == []
        yield poller, toy, refused


async def test_what_is_refused_is_kept_whole_and_offered_again(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    async with refusing(tmp_path, standin, "accepted", "delivered") as (poller, toy, refused):
        kept = await letters(poller.store)
        assert [one.cause for one in kept] == ["no accepted", "no delivered"]
        assert (await tallies(poller))["bulk"]["refused"] == 2
        assert poller.telemetry.of("dead_letters", "toy") == 2
        rows = await poller.store.read(lambda tx: tx.log_rows("bulk", 0, 99, bytes_max=1 << 20))
        for one in kept:
            record = json.loads(one.record)
            facts = (one.event_id, one.message_id, one.revision)
            assert facts == (record["event_id"], record["message_id"], record["revision"])
            (row,) = (row for row in rows if row.seq == one.place[0])
            assert row.body.split(b"\n")[one.place[1]] == one.record
        assert [one.revision for one in kept] == [1, len(STEPS)]
        dispatcher = poller.dispatchers[-1]
        refused.discard("accepted")
        done = await dispatcher.retry()
        assert (done.accepted, done.refused, done.left, done.cause) == (1, 1, 0, None)
        (left,) = await letters(poller.store)
        assert (left.cause, left.times, left.id) == ("no delivered", 2, kept[1].id)
        assert left.last_ms >= left.first_ms == kept[1].first_ms
        refused.clear()
        done = await dispatcher.retry()
        assert (done.accepted, done.refused) == (1, 0)
        assert await letters(poller.store) == []
        assert await dispatcher.retry() == msgspec.structs.replace(done, accepted=0)
        assert poller.telemetry.of("written", "toy") == len(STEPS)  # each when it was taken
    assert len({one["event_id"] for one in toy.taken}) == len(toy.taken) == len(STEPS)
    assert re.search("refused for good and (is a|are) dead letter", caplog.text)


async def test_a_retry_that_fails_or_is_cut_off_loses_nothing(
    tmp_path: Path, standin: Standin
) -> None:
    async with refusing(tmp_path, standin, "enroute", "accepted") as (poller, toy, refused):
        dispatcher = poller.dispatchers[-1]
        count = len(await letters(poller.store))
        assert count == len(STEPS) - 1
        toy.dead = True
        done = await dispatcher.retry()
        assert (done.accepted, done.left, done.cause) == (0, count, "is down")
        toy.dead = False
        refused.clear()
        before, write = len(toy.taken), toy.write

        async def taken_and_hung(batch: Batch) -> None:
            await write(batch)
            await anyio.sleep_forever()

        toy.write = taken_and_hung  # type: ignore[method-assign]
        dispatcher._timeout_s = 0.2
        done = await dispatcher.retry()
        assert (done.left, done.cause) == (count, "has not answered for 200ms")
        assert len(await letters(poller.store)) == count
        toy.write = write  # type: ignore[method-assign]
        assert (await dispatcher.retry()).accepted == count
        again = [one["event_id"] for one in toy.taken[before:]]
        assert again[:count] == again[count:]  # the same ones, twice
        assert await letters(poller.store) == []


async def test_nothing_is_asked_of_a_sink_that_is_failing_or_ending(
    tmp_path: Path, standin: Standin
) -> None:
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    toy.dead = True
    async with hasty(config) as poller:
        dispatcher = poller.dispatchers[-1]
        await until(lambda: dispatcher.health.failing)
        with pytest.raises(SinkError, match="it fails at present: cannot be opened"):
            await dispatcher.retry()
        assert await dispatcher.rewind("bulk", None) == 0  # that is possible all the same
        dispatcher.stop()
        with pytest.raises(SinkError, match="the worker is ending"):
            await dispatcher.retry()


async def test_a_wait_is_not_cut_short_by_an_errand(tmp_path: Path, standin: Standin) -> None:
    """A sink that said how long it wants to be left alone is left alone."""
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    tries = 0

    async def later(batch: Batch) -> None:
        nonlocal tries
        tries += 1
        error = SinkError("come back later")
        error.retry_after_s = 60.0
        raise error

    toy.write = later  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        dispatcher = poller.dispatchers[-1]
        await until(lambda: dispatcher.health.failing)
        for _ in range(3):
            await dispatcher.rewind("bulk", None)
        await anyio.sleep(0.3)
        assert tries == 1


async def test_too_many_dead_letters_are_told_and_counted(
    tmp_path: Path,
    standin: Standin,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(burying, "DEAD_MAX", 2)
    async with refusing(tmp_path, standin, "enroute", "accepted", "delivered") as (poller, _, _):
        assert [one.revision for one in await letters(poller.store)] == [4, 5]
        counts = (await tallies(poller))["bulk"]
        assert (counts["refused"], counts["dead_dropped"]) == (5, 3)
        assert poller.telemetry.of("dead_dropped", "toy") == 3
    assert "are LOST to it" in caplog.text


async def test_a_sink_goes_back_in_time(tmp_path: Path, standin: Standin) -> None:
    async with refusing(tmp_path, standin) as (poller, toy, _):
        in_order(toy.taken)
        dispatcher, first = poller.dispatchers[-1], list(toy.taken)
        assert len(first) == len(STEPS)
        rows = await poller.store.read(lambda tx: tx.log_rows("bulk", 0, 99, bytes_max=1 << 20))
        assert await dispatcher.rewind("bulk", rows[-1].at_ms + 1) == 0
        assert await dispatcher.rewind("bulk", rows[2].at_ms) == 3
        await until(lambda: len(toy.taken) == len(STEPS) + 3)
        assert toy.taken[len(STEPS) :] == first[2:]
        assert await until_idle(poller, 5) == []
        assert await dispatcher.rewind("bulk", None) == len(STEPS)
        await until(lambda: len(toy.taken) == 2 * len(STEPS) + 3)
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    places = await store.read(lambda tx: tx.places())
    await store.close()
    assert places["toy"] == places["lines"] == {"bulk": (len(STEPS) + 1, 0)}
