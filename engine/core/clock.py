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

    def boot(self) -> tuple[str, float] | None:
        """Which start of the machine this is, and the seconds since then; None: not known.

        It goes on while the process is away, and nobody can set it.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; not before `seconds` have passed."""
        ...
