"""What is outside of the engine's process, and outlives it: time, chance, the trace, the verdict.

True time starts at 0. A `Process` is one life of the engine: its wall clock drifts, and may have
been stepped while it was down; its monotonic clock starts anew with each life. The time since the
machine's start goes on over the lives, until a power loss. Over that, and where a machine does not
tell its starts apart, the wall clock alone says how long a process was away: it is then never put
forward, since no engine could tell that from time that has passed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from tests.simulation.loop import Crashed, Loop, Time

EPOCH_S = 1_780_000_000.0  # true time 0 as a calendar has it


class Violation(Exception):
    """A promise was broken. `name` is the invariant."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class World(Time):
    """One run."""

    def __init__(self, seed: int | str, *, tell: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.seed = seed
        self.violation: Violation | None = None
        self.calm = False  # faults have ended
        self._tell = tell
        self._digest = blake2b(digest_size=16)

    def dice(self, what: str) -> random.Random:
        """Chance for one purpose: what is drawn for another does not change it."""
        return random.Random(f"{self.seed}:{what}")

    def note(self, text: str) -> None:
        """A line of the trace; the same seed gives the same lines."""
        line = f"{self.now:.6f} {text}"
        self._digest.update(line.encode())
        if self._tell is not None:
            self._tell(line)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def broken(self, name: str, text: str) -> None:
        """The first broken promise ends the run."""
        if self.violation is None:
            self.violation = Violation(name, f"at {self.now:.3f} s, {text}")
            self.note(str(self.violation))

    def hold(self, name: str, kept: object, text: Callable[[], str]) -> None:
        if not kept:
            self.broken(name, text())


@dataclass(frozen=True)
class Machine:
    """One start of the machine, during which processes come and go."""

    name: str
    began: float
    tells: bool  # which start it is, as Linux does


class Process:
    """One life of the engine, and its clocks. What is not `alive` can do nothing any more."""

    def __init__(
        self, world: World, number: int, *, machine: Machine, wall_ahead_s: float, drift: float
    ) -> None:
        self.world = world
        self.number = number
        self.alive = True
        self.doomed = False  # it will be killed as soon as it waits
        self.began = world.now
        self.rand = world.dice(f"engine {number}")
        self.machine = machine
        self.wall_ahead_s = wall_ahead_s
        self._drift = drift
        lag = world.dice(f"lag {number}")
        self.loop = Loop(world, lambda: lag.expovariate(100.0) if lag.random() < 0.02 else 0.0)
        self.loop.halted = lambda: world.violation is not None

    def check(self) -> None:
        """Called wherever the process touches the world."""
        if not self.alive:
            raise Crashed

    # The engine's clock

    def now_ms(self) -> int:
        world = self.world
        ahead = self.wall_ahead_s + (world.now - self.began) * self._drift
        return int((EPOCH_S + world.now + ahead) * 1000)

    def monotonic(self) -> float:
        return self.world.now - self.began + 1.0

    def boot(self) -> tuple[str, float] | None:
        machine = self.machine
        return (machine.name, self.world.now - machine.began) if machine.tells else None

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
