"""A provider and a process for tests that play no seed: all goes well, in virtual time.

There is no network between them: a request is taken where it is sent, and its answer is whole. The
clocks are right, and the machine does nothing else unless the loop has a lag.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from engine import registry
from engine.config import parse
from engine.core.contracts import Head, Request
from engine.network.failures import Timeouts
from engine.network.transport import Transport
from engine.stores.memory import MemoryStore
from engine.worker import Engine
from tests.simulation.world import Machine, Process, World

T = TypeVar("T")


class Answer:
    """As `engine.network.transport.Answer`; it comes after so many seconds."""

    def __init__(self, body: bytes, content: str, after_s: float = 0.0) -> None:
        self.head = Head(200, {"content-type": content})
        self._body = body
        self._after_s = after_s

    async def __aenter__(self) -> Answer:
        if self._after_s:
            await asyncio.sleep(self._after_s)
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


class Provider(Transport, ABC):
    """Takes every request; what it answers is for those to say who are made of it."""

    def __init__(self, process: Process) -> None:
        self.world = process.world

    @abstractmethod
    def take(self, params: Mapping[str, str]) -> Answer:
        """A request is being sent."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Any:
        answer = self.take(dict(request.params))
        if on_sent is not None:
            on_sent()
        return answer


def lone_process(what: str) -> Process:
    """The only life of an engine in a world of its own."""
    machine = Machine("boot", -100.0, tells=True)
    return Process(World(what), 1, machine=machine, wall_ahead_s=0.0, drift=0.0)


def run(process: Process, main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end; what it returns."""
    loop = process.loop
    loop.set_task_factory(None)  # nothing here is drawn: asyncio's own tasks are quicker
    try:
        return loop.run_until_complete(loop.create_task(main))
    finally:
        loop.bury()


def engine_for(
    process: Process,
    provider: Provider,
    accounts: Sequence[Mapping[str, Any]],
    store: MemoryStore | None = None,
) -> Engine:
    """An engine that has these accounts and no sinks, and keeps its books in memory."""
    config = parse(
        {"store": {"url": "memory://"}, "accounts": list(accounts)},
        providers=registry.providers(), sinks={},
    )  # fmt: skip
    return Engine(
        config, clock=process, rand=process.rand, store=store or MemoryStore(), transport=provider
    )


def batch_report(msisdn: str, status: int) -> bytes:
    """BulkSMS's answer of a batch of one recipient."""
    return f"0|Returns to follow\n\n{msisdn}|{status}\n".encode()
