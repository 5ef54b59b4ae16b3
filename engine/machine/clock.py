"""The machine's clock, for everything that is not a test; and how far its wall is believed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio

from engine.core.clock import Clock
from engine.core.units import spell_duration

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere there is the wall clock
_BOOT = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""

# A wall clock that is set forward is gone by once it has been ahead for so long: what is due is
# late by that at most, while rungs that are asked early, and verdicts, are wrong for good.
STEP_LASTS_S = 600.0
STEP_MIN_MS = 1000  # less than this is followed at once


class RealClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def boot(self) -> tuple[str, float] | None:
        return (_BOOT, time.clock_gettime(time.CLOCK_BOOTTIME)) if _BOOT else None

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class SteadyClock:
    """A clock whose wall is never ahead for a moment only.

    It goes on from where it was by the time since the machine's start, which goes on while the
    machine sleeps. A wall that is set back is gone by at once, and so is one that comes back to
    where it was. Where that time is not known, the wall is believed.
    """

    def __init__(self, clock: Clock, on_step: Callable[[str], None] = lambda text: None) -> None:
        """`on_step` is told of a step forward."""
        self._clock = clock
        self._on_step = on_step
        self._wall_ms = self._now_ms = 0  # what the wall showed last, and what came of it
        self._line_ms: float | None = None  # the wall that is believed, less the time since start
        self._left_s: float | None = None  # when the wall has left that line
        self._ahead = False  # to which side
        self.monotonic, self.boot, self.sleep = clock.monotonic, clock.boot, clock.sleep

    def now_ms(self) -> int:
        wall_ms = self._clock.now_ms()
        if wall_ms != self._wall_ms:  # each poll asks several times in a millisecond
            self._wall_ms, self._now_ms = wall_ms, self._believed(wall_ms)
        return self._now_ms

    def _believed(self, wall_ms: int) -> int:
        boot = self._clock.boot()
        if boot is None:
            return wall_ms
        line_ms = wall_ms - 1000 * boot[1]
        off_ms = 0.0 if self._line_ms is None else line_ms - self._line_ms
        if -STEP_MIN_MS <= off_ms <= STEP_MIN_MS or self._lasts(off_ms, boot[1]):
            self._line_ms, self._left_s = line_ms, None
            return wall_ms
        return wall_ms - max(0, round(off_ms))

    def _lasts(self, off_ms: float, now_s: float) -> bool:
        """Whether a wall that is so far off the line is gone by from now on."""
        ahead = off_ms > 0
        if self._left_s is None or ahead is not self._ahead:
            self._left_s, self._ahead = now_s, ahead
            if ahead:
                self._on_step(
                    f"the wall clock was set forward by {spell_duration(round(off_ms / 1000))}:"
                    f" what is due goes by it once that has lasted for"
                    f" {spell_duration(STEP_LASTS_S)}; if it is wrong, set it right before"
                )
        return now_s - self._left_s >= STEP_LASTS_S

    def wall(self) -> tuple[float, float]:
        """Epoch seconds now: no later than it may be, and no earlier."""
        return self.now_ms() / 1000, self._clock.now_ms() / 1000
