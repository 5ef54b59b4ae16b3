"""What other hands ask of a task that is busy with a loop of its own: done between two rounds.

A sink is written by one task, and its position moved by it alone: who wants either, asks that task.
What is asked waits its turn: to go back in each of a sink's accounts is as many errands. They are
in the inbox until they are answered; who asked for them knows how long to wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from engine.core.errors import SinkError

# What may wait for one sink at a time: to go back in each of some thousand accounts.
ERRANDS_MAX = 4096

T = TypeVar("T")


class Errands:
    """Those of one sink. `tell` is called when there is a new one; none is begun once `stopped`."""

    def __init__(self, tell: Callable[[], None], *, stopped: Callable[[], bool]) -> None:
        self._tell = tell
        self._stopped = stopped
        self._waiting: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def press(self) -> bool:
        """Whether there is something else to do than to wait."""
        return self._stopped() or bool(self._waiting)

    async def ask(self, errand: Callable[[], Awaitable[T]]) -> T:
        """Have it done; its result or its error. Raises SinkError where it cannot be."""
        if self._ended:
            raise SinkError("the worker is ending")
        if len(self._waiting) >= ERRANDS_MAX:
            raise SinkError("it is busy with what was asked of it before")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((errand, done))
        self._tell()
        return await done

    async def run(self) -> None:
        """Do what waits, in the task that calls this."""
        while self._waiting and not self._stopped():
            errand, done = self._waiting.popleft()
            try:
                result = await errand()
            except Exception as error:
                if not done.done():  # else nobody waits for it any more
                    done.set_exception(error)
            except BaseException:
                done.cancel()
                raise
            else:
                if not done.done():
                    done.set_result(result)

    def end(self) -> None:
        """Nothing more is done."""
        self._ended = True
        for _, done in self._waiting:
            if not done.done():
                done.set_exception(SinkError("the worker is ending"))
        self._waiting.clear()
