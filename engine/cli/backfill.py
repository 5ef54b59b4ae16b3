"""`dlr-engine backfill`: a past period of a windowed feed.

The period becomes a work of the account's schedule. Where a worker is running it is handed over,
and what is here only looks on; where none does, the poller of that account does this work alone,
with the limit's durable state as a worker has it. A worker that ends meanwhile is taken over from.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import msgspec

from engine.books.periods import Period, Progress, period_item, progress_of, take_period
from engine.core.contracts import Kind
from engine.core.errors import ConfigError, EngineError
from engine.core.units import iso

from . import process, progress

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config
    from engine.core.redact import Redactor
    from engine.limits.limiter import AccountLimiter
    from engine.polling.asking import Asker
    from engine.stores.transaction import Store, Transaction

    from .owning import Opened

LOOK_S = 0.25
# A worker that has shown nothing new for so long may have ended: then its place is tried for.
STILL_S = 15.0


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    account = process.account_of(config, args.account)
    process.refuse_memory(config, "backfill")
    period = _period(account, args.start, args.end)
    told = process.with_signals(lambda stop: _backfill(config, account, period, args, stop))
    if told is None:
        return 0  # stopped, as asked
    what = "gap" if told.incidents == 1 else "gaps"
    gaps = f", {told.incidents:,} {what} that could not be closed" if told.incidents else ""
    print(
        f"{account.name}: {iso(period.from_ms)} to {iso(period.to_ms)} is read,"
        f" {_many(told.records)}{gaps}"
    )
    if told.incidents:
        print(f"the {what}: dlr-engine stats --config {args.config}", file=sys.stderr)
    return 1 if told.incidents else 0


def _period(account: AccountConfig, from_ms: int, to_ms: int) -> Period:
    """Raises ConfigError where that cannot be read."""
    name, provider = account.name, account.provider
    faults = []
    if provider.traits.feed != "windowed":
        why = {
            None: "it reports on what is asked for by its id: `dlr-engine track --sent-at` takes"
            " what was sent",
            "drained": "it gives each report once, when it is new, and has no past to read",
        }[provider.traits.feed]
        faults.append(f"{name}: {provider.name} has no feed that is read by time; {why}")
    if from_ms >= to_ms:
        faults.append("dlr-engine backfill: --from: expected a time before --to")
    if to_ms > time.time_ns() // 1_000_000:
        faults.append("dlr-engine backfill: --to: expected a time that has passed")
    if faults:
        raise ConfigError(faults)
    return Period(id=str(uuid4()), from_ms=from_ms, to_ms=to_ms)


def _many(records: int) -> str:
    return f"{records:,} new {'record' if records == 1 else 'records'}"


async def _backfill(
    config: Config,
    account: AccountConfig,
    period: Period,
    args: argparse.Namespace,
    stop: process.Stop,
) -> Progress | None:
    """What came of it; None where it was stopped."""
    from .owning import opened

    width = period.to_ms - period.from_ms
    with progress.shown(account.name, width, quiet=args.quiet) as tell:
        while True:
            async with opened(config) as found:
                view = _View(found, account, period, tell)
                if found.owned:
                    told = await _here(config, account, view, stop)
                else:
                    told = await _beside(view, stop)
                if stop.asked.is_set() and (told is None or told.state != "done"):
                    await view.end()
                    reached = told.reached_ms if told is not None else period.from_ms
                    print(
                        f"stopped at {iso(reached)}: run the same command again to go on",
                        file=sys.stderr,
                    )
                    return None
                if told is not None and told.state == "done":
                    return told
                if told is not None and told.state == "stopped":
                    raise EngineError("it was stopped; run the same command again to go on")


class _View:
    """One period as it stands in the store."""

    def __init__(
        self, found: Opened, account: AccountConfig, period: Period, tell: progress.Tell
    ) -> None:
        self.store, self.owned = found.store, found.owned
        self.wall = found.wall
        self._account = account
        self._period = period
        self._tell = tell
        self._began_ms = time.time_ns() // 1_000_000

    async def begin(self) -> None:
        """Order it, where that has not been done: the same order twice is one."""
        await self._order(self._period)

    async def end(self) -> None:
        """Stop it."""
        await self._order(msgspec.structs.replace(self._period, stop=True))

    async def _order(self, period: Period) -> None:
        now_ms = time.time_ns() // 1_000_000
        if self.owned:
            await self.store.write(lambda tx: take_period(tx, self._account, period, now_ms))
        else:
            item = period_item(self._account.name, period, now_ms)
            await self.store.write(lambda tx: tx.put_inbox(item))

    async def look(self) -> tuple[Progress | None, str | None]:
        """How far it is, and what stands in its way."""

        def read(tx: Transaction) -> tuple[Progress | None, bytes | None]:
            found = progress_of(tx, self._account.name).get(self._period.key)
            return found, tx.notes("status").get(self._account.name)

        found, status = await self.store.read(read)
        if found is not None and found.order != self._period.id and found.ended_ms is not None:
            found = found if found.ended_ms >= self._began_ms else None  # of an order before
        if found is not None:
            words = f"{iso(found.reached_ms)[:19]}, {_many(found.records)}"
            self._tell(found.reached_ms - self._period.from_ms, words)
        return found, _trouble(status)


def _trouble(status: bytes | None) -> str | None:
    if status is None:
        return None
    from engine.polling.health import Health

    return msgspec.json.decode(status, type=Health).paused


# Beside a running worker


async def _beside(view: _View, stop: process.Stop) -> Progress | None:
    """Look on until it is over; None: nothing moves, perhaps the worker has ended."""
    await view.begin()
    seen, since = (-1, -1), time.monotonic()
    told: Progress | None = None
    while not stop.asked.is_set():
        told, paused = await view.look()
        if told is not None and told.state != "under way":
            return told
        if paused is not None:
            raise EngineError(
                f"the account is paused: {paused}; the worker goes on with the period once the"
                " account is accepted again"
            )
        now = (told.reached_ms, told.records) if told is not None else (-1, -1)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STILL_S:
            return told
        with anyio.move_on_after(LOOK_S):
            await stop.asked.wait()
    return told


# On our own


async def _here(
    config: Config, account: AccountConfig, view: _View, stop: process.Stop
) -> Progress | None:
    """Poll this account for periods alone until this one is over."""
    from engine.books.redacting import redactors
    from engine.limits.kept import KeptLimits
    from engine.machine.clock import RealClock
    from engine.polling.poller import AccountPoller

    await view.begin()
    clock = RealClock()
    limits = KeptLimits(view.store, clock)
    limits.wall = view.wall or limits.wall
    redactor = (await redactors(config, view.store)).get(account.name)
    await limits.open(config.accounts)
    told: Progress | None = None
    try:
        async with _asker(account, view.store, limits.for_account(account), redactor) as asker:
            poller = AccountPoller(asker, only=Kind.BACKFILL)
            async with anyio.create_task_group() as group:
                group.start_soon(poller.run, config.shutdown_grace_s)
                while not stop.asked.is_set():
                    told, _ = await view.look()
                    if told is not None and told.state != "under way":
                        break
                    if poller.health.paused is not None:
                        raise EngineError(
                            f"the account is paused: {poller.health.paused}; run the same command"
                            " again to go on"
                        )
                    with anyio.move_on_after(LOOK_S):
                        await stop.asked.wait()
                poller.stop()
            if stop.asked.is_set():
                told, _ = await view.look()
    finally:
        with anyio.CancelScope(shield=True):
            await limits.close()
            await view.store.sync()
    return told


@asynccontextmanager
async def _asker(
    account: AccountConfig, store: Store, limiter: AccountLimiter, redactor: Redactor | None
) -> AsyncIterator[Asker]:
    from engine.machine.clock import RealClock
    from engine.network.transport import Transport
    from engine.polling.asking import Asker
    from engine.telemetry import Telemetry

    transport = Transport(ca_file=str(account.ca_file) if account.ca_file is not None else None)
    try:
        await transport.open()
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise ConfigError([f"{account.name}: ca_file: {account.ca_file}: {cause}"]) from None
    try:
        yield Asker(
            account,
            store=store,
            transport=transport,
            limiter=limiter,
            telemetry=Telemetry(),
            clock=RealClock(),
            rand=random.Random(),
            redactor=redactor,
            unhurried=anyio.Lock(),
        )
    finally:
        with anyio.CancelScope(shield=True):
            await transport.close()
