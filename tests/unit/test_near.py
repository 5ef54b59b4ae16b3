"""The near part of an account's schedule, in virtual time: what comes while the store is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import anyio

from engine.stores.memory import MemoryStore
from engine.stores.transaction import Transaction
from tests.integration.harness import bulksms, tallies
from tests.simulation.answering import (
    Answer,
    Provider,
    batch_report,
    engine_for,
    lone_process,
    run,
)
from tests.simulation.world import Process

T = TypeVar("T")
NUMBER = "447900000000"
COUNT = 30
SOON_S = 2.0  # what is missed is found after half a minute, when the store is looked into again


class SlowToRead(MemoryStore):
    """What it gives is a moment old."""

    async def read(self, job: Callable[[Transaction], T]) -> T:
        found = await super().read(job)
        await anyio.sleep(0.02)
        return found


class Delivered(Provider):
    """BulkSMS, where everything has arrived. `asked`: when it was asked for which batch."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.asked: dict[str, float] = {}

    def take(self, params: Mapping[str, str]) -> Answer:
        self.asked[params["batch_id"]] = self.world.now
        return Answer(batch_report(NUMBER, 11), "text/plain")


def test_batches_tracked_in_a_row_are_all_asked_for() -> None:
    """Each within SOON_S, also where the worker looks into the store at that very moment."""
    process = lone_process("tracked in a row")
    provider, tracked = Delivered(process), dict[str, float]()
    account = bulksms("http://localhost", schedule={"ladder": ["0s"], "give_up": "5s"})

    async def main() -> dict[str, int]:
        async with engine_for(process, provider, [account], SlowToRead()) as poller:
            for n in range(COUNT):
                tracked[str(n)] = process.world.now
                await poller.track("bulk", batch_id=str(n), recipients=[NUMBER])
                await anyio.sleep(0.007)
            await anyio.sleep(SOON_S)
            return (await tallies(poller))["bulk"]

    counts = run(process, main())
    assert provider.asked.keys() == tracked.keys()
    assert max(provider.asked[batch] - at for batch, at in tracked.items()) <= SOON_S
    assert (counts["known"], counts["final"]) == (COUNT, COUNT)
