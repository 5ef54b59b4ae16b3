"""What a running engine does beside polling: takes in what other processes hand over, leaves word
of its health for `stats`, and forgets what is past its retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import orjson

from engine.reports import REPORTS_NAME
from engine.stores.ledger import prune
from engine.stores.transaction import InboxItem, Transaction
from engine.tracking import digest_inbox

if TYPE_CHECKING:
    from engine.worker import Engine

# How often the worker looks for what other processes handed over; the contract says within 2 s.
INBOX_S = 0.5
STATUS_S = 1.0
PRUNE_S = 60.0
PRUNE_MAX = 5000


class Chores:
    """The chores of one engine."""

    def __init__(self, engine: Engine, chance: Callable[[], float]) -> None:
        self._engine = engine
        self._chance = chance
        self._group: anyio.abc.TaskGroup | None = None
        self._probes: list[InboxItem] = []
        self._statuses: dict[str, bytes] = {}
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            async with anyio.create_task_group() as chores:
                self._group = chores
                chores.start_soon(self._every, INBOX_S, self.digest_inbox)
                chores.start_soon(self._every, STATUS_S, self.note_status)
                chores.start_soon(self._every, PRUNE_S, self._prune)

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            await chore()
            await self._engine.clock.sleep(seconds)

    async def digest_inbox(self) -> None:
        if not await self._engine.store.read(lambda tx: tx.inbox_waits()):
            return
        chance = self._chance()
        now_ms = self._engine.clock.now_ms()
        accounts = {account.name: account for account in self._engine.config.accounts}
        taken = await self._engine.store.write(
            lambda tx: digest_inbox(tx, accounts, self._engine.redactors, now_ms, chance)
        )
        for item in taken:
            if item.kind == "probe":
                self._probes.append(item)
            else:
                self._engine.pollers[item.account].wake()
        if self._group is not None:
            while self._probes:
                self._group.start_soon(self._probe, self._probes.pop())

    async def _probe(self, item: InboxItem) -> None:
        """`check --connect` of another process, made inside this worker's limits."""
        nonce = orjson.loads(item.payload)["id"]
        passed, cause = await self._engine.pollers[item.account].probe(nonce)
        note = orjson.dumps({"ok": passed, "cause": cause})
        await self._engine.store.write(lambda tx: tx.put_note(item.account, f"probe:{nonce}", note))

    async def note_status(self) -> None:
        """Leave for `stats` what only this process knows."""
        changed: dict[str, bytes] = {}
        for name in self._engine.pollers:
            status = orjson.dumps(self._engine.status(name))
            if status != self._statuses.get(name):
                changed[name] = status
        if changed:
            self._statuses.update(changed)
            await self._engine.store.write(lambda tx: _put_statuses(tx, changed))

    async def _prune(self) -> None:
        store = self._engine.config.store
        consumers: list[tuple[str, frozenset[str] | None]] = [
            (sink.name, frozenset(sink.accounts) if sink.accounts is not None else None)
            for sink in self._engine.config.sinks
        ]
        places = await self._engine.store.read(lambda tx: tx.places())
        if REPORTS_NAME in places:
            consumers.append((REPORTS_NAME, frozenset(places[REPORTS_NAME])))
        now_ms = self._engine.clock.now_ms()

        def job(tx: Transaction) -> int:
            return prune(
                tx,
                now_ms=now_ms,
                retention_ms=round(store.retention_s * 1000),
                log_retention_ms=round(store.log_retention_s * 1000),
                sinks=consumers,
                limit=PRUNE_MAX,
            )

        while await self._engine.store.write(job) >= PRUNE_MAX:
            await self._engine.clock.sleep(0)


def _put_statuses(tx: Transaction, statuses: dict[str, bytes]) -> None:
    for name, note in statuses.items():
        tx.put_note(name, "status", note)
