"""Sinks outside of the process: what they took stays with them, whatever becomes of the engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, ClassVar

import anyio.lowlevel
import msgspec

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from tests.simulation.world import Process


class Nature(msgspec.Struct, kw_only=True):
    """How a sink behaves until the world calms down: shares of its calls, and seconds."""

    refuses: float = 0.0  # raises before it has taken anything
    forgets: float = 0.0  # takes all, then raises all the same
    breaks: float = 0.0  # takes a part, then raises
    rejects: float = 0.0  # of the records: never accepted (for good)
    slow_s: float = 0.01


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    label: str


class Target:
    """What a sink writes to."""

    def __init__(self, label: str, nature: Nature, rand: random.Random) -> None:
        self.label = label
        self.nature = nature
        self.rand = rand
        self.taken: Callable[[bytes], None] = lambda line: None
        self.failed: Callable[[], None] = lambda: None
        self.offered: Callable[[bytes], None] = lambda line: None

    def bad(self, line: bytes) -> bool:
        """Whether it will never accept this record: the same answer every time."""
        return random.Random(line).random() < self.nature.rejects


class MemorySink:
    """`Sink` of the living process. A class is made for each run, with its targets."""

    name: ClassVar[str] = "memory"
    Options: ClassVar[type[msgspec.Struct]] = Options
    targets: ClassVar[dict[str, Target]]
    process: ClassVar[Callable[[], Process]]

    def __init__(self, options: Any) -> None:
        self._label = options.label

    async def open(self) -> None:
        self._owner = type(self).process()
        self._target = self.targets[self._label]
        await self._pause()
        if not self._owner.world.calm and self._target.rand.random() < self._target.nature.refuses:
            raise SinkError("it cannot be reached")

    async def write(self, batch: Batch) -> None:
        target, calm = self._target, self._owner.world.calm
        nature, chance = target.nature, target.rand.random()
        for line in batch.lines:
            target.offered(line)
        await self._pause()
        if not calm and chance < nature.refuses:
            raise SinkError("it is not there", retry_after_s=target.rand.choice([None, 0.3]))
        part = len(batch.lines)
        broken = not calm and chance < nature.refuses + nature.breaks
        if broken:
            part = target.rand.randrange(part)
        rejected = {n: "never" for n, line in enumerate(batch.lines[:part]) if target.bad(line)}
        for line in batch.lines[:part]:
            target.taken(line)
        await self._pause()
        if broken:
            target.failed()
            raise OSError("no space left")
        if not calm and chance > 1 - nature.forgets:
            target.failed()
            raise ConnectionError("lost on the way back")
        if rejected:
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def _pause(self) -> None:
        self._owner.check()
        await asyncio.sleep(self._target.rand.random() * self._target.nature.slow_s)
        self._owner.check()


def bound(targets: dict[str, Target], process: Callable[[], Process]) -> type[MemorySink]:
    """The sink class of one run."""
    return type("Bound", (MemorySink,), {"targets": targets, "process": staticmethod(process)})
