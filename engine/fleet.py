"""An engine among others: its accounts come and go with their leases.

It renews that it is alive, takes what falls to it, gives up what others are to have, and lets go at
once of what it has lost. Renewing never waits for anything else of the engine. To give an account
up is to end its polls, to write out what the sinks were being given of it, to leave its limit's
books closed, and only then to let the others have it: they go on where this one was. What is lost
is lost at once, and whoever has it takes all that this one may have sent for sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import anyio.abc

from engine.config.model import AccountConfig
from engine.core.errors import LeaseLost, StoreError, StoreTrouble
from engine.leases import (
    RENEW_S,
    TTL_S,
    Held,
    Peer,
    Rates,
    Term,
    Unit,
    View,
    to_claim,
    to_give,
    units_of,
    weight,
)
from engine.stores.postgres import PostgresStore
from engine.stores.postgres_leases import INBOX, LeaseBook, Seen, session_name
from engine.stores.transaction import Store

if TYPE_CHECKING:
    from engine.worker import Engine

# A look that news ask for comes so long after the one before.
HASTE_S = 0.05
# To give an account up waits so long for what the sinks have in hand; then some may come again.
LET_GO_S = 10.0
# The last word to the others, when all has ended.
LEAVE_S = 3.0


class Fleet:
    """One engine's part of a fleet."""

    def __init__(self, engine: Engine, store: Store) -> None:
        config = engine.config
        self.id = uuid4().hex
        self.name = ""  # unique among those who are alive, the same again after a restart
        self.fences: dict[str, int] = {}  # by name of a lease: what we hold, and write under
        self.idle = False  # nothing is left to do of what we hold
        self.peers: tuple[Peer, ...] = ()
        self._engine = engine
        self._units = units_of(config.accounts)
        self._of = {name: unit for unit in self._units for name in unit.names}
        names = sorted(self._of)
        self._book = LeaseBook(config.store.url, self.id, names, ttl_s=TTL_S, clock=self._now)
        self._book.on_news = self._hear
        self._term = Term()
        self._held: dict[Unit, Held] = {}
        self._ending: set[Unit] = set()  # they end; only then may they be ours again
        self._opening: set[Unit] = set()
        self._rates = Rates()
        self._gave_at = float("-inf")
        self._database = (0.0, 0.0, 0.0)  # its clock, and ours before and after it was told
        self._news = anyio.Event()
        self._group: anyio.abc.TaskGroup | None = None
        self._leaving = False
        self._trouble = False
        self._free = True  # as of the last look somebody had to take something
        self._idle_seen = False  # the last look came after we said that we are idle
        assert isinstance(store, PostgresStore)
        store.fences = self.fences
        store.session_name = session_name(self.id)

    def _now(self) -> float:
        """Seconds that never step back, and go on while the machine sleeps where it tells them."""
        boot = self._engine.clock.boot()
        return boot[1] if boot is not None else self._engine.clock.monotonic()

    # For the engine

    async def join(self) -> None:
        """Be one of them, before anything is taken. Raises StoreTrouble."""
        await self._look()

    async def run(self, group: anyio.abc.TaskGroup) -> None:
        """Take and give, until cancelled; accounts poll in `group`."""
        self._group = group
        while True:
            with anyio.move_on_after(RENEW_S):
                await self._news.wait()
                await self._engine.clock.sleep(HASTE_S)
            self._news = anyio.Event()
            await self.turn(group)

    async def turn(self, group: anyio.abc.TaskGroup) -> None:
        """One look, and what follows from it."""
        self._group = group
        try:
            view = await self._look()
            if view is not None and not self._leaving:
                await self._claim(view)
                self._balance(view)
        except StoreTrouble as trouble:
            if not self._trouble:
                text = f"{trouble}; without them nothing is asked"
                self._engine.telemetry.event(logging.ERROR, "fleet", text)
            self._trouble = True
        else:
            if self._trouble:
                self._engine.telemetry.event(logging.INFO, "fleet", "the leases are renewed again")
            self._trouble = False

    async def take_once(self, group: anyio.abc.TaskGroup) -> None:
        """Take what is free and nothing more: with `once`. Returns when it polls."""
        await self.turn(group)
        self.leaving()
        while self._opening:
            await self._engine.clock.sleep(HASTE_S)

    def shut(self, account: str) -> str | None:
        """Why the account may not be asked at present; None: it may."""
        if account not in self.fences:
            return "it is another worker's"
        if not self._term.holds(self._now()):
            return "its lease could not be renewed in time"
        return None

    def lost(self, name: str) -> None:
        """A write was refused: the lease is not ours."""
        unit = self._of.get(name)
        if unit is not None and self._group is not None:
            self._lose(unit, self._group)

    def wall(self) -> tuple[float, float]:
        """The database's clock now: no earlier than, and no later than, epoch seconds."""
        told, before, after = self._database
        now = self._now()
        return told + now - after, told + now - before

    @property
    def all_idle(self) -> bool:
        """Whether nobody has anything left to do, and nothing waits for somebody to take it."""
        if not self._idle_seen or self._free or self._ending or self._opening:
            return False
        return self.idle and all(peer.idle for peer in self.peers if peer.id != self.id)

    @property
    def all_taken(self) -> bool:
        """Whether every account had its worker, as of the last look."""
        return bool(self.name) and not self._free and not self._opening

    def leaving(self) -> None:
        """Take nothing more; what is held is given back in the end."""
        self._leaving = True

    async def leave(self) -> None:
        """Everything has ended: the others may have it. Where that cannot be said, they see that
        nobody renews."""
        with anyio.move_on_after(LEAVE_S, shield=True), suppress(StoreTrouble):
            await self._book.leave()
        self.fences.clear()
        self._term.ended()
        with anyio.CancelScope(shield=True):
            await self._book.close()

    # Looking

    async def _look(self) -> View | None:
        self._measure()
        idle = self.idle and not self._opening
        seen: Seen = await self._book.renew(load=self._load(), idle=idle, leaving=self._leaving)
        self._term.renewed(seen.asked_at)
        self._database = (seen.database_s, seen.asked_at, seen.answered_at)
        if self.name and seen.name != self.name:
            self._engine.telemetry.event(
                logging.WARNING,
                "fleet",
                f"this worker was away so long that another process is {self.name} now; from here"
                f" on it is {seen.name}, its files keep the old name until it is started again",
            )
        self.name = seen.name
        self.peers = tuple(
            Peer(id=one.id, name=one.name, load=one.load, idle=one.idle, leaving=one.leaving)
            for one in seen.members
        )
        self._free = bool(seen.free & self._of.keys())
        self._idle_seen = idle
        if self._group is None:
            return None
        self._compare(seen, self._group)
        return View(peers=self.peers, mine=seen.mine, free=seen.free)

    def _compare(self, seen: Seen, group: anyio.abc.TaskGroup) -> None:
        """What is ours no more is let go; what we do not know to be ours is given back."""
        for name, fence in list(self.fences.items()):
            if seen.mine.get(name) != fence and name in self._of:
                self._lose(self._of[name], group)
        strange = [
            name
            for name in seen.mine
            if name not in self.fences and self._of.get(name) not in self._ending
        ]
        if strange:
            group.start_soon(self._give_back, strange)

    def _measure(self) -> None:
        """How much each account asks."""
        of = self._engine.telemetry.of
        self._rates.count(
            {name: of("requests", name) for name in self._engine.pollers}, self._now()
        )
        for unit, held in list(self._held.items()):
            heavy = sum(weight(self._rates.of(name)) for name in unit.accounts)
            self._held[unit] = Held(heavy, held.since)

    def _load(self) -> float:
        return sum(held.weight for held in self._held.values())

    def _hear(self, channel: str, account: str) -> None:
        if channel != INBOX:
            self._news.set()
        elif account in self.fences and self._group is not None:
            self._engine.hear_inbox()

    # Taking

    async def _claim(self, view: View) -> None:
        units = [u for u in self._units if u not in self._ending and u not in self._held]
        wanted = to_claim(units, view, self.id, self._load())
        if not wanted:
            return
        taken = await self._book.claim([unit.names for unit in wanted])
        now = self._now()
        got = [unit for unit in wanted if taken.keys() >= set(unit.names)]
        for unit in got:
            self.fences.update({name: taken[name] for name in unit.names})
            self._held[unit] = Held(weight(0.0) * len(unit.accounts), now)
            self._opening.add(unit)
        if got and self._group is not None:
            self.idle = False
            self._group.start_soon(self._open, got, self._group)

    async def _open(self, units: Sequence[Unit], group: anyio.abc.TaskGroup) -> None:
        """Begin to poll what was taken, from where the store knows it."""
        configs = self._configs(units)
        try:
            await self._engine.roster.take(configs, group)
        except LeaseLost as lost:
            for unit in units:
                if lost.account in unit.names:
                    self._opening.discard(unit)
                    self._lose(unit, group)
            rest = [unit for unit in units if unit in self._held and unit in self._opening]
            if rest:
                await self._open(rest, group)
        finally:
            self._opening.difference_update(units)
        for unit in units:
            if unit in self._held and not self.fences.keys() >= set(unit.names):
                self._lose(unit, group)  # it went while it came

    def _configs(self, units: Sequence[Unit]) -> list[AccountConfig]:
        names = {name for unit in units for name in unit.accounts}
        return [account for account in self._engine.config.accounts if account.name in names]

    # Giving

    def _balance(self, view: View) -> None:
        assert self._group is not None
        held = {u: h for u, h in self._held.items() if u not in self._opening}
        free = sum(view.free.issuperset(unit.names) for unit in self._units)
        now = self._now()
        for unit in to_give(held, free, view, self.id, now, self._gave_at):
            self._gave_at = now
            del self._held[unit]
            self._ending.add(unit)
            self._group.start_soon(self._give, unit)

    async def _give(self, unit: Unit) -> None:
        """End what is under way of it, then let the others have it."""
        try:
            await self._engine.roster.give(self._configs([unit]), LET_GO_S)
        except LeaseLost:
            await self._end(unit)
            return
        for name in unit.names:
            self.fences.pop(name, None)
        try:
            await self._give_back(unit.names)
        finally:
            self._ending.discard(unit)

    async def _give_back(self, names: Sequence[str]) -> None:
        with suppress(StoreTrouble):  # the next look finds what could not be given back
            await self._book.give(names)

    def _lose(self, unit: Unit, group: anyio.abc.TaskGroup) -> None:
        for name in unit.names:
            self.fences.pop(name, None)
        if unit in self._held and unit not in self._ending and unit not in self._opening:
            del self._held[unit]
            self._ending.add(unit)
            for name in unit.accounts:
                if poller := self._engine.pollers.get(name):
                    poller.stop()
            text = "its lease was lost: another worker has it"
            self._engine.telemetry.event(logging.WARNING, ", ".join(unit.accounts), text)
            group.start_soon(self._end, unit)

    async def _end(self, unit: Unit) -> None:
        try:
            with suppress(StoreError):
                await self._engine.roster.lose(self._configs([unit]))
        finally:
            self._ending.discard(unit)
