"""The clock as an argument: the wall for schedules, the monotonic one for waits."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """What the engine asks of time. `worker` hands in the real one, tests a simulated one."""

    def now_ms(self) -> int:
        """Wall clock, epoch milliseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; not before `seconds` have passed."""
        ...
