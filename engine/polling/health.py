"""An account's trouble: holds after failures, pauses after a refusal, tries of single items.

Everything in here concerns one account, so that no other one feels it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio
import msgspec

from engine.core.contracts import Verb
from engine.core.units import spell_duration
from engine.core.work import Work
from engine.limits.limiter import AccountLimiter, Slot, backoff_s
from engine.polling.asking import Asker, Reply

# A wrong password is tried again after these, then every hour.
PAUSES_S = (60.0, 300.0, 1800.0, 3600.0)

# A hold from here on is kept over a crash. What is shorter is over before a process is up again.
LONG_HOLD_S = 0.5

# A provider that wants an account to wait for longer is not waited for with `--once`. A backoff of
# our own never is.
HELD_LONG_S = 60.0

# So many failures in a row, and with `--once` an account is left to the next run. Fewer may be the
# trouble of single items, which is not to keep the others from being asked.
ONCE_FAILURES_MAX = 3

# After a fault in the program itself nothing is tried again sooner.
FAULT_DELAY_MIN_MS = 1000


class Health(msgspec.Struct, kw_only=True):
    """How an account does, for people."""

    paused: str | None = None  # why
    paused_until_ms: int | None = None
    pauses: int = 0  # in a row: how often it was tried again in vain, and once more
    failing: str | None = None  # the latest failure's cause, None after a success
    failures: int = 0  # in a row
    answered_ms: int | None = None  # when the provider last answered properly


class Watch:
    """Keeps an account's health, and decides how long it waits."""

    def __init__(self, asker: Asker, *, once: bool = False) -> None:
        self.health = Health()
        self._once = once
        self._asker = asker
        self._clock = asker.clock
        self._name = asker.account.name
        self._tries: dict[int, int] = {}  # by work, since its last success
        self._cause: str | None = None  # of the latest failure
        self._failed_ms = 0
        self._waits: set[anyio.CancelScope] = set()  # for a place
        self._stopping = False
        self.on_hold: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None
        asker.on_failure = self.failed
        asker.paused = self.paused
        asker.place = self._place

    def stop(self) -> None:
        """Nothing waits for a place in the limits any more: what has none yet is asked by the next
        process, and a window of a minute would outlast every grace."""
        self._stopping = True
        self._leave()

    def resume(self, before: Health) -> None:
        """Go on with a pause that the last process left: a restart is no new try at a password.

        Who restarts has perhaps mended it: unless with `once`, which cron may run every minute, it
        is tried as soon as the first pause has passed since the last try.
        """
        until_ms = before.paused_until_ms
        if before.paused is None or until_ms is None or not before.pauses:
            return
        tried_ms = until_ms - round(_pause_s(before.pauses) * 1000)
        if tried_ms > (now_ms := self._clock.now_ms()):  # the clock was set back meanwhile
            until_ms, tried_ms = until_ms - tried_ms + now_ms, now_ms
        if not self._once:
            until_ms = min(until_ms, tried_ms + round(PAUSES_S[0] * 1000))
        self.health.paused, self.health.pauses = before.paused, before.pauses
        self.health.paused_until_ms = until_ms

    def paused_until_ms(self) -> int | None:
        """When a pause ends. A clock that was set back makes it no longer than it was to be."""
        health = self.health
        if health.paused_until_ms is not None:
            latest_ms = self._clock.now_ms() + round(_pause_s(health.pauses) * 1000)
            health.paused_until_ms = min(health.paused_until_ms, latest_ms)
        return health.paused_until_ms

    def paused(self) -> bool:
        """Whether a pause lasts still."""
        until_ms = self.paused_until_ms()
        return until_ms is not None and self._clock.now_ms() < until_ms

    async def _place(self) -> Slot | None:
        """Wait for a place with the limiter. None where it is not to be waited for, or comes to
        that meanwhile: at a stop, and with `once` where the account fails again and again or is to
        wait for long. Then the next run goes on."""
        limiter = self._asker.limiter
        if self.leaves:
            return None
        slot = limiter.try_slot()
        if slot is not None or self._stopping:
            return slot
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                slot = await limiter.slot()
            finally:
                self._waits.discard(scope)
        return slot

    def _leave(self) -> None:
        for scope in self._waits:
            scope.cancel()

    @property
    def leaves(self) -> bool:
        """Whether a run that does what is due once asks this account nothing more."""
        fails = self.health.failures >= ONCE_FAILURES_MAX
        return self._once and (fails or held(self._asker.limiter) is not None)

    @property
    def unanswered(self) -> str | None:
        """Why something failed that has not been answered since, whatever else was."""
        return self._cause if self._tries else None

    def tried(self, work: Work) -> bool:
        """Whether it has failed since its last success."""
        return work.id in self._tries

    def succeeded(self, work: Work) -> None:
        assert work.id is not None
        self._tries.pop(work.id, None)
        health = self.health
        health.failures = 0
        health.failing = None
        health.answered_ms = self._clock.now_ms()
        self.accepted()

    def answered(self) -> None:
        """One of the questions of a visit was dealt with: what fails after it is a new row.

        What `failing` says stands until the visit has come to its end.
        """
        self.health.failures = 0
        self.health.answered_ms = self._clock.now_ms()
        self.accepted()

    def accepted(self) -> None:
        """The provider takes the account's credentials."""
        health = self.health
        if health.paused is not None:
            self._tell(logging.INFO, "goes on: it is accepted again")
            health.paused = health.paused_until_ms = None
        health.pauses = 0

    def failed(self, reply: Reply) -> None:
        """Hold the account. Failures that overlap count once: they are one trouble."""
        outcome = reply.outcome
        if outcome.verb is Verb.PAUSE:
            self._pause(outcome.cause)
            return
        health = self.health
        # A failure that lies ahead of the clock was before it was put back: nothing overlaps that.
        overlaps = reply.began_ms < self._failed_ms <= self._clock.now_ms()
        if not overlaps:
            health.failures += 1
            self._failed_ms = self._clock.now_ms()
        first = health.failing is None
        health.failing = self._cause = outcome.cause
        delay_s = backoff_s(health.failures, self._asker.rand)
        asked_s = reply.retry_after_s if outcome.hold else None
        if asked_s:
            # Less than a second is no wait that the headers can spell: ours is not given up for it.
            delay_s = asked_s if asked_s >= 1.0 else max(asked_s, delay_s)
        elif overlaps:
            return
        self._asker.limiter.hold(delay_s, outcome.cause)
        if delay_s > LONG_HOLD_S:
            self.on_hold()
        if self.leaves:
            self._leave()
        if first:
            again = spell_duration(round(delay_s, 1))
            self._tell(logging.WARNING, f"{outcome.cause}; asked again in {again}")

    def _pause(self, cause: str) -> None:
        health = self.health
        now_ms = self._clock.now_ms()
        first = health.paused is None
        if not first and now_ms < (health.paused_until_ms or 0):
            return  # an answer that was under way when the account was paused
        health.pauses += 1
        health.paused = cause
        health.paused_until_ms = now_ms + round(_pause_s(health.pauses) * 1000)
        self.on_pause()
        if first:
            self._asker.telemetry.count("pauses", self._name)
            self._tell(
                logging.ERROR,
                f"paused: {cause}; check its credentials. Tried again after 1 min, 5 min, 30 min,"
                " then hourly",
            )

    def broke(self, work: Work, error: Exception) -> int:
        """A fault in the program or a plug-in. Says where, but not its message: that may hold
        data. Returns when to try the work again, in ms from now."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"
        cause = f"a fault in the program, {type(error).__name__} in {place}: please report it"
        if self.health.failing != cause:
            self._tell(logging.ERROR, cause)
        self.health.failing = self._cause = cause
        self.health.failures += 1
        self._asker.telemetry.count("faults", self._name)
        self._asker.telemetry.debug(error)
        return max(FAULT_DELAY_MIN_MS, self.retry_ms(work))

    def retry_ms(self, work: Work) -> int:
        """A backoff of the work's own, so that one that always fails does not crowd out others."""
        assert work.id is not None
        tries = self._tries[work.id] = self._tries.get(work.id, 0) + 1
        return round(backoff_s(tries, self._asker.rand) * 1000)

    def ended(self, works: list[int]) -> None:
        """Works that are over need no memory."""
        for work_id in works:
            self._tries.pop(work_id, None)

    def _tell(self, level: int, text: str) -> None:
        self._asker.telemetry.event(level, self._name, text)


def held(limiter: AccountLimiter) -> str | None:
    """For how long the provider wants the account to wait, where that is long."""
    left_s = limiter.hold_s()
    if left_s <= HELD_LONG_S:
        return None
    return f"held for {spell_duration(round(left_s))} more: {limiter.hold_why}"


def _pause_s(pauses: int) -> float:
    """How long the so-maniest pause in a row lasts."""
    return PAUSES_S[min(pauses, len(PAUSES_S)) - 1]
