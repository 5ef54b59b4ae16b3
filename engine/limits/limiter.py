"""The strict rate limiter of an account.

Theory of operation. A provider counts arrivals by its own clock; we only know when a request was
sent and when its answer's head came. A request arrives between the two, and no later than `slack`
after sending, so min(answered, sent + slack) is the latest moment at which it can have arrived.
A new request may go out when fewer than `requests` earlier ones can have arrived within the last
`per`. Take any window of that length at the provider and the request in it that was sent last: all
others in it arrived at most `per` before that one was sent, and there were fewer than `requests`
of those. So no window overflows, wherever it begins, without pacing and without giving away more
than the uncertainty itself.

Each place of a window is in one of three states:

- open: granted, not known to be on the wire. It is held without end, so that a slow connection
  cannot make a request arrive later than it was booked. `Slot.sent()` ends this state.
- flying: sent, no answer yet. It lands when the head comes, or by itself `slack` after sending,
  where there is time to spare a little later (`Window.fly`): the answer is the better proof.
- landed: with a latest arrival; it is free again `per` and a guard later.

One `Limiter` is one limit as the provider knows it; the accounts of a group share it. Each account
has its own queue (first come, first served), concurrency and hold; accounts take turns, so that a
long queue of one does not starve another.

Time is the monotonic clock handed in, never the loop's: uvloop's has steps of 1 ms, and a wait
shorter than that returns at once, which would turn the timer into a busy loop. For snapshots there
are the time since the machine's start, which nobody can set, and the wall clock for a reboot. Over
an unclean end, short windows are waited out; for long ones requests are allowed in blocks that are
made durable first, and a block that may have been used counts as used. Never let a request out on a
block that is not durable, and never free a place early.
"""

# one file: Slot, AccountLimiter and Limiter share their state
# ruff: noqa: SLF001 - Limiter, AccountLimiter and Slot are one mechanism, private to this file

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from engine.core.windows import (
    LONG_S,
    Rate,
    Window,
    backoff_s,
    elapsed_s,
    ended_silent,
    http_date_s,
    retry_after_s,
)

__all__ = [
    "AccountLimiter",
    "Limiter",
    "Rate",
    "Slot",
    "backoff_s",
    "http_date_s",
    "retry_after_s",
]

TIMER_MIN_S = 0.001  # below this uvloop's timers return at once
BLOCKS = 100  # durable blocks in a long window: a crash costs about a hundredth of it
HOLD_MAX_S = 86_400.0  # a provider's mistake must not silence an account for longer than a day

_OPEN, _FLYING, _ENDED = 0, 1, 2


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None: ...


class Slot:
    """The right to send one request. As a context manager it is released at the end."""

    __slots__ = ("_account", "_active", "_credited", "_state")

    def __init__(self, account: AccountLimiter) -> None:
        self._account = account
        self._active = True
        self._credited = False
        self._state = _OPEN

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def sent(self) -> None:
        """The request has been handed to the network: it arrives within `slack` from now."""
        if self._state == _OPEN:
            self._state = _FLYING
            self._account.limiter._fly(self)

    def answered(self) -> None:
        """The answer's head came: the request had arrived before now."""
        if self._state != _ENDED:
            was_open = self._state == _OPEN
            self._state = _ENDED
            self._account.limiter._land(self, was_open=was_open)

    def release(self) -> None:
        """End the use of the concurrency. What was never said to be sent counts as sent now."""
        self.sent()
        self._leave()

    def unused(self) -> None:
        """The request never went out: give the place back. Not believed after `sent`."""
        if self._state == _OPEN:
            self._state = _ENDED
            self._account.limiter._give_back(self)
        self._leave()

    def _leave(self) -> None:
        if self._active:
            self._active = False
            self._account._left()


class AccountLimiter:
    """One account's way to a limit: its queue, its concurrency and its hold."""

    def __init__(self, limiter: Limiter, concurrency: int, name: str) -> None:
        self.limiter = limiter
        self.concurrency = concurrency
        self.name = name
        self.active = 0
        self.hold_why = ""
        self._hold_until = -math.inf
        self._waiters: OrderedDict[asyncio.Future[Slot], None] = OrderedDict()
        self._queued = False  # stands in the limiter's round

    async def slot(self) -> Slot:
        """Wait for a place in every window, for concurrency, and for the end of a hold."""
        while True:
            slot = self._take_now()
            if slot is None:
                slot = await self._wait()
            if not self.limiter._block or self.limiter._spend(slot):
                return slot
            try:
                await self.limiter._refill(slot)
            except BaseException:
                slot.unused()
                raise
            if not self.hold_s():
                return slot
            slot.unused()  # a hold began while the block was made durable

    def try_slot(self) -> Slot | None:
        """A slot now or none; none also where a durable block has to be reserved first."""
        if self.limiter._block and not self.limiter._can_spend():
            return None
        slot = self._take_now()
        if slot is not None and self.limiter._block:
            self.limiter._spend(slot)
        return slot

    def hold(self, seconds: float, why: str) -> None:
        """No slot before `seconds` have passed. Of several holds the longest counts."""
        if not seconds > 0:
            return
        until = self.limiter._monotonic() + min(seconds, HOLD_MAX_S)
        if until > self._hold_until:
            self._hold_until = until
            self.hold_why = why
            self.limiter._hold(self)

    def hold_s(self) -> float:
        """How long the account is still held; 0 where it is not."""
        return max(0.0, self._hold_until - self.limiter._monotonic())

    def wait_s(self) -> float:
        """About how long a new call of `slot` would wait, concurrency left aside."""
        return max(self.hold_s(), self.limiter._window_wait_s(len(self._waiters)))

    def waiting(self) -> int:
        return len(self._waiters)

    def _wants(self, now: float) -> bool:
        return bool(self._waiters) and self._may(now)

    def _may(self, now: float) -> bool:
        return self.active < self.concurrency and now >= self._hold_until

    def _take_now(self) -> Slot | None:
        limiter = self.limiter
        if limiter._round:
            limiter._pump()
        if self._waiters or limiter._round:
            return None
        now = limiter._monotonic()
        if not self._may(now) or not limiter._has_place(now):
            return None
        return self._grant()

    def _grant(self) -> Slot:
        for window in self.limiter._windows:
            window.used += 1
        self.active += 1
        return Slot(self)

    def _grant_waiter(self) -> None:
        while self._waiters:
            future, _ = self._waiters.popitem(last=False)
            if not future.done():
                future.set_result(self._grant())
                return

    async def _wait(self) -> Slot:
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiters[future] = None
        self.limiter._pump(self)
        try:
            return await future
        except BaseException:
            self._waiters.pop(future, None)
            if future.done() and not future.cancelled():
                future.result().unused()
            else:
                self.limiter._pump()
            raise

    def _left(self) -> None:
        self.active -= 1
        if self._waiters or self.limiter._round:
            self.limiter._pump(self)


class Limiter:
    """One limit of a provider: its windows, its timer, and what of it must outlive the process.

    `reserve` makes a snapshot durable; it is awaited before each block of requests where a window
    is longer than LONG_S. An error it raises comes out of `slot`, and no request goes out.
    """

    def __init__(
        self,
        rates: Sequence[Rate],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        boot: Callable[[], tuple[str, float] | None] = lambda: None,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
        reserve: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        self._windows = [Window(rate) for rate in rates]
        self._monotonic = monotonic
        self._wall = wall
        self._boot = boot
        self._call_later = call_later
        self._reserve = reserve
        long = [rate.requests for rate in rates if rate.per_s > LONG_S]
        self._block = max(1, min(long) // BLOCKS) if long and reserve is not None else 0
        self._credit = 0  # requests that may go out on what is durable
        self._coming = 0  # the same, while it is being made so
        self._uncredited = 0  # granted ones that wait for it
        self._keeping = asyncio.Lock()
        self._accounts: list[AccountLimiter] = []
        self._round: deque[AccountLimiter] = deque()  # those who want a place, in turn
        self._held: set[AccountLimiter] = set()
        self._old_holds: dict[str, float] = {}  # restored, by name, monotonic
        self._timer: Timer | None = None
        self._timer_due = math.inf

    def for_account(self, concurrency: int, name: str = "") -> AccountLimiter:
        """An account of this limit. Its hold is restored by its name."""
        account = AccountLimiter(self, concurrency, name)
        self._accounts.append(account)
        self._resume_hold(account)
        return account

    def usage(self) -> list[tuple[Rate, int]]:
        """What of each rate is taken in the window that ends now."""
        now = self._monotonic()
        return [(window.rate, window.taken(now)) for window in self._windows]

    def close(self) -> None:
        """Stop the timer. Who still waits has to be cancelled by its owner."""
        self._stop_timer()

    async def keep(self) -> None:
        """Make the present state durable; an older one can never overtake it."""
        async with self._keeping:
            if self._reserve is not None:
                await self._reserve(self.snapshot())

    def snapshot(self) -> dict[str, Any]:
        """The present state, as JSON can hold it: what is in it is so many seconds old, or ends in
        so many."""
        now = self._monotonic()
        holds = {name: until - now for name, until in self._old_holds.items() if until > now}
        holds |= {one.name: one.hold_s() for one in self._accounts if one.name and one.hold_s() > 0}
        wall, boot = self._wall(), self._boot()
        silent_until = max((window.silent_until(now) for window in self._windows), default=now)
        return {
            "wall": wall,
            "boot": boot,
            "windows": [window.save(now, self._uncredited) for window in self._windows],
            "reserved": self._credit + self._coming,
            "holds": holds,
            "silent_s": max(0.0, silent_until - self._monotonic()),  # counts from `boot` at least
        }

    def restore(self, snapshot: Mapping[str, Any] | None, *, clean: bool) -> None:
        """Take over what an earlier process left. Call it before the first slot; more than once
        where the accounts had several limits that are one now.

        `clean` says that the snapshot was taken after the last request of that process. Otherwise
        windows up to LONG_S count as used up at this moment, and in longer ones whatever may have
        gone out after the snapshot was taken. A first start is clean, with None. So is the end of a
        process that had no place yet for its first request: one that is killed again and again
        within a window would else never come to ask.
        """
        state = snapshot or {}
        boot = self._boot()
        elapsed = elapsed_s(state, self._wall(), boot)
        clean = clean or ended_silent(state, boot)
        reserved = int(state.get("reserved", 0))
        now = self._monotonic()
        for window in self._windows:
            if state and elapsed is None:  # it cannot be read: all may have gone out just now
                window.book(now + window.rate.slack_s, window.rate.requests)
            else:
                window.restore(
                    state.get("windows", ()), now, elapsed or 0.0, clean=clean, reserved=reserved
                )
        for name, left in state.get("holds", {}).items():
            until = now + min(HOLD_MAX_S, float(left)) - (elapsed or 0.0)
            self._old_holds[name] = max(until, self._old_holds.get(name, until))
        for account in self._accounts:
            self._resume_hold(account)

    def _resume_hold(self, account: AccountLimiter) -> None:
        until = self._old_holds.get(account.name, -math.inf)
        account.hold(until - self._monotonic(), "held before the restart")

    def _can_spend(self) -> bool:
        return self._credit > 0 and not self._keeping.locked()

    def _spend(self, slot: Slot) -> bool:
        slot._credited = self._can_spend()
        self._credit -= slot._credited
        return slot._credited

    async def _refill(self, slot: Slot) -> None:
        self._uncredited += 1
        try:
            async with self._keeping:  # first come, first served
                if not self._credit and self._reserve is not None:
                    self._coming = self._block  # whoever takes a snapshot meanwhile counts it too
                    try:
                        await self._reserve(self.snapshot())
                        self._credit += self._block
                    finally:
                        self._coming = 0
                self._credit -= 1
                slot._credited = True
        finally:
            self._uncredited -= 1

    def _has_place(self, now: float) -> bool:
        return all(window.has_place(now) for window in self._windows)

    def _window_wait_s(self, ahead: int) -> float:
        now = self._monotonic()
        return max((window.wait_s(now, ahead) for window in self._windows), default=0.0)

    def _fly(self, slot: Slot) -> None:
        now = self._monotonic()
        for window in self._windows:
            window.fly(slot, now)
        if self._round:
            self._arm(now)

    def _land(self, slot: Slot, *, was_open: bool) -> None:
        now = self._monotonic()
        for window in self._windows:
            window.land(slot, now, was_open=was_open)
        if self._round:
            self._arm(now)

    def _give_back(self, slot: Slot) -> None:
        for window in self._windows:
            window.used -= 1
        self._credit += slot._credited

    def _hold(self, account: AccountLimiter) -> None:
        self._held.add(account)
        if account._waiters:
            self._arm(self._monotonic())

    def _offer(self, account: AccountLimiter, now: float) -> None:
        if not account._queued and account._wants(now):
            account._queued = True
            self._round.append(account)

    def _pump(self, account: AccountLimiter | None = None) -> None:
        """Hand out what is free, a waiter of each account in turn, and set the timer."""
        now = self._monotonic()
        if account is not None:
            self._offer(account, now)
        for held in [one for one in self._held if now >= one._hold_until]:
            self._held.discard(held)
            self._offer(held, now)
        while self._round and self._has_place(now):
            turn = self._round.popleft()
            if turn._wants(now):
                turn._grant_waiter()
            turn._queued = turn._wants(now)
            if turn._queued:
                self._round.append(turn)
        self._arm(now)

    def _arm(self, now: float) -> None:
        due = min((one._hold_until for one in self._held if one._waiters), default=math.inf)
        if any(one._waiters for one in self._round):  # it may hold some whose waiters gave up
            due = min(due, max((one.free_at() for one in self._windows), default=now))
        if due == math.inf:
            self._stop_timer()
            return
        due = max(due, now + TIMER_MIN_S)
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = later(due - now, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._timer_due = math.inf
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._timer_due = math.inf
