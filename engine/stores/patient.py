"""A store whose passing trouble is waited out: a full or read-only disk, a locked database.

What was read from a one-time provider has no other place to go, so nobody gives up; and what is
wrong is said once, not once a second. A store that is damaged is another matter: that is raised,
and ends the worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from engine.core.clock import Clock
from engine.core.errors import StoreTrouble
from engine.telemetry import Telemetry

from .transaction import Store, Transaction

T = TypeVar("T")

RETRY_S = 1.0


class PatientStore:
    """`Store` around another one."""

    def __init__(self, store: Store, telemetry: Telemetry, clock: Clock) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self.trouble: str | None = None  # the present one, for people

    async def open(self, *, own: bool) -> None:
        await self._store.open(own=own)

    async def close(self) -> None:
        await self._store.close()

    async def write(self, job: Callable[[Transaction], T]) -> T:
        while True:
            try:
                result = await self._store.write(job)
            except StoreTrouble as error:
                await self._wait(error)
            else:
                self._mended()
                return result

    async def read(self, job: Callable[[Transaction], T]) -> T:
        while True:
            try:
                return await self._store.read(job)
            except StoreTrouble as error:
                await self._wait(error)

    async def _wait(self, error: StoreTrouble) -> None:
        if self.trouble is None:
            self._telemetry.event(
                logging.ERROR,
                "store",
                f"{error}; tried again every {RETRY_S:g} s, nothing more is asked meanwhile",
            )
        self.trouble = str(error)
        await self._clock.sleep(RETRY_S)

    def _mended(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self._telemetry.event(logging.INFO, "store", "goes on")
