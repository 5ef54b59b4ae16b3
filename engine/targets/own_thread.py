"""Blocking calls on a thread of their own, and what they hold, dropped with whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from engine.machine.offload import Offload

from ..core.errors import SinkError

T = TypeVar("T")
Args = TypeVarTuple("Args")


class OwnThread:
    """One call at a time.

    `failing` is what a SinkError begins with; `cause` has the words for an error, or None where it
    is none of a file or a server. `drop` lets go of what the calls hold.
    """

    def __init__(
        self,
        name: str,
        failing: str,
        drop: Callable[[], None],
        cause: Callable[[Exception], str | None],
    ) -> None:
        self._offload = Offload(name)
        self._failing = failing
        self._drop = drop
        self._cause = cause
        self.check = self._offload.check

    async def run(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """What `work` gives. Raises SinkError; then, or cancelled, what it held is gone."""
        try:
            return await self._offload.run(self._guarded, work, *args)
        except Exception as error:
            why = self._cause(error)
            if why is None:
                raise
        raise SinkError(f"{self._failing}: {why}")  # nothing leads back to the error

    async def close(self) -> None:
        try:
            await self.run(self._drop)
        finally:
            await self._offload.close()

    def _guarded(self, work: Callable[[*Args], T], *args: *Args) -> T:
        try:
            return work(*args)
        except BaseException:
            self._drop()
            raise
