"""Waiting for one of two things: that time has passed, or that somebody says so.

For one task that waits again and again: an event and a cancel scope for each wait would cost more
than what is waited for.
"""

from __future__ import annotations

import asyncio


class Alarm:
    """Wakes the one task that waits. What rings before it waits is not lost."""

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        _end(self._waiter)

    async def wait(self, seconds: float) -> None:
        """Until it rings, has rung since the last wait, or so many seconds have passed."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = loop.call_later(seconds, _end, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._rung = False


def _end(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
