"""The limiters of a configuration, and their durable state.

A limit is kept as a note in the store, under the account's name or its group's. Between the first
`keep` and `close` the note says "not clean": a process that ends in between without a word is one
that may have sent requests a moment ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.limits import AccountLimiter, Limiter
from engine.stores.transaction import Store, Transaction

NOTE = "limiter"


class KeptLimits:
    """One limiter an account or group, as the last process left it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._limiters: dict[str, Limiter] = {}

    async def open(self, accounts: Sequence[AccountConfig]) -> None:
        """Take over what was kept, and note that requests may go out from now on."""
        notes = await self._store.read(lambda tx: tx.notes(NOTE))
        for account in accounts:
            name = limiter_name(account)
            if name not in self._limiters:
                self._limiters[name] = self._limiter(name, account, notes.get(name))
        await self._put_all(clean=False)

    def of(self, account: AccountConfig) -> Limiter:
        return self._limiters[limiter_name(account)]

    def for_account(self, account: AccountConfig) -> AccountLimiter:
        """An account's way to its limit. A one-time provider has one request at a time."""
        most = 1 if account.provider.traits.one_time else account.limits.concurrency
        return self.of(account).for_account(most, account.name)

    async def close(self) -> None:
        """All requests have ended: the next process goes on from here. Raises StoreError."""
        for limiter in self._limiters.values():
            limiter.close()
        await self._put_all(clean=True)

    def _limiter(self, name: str, account: AccountConfig, note: bytes | None) -> Limiter:
        async def reserve(snapshot: dict[str, Any]) -> None:
            note = _note(snapshot, clean=False)
            await self._store.write(lambda tx: tx.put_note(name, NOTE, note))

        limiter = Limiter(
            account.limits.rates,
            monotonic=self._clock.monotonic,
            wall=lambda: self._clock.now_ms() / 1000,
            boot=self._clock.boot,
            reserve=reserve,
        )
        kept = orjson.loads(note) if note is not None else {}
        limiter.restore(kept.get("snapshot"), clean=bool(kept.get("clean", True)))
        return limiter

    async def _put_all(self, *, clean: bool) -> None:
        notes = {name: _note(one.snapshot(), clean) for name, one in self._limiters.items()}

        def put(tx: Transaction) -> None:
            for name, note in notes.items():
                tx.put_note(name, NOTE, note)

        await self._store.write(put)


def limiter_name(account: AccountConfig) -> str:
    """What a limit's durable state is kept under: an account's own, or its group's."""
    return f"group {account.limits.group}" if account.limits.group else account.name


def _note(snapshot: dict[str, Any], clean: bool) -> bytes:
    return orjson.dumps({"clean": clean, "snapshot": snapshot})
