"""A store whose trouble passes: one tries, the others wait; and nobody waits at the end."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from engine.core.clock import Clock
from engine.core.errors import StoreError, StoreTrouble
from engine.stores.memory import MemoryStore
from engine.stores.patient import HURRY_TRIES, PatientStore
from engine.telemetry import Telemetry


class Sick(MemoryStore):
    """Fails so many times, with this."""

    def __init__(self, times: int, *errors: StoreError) -> None:
        super().__init__()
        self.times = times
        self.errors = errors or (StoreTrouble("the disk is full"),)
        self.tries = 0

    async def write(self, job: Any, *, lazy: bool = False) -> Any:
        self.tries += 1
        await anyio.lowlevel.checkpoint()
        if self.tries <= self.times:
            raise self.errors[min(self.tries, len(self.errors)) - 1]
        return await super().write(job, lazy=lazy)


class Quick:
    """A clock whose waits are counted."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await anyio.lowlevel.checkpoint()


async def made(store: Sick) -> tuple[PatientStore, Quick, Telemetry]:
    clock, telemetry = Quick(), Telemetry()
    await store.open(own=True)
    real: Clock = clock  # type: ignore[assignment]
    return PatientStore(store, telemetry, real), clock, telemetry


def note(n: int) -> Any:
    return lambda tx: tx.put_note("a", str(n), b"")


async def test_many_writers_wait_behind_one_that_tries() -> None:
    store = Sick(40)
    patient, clock, telemetry = await made(store)
    async with anyio.create_task_group() as writers:
        for n in range(30):
            writers.start_soon(patient.write, note(n))
    assert len(clock.waits) == 40 - 30 + 1, "each failed once, then one tried a second apart"
    assert set(clock.waits) == {1.0}
    assert [subject for subject, _ in telemetry.events] == ["store", "store"]
    assert patient.trouble is None
    for n in range(30):
        assert await patient.read(lambda tx, n=n: tx.notes(str(n))) == {"a": b""}


async def test_another_cause_is_told_again() -> None:
    errors = [StoreTrouble(text) for text in ("full", "full", "locked", "locked", "full")]
    patient, _, telemetry = await made(Sick(5, *errors))
    await patient.write(note(1))
    said = [text.partition(";")[0] for _, text in telemetry.events]
    assert said == ["full", "locked", "full", "goes on"]


async def test_reading_goes_on_while_writing_is_in_trouble() -> None:
    patient, _, _ = await made(Sick(10**9))
    async with anyio.create_task_group() as group:
        group.start_soon(patient.write, note(1))
        await anyio.sleep(0.01)
        assert patient.trouble == "the disk is full"
        assert await patient.read(lambda tx: tx.notes("1")) == {}
        assert patient.trouble == "the disk is full", "a read that works mends no write"
        group.cancel_scope.cancel()


async def test_in_a_hurry_trouble_is_tried_a_few_times_in_all_then_raised() -> None:
    store = Sick(10**9)
    patient, _, _ = await made(store)
    patient.hurry()
    for _ in range(20):
        with pytest.raises(StoreTrouble, match="the disk is full"):
            await patient.write(note(1))
    assert store.tries == 1 + HURRY_TRIES


async def test_what_does_not_pass_is_raised_at_once() -> None:
    store = Sick(1, StoreError("the database is damaged"))
    patient, clock, _ = await made(store)
    with pytest.raises(StoreError, match="damaged"):
        await patient.write(note(1))
    assert clock.waits == []
    assert patient.trouble is None
