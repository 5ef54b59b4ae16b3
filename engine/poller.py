"""One account's polls: a priority queue keyed on next-poll time, over the durable schedule.

Only the near horizon is in memory; the rest is in the store, so that pending work costs disk and a
restart loads next to nothing. Work is not claimed: what was not answered is simply still due. The
account's trouble (failures, holds, pauses) stays in here, so that no other account feels it.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable

import anyio
import anyio.abc
import msgspec

from engine.asking import Asker, Reply
from engine.core.contracts import Kind, Poll, Verb
from engine.core.report import msisdn
from engine.core.schedule import NEVER_MS, Ladder
from engine.core.units import spell_duration
from engine.core.work import Committed, Settle, Work
from engine.feeds import NEVER_DUE_MS, Feed, Visit
from engine.limits import Slot, backoff_s
from engine.stores.transaction import Transaction

# The part of the schedule that is in memory: this far ahead, and this many items at a time.
HORIZON_MS = 60_000
QUEUE_MAX = 2000

# Overdue work found at a start is spread over at most this.
SPREAD_MAX_MS = 300_000

# A wrong password is tried again after these, then every hour.
PAUSES_S = (60.0, 300.0, 1800.0, 3600.0)

# One recipient is asked for alone where its batch has at least this many.
LARGE_BATCH = 10

# A wait is looked at again after this, so that a stepped wall clock is noticed.
WAIT_MAX_S = 1.0


class Health(msgspec.Struct, kw_only=True):
    """How an account does, for people."""

    paused: str | None = None  # why
    paused_until_ms: int | None = None
    failing: str | None = None  # the latest failure's cause, None after a success
    failures: int = 0  # in a row
    answered_ms: int | None = None  # when the provider last answered properly
    waiting: int = 0  # polls in memory


class AccountPoller:
    """Runs one account until it is stopped."""

    def __init__(self, asker: Asker, *, once: bool = False) -> None:
        schedule = asker.account.schedule
        self.name = asker.account.name
        self.account = asker.account
        self.limiter = asker.limiter
        self.traits = asker.traits
        self.health = Health()
        self.feed_began_ms: int | None = None  # of the latest visit that read the feed to its end
        self.ladder = Ladder.of(
            schedule.ladder_s,
            gaps=schedule.from_previous,
            jitter=schedule.jitter,
            give_up_s=schedule.give_up_s,
        )
        self.rescans = Ladder.of(schedule.rescan_s, jitter=schedule.jitter)
        self.on_commit: Callable[[], None] = lambda: None
        self._asker = asker
        self._clock = asker.clock
        self._feed = Feed(asker, self.rescans)
        self._once_ms: int | None = asker.clock.now_ms() if once else None
        self._heap: list[tuple[int, int, Work]] = []
        self._queued: set[int] = set()
        self._busy: set[int] = set()
        self._tries: dict[int, int] = {}
        self._loaded_until_ms = 0
        self._all_loaded = False
        self._count = 0
        self._wake = anyio.Event()
        self._stopping = False
        self._failures = 0
        self._failed_at = 0.0
        self._pauses = 0
        self._loop_scope = anyio.CancelScope()

    # From outside

    def stop(self) -> None:
        """No new polls; those in flight go on."""
        self._stopping = self._feed.stopping = True
        self._loop_scope.cancel()

    def wake(self) -> None:
        """Something was put into the schedule by another hand: look again."""
        self._loaded_until_ms = 0
        self._wake.set()

    def hasten_feed(self) -> None:
        """Read the feed now instead of at its next time."""
        for index, (due_ms, count, work) in enumerate(self._heap):
            if work.kind is Kind.FEED and due_ms < NEVER_DUE_MS:
                self._heap[index] = (min(due_ms, self._clock.now_ms()), count, work)
                heapq.heapify(self._heap)
                self._wake.set()
                return

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    @property
    def feed_ended(self) -> bool:
        """The feed's configured end was reached: there is nothing more to read."""
        return any(w.kind is Kind.FEED and w.due_ms >= NEVER_DUE_MS for _, _, w in self._heap)

    async def run(self, grace_s: float) -> None:
        """Poll until stopped; with `once`, until what was due at the start is done."""
        async with anyio.create_task_group() as polls:
            with self._loop_scope:
                await self._begin()
                await self._loop(polls)
            with anyio.move_on_after(grace_s if self._stopping else None):
                while self._busy:
                    await self._wait(WAIT_MAX_S)
            polls.cancel_scope.cancel()

    async def probe(self, nonce: str) -> tuple[bool, str]:
        """One harmless request, for `check --connect`: whether it passed, and why not."""
        poll = Poll(kind=Kind.PROBE, now_ms=self._clock.now_ms(), nonce=nonce)
        reply = await self._asker.ask(poll)
        return probe_passed(reply)

    # The queue

    async def _begin(self) -> None:
        """Make sure that the feed is in the schedule, and spread what became due meanwhile."""
        now_ms = self._clock.now_ms()
        name = self.name
        if self.traits.feed is not None:
            feed = Work(account=name, kind=Kind.FEED, key="", due_ms=now_ms, start_ms=now_ms)
            found = await self._asker.store.read(lambda tx: tx.find_works(name, Kind.FEED, [""]))
            if not found:
                found = await self._asker.store.write(lambda tx: tx.put_works([feed]))
            self._push(found[0], found[0].due_ms)
        await self._refill()
        if self._once_ms is None:
            await self._spread(now_ms)

    async def _spread(self, now_ms: int) -> None:
        """Overdue polls are not all made at once, where the limits do not spread them already."""
        overdue = [entry for entry in self._heap if entry[0] < now_ms]
        if len(overdue) < 2:
            return
        rest = [entry for entry in self._heap if entry[0] >= now_ms]
        schedule = self._asker.account.schedule
        share_ms = round(schedule.interval_s * 1000)
        for _, _, work in overdue:
            if work.kind in (Kind.BATCH, Kind.MESSAGE):
                share_ms = min(share_ms, self.ladder.gap_ms(work.answered_ms) or share_ms)
        span_ms = min(share_ms, SPREAD_MAX_MS)
        pace_ms = min(r.requests / r.per_s for r in self._asker.account.limits.rates)
        if len(overdue) / pace_ms * 1000 >= span_ms:
            return
        overdue.sort(key=lambda entry: (entry[2].kind is not Kind.FEED, entry[:2]))
        spread = [
            (now_ms + span_ms * index // len(overdue), count, work)
            for index, (_, count, work) in enumerate(overdue)
        ]
        self._heap = spread + rest
        heapq.heapify(self._heap)

    def _push(self, work: Work, due_ms: int) -> None:
        assert work.id is not None
        if work.id not in self._queued:
            self._queued.add(work.id)
            self._count += 1
            heapq.heappush(self._heap, (due_ms, self._count, work))

    def _pop(self) -> Work:
        _, _, work = heapq.heappop(self._heap)
        assert work.id is not None
        self._queued.discard(work.id)
        return work

    async def _refill(self) -> None:
        """Take the near part of the schedule into memory."""
        now_ms = self._clock.now_ms()
        held = len(self._heap) + len(self._busy)
        fresh = self._loaded_until_ms - now_ms > HORIZON_MS // 2
        if fresh and (self._all_loaded or (self._heap and self._heap[0][0] <= now_ms)):
            return
        if fresh and held > 10 * QUEUE_MAX:
            return
        until_ms = now_ms + HORIZON_MS
        limit = QUEUE_MAX + held
        name = self.name
        works = await self._asker.store.read(lambda tx: tx.works_due(name, until_ms, limit))
        for work in works:
            if work.id not in self._busy:
                self._push(work, work.due_ms)
        self._all_loaded = len(works) < limit
        self._loaded_until_ms = until_ms if self._all_loaded else works[-1].due_ms
        if not self._all_loaded:
            self._loaded_until_ms = max(self._loaded_until_ms, now_ms + HORIZON_MS // 2 + 1)

    def _enter(self, done: Committed) -> None:
        """What a commit changed in the schedule, as far as it is near."""
        for work in done.put:
            near = work.due_ms <= self._loaded_until_ms or work.kind is Kind.FEED
            if near and work.id not in self._busy:
                self._push(work, work.due_ms)
        if done.ended:
            gone = set(done.ended)
            if gone & self._queued:
                self._heap = [entry for entry in self._heap if entry[2].id not in gone]
                heapq.heapify(self._heap)
                self._queued -= gone

    # The loop

    async def _loop(self, polls: anyio.abc.TaskGroup) -> None:
        while not self._stopping:
            await self._refill()
            now_ms = self._clock.now_ms()
            if self._once_ms is not None and self._done_once():
                return
            wait_s = self._idle_s(now_ms)
            if wait_s > 0:
                await self._wait(wait_s)
                continue
            work = self._pop()
            assert work.id is not None
            self._busy.add(work.id)
            taken = False
            try:
                slot = await self._asker.limiter.slot() if self._asks(work) else None
                polls.start_soon(self._work, work, slot)
                taken = True
            finally:
                if not taken:
                    self._busy.discard(work.id)

    def _done_once(self) -> bool:
        """With `once`: whether nothing is left that was due at the start and has not been tried."""
        assert self._once_ms is not None
        if self._busy:
            return False
        if self.health.paused is not None or self.health.failing is not None:
            return True  # what is left is still due, for the next run
        due = [
            work
            for due_ms, _, work in self._heap
            if due_ms <= self._once_ms and work.id not in self._tries
        ]
        return not due and self._all_loaded

    def _idle_s(self, now_ms: int) -> float:
        """How long there is nothing to do; 0: there is."""
        if not self._heap:
            return WAIT_MAX_S
        if self.health.paused_until_ms is not None:
            if now_ms < self.health.paused_until_ms or self._busy:
                return WAIT_MAX_S  # one request at a time finds out whether it is mended
            return 0.0
        due_ms, _, work = self._heap[0]
        if self._once_ms is not None and (due_ms > self._once_ms or work.id in self._tries):
            return WAIT_MAX_S
        return min(max(0.0, (due_ms - now_ms) / 1000), WAIT_MAX_S)

    async def _wait(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._wake.wait()
        if self._wake.is_set():
            self._wake = anyio.Event()

    def _asks(self, work: Work) -> bool:
        """Whether this work is a question to the provider; else it only waits for its verdict."""
        return work.kind is Kind.FEED or work.kind.value in self.traits.asks

    async def _work(self, work: Work, slot: Slot | None) -> None:
        assert work.id is not None
        try:
            if work.kind is Kind.FEED:
                await self._visit_feed(work, slot)
            elif work.kind is Kind.WINDOW:
                await self._visit_windows(work)
            elif self._asks(work):
                await self._rung(work, slot)
            else:
                await self._verdict(work)
        except Exception as error:  # a fault in here or in a plug-in: this account's own trouble
            self._broke(work, error)
        finally:
            if slot is not None:  # whatever happened, the place is not kept
                slot.unused()
                slot.release()
            self._busy.discard(work.id)
            self._wake.set()

    # Kinds of work

    async def _visit_feed(self, work: Work, slot: Slot | None) -> None:
        began_ms = self._clock.now_ms()
        drained = self.traits.feed == "drained"
        visit = await (self._feed.drain if drained else self._feed.advance)(work, slot)
        self.on_commit()
        self._after_visit([work], visit)
        if visit.failed is None and not visit.more:
            self.feed_began_ms = began_ms

    async def _visit_windows(self, work: Work) -> None:
        """All windows that are due together, so that neighbours are read as one."""
        now_ms = self._clock.now_ms()
        works = [work]
        rest: list[tuple[int, int, Work]] = []
        for entry in self._heap:
            if entry[2].kind is Kind.WINDOW and entry[0] <= now_ms:
                works.append(entry[2])
            else:
                rest.append(entry)
        if len(works) > 1:
            self._heap = rest
            heapq.heapify(self._heap)
        ids = {other.id for other in works if other.id is not None}
        self._queued -= ids
        self._busy |= ids
        try:
            visit = await self._feed.rescan(works, None)
        finally:
            self._busy -= ids
        self.on_commit()
        self._after_visit(works, visit)

    def _after_visit(self, works: list[Work], visit: Visit) -> None:
        """Queue what was visited again: after a failure with a backoff of its own."""
        if visit.failed is not None:
            self._failed(visit.failed)
        elif visit.records or not visit.more:
            self._succeeded()
        delay_ms = 0
        if visit.failed is not None:
            delay_ms = self._retry_ms(works[0])
        self._loaded_until_ms = 0  # the visit has moved the schedule: look at it again
        for work in works:
            assert work.id is not None
            if visit.failed is None:
                self._tries.pop(work.id, None)
            if self._once_ms is not None and visit.failed is not None:
                self._tries[work.id] = self._tries.get(work.id, 0) + 1
            if work.kind is Kind.FEED:
                self._busy.discard(work.id)
                due_ms = work.due_ms if not delay_ms else self._clock.now_ms() + delay_ms
                if visit.more and self._once_ms is not None:
                    due_ms = self._once_ms  # the next slice was due at the start, too
                self._push(work, due_ms)
            elif delay_ms:
                self._busy.discard(work.id)
                self._push(work, self._clock.now_ms() + delay_ms)

    async def _rung(self, work: Work, slot: Slot | None) -> None:
        """Ask for a batch or a message by its id."""
        assert work.id is not None
        poll = await self._question(work)
        rows = finals = 0
        while True:
            reply = await self._asker.ask(poll, slot)
            slot = None
            rows += reply.rows - reply.flaws
            finals += reply.finals
            if reply.outcome.verb is not Verb.MORE or self._stopping:
                break
            await self._asker.commit(reply.page)
        if reply.answered:
            reply.page.settle = self._settle(work, poll.now_ms, reply)
            reply.page.settle.rows, reply.page.settle.finals = rows, finals
            self._tries.pop(work.id, None)
            self._succeeded()
        else:
            self._failed(reply)
            if reply.outcome.verb is Verb.RETRY and self.ladder.given_up(
                work.start_ms, poll.now_ms
            ):
                reply.page.settle = self._settle(work, poll.now_ms, reply)
                reply.page.settle.over = True
        done = await self._asker.commit(reply.page)
        self.on_commit()
        self._busy.discard(work.id)
        self._enter(done)
        if reply.page.settle is None:
            self._push(work, self._clock.now_ms() + self._retry_ms(work))

    async def _question(self, work: Work) -> Poll:
        name, key = self.name, work.key
        recipient = None
        if work.kind is Kind.BATCH and self.traits.derives_ids and work.answered_ms > NEVER_MS:
            recipient = await self._asker.store.read(lambda tx: _only_open(tx, name, key))
        return Poll(
            kind=work.kind,
            now_ms=self._clock.now_ms(),
            batch_id=key if work.kind is Kind.BATCH else None,
            message_id=key if work.kind is Kind.MESSAGE else None,
            recipient=recipient,
            reference=work.data.get("reference"),
            sent_ms=work.start_ms,
        )

    def _settle(self, work: Work, asked_ms: int, reply: Reply) -> Settle:
        absent = reply.outcome.verb is Verb.ABSENT
        return Settle(
            work=work,
            ladder=self.ladder,
            now_ms=asked_ms,
            code=reply.outcome.code if absent else None,
            text=reply.outcome.cause if absent else None,
            chance=self._asker.rand.random(),
        )

    async def _verdict(self, work: Work) -> None:
        """What is not asked for by id has come to the end of its ladder."""
        page = self._asker.page()
        now_ms = self._clock.now_ms()
        if self.traits.feed == "windowed":
            later_ms = await self._covered(work, now_ms)
            if later_ms is not None:
                work.due_ms = later_ms
                page.put = [work]
        if not page.put:
            page.settle = Settle(work=work, ladder=self.ladder, now_ms=now_ms, over=True)
        done = await self._asker.commit(page)
        self.on_commit()
        assert work.id is not None
        self._busy.discard(work.id)
        self._enter(done)

    async def _covered(self, work: Work, now_ms: int) -> int | None:
        """A window that is still to be read again will tell; None: there is none, nor will be."""
        name, sent_ms = self.name, work.start_ms
        feed, windows = await self._asker.store.read(
            lambda tx: (
                tx.find_works(name, Kind.FEED, [""]),
                tx.find_works(name, Kind.WINDOW, None),
            )
        )
        pause_ms = round(self._asker.account.schedule.interval_s * 1000)
        covering = [w for w in windows if w.data["from"] <= sent_ms < w.data["to"]]
        if covering:
            return max(max(w.due_ms for w in covering), now_ms) + pause_ms
        ended = bool(feed) and feed[0].due_ms >= NEVER_DUE_MS
        if feed and not ended and int(feed[0].data.get("cursor", 0)) <= sent_ms:
            return now_ms + pause_ms
        return None

    # Trouble

    def _broke(self, work: Work, error: Exception) -> None:
        """Say where a programming fault is, without its message: that may hold data."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"
        cause = f"a fault in the program, {type(error).__name__} in {place}: please report it"
        self.health.failing = cause
        self._failures += 1
        self._asker.telemetry.count("faults", self.name)
        self._asker.telemetry.event(logging.ERROR, self.name, cause)
        self._asker.telemetry.debug(error)
        assert work.id is not None
        self._busy.discard(work.id)
        self._push(work, self._clock.now_ms() + max(1000, self._retry_ms(work)))

    def _succeeded(self) -> None:
        self._failures = 0
        self.health.failures = 0
        self.health.failing = None
        self.health.answered_ms = self._clock.now_ms()
        if self.health.paused is not None:
            self._asker.telemetry.event(logging.INFO, self.name, "goes on: it is accepted again")
            self.health.paused = self.health.paused_until_ms = None
        self._pauses = 0

    def _failed(self, reply: Reply) -> None:
        """Hold the account. Failures that overlap count once: they are one trouble."""
        outcome = reply.outcome
        if outcome.verb is Verb.PAUSE:
            self._pause(outcome.cause)
            return
        self.health.failing = outcome.cause
        overlaps = reply.began_ms < self._failed_at
        if not overlaps:
            self._failures += 1
            self._failed_at = self._clock.now_ms()
        self.health.failures = self._failures
        delay_s = backoff_s(self._failures, self._asker.rand)
        if outcome.hold and reply.retry_after_s:
            delay_s = reply.retry_after_s
        elif overlaps:
            return
        self._asker.limiter.hold(delay_s, outcome.cause)
        if self._failures == 1 or outcome.hold:
            self._asker.telemetry.event(
                logging.WARNING,
                self.name,
                f"{outcome.cause}; asked again in {spell_duration(round(delay_s, 1))}",
            )

    def _pause(self, cause: str) -> None:
        delay_s = PAUSES_S[min(self._pauses, len(PAUSES_S) - 1)]
        first = self.health.paused is None
        already = self.health.paused_until_ms or 0
        now_ms = self._clock.now_ms()
        if not first and now_ms < already:
            return  # an answer that was under way when the account was paused
        self._pauses += 1
        self.health.paused = cause
        self.health.paused_until_ms = now_ms + round(delay_s * 1000)
        self._asker.telemetry.count("pauses", self.name)
        if first:
            self._asker.telemetry.event(
                logging.ERROR,
                self.name,
                f"paused: {cause}; check its credentials. Tried again after 1 min, 5 min, 30 min,"
                " then hourly",
            )

    def _retry_ms(self, work: Work) -> int:
        """A backoff of the work's own, so that one that always fails does not crowd out others."""
        assert work.id is not None
        tries = self._tries[work.id] = self._tries.get(work.id, 0) + 1
        return round(backoff_s(tries, self._asker.rand) * 1000)


def probe_passed(reply: Reply) -> tuple[bool, str]:
    """Whether a probe's answer shows that the account works: for a provider that answers errors
    with a code of its own, any code but a refusal of the credentials."""
    outcome = reply.outcome
    return reply.answered or (outcome.verb is Verb.RETRY and outcome.code is not None), (
        outcome.cause
    )


def _only_open(tx: Transaction, account: str, batch_id: str) -> str | None:
    """The one recipient of a large batch that is still open."""
    known, pending, _ = tx.batch_counts(account, batch_id)
    if known < LARGE_BATCH or pending != 1:
        return None
    return msisdn(tx.batch_messages(account, batch_id, pending=True, limit=1)[0].recipient)
