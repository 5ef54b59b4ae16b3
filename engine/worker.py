"""The composition root: the one place that knows every part, and in which order they end.

`Engine` is an async context manager. Inside the block everything runs in a task group of its own
in the caller's event loop; leaving the block stops the polls, lets those in flight end, flushes the
sinks and closes the store. No signal handler, no global state, no logging set-up: those belong to
the program around it.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import msgspec

from engine.books.redacting import redactors
from engine.books.sent import item_of
from engine.books.tracking import Handed, accounts_of, hand_over
from engine.chores import Chores
from engine.config.describe import unsafe
from engine.config.model import WORKER, Config
from engine.core.clock import Clock
from engine.core.errors import ConfigError, LeaseLost, StoreError, StoreTrouble
from engine.core.redact import Redactor
from engine.dispatch.dispatcher import Dispatcher
from engine.dispatch.log_reader import LogReader
from engine.dispatch.reports import REPORTS_NAME, Reports
from engine.machine.clock import RealClock, SteadyClock
from engine.network.transport import Transport
from engine.polling.room import Room
from engine.roster import Roster
from engine.serving import surface_of
from engine.stores.opening import make_store
from engine.stores.patient import PatientStore
from engine.stores.tracked import Tracked
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

if TYPE_CHECKING:
    from engine.fleet import Fleet

# For what has to be written when all has ended: a full disk must not hold up the exit for ever.
LAST_WORD_S = 5.0

# The last part of the grace is for what has to be cancelled to let go. Where requests took all of
# it, sinks still get a moment for what these brought.
ENDING_S = 2.0
FLUSH_MIN_S = 1.0


class Engine:
    """A running engine: `async with Engine(config) as poller`."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        rand: random.Random | None = None,
        once: bool = False,
        store: Store | None = None,
        disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage,
        transport: Transport | None = None,
        serve: bool = True,
    ) -> None:
        """`clock`, `rand`, `store` and `transport`: instead of the machine's, the configured
        store and one HTTP client for each `ca_file`. `serve`: open the port of `[http]`."""
        self.config = config
        self.telemetry = Telemetry()
        told = partial(self.telemetry.event, logging.WARNING, "clock")
        self.clock = SteadyClock(clock or RealClock(), told)
        self.fleet: Fleet | None = None
        self._store = store or make_store(
            config.store.scheme,
            config.store.path,
            config.store.shown,
            config.store.synchronous,
            url=config.store.url,
        )
        if store is None and config.store.scheme == "postgresql":
            from engine.fleet import Fleet  # its library is an extra

            self.fleet = Fleet(self, self._store)
        self.store = PatientStore(self._store, self.telemetry, self.clock)
        self.room = Room(
            {a.name: a.provider.traits.feed == "drained" for a in config.accounts},
            self.store,
            self.telemetry,
            log_max=config.store.log_max,
            floor=config.store.min_free_disk,
        )
        self.redactors: dict[str, Redactor] = {}
        self.dispatchers: list[Dispatcher] = []
        self.disk_usage = disk_usage
        self._rand = rand or random.Random()
        self.once = once
        self.roster = Roster(self, once=once, rand=self._rand, transport=transport)
        self._limits = self.roster.limits
        self.pollers = self.roster.pollers
        self._group: anyio.abc.TaskGroup | None = None
        self._delivering = 0
        self._reports: Reports | None = None
        self._chores = Chores(self, self._rand.random)
        self.note_status = self._chores.note_status
        self.hear_inbox = self._chores.hear_inbox
        self._sinks_ended = anyio.Event()
        self.ending = False
        self._entered = False
        self.surface = surface_of(self) if serve else None

    # Life

    async def __aenter__(self) -> Engine:
        if self._entered:
            raise RuntimeError("an engine runs once: make another one")
        await self.store.open(own=True)
        self._entered = True
        if warning := unsafe(self.config.store):
            self.telemetry.event(logging.WARNING, "store", warning)
        now_ms = self.clock.now_ms()
        try:
            # A disk that cannot be written is waited out later on, but told at once at a start.
            await self._store.write(lambda tx: tx.put_note("", "started", b"%d" % now_ms))
            if self.fleet is not None:
                await self.fleet.join()
                self._limits.wall = self.fleet.wall
                self._guard_files(self.fleet.name)
            await self._build()
            await self._chores.digest_inbox()
            await self._chores.look_for_room()
            if self.surface is not None:
                await self.surface.open()
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._close()
            raise
        self.roster.start(self._group, list(self.pollers))
        for dispatcher in self.dispatchers:
            self._delivering += 1
            self._group.start_soon(self._deliver, dispatcher)
        self._group.start_soon(self._chores.run)
        if self.fleet is not None:
            if self.once:
                await self.fleet.take_once(self._group)
            self._group.start_soon(self.fleet.run, self._group)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._group is not None
        left = error
        try:
            if left is None:
                left = await self._stopped()
            self.store.hurry()
            self._group.cancel_scope.cancel()
            kept = await self._group.__aexit__(type(left) if left else None, left, trace)
            if error is None and left is not None and not kept:
                raise left
        except BaseExceptionGroup as group:
            first = _first(group)
            # What a stop meets of the store's trouble has been told, and nobody waits for it.
            if error is not None or not isinstance(first, StoreTrouble):
                raise first from None
        finally:
            with anyio.move_on_after(LAST_WORD_S, shield=True):
                try:
                    await self.note_status()
                    if self._reports is not None:
                        await self._reports.finish()
                    await self._limits.close()
                except StoreError as fault:  # the first error wins, and all is closed in any case
                    self.telemetry.event(
                        logging.ERROR,
                        "store",
                        f"the limits' use is not kept, the next start waits them out: {fault}",
                    )
                except LeaseLost as lost:
                    self.telemetry.event(logging.WARNING, lost.account, str(lost))
                except Exception as fault:
                    self.telemetry.debug(fault)
            with anyio.CancelScope(shield=True):
                await self._close()
        return None

    async def _stopped(self) -> BaseException | None:
        """Stop; what came in between is for the task group, which knows who has cancelled it."""
        try:
            await self._stop()
        except BaseException as error:
            return error
        return None

    async def _stop(self) -> None:
        """No new polls, those in flight end, sinks are flushed; all within the grace."""
        self.ending = True
        grace_s = self.config.shutdown_grace_s
        ending_s = min(ENDING_S, grace_s / 2)
        if self.fleet is not None:
            self.fleet.leaving()
        self.roster.stop()
        with anyio.move_on_after(grace_s - ending_s):
            await self._all_ended()
        if self.store.trouble is not None:
            self._chores.scope.cancel()
            for dispatcher in self.dispatchers:
                dispatcher.stop()
            self.store.hurry()
        if self.roster.polling:
            with anyio.move_on_after(ending_s + FLUSH_MIN_S):
                await self._all_ended()
        self._chores.scope.cancel()

    async def _all_ended(self) -> None:
        await self.polls_ended()
        await self.flush()

    async def polls_ended(self) -> None:
        """Wait until no account polls any more: with `once`, or after a stop."""
        await self.roster.ended()

    async def flush(self) -> None:
        """Let every sink write what the log holds, and end."""
        for dispatcher in self.dispatchers:
            dispatcher.stop()
        if self._delivering:
            await self._sinks_ended.wait()

    async def _close(self) -> None:
        if self.surface is not None:
            await self.surface.close()
        if self.fleet is not None:
            await self.fleet.leave()
        await self.roster.close()
        await self.store.close()

    # Building

    def _guard_files(self, worker: str) -> None:
        """Two workers of one machine must not write one file."""
        shared = [sink.name for sink in self.config.sinks if sink.is_shared_file]
        if shared and not worker.endswith("-1"):
            raise ConfigError(
                [
                    f"{self.config.source}: sink {name}: another worker of this machine writes its"
                    f" path: put {WORKER} into it"
                    for name in shared
                ]
            )

    async def _build(self) -> None:
        self.redactors = await redactors(self.config, self.store)
        ours = () if self.fleet is not None else self.config.accounts
        await self.roster.build(ours)
        names = [account.name for account in ours]
        for sink in self.config.sinks:
            dispatcher = Dispatcher(
                sink,
                sink.build(self.fleet.name if self.fleet is not None else None),
                store=self.store,
                accounts=names,
                telemetry=self.telemetry,
                clock=self.clock,
                rand=self._rand,
            )
            self.dispatchers.append(dispatcher)

    # Leases

    def consumers(self) -> list[Dispatcher | Reports]:
        """Who reads the log."""
        return [*self.dispatchers, *([self._reports] if self._reports is not None else [])]

    def lost(self, name: str) -> None:
        """A write under this lease was refused."""
        if self.fleet is not None:
            self.fleet.lost(name)

    def shut(self, name: str) -> str | None:
        """Why an account may ask nothing at present, be it well or not."""
        lease = self.fleet.shut(name) if self.fleet is not None else None
        return lease or self.room.shut(name)

    def may_send(self, name: str) -> bool:
        """Whether a request may go out this very moment."""
        return self.fleet is None or self.fleet.shut(name) is None

    # Tasks

    async def _deliver(self, dispatcher: Dispatcher) -> None:
        try:
            await dispatcher.run()
        finally:
            self._delivering -= 1
            if not self._delivering:
                self._sinks_ended.set()

    def tell(self) -> None:
        for consumer in self.consumers():
            consumer.tell()

    def status(self, name: str) -> dict[str, Any]:
        """An account's health and its use of the limit."""
        poller = self.pollers[name]
        limiter = self._limits.of(poller.account)
        health: dict[str, Any] = msgspec.to_builtins(poller.health)
        return {
            **health,
            "waits": poller.waits,
            "used": [
                {"requests": rate.requests, "per_s": rate.per_s, "used": used}
                for rate, used in limiter.usage()
            ],
            "hold_s": round(max(0.0, poller.limiter.hold_s())),
            "hold_why": poller.limiter.hold_why if poller.limiter.hold_s() > 0 else None,
        }

    # For the caller

    async def track(
        self,
        account: str,
        *,
        batch_id: str | None = None,
        message_id: str | None = None,
        recipients: Sequence[str] = (),
        recipient: str | None = None,
        sent_at: object = None,
        reference: str | None = None,
    ) -> None:
        """Hand over what was sent. `sent_at`: an aware datetime, RFC 3339 or epoch seconds; now.

        Raises ConfigError where the account does not exist or cannot follow such an item,
        ValueError for what is none, as a time without an offset.
        """
        words = {"batch_id": batch_id, "message_id": message_id, "reference": reference}
        item = item_of(words, recipients, recipient, sent_at, self.clock.now_ms())
        await self.track_all(account, [item])

    async def track_all(self, account: str, items: Sequence[Tracked]) -> None:
        """Hand over many at once; they are durable when this returns."""
        await self.track_many({account: items})

    async def track_many(self, items: Mapping[str, Sequence[Tracked]]) -> Handed:
        """The same for several accounts, in one transaction: see `tracking.hand_over`."""
        done = await hand_over(
            self._store,
            self.config,
            items,
            owned=self.pollers,
            redactors=self.redactors,
            now_ms=self.clock.now_ms(),
            chance=self._rand.random(),
        )
        for name, works in done.items():
            if works is not None and (poller := self.pollers.get(name)):
                poller.accept(works)
        return done

    def read_as(self) -> str | None:
        """The name under which the program around the engine reads the log, where it does."""
        return REPORTS_NAME if self._reports is not None else None

    def reports(self, *, accounts: Sequence[str] | None = None) -> Reports:
        """Every record, from the oldest kept on; acknowledged when the next one is asked for.

        For one consumer: a new one takes over from the one before. After a crash up to
        `reports.PORTION_MAX` come again, under the same `event_id`. ConfigError: no such account.
        """
        names = accounts or [account.name for account in self.config.accounts]
        accounts_of(self.config, names)
        if self.fleet is not None:
            names = [name for name in names if name in self.pollers]
        self._reports = Reports(
            LogReader(REPORTS_NAME, self.store, names), self._reports, chosen=accounts
        )
        return self._reports


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error of a group: what the caller can act on."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
