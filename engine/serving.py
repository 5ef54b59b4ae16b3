"""A worker behind its HTTP surface: what it answers from memory, and from its store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from engine.books.pushing import Pusher
from engine.books.tracking import Handed
from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.core.errors import StoreTrouble
from engine.core.work import Page
from engine.stores.tracked import Tracked
from engine.stores.transaction import Transaction
from engine.web.host import Look

if TYPE_CHECKING:
    from engine.web.surface import Surface
    from engine.worker import Engine

T = TypeVar("T")


def surface_of(engine: Engine) -> Surface | None:
    """The HTTP surface, where one is configured; it is not open yet."""
    if engine.config.http is None:
        return None
    from engine.web.surface import Surface  # a server takes a while to load

    return Surface(WorkerHost(engine))


class WorkerHost:
    """`web.host.Host` of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.config = engine.config
        self.telemetry = engine.telemetry
        self.clock: Clock = engine.clock

    def ailing(self) -> str | None:
        if self._engine.ending:
            return "the worker is ending"
        trouble = self._engine.store.trouble
        return f"nothing can be stored: {trouble}" if trouble is not None else None

    async def unready(self) -> str | None:
        engine = self._engine
        if engine.fleet is not None:
            return None if engine.fleet.all_taken else "an account has no worker yet"
        missing = [one.name for one in engine.config.accounts if one.name not in engine.pollers]
        return f"not polled yet: {', '.join(missing)}" if missing else None

    async def look(self) -> Look:
        """In a fleet, of the accounts that this worker has: others answer for theirs."""
        engine, now_ms = self._engine, self.clock.now_ms()
        engine.store.check()
        look = await engine.store.read(lambda tx: Look.at(tx, now_ms))
        look.accounts = tuple(engine.pollers)
        look.statuses = {name: engine.status(name) for name in look.accounts}
        for sink in engine.dispatchers:
            sink.look()
            look.sinks[sink.name] = sink.dead
        worker = engine.fleet.name if engine.fleet is not None else ""
        look.counts = {worker: dict(engine.telemetry.counts)}
        return look

    async def read(self, job: Callable[[Transaction], T]) -> T:
        self._engine.store.check()
        return await self._engine.store.read(job)

    async def pusher(self, account: AccountConfig) -> Pusher:
        engine = self._engine
        engine.store.check()
        return await Pusher.open(
            account, engine.store, engine.telemetry, engine.clock, engine.redactors
        )

    async def keep_pushed(self, pusher: Pusher, page: Page) -> None:
        """What is committed here ends the polls of what is final by it; in a fleet what is
        another worker's goes to its inbox."""
        engine, name = self._engine, pusher.account.name
        engine.store.check()
        if engine.room.short:
            raise StoreTrouble("too little disk is free")
        done = await pusher.keep(page, ours=name in engine.pollers)
        if done is not None and (poller := engine.pollers.get(name)):
            poller.took(done)
            engine.tell()

    async def track(self, items: Mapping[str, Sequence[Tracked]]) -> Handed:
        self._engine.store.check()
        return await self._engine.track_many(items)
