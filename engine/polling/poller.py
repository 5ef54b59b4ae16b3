"""One account's polls: takes what is due, asks, commits, and puts it on its next time.

Work is not claimed: what was not answered is simply still due.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import anyio.abc

from engine.books.tracking import fit_schedule
from engine.core.contracts import Kind, Poll, Verb
from engine.core.errors import LeaseLost, StoreError
from engine.core.schedule import Ladder
from engine.core.work import NEVER_DUE_MS, Committed, Work
from engine.limits.limiter import Slot
from engine.machine.alarm import Alarm
from engine.polling.asking import Asker, Reply
from engine.polling.backfills import Backfills
from engine.polling.feeds import REPEATS_MAX, Feed
from engine.polling.hands import Hands
from engine.polling.health import Health, Watch
from engine.polling.near import NearQueue, near_max
from engine.polling.rescans import Rescans
from engine.polling.verdicts import UNREAD_LOOK_MS, Verdicts
from engine.polling.windowed import Visit, WindowReader
from engine.stores.tracked import only_open

UNCOMMITTED_MAX = 64  # answers that may wait for the store beside the requests in flight
WAIT_MAX_S = 1.0  # then a wait is looked at again, so that a stepped wall clock is noticed

# A piece of work, and the place in the limits that it may take.
Job = tuple[Work, Slot | None]


class AccountPoller:
    """Runs one account until it is stopped."""

    def __init__(self, asker: Asker, *, once: bool = False, only: Kind | None = None) -> None:
        """`only`: works of this kind alone, for a command that does what a worker would."""
        schedule = asker.account.schedule
        self.name, self.account = asker.account.name, asker.account
        self.limiter = asker.limiter
        self.traits = asker.traits
        self.feed_began_ms: int | None = None  # of the latest visit that read the feed to its end
        self.feed_ended = False  # its configured end was reached: there is nothing more to read
        self.ladder = Ladder.of(
            schedule.ladder_s,
            gaps=schedule.from_previous,
            jitter=schedule.jitter,
            give_up_s=schedule.give_up_s,
        )
        self.rescans = Ladder.of(schedule.rescan_s, jitter=schedule.jitter)
        self.on_lost: Callable[[str], None] = lambda account: None
        self._asker, self._clock = asker, asker.clock
        self._watch = Watch(asker, once=once)
        self.health = self._watch.health
        self._reader = WindowReader(asker, self._watch.answered)
        self._feed = Feed(asker, self._reader, self.rescans)
        self._again = Rescans(asker, self._reader, self.rescans)
        past = WindowReader(asker, self._watch.answered)
        self._past = Backfills(asker, past, self.rescans)
        self._verdicts = Verdicts(asker, self.ladder)
        self._near = NearQueue(
            self.name, asker.store, asker.clock,
            queue_max=near_max(asker.account.limits.rates), only=only,
        )  # fmt: skip
        self._once, self._only = once, only
        self._once_ms: int | None = None  # with `once`: what is due by then is done
        self._alarm = Alarm()
        self._hands = Hands(
            self._work, self._drop, idle_max=asker.account.limits.concurrency + UNCOMMITTED_MAX
        )
        self._looked_ms = 0  # at the wall clock
        self._stopping = False
        self._loop_scope = anyio.CancelScope()

    # From outside

    def on_refusal(self, *, hold: Callable[[], None], pause: Callable[[], None]) -> None:
        """What to do when the provider wants the account to wait: that holds after a crash, too."""
        self._watch.on_hold, self._watch.on_pause = hold, pause

    def resume(self, before: Health) -> None:
        """Take over what the last process knew of the account's trouble."""
        self._watch.resume(before)

    @property
    def waits(self) -> str | None:
        """Why the engine asks nothing, where that is not the account's own trouble."""
        return self._asker.shut()

    @property
    def unanswered(self) -> str | None:
        """Why something failed that has not been answered since, be the account well again."""
        return self._watch.unanswered

    def stop(self) -> None:
        """No new polls; those in flight go on."""
        self._stopping = self._reader.stopping = True
        self._past.stop()
        self._watch.stop()
        self._loop_scope.cancel()

    def wake(self) -> None:
        """Something was put into the schedule by another hand: look again."""
        self._near.look_again()
        self._alarm.ring()

    def took(self, done: Committed) -> None:
        """Another hand has committed something of the account: what is over is not asked for."""
        self._near.enter(done)
        self._watch.ended(done.ended)
        self._past.over(done.ended)
        self.wake()

    def accept(self, works: Sequence[Work]) -> None:
        """Work that another hand has put into the schedule."""
        self._near.enter(Committed(put=list(works)))
        self._alarm.ring()

    def hasten_feed(self) -> None:
        """Read the feed now instead of at its next time."""
        self._near.hasten(Kind.FEED, NEVER_DUE_MS)
        self._alarm.ring()

    async def run(self, grace_s: float) -> None:
        """Poll until stopped; with `once`, until what was due at the start is done."""
        async with anyio.create_task_group() as polls:
            with self._loop_scope:
                await self._begin()
                await self._loop(polls)
            with anyio.move_on_after(grace_s if self._stopping else None):
                while self._near.busy:
                    await self._alarm.wait(WAIT_MAX_S)
            polls.cancel_scope.cancel()

    async def probe(self, nonce: str) -> tuple[bool, str]:
        """One harmless request, for `check --connect`: whether it passed, and why not."""
        poll = Poll(kind=Kind.PROBE, now_ms=self._clock.now_ms(), nonce=nonce)
        try:
            reply = await self._asker.ask(poll)
            if reply.answered:
                self._watch.accepted()
                self._alarm.ring()
            return reply.answered, reply.outcome.cause
        finally:
            self._asker.release()

    # The loop

    async def _begin(self) -> None:
        """Make sure that the feed is in the schedule, and spread what became due meanwhile."""
        if self._only is not None:
            return
        now_ms, name = self._clock.now_ms(), self.name
        if self.traits.feed is not None:
            feed = Work(account=name, kind=Kind.FEED, key="", due_ms=now_ms, start_ms=now_ms)
            found = await self._asker.store.read(lambda tx: tx.find_works(name, Kind.FEED, [""]))
            if not found:
                found = await self._asker.store.write(lambda tx: tx.put_works([feed]))
            feed = found[0]
            if feed.due_ms >= NEVER_DUE_MS and self._feed.goes_on(feed):
                feed.due_ms = now_ms
            self.feed_ended = feed.due_ms >= NEVER_DUE_MS
            self._near.push(feed, self._feed_due_ms(feed))
        await fit_schedule(self._asker.store, self.account, self.rescans, self._asker.rand)
        await self._near.refill()
        if self._once:
            self._once_ms = self._near.shuffle(self._asker.rand)
        else:
            interval_ms = round(self.account.schedule.interval_s * 1000)
            most = min(rate.requests for rate in self.account.limits.rates)
            self._near.spread_herd(now_ms, self.traits.asks, self.ladder, interval_ms, most)

    def _feed_due_ms(self, feed: Work) -> int:
        """Not later than from now on: its interval may have been edited, the clock set back."""
        latest_ms = self._clock.now_ms() + round(self.account.schedule.idle_interval_s * 1000)
        return feed.due_ms if feed.due_ms >= NEVER_DUE_MS else min(feed.due_ms, latest_ms)

    def _look_at_clock(self) -> None:
        """Notice a wall clock that was put back: what comes so long after an attempt would come
        as much later. Rungs and rescans have times of their own, and keep them."""
        now_ms, before_ms = self._clock.now_ms(), self._looked_ms
        self._looked_ms = now_ms
        if now_ms < before_ms:
            self._near.set_back(before_ms - now_ms)
            self.feed_began_ms = None  # by the clock as it was

    async def _loop(self, polls: anyio.abc.TaskGroup) -> None:
        while not self._stopping:
            self._look_at_clock()
            await self._near.refill()
            if self._once_ms is not None and self._done_once(self._once_ms):
                return
            wait_s = self._idle_s(self._clock.now_ms())
            if self._near.in_flight >= self.account.limits.concurrency + UNCOMMITTED_MAX:
                wait_s = WAIT_MAX_S
            if wait_s > 0:
                await self._alarm.wait(wait_s)
                continue
            work = self._near.take()
            taken = False
            try:
                asks = self._asks(work)
                slot = await self._asker.place() if asks else None
                if asks and (slot is None or self._watch.paused() or self.waits is not None):
                    self._drop((work, slot))  # it was paused while this waited for its place
                    self._near.again(work, self._clock.now_ms())
                else:
                    self._hands.start(polls, (work, slot))
                taken = True
            finally:
                if not taken:
                    self._near.done([work])

    def _done_once(self, once_ms: int) -> bool:
        """With `once`: whether nothing is left that was due at the start and has not been tried."""
        if self._near.busy:
            return False
        if self._watch.paused() or self.waits is not None or self._watch.leaves:
            return True  # what is left is still due, for the next run
        left = (due_ms <= once_ms and not self._watch.tried(work) for due_ms, work in self._near)
        return self._near.all_loaded and not any(left)

    def _idle_s(self, now_ms: int) -> float:
        """How long there is nothing to do; 0: there is."""
        first = self._near.first
        if first is None:
            return WAIT_MAX_S
        due_ms, work = first
        if self.waits is not None or self._watch.leaves:
            return WAIT_MAX_S
        if self.health.paused_until_ms is not None and self._near.busy:
            return WAIT_MAX_S  # one request at a time finds out whether it is mended
        if self._once_ms is not None and (due_ms > self._once_ms or self._watch.tried(work)):
            return WAIT_MAX_S
        ready_ms = max(due_ms, self._watch.paused_until_ms() or 0)
        return min(max(0.0, (ready_ms - now_ms) / 1000), WAIT_MAX_S)

    def _asks(self, work: Work) -> bool:
        """Whether this work is a question to the provider; else it only waits for its verdict."""
        return work.kind is Kind.FEED or work.kind.value in self.traits.asks

    def _drop(self, job: Job) -> None:
        if job[1] is not None:
            job[1].unused()

    async def _work(self, job: Job) -> None:
        work, slot = job
        try:
            if work.kind is Kind.FEED:
                await self._visit_feed(work, slot)
            elif work.kind is Kind.WINDOW:
                await self._visit_windows(work)
            elif work.kind is Kind.BACKFILL:
                await self._visit_past(work)
            elif self._asks(work):
                await self._rung(work, slot)
            else:
                await self._end(work)
        except LeaseLost as lost:
            self.on_lost(lost.account)
        except StoreError:
            if not self._stopping:  # else it has been told, and what is under way just ends
                raise
        except Exception as error:  # a fault in here or in a plug-in: this account's own trouble
            delay_ms = self._watch.broke(work, error)
            # From where the store knows it: what it has moved on in memory is not committed.
            if stored := await self._asker.store.read(lambda tx: tx.work(work.id or 0)):
                self._near.again(stored, self._clock.now_ms() + delay_ms)
        finally:
            self._asker.release()
            if slot is not None:  # whatever happened, the place is not kept
                slot.unused()
                slot.release()
            self._near.done([work])
            self._alarm.ring()

    # Kinds of work

    async def _visit_feed(self, work: Work, slot: Slot | None) -> None:
        began_ms = self._clock.now_ms()
        drained = self.traits.feed == "drained"
        visit = await (self._feed.drain if drained else self._feed.advance)(work, slot)
        self._after_visit([work], visit)
        if visit.failed is None and not visit.more and not visit.resumed:
            self.feed_began_ms = began_ms
            self._near.recall(self._verdicts.take_waiting())

    async def _visit_windows(self, work: Work) -> None:
        """All windows that are due together, so that neighbours are read as one."""
        works = [work, *self._near.take_all(Kind.WINDOW, self._clock.now_ms())]
        try:
            visit = await self._again.visit(works)
        finally:
            self._near.done(works[1:])
        self._after_visit(works, visit)

    async def _visit_past(self, work: Work) -> None:
        visit = await self._past.advance(work)
        if visit is None:
            self._finish(work, Committed(ended=[work.id] if work.id is not None else []))
        else:
            self._after_visit([work], visit)

    def _after_visit(self, works: list[Work], visit: Visit) -> None:
        """Queue what was visited again: after a failure with a backoff of its own."""
        self._near.look_again()  # the visit has moved the schedule
        now_ms = self._clock.now_ms()
        if visit.failed is not None:
            left = visit.left or works
            if visit.answered:  # it got on: this is the first failure in a row
                self._watch.ended([work.id for work in left if work.id is not None])
            # Together, as they were read: windows that come apart are read one by one.
            delay_ms = max(self._watch.retry_ms(work) for work in left)
            for work in left:
                self._near.again(work, now_ms + delay_ms)
            self._near.done(works)
            return
        for work in works:
            if visit.answered:
                self._watch.succeeded(work)
            elif work.id is not None:  # nothing was asked: that proves nothing of the account
                self._watch.ended([work.id])
            self._near.done([work])
            if work.kind in (Kind.FEED, Kind.BACKFILL):
                # With `once`, a slice that follows was due at the start, too.
                due_ms = (self._once_ms if visit.more else None) or self._feed_due_ms(work)
                self._near.push(work, due_ms)
                self.feed_ended = work.due_ms >= NEVER_DUE_MS

    async def _rung(self, work: Work, slot: Slot | None) -> None:
        """Ask for a batch or a message by its id."""
        poll = await self._question(work)
        rows = finals = flaws = repeats = 0
        while True:
            reply = await self._asker.ask(poll, slot)
            slot = None
            rows += reply.reports + reply.flaws
            finals += reply.finals
            flaws += reply.flaws
            if reply.outcome.verb is not Verb.MORE:
                break
            done = await self._asker.commit(reply.page)
            repeats = 0 if done.records + reply.records else repeats + 1
            if self._reader.halts:
                self._near.again(work, self._clock.now_ms())
                return  # more pages wait: it is still due
            if repeats >= REPEATS_MAX:
                reply = reply.emptied(self._asker.page())
                break
        if reply.answered:
            settle = reply.page.settle = self._verdicts.settle(work, poll.now_ms, reply)
            settle.rows, settle.finals, settle.flaws = rows, finals, flaws
            settle.alone = poll.recipient is not None
            self._watch.succeeded(work)
        elif self._given_up(work, poll, reply):
            reply.page.settle = self._verdicts.settle(work, poll.now_ms, reply)
            reply.page.settle.over = True
        done = await self._asker.commit(reply.page)
        self._finish(work, done)
        if reply.page.settle is None:
            self._near.again(work, self._clock.now_ms() + self._watch.retry_ms(work))

    def _given_up(self, work: Work, poll: Poll, reply: Reply) -> bool:
        """Whether it has failed for so long that it is not tried again."""
        failed = reply.outcome.verb is Verb.RETRY and not reply.withheld  # that was not tried
        return failed and self.ladder.given_up(work.start_ms, poll.now_ms)

    def _finish(self, work: Work, done: Committed) -> None:
        self._near.done([work])
        self._near.enter(done)
        self._watch.ended(done.ended)

    async def _question(self, work: Work) -> Poll:
        name, key, recipient = self.name, work.key, None
        alone = self.traits.derives_ids and not self.account.redact  # else nobody knows its number
        if alone and work.data.get("large"):
            recipient = await self._asker.store.read(lambda tx: only_open(tx, name, key))
        return Poll(
            kind=work.kind,
            now_ms=self._clock.now_ms(),
            batch_id=key if work.kind is Kind.BATCH else None,
            message_id=key if work.kind is Kind.MESSAGE else None,
            recipient=recipient,
            reference=work.data.get("reference"),
        )

    async def _end(self, work: Work) -> None:
        """What is not asked for by id has come to the end of its ladder."""
        over_ms = work.start_ms + self.ladder.last_ms
        well = not (self.health.failing or self.health.paused)
        if self._verdicts.waits(work, self.feed_began_ms, over_ms, well=well):
            self._near.again(work, self._clock.now_ms() + UNREAD_LOOK_MS)
            return
        done = await self._asker.commit(await self._verdicts.page(work))
        self._finish(work, done)
