"""Reading what an account reports of itself: drained queues, windows, and windows again.

Each function is one visit: it asks until there is nothing more, commits every answer together with
where it stands, and returns what the schedule needs to know. A visit that fails in the middle goes
on where it stood.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.asking import Asker, Reply, joined
from engine.core.contracts import Kind, Outcome, Poll, Verb
from engine.core.reading import Next, Progress, Reading, Span, decide, divide_short
from engine.core.schedule import Ladder
from engine.core.work import NEVER_DUE_MS, Expire, Page, Work
from engine.limits import Slot
from engine.stores.ledger import widen

# A queue that keeps giving what is known already is lying; asked again at the next interval.
REPEATS_MAX = 3

# A window that times out is halved, but not below this: shorter ones time out for other reasons.
TIMEOUT_SPLIT_MIN_MS = 60_000

# A provider's clock that is further off than this is not believed.
SKEW_MAX_MS = 86_400_000


# A provider's clock that is further ahead than this has reports that were not asked for yet.
AHEAD_MS = 1000


class ServerClock:
    """What a visit learns of the provider's clock."""

    def __init__(self) -> None:
        self.first_ms: int | None = None  # what it showed with the first answer
        self.skew_ms = 0  # how far it is ahead of ours

    def note(self, server_ms: int, seen_ms: int) -> None:
        """An answer that was seen at `seen_ms` says that it is `server_ms` there."""
        if abs(server_ms - seen_ms) <= SKEW_MAX_MS and self.first_ms is None:
            self.first_ms = server_ms
            self.skew_ms = server_ms - seen_ms


class Visit(msgspec.Struct, kw_only=True):
    """What one visit to a feed came to. `failed` is None where it was read to its end."""

    failed: Reply | None = None
    records: int = 0
    opened_ms: tuple[int, int] | None = None  # where open messages are that were new
    more: bool = False  # read to the end of a slice, and the next one is due at once


class Feed:
    """The feed of one account."""

    def __init__(self, asker: Asker, rescans: Ladder) -> None:
        self._asker = asker
        self._account = asker.account
        self._traits = asker.traits
        self._rescans = rescans
        self._pace_s = asker.account.schedule.interval_s
        self.stopping = False

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
            reply = await self._ask(Poll(kind=Kind.FEED, now_ms=self._asker.clock.now_ms()), slot)
            slot = None
            if not reply.answered:
                await self._asker.commit(reply.page)
                visit.failed = reply
                return visit
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
            if self.stopping:
                visit.more = True
                return visit

    # Windowed: periods that can be read again

    async def advance(self, work: Work, slot: Slot | None) -> Visit:
        """Read from where the feed stands up to now, or to the end of a longest window."""
        visit = Visit()
        data = dict(work.data)
        if not data.get("spans"):
            plan = self._plan(data)
            if plan is None:
                if slot is not None:
                    slot.unused()
                    slot.release()
                await self._idle(work, data)
                return visit
            data.update(plan)
        reading = Reading.load(data["spans"], total_ignored=bool(data.get("total_ignored")))
        server = ServerClock()

        def moved(page: Page) -> None:
            data["opened"] = visit.opened_ms = joined(data.get("opened"), visit.opened_ms)
            data["spans"] = reading.dump()
            data["total_ignored"] = reading.total_ignored
            if not reading.spans:
                self._finish(work, data, page, server, visit)
            else:
                page.put = [*page.put, work]
            work.data = data

        visit.failed = await self._read(reading, Kind.FEED, slot, server, visit, moved)
        if visit.failed is None and not reading.spans:
            self._keep_pace(visit)
        return visit

    def _plan(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """The next slice: from the cursor less the overlap, up to now by the provider's clock."""
        account = self._account
        now_ms = self._asker.clock.now_ms()
        cursor: int | None = data.get("cursor")
        if cursor is None:
            lookback_ms = round((account.lookback_s or 0) * 1000)
            start = account.start_ms if account.start_ms is not None else now_ms - lookback_ms
            cursor = from_ms = start
        else:
            floor = data.get("start", cursor)
            from_ms = max(floor, cursor - round(account.overlap_s * 1000))
        window_ms = self._traits.window_max_ms
        longest_ms = max(from_ms + window_ms, cursor + window_ms // 2)  # an overlap may be longer
        end_ms = min(now_ms + int(data.get("skew", 0)), longest_ms)
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
        skew_ms = int(data.get("skew", 0))
        cursor, end_ms = int(data["cursor"]), int(data.pop("end"))
        # What the provider did not have yet by its own clock was not read.
        reached = max(cursor, min(end_ms, server.first_ms or end_ms))
        data["cursor"] = reached
        del data["spans"]
        opened = data.pop("opened", None)
        if server.first_ms is not None:
            data["skew"] = server.skew_ms
        behind = server.skew_ms > AHEAD_MS and server.skew_ms > skew_ms + AHEAD_MS
        capped = data.pop("capped", False)
        self._come_back(work, page, found=visit.records > 0)
        if self._account.end_ms is not None and reached >= self._account.end_ms:
            work.due_ms = NEVER_DUE_MS
            page.quiet_due_ms = None
        elif (capped and reached > cursor) or behind:
            work.due_ms = clock_ms
            page.quiet_due_ms = None
            visit.more = True
        if reached > cursor and self._rescans.offsets_ms:
            window = Work(
                account=self._account.name,
                kind=Kind.WINDOW,
                key=f"{cursor}-{reached}",
                due_ms=clock_ms,
                start_ms=clock_ms,
                data={"from": cursor, "to": reached},
            )
            if opened is not None:
                widen(window, *opened)
            due_ms = self._rescans.next_due_ms(clock_ms, window.answered_ms, self._chance())
            if due_ms is not None:
                window.due_ms = due_ms
                page.put = [*page.put, window]

    # Rescans

    async def rescan(self, works: Sequence[Work], slot: Slot | None) -> Visit:
        """Read windows again: neighbours as one, those with nothing open not at all."""
        visit = Visit()
        loud = await self._loud(works)
        for group in self._groups(loud):
            first, last = group[0], group[-1]
            reading = Reading.of(first.data["from"], last.data["to"], self._traits)
            began_ms = self._asker.clock.now_ms()
            reply = await self._read(
                reading, Kind.WINDOW, slot, ServerClock(), visit, lambda page: None
            )
            slot = None
            if reply is not None:
                visit.failed = reply
                break
            if reading.spans:  # stopped in the middle: what is left is still due
                visit.more = True
                break
            await self._answer(group, began_ms)
            if self.stopping:
                break
        if slot is not None:
            slot.unused()
            slot.release()
        return visit

    async def _loud(self, works: Sequence[Work]) -> list[Work]:
        """Those with something open; the others step over this rung, and are forgotten once no
        late entry can open them any more."""
        name = self._account.name
        spans = [(work.data["from"], work.data["to"] - 1) for work in works]
        found = await self._asker.store.read(
            lambda tx: [
                bool(tx.open_in_span(name, from_ms, to_ms, pending=False, limit=1))
                for from_ms, to_ms in spans
            ]
        )
        quiet = [work for work, is_open in zip(works, found, strict=True) if not is_open]
        if quiet:
            now_ms = self._asker.clock.now_ms()
            overlap_ms = round(self._account.overlap_s * 1000)
            page = self._asker.page()
            for work in quiet:
                assert work.id is not None
                due_ms = self._step(work, now_ms)
                if due_ms is None or now_ms > work.start_ms + overlap_ms:
                    page.drop = [*page.drop, work.id]
                else:
                    work.due_ms = due_ms
                    page.put = [*page.put, work]
            await self._asker.commit(page)
        return [work for work, is_open in zip(works, found, strict=True) if is_open]

    def _groups(self, works: Sequence[Work]) -> list[list[Work]]:
        """Neighbours together, as long as a window may be."""
        groups: list[list[Work]] = []
        for work in sorted(works, key=lambda work: int(work.data["from"])):
            if groups:
                group = groups[-1]
                joined_ms = work.data["to"] - group[0].data["from"]
                if (
                    work.data["from"] <= group[-1].data["to"]
                    and joined_ms <= self._traits.window_max_ms
                ):
                    group.append(work)
                    continue
            groups.append([work])
        return groups

    def _step(self, work: Work, now_ms: int) -> int | None:
        """Mark the rungs due by `now_ms` as answered; when the next one is due."""
        work.answered_ms = max(work.answered_ms, self._rescans.reached_ms(work.start_ms, now_ms))
        return self._rescans.next_due_ms(work.start_ms, work.answered_ms, self._chance())

    async def _answer(self, group: Sequence[Work], began_ms: int) -> None:
        page = self._asker.page()
        over: list[Work] = []
        for work in group:
            due_ms = self._step(work, began_ms)
            if due_ms is None:
                over.append(work)
            else:
                work.due_ms = due_ms
                page.put = [*page.put, work]
        await self._asker.commit(page)
        for work in over:
            await self.expire(work)

    async def expire(self, work: Work) -> None:
        """The last rescan has passed: verdicts for what is pending, then the window is over."""
        assert work.id is not None
        while True:
            page = self._asker.page()
            page.expire = Expire(from_ms=work.data["from"], to_ms=work.data["to"] - 1)
            done = await self._asker.commit(page)
            if not done.remaining:
                break
        page = self._asker.page()
        page.drop = [work.id]
        await self._asker.commit(page)

    # Both

    async def _read(
        self,
        reading: Reading,
        kind: Kind,
        slot: Slot | None,
        server: ServerClock,
        visit: Visit,
        moved: Any,
    ) -> Reply | None:
        """Read span after span; `moved(page)` is told before a commit that ends a span.

        Returns the reply that failed, or None when all was read.
        """
        progress = Progress()
        while reading.spans:
            if divide_short(reading, self._traits) is not None:
                continue
            span = reading.spans[0]
            reply = await self._ask(_question(kind, span, progress, self._asker), slot)
            slot = None
            if self._too_slow(reply, span):
                cause = f"it timed out ({reply.outcome.cause})"
                reply.outcome = Outcome(verb=Verb.SPLIT, cause=cause)
            if not reply.answered:
                await self._asker.commit(reply.page)
                return reply
            if reply.outcome.server_ms is not None:
                server.note(reply.outcome.server_ms, reply.page.observed_ms)
            step = decide(
                reading,
                progress,
                reply.outcome,
                self._traits,
                rows=reply.rows,
                flaws=reply.flaws,
                keys=reply.keys,
                sent_ms=reply.sent_ms,
            )
            self._tell(span, step)
            reply.page.incidents = step.incidents
            visit.opened_ms = joined(visit.opened_ms, reply.opened_ms)
            if not step.same_span:
                progress = Progress()
                moved(reply.page)
            done = await self._asker.commit(reply.page)
            reply.note(done)
            visit.records += reply.records
            visit.opened_ms = joined(visit.opened_ms, reply.opened_ms)
            if self.stopping and reading.spans:
                visit.more = True
                return None
        return None

    def _too_slow(self, reply: Reply, span: Span) -> bool:
        return reply.timed_out and not reply.answered and span.width_ms > TIMEOUT_SPLIT_MIN_MS

    def _tell(self, span: Span, step: Next) -> None:
        tell = self._asker.telemetry.event
        for incident in step.incidents:
            tell(logging.ERROR, self._account.name, incident.text)
        if step.cause and not step.incidents:
            width_s = span.width_ms / 1000
            tell(logging.INFO, self._account.name, f"a window of {width_s:g} s: {step.cause}")

    async def _ask(self, poll: Poll, slot: Slot | None) -> Reply:
        return await self._asker.ask(poll, slot)

    def _chance(self) -> float:
        return self._asker.rand.random()


def _question(kind: Kind, span: Span, progress: Progress, asker: Asker) -> Poll:
    return Poll(
        kind=kind,
        now_ms=asker.clock.now_ms(),
        from_ms=span.from_ms,
        to_ms=span.to_ms,
        channel=span.channel,
        page=progress.page,
    )
