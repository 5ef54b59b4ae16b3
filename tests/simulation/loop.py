"""An asyncio event loop on virtual time: it never waits, and each of its steps can be the last.

A step is one callback. Between two moments the loop runs what is ready, one step after the other;
where nothing is, it moves time on to the next timer or to the next event of the world outside. A
loop in which neither is left can never go on: that is reported, not waited for.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from inspect import CORO_CREATED, getcoroutinestate, iscoroutine
from itertools import count
from typing import Any

import anyio._backends._asyncio as backend

# Steps without time moving on: a loop that does so much at one moment goes round in circles.
STEPS_AT_ONCE_MAX = 200_000


class Crashed(BaseException):
    """The process is dead: nothing of it may go on."""


class Stuck(Exception):
    """Nothing is ready, no timer runs, nothing comes from outside; or time stands still."""


class Time:
    """The world's own time, in seconds, and what will happen outside of the process."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (max(when, self.now), next(self._count), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.at(self.now + seconds, act)

    def happen(self) -> None:
        """The next event."""
        self.now, _, act = heapq.heappop(self.events)
        act()

    def pass_to(self, when: float) -> None:
        """Let time go by, with all that happens meanwhile."""
        while self.events and self.events[0][0] <= when:
            self.happen()
        self.now = max(self.now, when)


class Task(asyncio.Task[Any]):
    """A task whose place in a set follows from when it was made, not from where it lies."""

    _numbers = count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(Task._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class _Scope(backend.CancelScope):
    """Likewise: the order in which scopes are cancelled is the order of a set."""

    __slots__ = ("_number",)
    _numbers = count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(_Scope._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


@contextmanager
def repeatable() -> Iterator[None]:
    """While it lasts, what anyio does is a function of what was asked of it."""
    before = backend.CancelScope
    Task._numbers = count()
    _Scope._numbers = count()
    backend.CancelScope = _Scope
    try:
        yield
    finally:
        backend.CancelScope = before


class Loop(asyncio.BaseEventLoop):
    """The event loop of one process. `last_step` is the step before which the process dies.

    `lag` says how late a timer fires, in seconds: other programs run on the machine, too.
    """

    def __init__(self, time: Time, lag: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self._world = time
        self._lag = lag
        self._at_once = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self.steps = 0
        self.last_step: int | None = None
        self.halted: Callable[[], bool] = lambda: False
        self.set_task_factory(lambda loop, coro, **kw: Task(coro, loop=loop, **kw))

    def time(self) -> float:
        return self._world.now

    def bury(self) -> None:
        """End all that is left of a dead process, in no time. Nothing of it reaches the world.

        Who has not begun begins before it is cancelled, as anyio has it: a task that it starts
        wraps a coroutine, which is otherwise left behind and complains that nobody awaited it.
        """
        self.set_exception_handler(lambda loop, context: None)
        self.last_step = None
        self.halted = lambda: False
        self._world = _Aside(self._world.now)
        self._at_once = 0
        while tasks := asyncio.all_tasks(self):
            if not all(map(_has_begun, tasks)):
                self._finish(asyncio.sleep(0))
                continue
            for task in sorted(tasks, key=hash):
                task.cancel()
            self._finish(_ended(tasks))
        self._finish(self.shutdown_asyncgens())
        self.close()

    def _finish(self, coro: Coroutine[Any, Any, None]) -> None:
        """Run until this is done, also where the order to stop is still in the queue that was
        given when the main task ended, just before the crash."""
        task = self.create_task(coro)
        task.add_done_callback(lambda _: self.stop())
        while not task.done():
            self.run_forever()

    # As in asyncio, without what a loop of one thread that is never looked into does not need.

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1  # of those of one moment, the first made is the first to fire
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._world.now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready = self._ready
        while not self._stopping:
            if not ready:
                self._advance()
            handle = ready.popleft()
            if handle._cancelled:
                continue
            self.steps += 1
            self._at_once += 1
            if self._at_once > STEPS_AT_ONCE_MAX:
                raise Stuck(f"{STEPS_AT_ONCE_MAX:,} steps were made in no time")
            if self.steps == self.last_step:
                ready.appendleft(handle)
                raise Crashed
            handle._run()

    def _advance(self) -> None:
        world, timers, ready = self._world, self._timers, self._ready
        events = world.events
        self._at_once = 0
        while not ready:
            if self.halted():
                raise Crashed
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if events and (not timers or events[0][0] <= timers[0][0]):
                world.happen()
                continue
            if not timers:
                raise Stuck("nothing is ready, no timer runs and nothing comes from outside")
            world.pass_to(timers[0][0] + self._lag())
            while timers and timers[0][0] <= world.now:
                handle = heapq.heappop(timers)[2]
                if not handle._cancelled:
                    ready.append(handle)

    def _write_to_self(self) -> None:
        """Nobody else runs: there is no one to wake."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when it is their turn."""


class _Aside(Time):
    """The time of a dead process: its timers run out, the world's does not move."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.now = now


def _has_begun(task: asyncio.Task[Any]) -> bool:
    coro = task.get_coro()
    return not iscoroutine(coro) or getcoroutinestate(coro) != CORO_CREATED


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
