"""The seam: what the HTTP surface is told of the engine behind it.

A worker answers for itself, from what it has in memory and in its store. The parent of several
workers answers for all of them, from what they leave in the store that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from engine.books.pushing import Pusher
from engine.books.tracking import Handed
from engine.config.model import AccountConfig, Config
from engine.core.clock import Clock
from engine.core.contracts import Kind
from engine.core.work import Page
from engine.stores.tracked import Tracked
from engine.stores.transaction import DeadCount, Place, Transaction
from engine.telemetry import Telemetry

T = TypeVar("T")

Counts = Mapping[tuple[str, str], int]  # by counter, and account or sink


class Look(msgspec.Struct, kw_only=True):
    """What one read of the store brings, and what only processes know."""

    at_ms: int
    accounts: tuple[str, ...] = ()  # those that are answered for
    tallies: dict[str, dict[str, int]] = {}
    works: dict[str, dict[Kind, tuple[int, int, int]]] = {}  # how many, how many due, the first
    bounds: dict[str, tuple[int, int]] = {}
    places: dict[str, dict[str, Place]] = {}
    backlog: dict[str, dict[str, int]] = {}
    dead: dict[str, DeadCount] = {}
    inbox: bool = False
    statuses: dict[str, dict[str, Any]] = {}  # by account, see `Engine.status`
    sinks: dict[str, str | None] = {}  # what stands in a sink's way
    counts: dict[str, Counts] = {}  # by worker; "" where there is one alone

    @staticmethod
    def at(tx: Transaction, now_ms: int) -> Look:
        return Look(
            at_ms=now_ms,
            tallies=tx.tallies(),
            works=tx.count_works(now_ms),
            bounds=tx.log_bounds(),
            places=tx.places(),
            backlog=tx.backlog(),
            dead=tx.count_dead_letters(),
            inbox=tx.inbox_waits(),
        )

    def behind(self, sink: str, account: str) -> int:
        """Rows of the account's log that the sink has not taken."""
        if account not in self.bounds or account not in self.places.get(sink, {}):
            return 0
        start, end = self.bounds[account]
        return max(0, end - max(start, self.places[sink][account][0]))


class Host(Protocol):
    """The engine behind the surface. What touches the store raises StoreError."""

    config: Config
    telemetry: Telemetry
    clock: Clock

    def ailing(self) -> str | None:
        """Why it is not well; None: it is."""
        ...

    async def unready(self) -> str | None:
        """Why it cannot do all of its work; None: it can."""
        ...

    async def look(self) -> Look: ...

    async def read(self, job: Callable[[Transaction], T]) -> T: ...

    async def pusher(self, account: AccountConfig) -> Pusher:
        """What reads the account's pushes."""
        ...

    async def keep_pushed(self, pusher: Pusher, page: Page) -> None:
        """Make a push durable."""
        ...

    async def track(self, items: Mapping[str, Sequence[Tracked]]) -> Handed:
        """See `tracking.hand_over`."""
        ...
