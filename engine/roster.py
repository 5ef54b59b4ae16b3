"""The accounts that an engine polls: built, started, and ended one by one or all together.

Where one process owns the store they are all there from its start to its end. In a fleet they come
and go with their leases.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.abc
import msgspec

from engine.books.committing import MOVED, ZONE
from engine.config.describe import in_the_clear
from engine.config.model import AccountConfig
from engine.core.errors import ConfigError, LeaseLost, StoreError
from engine.limits.kept import KeptLimits
from engine.network.transport import Transport
from engine.polling.asking import Asker
from engine.polling.health import Health
from engine.polling.poller import AccountPoller

if TYPE_CHECKING:
    from engine.worker import Engine


A = TypeVar("A")


class Roster:
    """The pollers of one engine and the tasks that they run in."""

    def __init__(
        self, engine: Engine, *, once: bool, rand: random.Random, transport: Transport | None
    ) -> None:
        self.pollers: dict[str, AccountPoller] = {}
        self.limits = KeptLimits(engine.store, engine.clock)
        self.limits.wall = engine.clock.wall
        self._engine = engine
        self._once = once
        self._rand = rand
        self._unhurried = anyio.Lock()
        self._given_transport = transport
        self._transports: dict[str | None, Transport] = {}
        self._group: anyio.abc.TaskGroup | None = None
        self._running: dict[str, anyio.Event] = {}  # by account: when its poller has ended
        self._told: set[str] = set()
        self._stopping = False

    # Coming

    async def build(self, accounts: Sequence[AccountConfig]) -> None:
        """Make their pollers, as whoever polled them before has left them."""
        engine = self._engine
        await self.limits.open(accounts)
        notes = await engine.store.read(lambda tx: tx.notes("status"))
        moved = await self._times_moved(accounts)
        for account in accounts:
            name = account.name
            if name not in self._told and (clear := in_the_clear(account)):
                self._told.add(name)
                engine.telemetry.event(logging.WARNING, name, clear)
            asker = Asker(
                account,
                store=engine.store,
                transport=await self._transport(account),
                limiter=self.limits.for_account(account),
                telemetry=engine.telemetry,
                clock=engine.clock,
                rand=self._rand,
                redactor=engine.redactors.get(name),
                unhurried=self._unhurried,
            )
            if name in moved:
                asker.distrust_times()
            asker.shut = partial(engine.shut, name)
            asker.on_records(engine.tell)
            asker.may_send = partial(engine.may_send, name)
            poller = AccountPoller(asker, once=self._once)
            poller.on_lost = engine.lost
            poller.on_refusal(
                hold=partial(self._soon, self._keep_limit, account),
                pause=partial(self._soon, engine.note_status, name),
            )
            if name in notes:
                poller.resume(msgspec.json.decode(notes[name], type=Health))
            self.pollers[name] = poller

    async def _times_moved(self, accounts: Sequence[AccountConfig]) -> set[str]:
        """The accounts whose `timezone` was edited at any time: what is known of them has other
        times of sending than the same messages get now."""
        zones = await self._engine.store.read(lambda tx: tx.notes(ZONE))
        new: dict[str, bytes] = {}
        for account in accounts:
            zone, known = account.timezone.encode(), zones.get(account.name)
            if known is None:
                new[account.name] = zone
            elif known not in (zone, MOVED):
                new[account.name] = MOVED
        if new:
            notes = {(name, ZONE): zone for name, zone in new.items()}
            await self._engine.store.write(lambda tx: tx.put_notes(notes))
        zones |= new
        return {account.name for account in accounts if zones[account.name] == MOVED}

    def start(self, group: anyio.abc.TaskGroup, names: Sequence[str]) -> None:
        """Let them poll, in this task group."""
        self._group = group
        for name in names:
            if self._stopping:  # it came while all were told to end
                self.pollers[name].stop()
            self._running[name] = anyio.Event()
            group.start_soon(self._poll, self.pollers[name])

    async def _transport(self, account: AccountConfig) -> Transport:
        ca_file = str(account.ca_file) if account.ca_file is not None else None
        if ca_file not in self._transports:
            transport = self._given_transport or Transport(ca_file=ca_file)
            try:
                await transport.open()
            except OSError as error:
                source = self._engine.config.source
                raise ConfigError(
                    [f"{source}: ca_file: {ca_file}: {error.strerror or error}"]
                ) from None
            self._transports[ca_file] = transport
        return self._transports[ca_file]

    # Polling

    async def _poll(self, poller: AccountPoller) -> None:
        try:
            await poller.run(self._engine.config.shutdown_grace_s)
        except LeaseLost as lost:
            self._engine.lost(lost.account)
        finally:
            self._running.pop(poller.name).set()
            self._engine.tell()

    def _soon(self, act: Callable[[A], Coroutine[Any, Any, None]], of: A) -> None:
        if self._group is not None:
            self._group.start_soon(act, of)

    async def _keep_limit(self, account: AccountConfig) -> None:
        if account.name not in self.pollers:
            return
        try:
            await self.limits.of(account).keep()
        except LeaseLost as lost:
            self._engine.lost(lost.account)
        except StoreError as error:
            text = f"its limit's state is not kept: {error}"
            self._engine.telemetry.event(logging.ERROR, account.name, text)

    # Going

    @property
    def polling(self) -> bool:
        return bool(self._running)

    def stop(self) -> None:
        """No new polls; those in flight go on."""
        self._stopping = True
        for poller in self.pollers.values():
            poller.stop()

    async def ended(self) -> None:
        """Wait until no account polls any more."""
        while self._running:
            await next(iter(self._running.values())).wait()

    async def end(self, accounts: Sequence[AccountConfig]) -> None:
        """Stop these, and wait until what is in flight of theirs has ended."""
        for account in accounts:
            if account.name in self.pollers:
                self.pollers[account.name].stop()
        for account in accounts:
            if running := self._running.get(account.name):
                await running.wait()

    def drop(self, accounts: Sequence[AccountConfig]) -> None:
        """Forget these, which have ended."""
        for account in accounts:
            self.pollers.pop(account.name, None)

    # In a fleet

    async def take(self, accounts: Sequence[AccountConfig], group: anyio.abc.TaskGroup) -> None:
        """Poll these from now on, and bring the sinks their records. Raises LeaseLost."""
        names = [account.name for account in accounts]
        await self.build(accounts)
        for consumer in self._engine.consumers():
            await consumer.take(names)
        self.start(group, names)
        self._engine.hear_inbox()

    async def give(self, accounts: Sequence[AccountConfig], wait_s: float) -> None:
        """End these in good order: whoever has them next goes on from here. What the sinks have in
        hand is waited for so long. Raises LeaseLost."""
        await self.end(accounts)
        with anyio.move_on_after(wait_s):
            await self._let_go(accounts)
        for account in accounts:
            await self._engine.note_status(account.name)
        self.drop(accounts)
        await self.limits.close(accounts)

    async def lose(self, accounts: Sequence[AccountConfig]) -> None:
        """Others have these already."""
        await self.end(accounts)
        self.drop(accounts)
        self.limits.forget(accounts)
        await self._let_go(accounts)

    async def _let_go(self, accounts: Sequence[AccountConfig]) -> None:
        for consumer in self._engine.consumers():
            await consumer.let_go([account.name for account in accounts])

    async def close(self) -> None:
        for transport in self._transports.values():
            await transport.close()
