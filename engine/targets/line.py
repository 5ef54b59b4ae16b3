"""A connection that is made when it is needed, and dropped with whatever goes wrong on it.

None is ever mended: what it had still to send or to hear goes with it. An error that leaves here
is in words of ours: what a server or a library says may hold an address, a password or a record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Generic, TypeVar, TypeVarTuple

import anyio

from engine.network.failures import os_cause

from ..core.errors import SinkError

CLOSE_S = 2.0
CHAIN_MAX = 10  # errors, each the cause of the one before

C = TypeVar("C")
T = TypeVar("T")
Args = TypeVarTuple("Args")


class Line(Generic[C]):
    """One connection to a server, or none.

    `connect` makes it, and puts what ends it on the stack as soon as there is something to end.
    `failing` is what a SinkError begins with, `failures` the errors that `cause` has words for;
    `alive` says whether a connection can still be used.
    """

    def __init__(
        self,
        failing: str,
        connect: Callable[[AsyncExitStack], Awaitable[C]],
        failures: tuple[type[Exception], ...],
        cause: Callable[[Exception], str],
        alive: Callable[[C], bool] = lambda _: True,
    ) -> None:
        self._failing = failing
        self._connect = connect
        self._failures = failures
        self._cause = cause
        self._alive = alive
        self._closing = AsyncExitStack()
        self.held: C | None = None

    async def use(self, act: Callable[[C, *Args], Awaitable[T]], *args: *Args) -> T:
        """What `act` makes of the connection. Raises SinkError; then, or cancelled, it is gone."""
        try:
            if self.held is not None and not self._alive(self.held):
                await self.drop()
            if self.held is None:
                self.held = await self._connect(self._closing)
            return await act(self.held, *args)
        except self._failures as error:
            why = self._cause(error)
        except BaseException:
            await self.drop()
            raise
        await self.drop()
        raise SinkError(f"{self._failing}: {why}")  # nothing leads back to the error

    async def drop(self) -> None:
        """End it, within `CLOSE_S`, whatever it answers."""
        closing, self._closing, self.held = self._closing, AsyncExitStack(), None
        with anyio.move_on_after(CLOSE_S, shield=True), suppress(Exception):
            await closing.aclose()


def lost(error: BaseException) -> str:
    """Why a connection failed: what the system said, however deep a library has wrapped it."""
    root, seen = error, error
    for _ in range(CHAIN_MAX):
        if isinstance(seen, OSError) and (seen.errno or isinstance(seen, ConnectionResetError)):
            root = seen
        inner = seen.__cause__ or seen.__context__
        if inner is None:
            break
        seen = inner
    return os_cause(root, "the connection failed")
