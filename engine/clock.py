"""The machine's clock, for everything that is not a test."""

from __future__ import annotations

import time
from pathlib import Path

import anyio

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere there is the wall clock
_BOOT = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


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
