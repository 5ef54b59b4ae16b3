"""The process around a command: its event loop, its signals, its configuration.

The first SIGTERM or SIGINT asks for a clean end; the second ends the process on the spot, which
the store and the sinks survive as they survive a power cut. Only a command may do this: the
library installs no signal handler.

One that has a parent of ours is told by that with a signal of its own, which counts as neither: who
ends a service mostly signals all of its processes, and the parent's word is then no second one.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.abc

from engine.core.errors import ConfigError

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config

T = TypeVar("T")

log = logging.getLogger("dlr_engine")


def load_config(path: Path) -> Config:
    """The configuration in a file. Raises ConfigError, a line for each fault."""
    from engine.config import load
    from engine.registry import providers, sinks

    return load(path, providers=providers(), sinks=sinks())


def account_of(config: Config, name: str) -> AccountConfig:
    """The account of that name. Raises ConfigError where there is none."""
    account = config.account(name)
    if account is None:
        names = ", ".join(account.name for account in config.accounts) or "none"
        raise ConfigError([f"{config.source}: there is no account {name[:64]!r} (it has {names})"])
    return account


def refuse_memory(config: Config, command: str) -> None:
    """Raises ConfigError where what the command puts into the store would end with it."""
    if config.store.scheme == "memory":
        raise ConfigError(
            [
                f"{config.source}: store.url: memory:// lives inside the worker alone; what"
                f" `{command}` put into it would end with the command"
            ]
        )


def start(work: Callable[[], Awaitable[T]]) -> T:
    """Run it in an event loop of its own, the faster one where it is installed."""
    fast = find_spec("uvloop") is not None
    return anyio.run(work, backend_options={"use_uvloop": fast})


class Stop:
    """Turns the first signal into an event that can be waited for. `order`: what the parent says
    it with, where there is one."""

    def __init__(self, order: signal.Signals | None = None) -> None:
        self.asked = anyio.Event()
        self.starting: anyio.CancelScope | None = None  # what is cancelled besides
        self._order = order

    async def listen(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        orders = () if self._order is None else (self._order,)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *orders) as signals:
            task_status.started()
            heard = False
            async for number in signals:
                if number not in orders and heard:
                    os._exit(128 + number)
                heard = heard or number not in orders
                if not self.asked.is_set():
                    log.info(
                        "worker: stopping, what is on its way is taken in; a second signal ends at"
                        " once"
                    )
                self.ask()

    def ask(self) -> None:
        """What is under way is to end; what is only starting ends at once."""
        self.asked.set()
        if self.starting is not None:
            self.starting.cancel()

    async def unless(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Its result; None where a signal came first, and then it was cancelled."""
        result: T | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await self.asked.wait()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            result = await work()
            group.cancel_scope.cancel()
        return result


def with_signals(work: Callable[[Stop], Awaitable[T]], order: signal.Signals | None = None) -> T:
    """Run `work` in an event loop, with signals turned into its `Stop`."""

    async def main() -> T:
        stop = Stop(order)
        async with anyio.create_task_group() as group:
            await group.start(stop.listen)
            result = await work(stop)
            group.cancel_scope.cancel()
        return result

    return start(main)
