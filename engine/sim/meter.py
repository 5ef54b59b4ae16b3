"""The provider's side of a limit: it counts what arrives, by its own clock.

Every arrival counts, also one that is refused, for that is what "at most N in any window" means
to a provider; what gets through is what the refusal is decided on, so that one excess is not
punished for ever. It never delays a request, and it keeps bounded records.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate

from engine.sim.profile import Limits

MAX_ARRIVALS = 1_000_000
"""Of one window: what a flood may make the meter hold."""
MAX_VIOLATIONS = 10_000
"""How many violations are kept in detail; all are counted."""
MIN_SLACK = 0.005
SLACK_SHARE = 0.005


@dataclass(slots=True, frozen=True)
class Violation:
    """A window, or the number of requests in flight, was more than the limit says."""

    at: float
    kind: str
    seen: int
    allowed: int
    per: float


@dataclass(slots=True)
class _Sliding:
    allowed: int
    per: float
    span: float
    arrived: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ARRIVALS))
    passed: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ARRIVALS))
    worst: int = 0

    def arrive(self, now: float) -> int:
        """How many came within the window that ends now."""
        for times in (self.arrived, self.passed):
            while times and times[0] <= now - self.span:
                times.popleft()
        self.arrived.append(now)
        self.worst = max(self.worst, len(self.arrived))
        return len(self.arrived)

    def wait(self, now: float) -> float:
        """Seconds until one more may pass; zero: it may now."""
        if not self.allowed or len(self.passed) < self.allowed:
            return 0.0
        return max(self.passed[len(self.passed) - self.allowed] + self.per - now, 0.001)


class Meter:
    """Counts one account's requests and says which must be refused."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        pairs = [(limits.requests, limits.per), *((w.requests, w.per) for w in limits.also)]
        self._windows = [_Sliding(n, per, per - _slack(limits, per)) for n, per in pairs]
        self.violations: deque[Violation] = deque(maxlen=MAX_VIOLATIONS)
        self.rate_violations = 0
        self.concurrency_violations = 0
        self.max_concurrent = 0
        self._running = 0

    @property
    def worst_window(self) -> int:
        """The most requests that ever came within the first window's length."""
        return self._windows[0].worst

    @property
    def running(self) -> int:
        """Requests in flight."""
        return self._running

    def arrive(self, now: float) -> float | None:
        """A request is there. None: let it in; else for how many seconds it is refused.

        Each call is answered by one of leave().
        """
        self._running += 1
        self.max_concurrent = max(self.max_concurrent, self._running)
        wait: float | None = None
        for window in self._windows:
            seen = window.arrive(now)
            if window.allowed and seen > window.allowed:
                self.rate_violations += 1
                self._note(now, "rate", seen, window.allowed, window.per)
            needed = window.wait(now)
            if needed:
                wait = max(wait or 0.0, needed)
        most = self._limits.concurrency
        if most and self._running > most:
            self.concurrency_violations += 1
            self._note(now, "concurrency", self._running, most, 0.0)
            wait = max(wait or 0.0, self._limits.per)
        if wait is None:
            for window in self._windows:
                window.passed.append(now)
        return wait

    def leave(self) -> None:
        """A request that arrived is answered."""
        self._running -= 1

    def retry_after(self, now: float, wait: float) -> str | None:
        """The header's value in the form the profile asks for."""
        form = self._limits.retry_after
        return None if form == "none" else retry_after(now, wait, form)

    def _note(self, at: float, kind: str, seen: int, allowed: int, per: float) -> None:
        self.violations.append(Violation(at, kind, seen, allowed, per))


def retry_after(now: float, wait: float, form: str) -> str:
    """RFC 9110 knows whole seconds, and a date; both are rounded up."""
    if form == "date":
        return formatdate(math.ceil(now + wait), usegmt=True)
    return str(max(math.ceil(wait), 1))


def _slack(limits: Limits, per: float) -> float:
    wanted = max(MIN_SLACK, per * SLACK_SHARE) if limits.slack is None else limits.slack
    return min(wanted, per / 2)
