"""A store whose passing trouble is waited out: a full or read-only disk, a locked database.

What was read from a one-time provider has no other place to go, so nobody gives up; and what is
wrong is said once, not once a second. While there is trouble one job of each way tries, and the
others wait behind it. A store that is damaged is another matter: that is raised, and ends the
worker.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from engine.core.clock import Clock
from engine.core.errors import StoreTrouble
from engine.telemetry import Telemetry

from .transaction import Store, Transaction

T = TypeVar("T")

RETRY_S = 1.0

# When the process is about to end: so many more tries in all, so far apart.
HURRY_TRIES = 5
HURRY_S = 0.2


class _Way:
    """Writing, or reading: each has a connection of its own, and trouble of its own."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.vain = 0  # tries that failed when the process was about to end
        self.trying = anyio.Lock()


class PatientStore:
    """`Store` around another one."""

    def __init__(self, store: Store, telemetry: Telemetry, clock: Clock) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._writing = _Way()
        self._reading = _Way()
        self._hurried = False

    @property
    def trouble(self) -> str | None:
        """The present one, for people."""
        return self._writing.trouble or self._reading.trouble

    def check(self) -> None:
        """For whoever would rather come again than wait: raises StoreTrouble while there is any."""
        if self.trouble is not None:
            raise StoreTrouble(self.trouble)

    async def open(self, *, own: bool) -> None:
        await self._store.open(own=own)

    async def close(self) -> None:
        await self._store.close()

    def hurry(self) -> None:
        """The process is about to end: after a few more tries trouble is raised, not waited out."""
        self._hurried = True

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        return await self._patiently(self._writing, lambda: self._store.write(job, lazy=lazy))

    async def sync(self) -> None:
        await self._patiently(self._writing, self._store.sync)

    async def read(self, job: Callable[[Transaction], T]) -> T:
        return await self._patiently(self._reading, lambda: self._store.read(job))

    async def _patiently(self, way: _Way, act: Callable[[], Awaitable[T]]) -> T:
        if way.trouble is None:
            try:
                return await act()
            except StoreTrouble as error:
                self._note(way, error)
                act = error.again or act
        async with way.trying:
            while True:
                if way.trouble is not None:
                    if way.vain >= HURRY_TRIES:
                        raise StoreTrouble(way.trouble)
                    if not self._hurried or way.vain:
                        await self._clock.sleep(HURRY_S if self._hurried else RETRY_S)
                try:
                    result = await act()
                except StoreTrouble as error:
                    self._note(way, error)
                    act = error.again or act
                    way.vain += self._hurried
                else:
                    self._mended(way)
                    return result

    def _note(self, way: _Way, error: StoreTrouble) -> None:
        if str(error) not in (self._writing.trouble, self._reading.trouble):
            self._telemetry.event(
                logging.ERROR,
                "store",
                f"{error}; tried again every {RETRY_S:g} s, nothing more is asked meanwhile",
            )
        way.trouble = str(error)

    def _mended(self, way: _Way) -> None:
        if way.trouble is not None:
            way.trouble = None
            if self.trouble is None:
                self._telemetry.event(logging.INFO, "store", "goes on")
