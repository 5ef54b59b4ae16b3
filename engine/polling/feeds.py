"""Reading what an account reports of itself: drained queues, windows, and windows again.

Each function is one visit: it asks until there is nothing more, commits every answer together with
where it stands, and returns what the schedule needs to know. A visit that fails in the middle goes
on where it stood.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from engine.core.contracts import Kind, Poll, Verb
from engine.core.reading import Reading
from engine.core.schedule import Ladder
from engine.core.work import NEVER_DUE_MS, Page, Work
from engine.limits.limiter import Slot
from engine.polling.ahead import ask_with
from engine.polling.asking import Asker, joined
from engine.polling.windowed import ServerClock, Stand, Visit, WindowReader, window_of

# A queue that keeps giving what is known already is lying; asked again at the next interval.
REPEATS_MAX = 3

# A provider's clock that is this much further ahead than it was found to be has more to read, which
# is read at once. That cannot be exact: an answer tells the clock only to within the time it took,
# and a clock that drifts ahead would have each slice read twice. What is in between comes next.
AHEAD_MS = 1000

# Of a provider's clock that is far off: what tells, between two looks, whether it goes.
PULSE_MIN_MS = 5000
PULSE_SHARE = 0.1  # it may be off by this much of what passed, and by a second and a half
PULSE_OFF_MS = 1500


class _Pulse(msgspec.Struct, frozen=True):
    """A look at a provider's clock that was far off ours, by the time since the machine's start."""

    shown_ms: int
    boot: str
    at_s: float
    goes: bool | None = None  # None: it has not been seen for long enough


class _Kept(msgspec.Struct, kw_only=True):
    """A slice whose reading has ended in the middle."""

    stand: Stand
    data: dict[str, Any]  # the slice's plan
    stored: dict[str, Any]  # of the feed, when the visit ended


class Feed:
    """The feed of one account."""

    def __init__(self, asker: Asker, reader: WindowReader, rescans: Ladder) -> None:
        self._asker = asker
        self._reader = reader
        self._account = asker.account
        self._traits = asker.traits
        self._rescans = rescans
        self._pace_s = asker.account.schedule.interval_s
        # A visit has ended in the middle, perhaps that of an earlier process: what it found behind
        # the period that was new is in no window yet.
        self._unsure = True
        self._kept: _Kept | None = None

    def goes_on(self, work: Work) -> bool:
        """Whether a feed that had reached its end has a later one now, or none."""
        end_ms = self._account.end_ms
        return end_ms is None or int(work.data.get("cursor", 0)) < end_ms

    # Pace

    def _come_back(self, work: Work, page: Page, *, found: bool) -> None:
        """Put the feed's next visit into a page: after `interval`, or later where neither the
        visit so far nor this page has brought anything new."""
        now_ms = self._asker.clock.now_ms()
        work.due_ms = now_ms + round(self._account.schedule.interval_s * 1000)
        page.quiet_due_ms = None if found else now_ms + round(self._pace_s * 1000)
        page.put = [*page.put, work]

    def _keep_pace(self, visit: Visit) -> None:
        """Slower, up to `idle_interval`, while nothing comes."""
        schedule = self._account.schedule
        if visit.records:
            self._pace_s = schedule.interval_s
        else:
            self._pace_s = min(schedule.idle_interval_s, self._pace_s * 2)

    # Drained: a queue that is emptied by reading it

    async def drain(self, work: Work, slot: Slot | None) -> Visit:
        """Ask until the queue is empty. Each answer is durable before the next question."""
        visit = Visit()
        repeats = 0
        while True:
            slot = slot or await self._asker.place()
            if slot is None:
                visit.more, visit.answered = True, False  # no success: it fails, or is held
                return visit
            poll = Poll(kind=Kind.FEED, now_ms=self._asker.clock.now_ms())
            reply = await ask_with(self._asker, poll, slot)
            slot = None
            if not reply.answered:
                await self._asker.commit(reply.page)
                visit.failed = reply
                return visit
            visit.answered = True
            self._reader.answered()
            more = reply.outcome.verb is Verb.MORE
            if not more:
                self._come_back(work, reply.page, found=visit.records + reply.records > 0)
            done = await self._asker.commit(reply.page)
            visit.records += done.records + reply.records
            repeats = 0 if done.records + reply.records else repeats + 1
            if not more:
                self._keep_pace(visit)
                return visit
            if repeats >= REPEATS_MAX:
                self._asker.telemetry.event(
                    logging.WARNING,
                    self._account.name,
                    f"{repeats} full pages in a row held nothing new: the queue is taken as read"
                    " until the next interval",
                )
                page = self._asker.page()
                self._come_back(work, page, found=False)
                await self._asker.commit(page)
                self._keep_pace(Visit())
                return visit
            if self._reader.halts:
                visit.more = True
                return visit

    # Windowed: periods that can be read again

    async def advance(self, work: Work, slot: Slot | None) -> Visit:
        """Read from where the feed stands up to now, or to the end of a longest window."""
        kept = self._kept_of(work)
        resumed = kept is not None or bool(work.data.get("spans"))
        visit = Visit(unsure=self._unsure, resumed=resumed)
        kept = kept or self._begin(work)
        if kept is None:
            if slot is not None:
                slot.unused()
                slot.release()
            await self._idle(work, dict(work.data))
            return visit
        data, stand = kept.data, kept.stand
        reading = stand.reading

        def moved(page: Page) -> None:
            data["opened"] = visit.opened_ms = joined(data.get("opened"), visit.opened_ms)
            data["spans"] = reading.dump()
            data["shown"] = stand.server.first_ms  # of spans that no later process reads again
            if not reading.spans:
                self._finish(work, data, page, stand.server, visit)
            else:
                page.put = [*page.put, work]
            work.data = data

        self._unsure = True
        visit.failed = await self._reader.read(stand, Kind.FEED, slot, visit, moved)
        self._unsure = bool(reading.spans)
        if reading.spans:
            self._kept = _Kept(stand=stand, data=data, stored=dict(work.data))
        elif visit.failed is None:
            self._keep_pace(visit)
        return visit

    def _kept_of(self, work: Work) -> _Kept | None:
        """The slice that the visit before this one has left in the middle.

        None also where that visit has ended by a fault: it may have counted what was not committed.
        """
        kept, self._kept = self._kept, None
        if kept is None or kept.stored != work.data:
            return None
        return kept if kept.stand.holds(self._asker.clock.now_ms()) else None

    def _begin(self, work: Work) -> _Kept | None:
        """A slice from its first span that is still to be read; None: there is nothing to read."""
        data = dict(work.data)
        if not data.get("spans"):
            plan = self._plan(data, work.start_ms)
            if plan is None:
                return None
            data.update(plan)
        reading = Reading.load(data["spans"])
        server = ServerClock(data.get("shown"))
        return _Kept(stand=Stand(reading=reading, server=server), data=data, stored=work.data)

    def _plan(self, data: dict[str, Any], began_ms: int) -> dict[str, Any] | None:
        """The next slice: from the cursor less the overlap, up to now by the provider's clock.

        `lookback` counts from when the feed was begun, not from the try that succeeds at last:
        or what lies behind would slip away while the provider is down. Where it is not yet as late
        as it was, somebody has set a clock back: it is asked all the same, up to a moment later
        than before, for only an answer tells what time it is there.
        """
        account = self._account
        now_ms = self._asker.clock.now_ms() + int(data.get("skew", 0))
        cursor: int | None = data.get("cursor")
        if cursor is None:
            lookback_ms = round((account.lookback_s or 0) * 1000)
            start = account.start_ms if account.start_ms is not None else began_ms - lookback_ms
            cursor = from_ms = start
        else:
            floor = data.get("start", cursor)
            if "skew" not in data:  # a provider that shows no clock: ours alone can tell
                cursor = max(floor, min(cursor, now_ms))
            from_ms = max(floor, cursor - round(account.overlap_s * 1000))
            now_ms = max(now_ms, cursor + 1, self._far_now_ms(data))
        window_ms = self._traits.window_max_ms
        longest_ms = max(from_ms + window_ms, cursor + window_ms // 2)  # an overlap may be longer
        end_ms = min(now_ms, longest_ms)
        if account.end_ms is not None:
            end_ms = min(end_ms, account.end_ms)
        if end_ms <= cursor:
            return None
        spans = Reading.of(from_ms, end_ms, self._traits).dump()
        return {
            "cursor": cursor,
            "start": data.get("start", cursor),
            "end": end_ms,
            "capped": end_ms == longest_ms,  # there is more to read behind it
            "spans": spans,
        }

    def _far(self, data: dict[str, Any], shown_ms: int | None) -> int | None:
        """A provider's clock that is too far from ours to be a matter of skew: what it shows, for
        the feed to go no further than that and than our own; None: it is to be ignored.

        Either of the two may have been set wrong, and what was sent meanwhile must not be passed
        over. But one that stands still would hold the feed for ever: only one that goes counts.
        """
        before, boot = data.pop("pulse", None), self._asker.clock.boot()
        if shown_ms is None or boot is None:
            return None
        name, at_s = boot
        last = msgspec.convert(before, _Pulse) if before is not None else None
        goes = None
        if last is not None and last.boot == name:
            passed_ms = 1000 * (at_s - last.at_s)
            if passed_ms < PULSE_MIN_MS:
                data["pulse"] = before
                return None if last.goes is False else shown_ms
            off_ms = abs(shown_ms - last.shown_ms - passed_ms)
            goes = off_ms <= PULSE_OFF_MS + PULSE_SHARE * passed_ms
        data["pulse"] = msgspec.to_builtins(_Pulse(shown_ms, name, at_s, goes))
        return None if goes is False else shown_ms

    def _far_now_ms(self, data: dict[str, Any]) -> int:
        """What time it is by a clock of the provider's that is far off and goes: there may be
        something to read up to then. 0: there is no such clock."""
        boot = self._asker.clock.boot()
        if "pulse" not in data or boot is None:
            return 0
        pulse = msgspec.convert(data["pulse"], _Pulse)
        if not pulse.goes or pulse.boot != boot[0]:
            return 0
        return pulse.shown_ms + round(1000 * (boot[1] - pulse.at_s))

    async def _idle(self, work: Work, data: dict[str, Any]) -> None:
        """There is nothing to read yet, or never again."""
        end_ms = self._account.end_ms
        ended = end_ms is not None and data.get("cursor", 0) >= end_ms
        page = self._asker.page()
        self._come_back(work, page, found=False)
        if ended:
            page.quiet_due_ms = NEVER_DUE_MS
        await self._asker.commit(page)

    def _finish(
        self, work: Work, data: dict[str, Any], page: Page, server: ServerClock, visit: Visit
    ) -> None:
        """A slice was read to its end: move the cursor, and plan the rescans of the period."""
        clock_ms = self._asker.clock.now_ms()
        skew_ms, moved_ms = int(data.get("skew", 0)), AHEAD_MS if "skew" in data else 0
        cursor, end_ms = int(data["cursor"]), int(data.pop("end"))
        # What the provider did not have yet by its own clock was not read.
        far_ms = self._far(data, server.far_ms)
        if far_ms is not None:
            reached = cursor if visit.resumed else max(cursor, min(end_ms, far_ms, clock_ms))
        else:
            reached = max(cursor, min(end_ms, server.first_ms or end_ms))
        data["cursor"] = reached
        del data["spans"], data["shown"]
        opened = data.pop("opened", None)
        ahead_ms = skew_ms if server.skew_ms is None else server.skew_ms
        if server.skew_ms is not None:
            data["skew"] = ahead_ms
        behind = ahead_ms > skew_ms + moved_ms
        capped = data.pop("capped", False)
        # Begun so long ago that by now the next one would have been.
        interval_ms = round(self._account.schedule.interval_s * 1000)
        late = visit.resumed and clock_ms >= end_ms - skew_ms + interval_ms
        self._come_back(work, page, found=visit.records > 0)
        if self._account.end_ms is not None and reached >= self._account.end_ms:
            work.due_ms = NEVER_DUE_MS
            page.quiet_due_ms = None
        elif (capped and reached > cursor) or behind or late:
            work.due_ms = clock_ms
            page.quiet_due_ms = None
            visit.more = True
        window = window_of(
            self._account.name,
            (cursor, reached),
            opened,
            self._rescans,
            clock_ms,
            self._asker.rand.random,
        )
        if window is not None:
            page.put = [*page.put, window]
            if visit.unsure:
                page.cover = (cursor - round(self._account.overlap_s * 1000), cursor)
