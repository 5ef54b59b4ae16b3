"""The limiters of a configuration, and their durable state.

A limit is kept as a note in the store, under the account's name or its group's. Between the first
`keep` and `close` the note says "not clean": a process that ends in between without a word is one
that may have sent requests a moment ago. Which of them an account went by is noted, too: one that
was put into a group, or taken out, brings along what it has sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.limits.limiter import AccountLimiter, Limiter
from engine.stores.transaction import Store

NOTE = "limiter"
WHICH = "limit"  # of an account: under what name its limit is kept


class KeptLimits:
    """One limiter an account or group, as the last process left it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._limiters: dict[str, Limiter] = {}
        # The wall clock of snapshots, in seconds: no later than it may be, and no earlier. In a
        # fleet that is the store's, for workers' own clocks differ.
        self.wall: Callable[[], tuple[float, float]] = lambda: (clock.now_ms() / 1000,) * 2

    async def open(self, accounts: Sequence[AccountConfig]) -> None:
        """Take over what was kept, and note that requests may go out from now on."""
        notes, which = await self._store.read(lambda tx: (tx.notes(NOTE), tx.notes(WHICH)))
        before: dict[str, list[str]] = {}
        for account in accounts:
            own = account.name.encode()
            names = before.setdefault(limiter_name(account), [limiter_name(account)])
            names.append(which.get(account.name, own).decode())
        opened: dict[str, Limiter] = {}
        for account in accounts:
            name = limiter_name(account)
            if name not in self._limiters and name not in opened:
                left = [notes[one] for one in dict.fromkeys(before[name]) if one in notes]
                opened[name] = self._limiter(name, account, left)
        moved = [one for one in accounts if which.get(one.name) != limiter_name(one).encode()]
        await self._put(opened, clean=False, moved=moved)
        self._limiters.update(opened)

    def of(self, account: AccountConfig) -> Limiter:
        return self._limiters[limiter_name(account)]

    def for_account(self, account: AccountConfig) -> AccountLimiter:
        """An account's way to its limit. A one-time provider has one request at a time."""
        most = 1 if account.provider.traits.one_time else account.limits.concurrency
        return self.of(account).for_account(most, account.name)

    async def close(self, accounts: Sequence[AccountConfig] | None = None) -> None:
        """All requests of these have ended, or of all: whoever asks next goes on from here.
        Raises StoreError, and LeaseLost where somebody else asks already."""
        names = list(self._limiters) if accounts is None else map(limiter_name, accounts)
        closed = {name: self._limiters.pop(name) for name in names if name in self._limiters}
        for limiter in closed.values():
            limiter.close()
        await self._put(closed, clean=True)

    def forget(self, accounts: Sequence[AccountConfig]) -> None:
        """Others ask there now: what is noted is theirs."""
        for name in map(limiter_name, accounts):
            if limiter := self._limiters.pop(name, None):  # a group's accounts have one
                limiter.close()

    def _limiter(self, name: str, account: AccountConfig, notes: Sequence[bytes]) -> Limiter:
        async def reserve(snapshot: dict[str, Any]) -> None:
            note = _note(snapshot, clean=False)
            await self._store.write(lambda tx: tx.put_note(name, NOTE, note))

        restored = False
        limiter = Limiter(
            account.limits.rates,
            monotonic=self._clock.monotonic,
            wall=lambda: self.wall()[restored],  # nobody is to think that more time has passed
            boot=self._clock.boot,
            reserve=reserve,
        )
        for note in notes:
            kept = orjson.loads(note)
            limiter.restore(kept.get("snapshot"), clean=bool(kept.get("clean", True)))
        restored = True
        return limiter

    async def _put(
        self,
        limiters: Mapping[str, Limiter],
        *,
        clean: bool,
        moved: Sequence[AccountConfig] = (),
    ) -> None:
        notes = {(name, NOTE): _note(one.snapshot(), clean) for name, one in limiters.items()}
        notes |= {(account.name, WHICH): limiter_name(account).encode() for account in moved}
        await self._store.write(lambda tx: tx.put_notes(notes))


def limiter_name(account: AccountConfig) -> str:
    """What a limit's durable state is kept under: an account's own, or its group's."""
    return f"group {account.limits.group}" if account.limits.group else account.name


def _note(snapshot: dict[str, Any], clean: bool) -> bytes:
    return orjson.dumps({"clean": clean, "snapshot": snapshot})
