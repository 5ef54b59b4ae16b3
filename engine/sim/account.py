"""One simulated account: its messages, its reports, its counters.

It is the state behind a provider's path. Everything it shows is derived from the clock handed
in; it never reads one itself, so that all of an answer belongs to one moment.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from engine.sim.messages import Given, Message, Sent, Transition
from engine.sim.meter import Meter
from engine.sim.plans import draw, lay
from engine.sim.profile import AccountProfile, Fault

MAX_MESSAGES = 5_000_000
MAX_GENERATED_AT_ONCE = 200_000
"""Messages that come up by themselves during one request: a clock that jumps stays cheap."""
MAX_SEEN = 10_000
"""Requests kept in detail."""
MAX_TOKENS = 1_000
CONTENTS = ("Your code is 4711", "Hello | world", "Größe: 42 €", 'Say "yes"\nor no')


@dataclass(slots=True, frozen=True)
class Seen:
    """A request as it came in; tests read from it what an engine asked for."""

    at: float
    method: str
    path: str
    query: Mapping[str, str]
    fault: str | None


@dataclass(slots=True)
class Tally:
    """What was counted for an account, beside its meter."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    given: int = 0
    bytes: int = 0
    logins: int = 0
    unauthorized: int = 0
    throttled: int = 0
    lapsed: int = 0
    strayed: int = 0
    leaked: int = 0


@dataclass(slots=True)
class Report:
    """A transition in the queue of a one-time feed."""

    seq: int
    message: Message
    transition: Transition


class Account:
    """The state of one account of the profile."""

    def __init__(self, profile: AccountProfile, started: float, rand: random.Random) -> None:
        self.profile = profile
        self.started = started
        self.rand = rand
        self.meter = Meter(profile.limits)
        self.tally = Tally()
        self.seen: deque[Seen] = deque(maxlen=MAX_SEEN)
        self.mailed: bytes | None = None  # the file of the latest export
        self.script: deque[Fault] = deque(
            Fault(kind=f) if isinstance(f, str) else f for f in profile.faults
        )
        self.odds = dict(profile.odds)
        self.messages: list[Message] = []
        self.batches: dict[str, list[Message]] = {}
        self.given: list[Given] = []
        self.tokens: dict[str, float] = {}
        self.moved = 0
        self._in_batch: Counter[tuple[str, str]] = Counter()
        self._by_time: list[tuple[float, int]] = []
        self._pending: list[tuple[float, int, Report]] = []
        self._ready: dict[int, Report] = {}
        self._reports = 0
        self._generated = 0
        self._base = rand.randrange(10**9)

    # -- sending ---------------------------------------------------------------------------

    def send(
        self,
        now: float,
        recipients: Sequence[str] | int,
        *,
        batch: str | None = None,
        channel: str | None = None,
        direction: str = "O",
        sent_at: float | None = None,
        reference: str | None = None,
        plan: Sequence[tuple[float, str]] | None = None,
    ) -> Sent:
        """Messages to these recipients, or to so many invented ones."""
        count = recipients if isinstance(recipients, int) else len(recipients)
        if count + len(self.messages) > MAX_MESSAGES:
            raise ValueError(f"an account holds at most {MAX_MESSAGES} messages")
        channels = self.profile.channels if self.profile.provider == "messangi" else ["S"]
        if channel is not None and channel not in "SEPWR":
            raise ValueError(f"channel: expected one of S, E, P, W, R, got {channel!r}")
        if channel is not None and channel != "S" and self.profile.provider != "messangi":
            raise ValueError(f"{self.profile.provider} has the channel S only")
        at = round((now if sent_at is None else sent_at) * 1000) / 1000
        if self.profile.provider in ("bulksms", "infobip"):
            batch = batch or str(self._base * 1000 + len(self.batches) + 1)
        else:
            batch = None
        made = []
        for n in range(count):
            serial = len(self.messages)
            on = channel or channels[serial % len(channels)]
            to = None if isinstance(recipients, int) else recipients[n]
            made.append(self._make(serial, on, direction, to, batch, at, reference, plan))
        return Sent(
            account=self.profile.name,
            batch_id=batch,
            message_ids=[m.message_id for m in made],
            recipients=[m.recipient for m in made],
            sent_at=at,
        )

    def _make(
        self,
        serial: int,
        channel: str,
        direction: str,
        to: str | None,
        batch: str | None,
        at: float,
        reference: str | None,
        plan: Sequence[tuple[float, str]] | None,
    ) -> Message:
        profile = self.profile
        provider = profile.provider
        recipient = _recipient(provider, channel, self._base + serial) if to is None else to
        if plan is None:
            life = draw(profile, channel, direction, at, self.rand)
        else:
            life = lay(provider, channel, at, [(s, status, None) for s, status in plan])
        sender, campaign = "SIM", None
        if provider == "avaamo":
            sender = "+15005550006"
        elif provider == "messangi":
            sender = _SENDERS[channel]
            number = 11000 + serial % 7
            campaign = number if serial % 4 == 3 else str(number)
        message = Message(
            serial=serial,
            message_id=self._message_id(serial, batch, channel, direction, sender, recipient, at),
            batch_id=batch,
            channel=channel,
            direction=direction,
            sender=sender,
            recipient=recipient,
            reference=reference,
            campaign_id=campaign,
            content=CONTENTS[serial % len(CONTENTS)],
            sent_at=at,
            listed_at=at + profile.delays.listed / profile.time_scale,
            transitions=life,
        )
        self._keep(message)
        return message

    def _message_id(
        self,
        serial: int,
        batch: str | None,
        channel: str,
        direction: str,
        sender: str,
        recipient: str,
        at: float,
    ) -> str:
        """The provider's id; where it has none, what tells its messages apart."""
        provider = self.profile.provider
        if provider == "infobip":
            return str(33_640_000_000_000_000_000 + self._base * 10**7 + serial)
        if provider == "avaamo":
            head = f"{self._base:08x}-{serial >> 16 & 0xFFFF:04x}-4{serial & 0xFFF:03x}"
            return f"{head}-8000-{serial:012x}"
        if provider == "bulksms":
            place = (batch or "", recipient)
            self._in_batch[place] += 1
            n = self._in_batch[place]
            return f"{batch}:{recipient}" + (f"#{n}" if n > 1 else "")
        ms = round(at * 1000)
        return f"{channel}|{sender}|{recipient.removeprefix('+')}|{ms}|{direction}"

    def _keep(self, message: Message) -> None:
        self.messages.append(message)
        if message.batch_id is not None:
            self.batches.setdefault(message.batch_id, []).append(message)
        if self.profile.provider == "infobip":
            for transition in message.transitions:
                report = Report(self._reports, message, transition)
                self._reports += 1
                heapq.heappush(self._pending, (transition.at, report.seq, report))
        elif self.profile.provider != "bulksms":
            place = (message.sent_at, message.serial)
            if not self._by_time or self._by_time[-1] < place:
                self._by_time.append(place)
            else:
                insort(self._by_time, place)

    def grow(self, now: float) -> None:
        """Let the messages come up that the profile promises until now."""
        plan = self.profile.generate
        if self._generated >= plan.count:
            return
        first = self.started - plan.since
        due = min(plan.count, int((now - first) * plan.rate) + 1)
        due = min(due, self._generated + MAX_GENERATED_AT_ONCE)
        while self._generated < due:
            n = min(plan.batch, plan.count - self._generated)
            inbound = self.profile.mo and self.rand.random() < self.profile.mo
            self.send(
                now,
                n,
                sent_at=first + self._generated / plan.rate,
                direction="I" if inbound else "O",
            )
            self._generated += n

    # -- lists -----------------------------------------------------------------------------

    def window(self, start: float, end: float, now: float) -> list[tuple[float, int]]:
        """(when, serial) of what was sent within [start, end] and is listed, oldest first."""
        low = bisect_left(self._by_time, (start, -1))
        high = bisect_right(self._by_time, (min(end, now), MAX_MESSAGES))
        places = self._by_time[low:high]
        if self.profile.delays.listed:
            places = [p for p in places if self.messages[p[1]].listed_at <= now]
        return places

    def rows(self, places: Sequence[tuple[float, int]]) -> list[Message]:
        """The messages in these places."""
        return [self.messages[serial] for _, serial in places]

    # -- the one-time queue ----------------------------------------------------------------

    def take(
        self, now: float, limit: int, ids: set[str] | None, bulks: set[str] | None
    ) -> list[Report]:
        """Reports that are due, given once; what is too old for the feed is gone."""
        while self._pending and self._pending[0][0] <= now:
            report = heapq.heappop(self._pending)[2]
            self._ready[report.seq] = report
        horizon = self.profile.horizon
        if horizon:
            oldest = now - horizon
            # reports became ready in the order of their times
            stale = 0
            for report in self._ready.values():
                if report.transition.at >= oldest:
                    break
                stale += 1
            for seq in list(islice(self._ready, stale)):
                del self._ready[seq]
            self.tally.lapsed += stale
        newest = self.profile.order == "newest"
        if ids is None and bulks is None:
            return self._pop(limit, newest)
        source = reversed(self._ready.values()) if newest else iter(self._ready.values())
        fits = (
            r
            for r in source
            if (ids is None or r.message.message_id in ids)
            and (bulks is None or r.message.batch_id in bulks)
        )
        taken = list(islice(fits, limit))
        for report in taken:
            del self._ready[report.seq]
        return taken

    def _pop(self, limit: int, newest: bool) -> list[Report]:
        if newest:
            return [self._ready.popitem()[1] for _ in range(min(limit, len(self._ready)))]
        taken = list(islice(self._ready.values(), limit))
        for report in taken:
            del self._ready[report.seq]
        return taken

    def waiting(self, now: float) -> int:
        """How many reports of the one-time queue are due and were not given."""
        return len(self._ready) + sum(1 for at, _, _ in self._pending if at <= now)

    # -- tokens ----------------------------------------------------------------------------

    def login(self, now: float) -> str:
        """A new token, good for the profile's token_life."""
        if len(self.tokens) >= MAX_TOKENS:
            del self.tokens[next(iter(self.tokens))]
        token = f"sim-{self.rand.getrandbits(96):024x}"
        self.tokens[token] = now + self.profile.token_life
        self.tally.logins += 1
        return token


_SENDERS = {
    "S": "STRESS1",
    "E": "news@example.com",
    "P": "DemoApp",
    "W": "58412",
    "R": "61e9bb8f4a01ea",
}


def _recipient(provider: str, channel: str, n: int) -> str:
    """An address no other message of this account has."""
    if provider == "avaamo":
        digits = f"{n % 10**10:010d}"
        if n % 2:  # the provider formats some numbers, and keeps others as they were given
            return f"+1({digits[:3]}) {digits[3:6]}-{digits[6:]}"
        return f"+1{digits}"
    if channel == "E":
        return f"user{n}@example.org"
    if channel == "P":
        return f"fv8aC_{n:016x}"
    if provider == "messangi":
        return f"+52{n % 10**10:010d}"
    return f"447{n % 10**9:09d}"
