"""The port of `[http]` where `run --workers N` keeps several workers: their parent has it.

The parent polls nothing and holds no lease. It answers for the whole fleet from what all workers
leave in the store, and hands over through the inbox, where whoever has the account takes it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import orjson

from engine.books.pushing import Pusher
from engine.books.redacting import redactors
from engine.books.tracking import Handed, hand_over
from engine.chores import counts_note, sink_note
from engine.core.clock import Clock
from engine.core.errors import StoreError, StoreTrouble
from engine.core.redact import Redactor
from engine.machine.clock import RealClock
from engine.stores.opening import make_store
from engine.stores.tracked import Tracked
from engine.stores.transaction import Transaction
from engine.telemetry import Telemetry
from engine.web.host import Counts, Look
from engine.web.surface import FRESH_S, Surface

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config
    from engine.core.work import Page
    from engine.stores.postgres_leases import Survey

T = TypeVar("T")

# How often the parent looks whether the store is there, and how long it may take to answer.
WATCH_S = 1.0
WATCH_MAX_S = 5.0


class ParentHost:
    """`web.host.Host` of a fleet. `running`: how many workers the parent has."""

    def __init__(self, config: Config, running: Callable[[], int]) -> None:
        self.config = config
        self.telemetry = Telemetry()
        self.clock: Clock = RealClock()
        self.ending = False
        self._running = running
        store = config.store
        # Not patient: who asks the port would rather come again, and nothing here waits for it.
        self._store = make_store(
            store.scheme, store.path, store.shown, store.synchronous, url=store.url
        )
        self._trouble: str | None = None
        self._redactors: dict[str, Redactor] = {}
        self._asking = anyio.Lock()
        self._survey: Survey | None = None
        self._surveyed_s = float("-inf")

    async def open(self) -> None:
        await self._store.open(own=False)
        self._redactors = await redactors(self.config, self._store)

    async def close(self) -> None:
        await self._store.close()

    async def watch(self) -> None:
        """Look whether the store is there, for ever; what changes is said once."""
        while True:
            trouble: str | None = "it does not answer"
            with anyio.move_on_after(WATCH_MAX_S):
                try:
                    await self._store.read(lambda tx: tx.inbox_waits())
                    trouble = None
                except StoreError as error:
                    trouble = str(error)
            if trouble != self._trouble:
                level, text = logging.ERROR, f"{trouble}; what is handed over here is refused"
                if trouble is None:
                    level, text = logging.INFO, "goes on"
                self.telemetry.event(level, "store", text)
            self._trouble = trouble
            await self.clock.sleep(WATCH_S)

    def _check(self) -> None:
        if self._trouble is not None:
            raise StoreTrouble(self._trouble)

    def ailing(self) -> str | None:
        if self.ending:
            return "the workers are ending"
        if self._trouble is not None:
            return f"nothing can be stored: {self._trouble}"
        return None if self._running() else "no worker is running"

    async def unready(self) -> str | None:
        held = {one.account for one in (await self._fleet()).leases if one.worker is not None}
        free = [one.name for one in self.config.accounts if one.name not in held]
        return f"no worker has: {', '.join(free)}" if free else None

    async def look(self) -> Look:
        names = [worker.name for worker in (await self._fleet()).workers if worker.alive]
        now_ms = self.clock.now_ms()
        self._check()
        return await self._store.read(lambda tx: self._look(tx, names, now_ms))

    def _look(self, tx: Transaction, workers: Sequence[str], now_ms: int) -> Look:
        look = Look.at(tx, now_ms)
        look.accounts = tuple(account.name for account in self.config.accounts)
        statuses = tx.notes("status")
        look.statuses = {n: orjson.loads(statuses[n]) for n in look.accounts if n in statuses}
        for sink in self.config.sinks:
            whose = (sink_note(sink.name, worker) for worker in workers)
            notes = [note for who, name in whose if (note := tx.notes(name).get(who)) is not None]
            troubles = [trouble for note in notes if (trouble := orjson.loads(note)["trouble"])]
            look.sinks[sink.name] = troubles[0] if troubles else None
        look.counts = {worker: _counts(tx, worker) for worker in workers}
        return look

    async def _fleet(self) -> Survey:
        """Who is there and has what, looked up once for all who ask within FRESH_S."""
        from engine.stores.postgres_leases import survey

        async with self._asking:
            if self._survey is None or self.clock.monotonic() - self._surveyed_s >= FRESH_S:
                self._survey = await survey(self.config.store.url)
                self._surveyed_s = self.clock.monotonic()
            return self._survey

    async def read(self, job: Callable[[Transaction], T]) -> T:
        self._check()
        return await self._store.read(job)

    async def pusher(self, account: AccountConfig) -> Pusher:
        self._check()
        return await Pusher.open(account, self._store, self.telemetry, self.clock, self._redactors)

    async def keep_pushed(self, pusher: Pusher, page: Page) -> None:
        self._check()
        await pusher.keep(page, ours=False)

    async def track(self, items: Mapping[str, Sequence[Tracked]]) -> Handed:
        self._check()
        return await hand_over(
            self._store,
            self.config,
            items,
            owned=(),
            redactors=self._redactors,
            now_ms=self.clock.now_ms(),
            chance=random.random(),
        )


def _counts(tx: Transaction, worker: str) -> Counts:
    whose, name = counts_note(worker)
    note = tx.notes(name).get(whose)
    rows = orjson.loads(note) if note is not None else []
    return {(counter, subject): count for counter, subject, count in rows}


@asynccontextmanager
async def serving(config: Config, running: Callable[[], int]) -> AsyncIterator[ParentHost | None]:
    """Have the port open, where one is configured. Raises EngineError where that cannot be."""
    if config.http is None:
        yield None
        return
    host = ParentHost(config, running)
    try:
        await host.open()
        surface = Surface(host)
        async with anyio.create_task_group() as around:
            try:
                await surface.open()
                around.start_soon(host.watch)
                yield host
            finally:
                around.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await surface.close()
    finally:
        with anyio.CancelScope(shield=True):
            await host.close()
