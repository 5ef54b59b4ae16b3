"""The store as a command opens it that has something to do in it: as its owner, or beside one.

Where no worker runs, a command may do a worker's work: with SQLite it owns the store meanwhile,
with PostgreSQL it holds every lease. Where one runs, what there is to do goes through the inbox.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec

from engine.core.errors import StoreBusy, StoreTrouble
from engine.stores.opening import make_store
from engine.stores.transaction import Store

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.stores.postgres_leases import LeaseBook, Seen

Wall = Callable[[], tuple[float, float]]


class Opened(msgspec.Struct, frozen=True):
    """An open store. `owned`: no worker runs, and none can begin to for now."""

    store: Store
    owned: bool
    wall: Wall | None = None  # the clock that workers of several machines share
    anybodys: str = ""  # an account that a worker has: who has it does what is of no account


@asynccontextmanager
async def opened(config: Config, *, own: bool = True) -> AsyncIterator[Opened]:
    """The configured store; owned where that can be. `own=False`: where it is shared, not even
    then."""
    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    try:
        if config.store.scheme != "postgresql":
            yield await _alone(store)
            return
        await store.open(own=False)
        if not own:
            yield Opened(store, False)
            return
        async with _leased(config, store) as found:
            yield found
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


async def _alone(store: Store) -> Opened:
    try:
        await store.open(own=True)
    except StoreBusy:
        await store.open(own=False)
        return Opened(store, False)
    return Opened(store, True)


@asynccontextmanager
async def _leased(config: Config, store: Store) -> AsyncIterator[Opened]:
    from engine.leases import TTL_S, units_of
    from engine.stores.postgres import PostgresStore
    from engine.stores.postgres_leases import LeaseBook

    assert isinstance(store, PostgresStore)
    units = [unit.names for unit in units_of(config.accounts)]
    names = [name for unit in units for name in unit]
    book = LeaseBook(config.store.url, uuid4().hex, names, ttl_s=TTL_S)
    try:
        seen = await book.renew(load=0.0, idle=True, leaving=True)
        taken = await book.claim(units) if seen.free >= set(names) else {}
        if taken.keys() != set(names):
            await book.leave()
            held = (account.name for account in config.accounts if account.name not in seen.free)
            yield Opened(store, False, anybodys=next(held, names[0]))
            return
        store.fences = taken
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_renew, book)
                yield Opened(store, True, _wall_of(seen))
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), suppress(StoreTrouble):
                await book.leave()
    finally:
        with anyio.CancelScope(shield=True):
            await book.close()


def _wall_of(seen: Seen) -> Wall:
    def wall() -> tuple[float, float]:
        now = time.monotonic()
        return seen.database_s + now - seen.answered_at, seen.database_s + now - seen.asked_at

    return wall


async def _renew(book: LeaseBook) -> None:
    from engine.leases import RENEW_S

    while True:
        await anyio.sleep(RENEW_S)
        with suppress(StoreTrouble):
            await book.renew(load=0.0, idle=True, leaving=True)
