"""The arithmetic of limits: the books of one rate, and what a refusal asks to wait.

Pure: every time is an argument, monotonic seconds unless it is called wall. `engine.limits.limiter`
explains why a place is open, flying or landed, and turns these books into waits.

Landed places are kept as runs (first and last arrival, count) of a small part of the window:
memory is bounded whatever the limit is, and a place is freed too late by that part at most. A
place must never be freed early, so every rounding here, in a snapshot too, goes to the later time.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import random

GUARD_S = 0.001  # a provider that counts in milliseconds, both ends of the window included
RUNS_PER_WINDOW = 2048  # memory of a window; a run keeps a place at most per/2048 too long
SNAPSHOT_RUNS = 256  # a snapshot's size; written before each durable block, so it is small
SPARE = 0.002  # of a window: what an answer in time saves for late ones, see `Window.fly`
SPARE_WINDOWS = 10  # so many windows' savings are kept; as many there are at the start
# Longer than a busy machine lets a request lie; at most a tenth of the window.
PATIENCE_MAX_S = 0.25
LONG_S = 10.0  # windows up to here are waited out after an unclean end, longer ones reserve
RETRY_AFTER_MAX_S = 86_400.0  # a provider's mistake must not silence an account beyond a day
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
_DOUBLINGS = 6  # 2**6 s is beyond BACKOFF_MAX_S; more would only overflow


class Rate(msgspec.Struct, frozen=True):
    """At most `requests` in every window of `per_s`; `slack_s` is how much the network varies."""

    requests: int
    per_s: float
    slack_s: float

    @staticmethod
    def of(requests: int, per_s: float, slack_s: float | None = None) -> Rate:
        """`slack_s` None: the larger of 5 ms and half a percent of the window."""
        return Rate(requests, per_s, max(0.005, 0.005 * per_s) if slack_s is None else slack_s)


class _Run:
    __slots__ = ("count", "first", "last")

    def __init__(self, at: float, count: int) -> None:
        self.first = self.last = at
        self.count = count


class Window:
    """The places of one rate. `used` counts open, flying and landed ones."""

    __slots__ = (
        "_flying", "_grain", "_last_due", "_patience", "_runs", "_span", "_spare", "_spare_max",
        "rate", "used",
    )  # fmt: skip

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.used = 0
        self._span = rate.per_s + GUARD_S
        self._grain = rate.per_s / RUNS_PER_WINDOW
        self._runs: deque[_Run] = deque()
        # In the order of landing: when it lands by itself, and when without the patience.
        self._flying: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._last_due = -math.inf
        self._patience = min(0.1 * rate.per_s, PATIENCE_MAX_S)
        self._spare_max = self._patience + SPARE_WINDOWS * SPARE * rate.per_s * rate.requests
        self._spare = self._spare_max

    def advance(self, now: float) -> None:
        """Let land what has flown long enough, and free what is a window old."""
        flying = self._flying
        while flying:
            ticket = next(iter(flying))
            due, plain = flying[ticket]
            if due > now:
                break
            del flying[ticket]
            if due > plain:
                self._spend(due - plain)
            self._land(due)
        runs, horizon = self._runs, now - self._span
        while runs and runs[0].last <= horizon:
            self.used -= runs.popleft().count

    def taken(self, now: float) -> int:
        self.advance(now)
        return self.used

    def has_place(self, now: float) -> bool:
        self.advance(now)
        return self.used < self.rate.requests

    def fly(self, ticket: Hashable, now: float) -> None:
        """An open place's request is on its way, and lands by itself `slack` from now.

        Unless there is time to spare: then its answer is waited for a little longer. An answer that
        comes later than usual may mean that the request lay somewhere (the network, a provider
        that was busy), and arrived later than `slack`. Each answer that comes within `slack` saves
        up a share of the window to be late by. A provider that always takes longer saves nothing:
        its lateness says nothing of the way there, and what there was at the start is used up soon.
        """
        plain = now + self.rate.slack_s
        late = max(0.0, min(self._patience, self._spare))
        self._last_due = max(plain + late, self._last_due)
        self._flying[ticket] = self._last_due, plain

    def land(self, ticket: Hashable, now: float, *, was_open: bool) -> None:
        """The request of an open or flying place had arrived before now."""
        self.advance(now)
        # Neither open nor flying any more: it has landed by itself, earlier than now.
        flight = self._flying.pop(ticket, None)
        if flight is not None:
            self._spend(now - flight[1])
        if flight is not None or was_open:
            self._land(now)

    def book(self, at: float, count: int) -> None:
        """Take `count` places whose latest arrival was `at`."""
        if count > 0:
            self.used += count
            self._land(at, count)

    def free_at(self, ahead: int = 0) -> float:
        """When there is a place for one more after `ahead` others; -inf is now.

        inf is never by itself: only open places could become free, and those have to be sent first.
        """
        need = self.used + ahead + 1 - self.rate.requests
        if need <= 0:
            return -math.inf
        for run in self._runs:
            need -= run.count
            if need <= 0:
                return run.last + self._span
        for due, _ in self._flying.values():
            need -= 1
            if need <= 0:
                return due + self._span
        return math.inf

    def silent_until(self, now: float) -> float:
        """Until when it certainly lets no request out. Open and flying places tell nothing of it:
        what is open may go out at any moment."""
        self.advance(now)
        landed = sum(run.count for run in self._runs)
        return self.free_at() if landed == self.used else -math.inf

    def wait_s(self, now: float, ahead: int) -> float:
        """About how long the next one would wait behind `ahead` others."""
        self.advance(now)
        rounds, rest = divmod(ahead, self.rate.requests)
        due = self.free_at(rest)
        if due == math.inf:
            due = now + self.rate.slack_s + self._span
        return max(0.0, due - now) + rounds * self._span

    def save(self, now: float, unborn: int) -> dict[str, Any]:
        """The books as ages in seconds, as JSON can hold them; `unborn` open places are left out.

        An age is negative where an arrival is still to come.
        """
        self.advance(now)
        stride = len(self._runs) // SNAPSHOT_RUNS + 1
        runs: list[list[float]] = []
        landed = 0
        for place, run in enumerate(self._runs):
            landed += run.count
            age = now - run.last
            if place % stride:
                runs[-1] = [age, runs[-1][1] + run.count]
            else:
                runs.append([age, run.count])
        unresolved = self.used - landed - unborn
        return {"per_s": self.rate.per_s, "runs": runs, "unresolved": unresolved}

    def restore(
        self,
        saved: Sequence[Mapping[str, Any]],
        now: float,
        elapsed: float,
        *,
        clean: bool,
        reserved: int = 0,
    ) -> None:
        """Take over books that were saved `elapsed` seconds ago.

        `clean`: no request went out after that. Otherwise all of a short window may have gone out a
        moment ago, whatever its books say, and in a long one what was `reserved`.
        """
        per_s, slack_s = self.rate.per_s, self.rate.slack_s
        if not clean and per_s <= LONG_S:
            self.book(now + slack_s, self.rate.requests)
            return
        by_length = sorted(saved, key=lambda one: float(one["per_s"]))
        # A rate that was edited takes the books that reach far enough back, else the longest.
        source = next((one for one in by_length if float(one["per_s"]) >= per_s), None)
        source = source or (by_length[-1] if by_length else {})
        for age, count in source.get("runs", ()):
            self._insert(now - elapsed - float(age), int(count))
        sent = now - elapsed if clean else now
        self.book(sent + slack_s, int(source.get("unresolved", 0)) + (0 if clean else reserved))
        self.advance(now)

    def _insert(self, at: float, count: int) -> None:
        """As `book`, where later ones may be booked already: those of another limit's books."""
        place = next((n for n, run in enumerate(self._runs) if run.last > at), None)
        if place is None:
            self.book(at, count)
        else:
            self.used += count
            self._runs.insert(place, _Run(at, count))

    def _spend(self, late_s: float) -> None:
        """A place has landed so much later than `slack` after it was sent; or in time: it saves."""
        saved = SPARE * self.rate.per_s if late_s <= 0 else -late_s
        self._spare = min(self._spare + saved, self._spare_max)

    def _land(self, at: float, count: int = 1) -> None:
        # Times only grow here; one that would not (restored ones reach ahead) is booked later.
        if self._runs:
            run = self._runs[-1]
            at = max(at, run.last)
            if at - run.first < self._grain:
                run.last = at
                run.count += count
                return
        self._runs.append(_Run(at, count))


def elapsed_s(
    snapshot: Mapping[str, Any], wall: float, boot: tuple[str, float] | None
) -> float | None:
    """How long ago a snapshot was taken; None where it does not say.

    Within one boot of the machine the time since that boot tells, which nobody sets. Over a
    reboot there is only the wall clock: one that was put back counts as no time at all.
    """
    if "wall" not in snapshot or "boot" not in snapshot:
        return None
    of_boot = _of_boot_s(snapshot, boot)
    return max(0.0, wall - float(snapshot["wall"]) if of_boot is None else of_boot)


def ended_silent(snapshot: Mapping[str, Any], boot: tuple[str, float] | None) -> bool:
    """Whether no request can have gone out after a snapshot: all of its time until now lies before
    the first place. Only the time since the machine's start proves that; a wall clock may be put
    back."""
    of_boot = _of_boot_s(snapshot, boot)
    return of_boot is not None and 0 <= of_boot < float(snapshot.get("silent_s", 0.0))


def _of_boot_s(snapshot: Mapping[str, Any], boot: tuple[str, float] | None) -> float | None:
    """How long ago a snapshot was taken by the time since the machine's start; None: before it."""
    then = snapshot.get("boot")
    return boot[1] - float(then[1]) if boot and then and then[0] == boot[0] else None


def backoff_s(attempt: int, rand: random.Random) -> float:
    """How long to wait after the `attempt`-th failure in a row: full jitter, doubled, capped."""
    doublings = min(max(attempt, 1) - 1, _DOUBLINGS)
    return rand.uniform(0.0, min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**doublings))


_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_DATE = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)", re.IGNORECASE)


def retry_after_s(header: str | None, now_wall: float) -> float | None:
    """What a Retry-After header asks for: seconds, or a date in any of HTTP's three forms.

    None is no usable answer. 0 (also for a date that is past) is one, but no leave to ask again
    at once: the caller waits the longer of this and its own `backoff_s`. Where a provider and a
    proxy before it have set one each, they stand joined by commas: the longest holds.
    """
    text = (header or "").strip()
    waits = [wait.strip() for wait in text.split(",")]
    if all(_SECONDS.fullmatch(wait) for wait in waits):
        return min(max(map(float, waits)), RETRY_AFTER_MAX_S)
    at = http_date_s(text)
    return None if at is None else min(max(0.0, at - now_wall), RETRY_AFTER_MAX_S)


def http_date_s(text: str) -> float | None:
    """A date in any of HTTP's three forms, in epoch seconds; None: it is none."""
    if not _DATE.match(text):
        return None
    try:
        date = parsedate_to_datetime(text)
        # asctime's form has no zone: HTTP dates are UTC all the same.
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
