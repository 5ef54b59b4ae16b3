"""Reading a period to its end: asks for span after span, commits what comes, decides what is next.

What the answers mean is decided in `core.reading`; this is the part that asks and waits. A visit
that ends in the middle leaves a `Stand`: the next one goes on with the page that failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import anyio
import msgspec

from engine.core.contracts import Kind, Outcome, Poll, Verb
from engine.core.reading import (
    SHORT_WINDOW,
    TOTAL_IGNORED,
    Next,
    Progress,
    Reading,
    Span,
    Totals,
    decide,
    divide_short,
)
from engine.core.schedule import NEVER_MS, Ladder
from engine.core.work import Page, Work
from engine.limits.limiter import Slot
from engine.polling.ahead import Ahead, ask_with
from engine.polling.asking import Asker, Reply, joined
from engine.polling.behind import Behind
from engine.stores.ledger import widen

# A window that times out is halved, but not below this: shorter ones time out for other reasons.
TIMEOUT_SPLIT_MIN_MS = 60_000

# A provider's clock that is further off than this is not a matter of skew: see `Feed._far`.
SKEW_MAX_MS = 3_600_000

# What was read of a span is kept this long over failures: five times the longest backoff. While
# nothing is asked, rows may come and go in equal number, and no total would show it.
STAND_MAX_MS = 300_000


class ServerClock:
    """What a reading learns of the provider's clock. `first_ms` is known of one that goes on."""

    def __init__(self, first_ms: int | None = None) -> None:
        self.first_ms = first_ms  # what it showed with the reading's first answer
        self.skew_ms: int | None = None  # how far it is ahead of ours
        self.far_ms: int | None = None  # as `first_ms`, of one that is too far off

    def note(self, server_ms: int, seen_ms: int) -> None:
        """An answer that was seen at `seen_ms` says that it is `server_ms` there."""
        if abs(server_ms - seen_ms) > SKEW_MAX_MS:
            if self.far_ms is None:
                self.far_ms = server_ms
            return
        if self.first_ms is None:
            self.first_ms = server_ms
        if self.skew_ms is None:
            self.skew_ms = server_ms - seen_ms


class Stand(msgspec.Struct, kw_only=True):
    """Where a reading stands. In memory only: a restart begins at the first span again.

    What was seen of a span goes on counting against the total that each answer tells, as if there
    had been no failure between two pages: whatever came or went meanwhile leads to the same care.
    """

    reading: Reading
    server: ServerClock = msgspec.field(default_factory=ServerClock)
    answered_ms: int | None = None  # when a question of it was answered last
    progress: Progress = msgspec.field(default_factory=Progress)
    doubts: int = 0  # rows that could not be read, and spans with fewer rows than were told

    def holds(self, now_ms: int) -> bool:
        """Whether there is something to go on with that is young enough."""
        if self.answered_ms is None or not 0 <= now_ms - self.answered_ms <= STAND_MAX_MS:
            return False
        return bool(self.reading.spans)


class Visit(msgspec.Struct, kw_only=True):
    """What one visit to a feed came to. `failed` is None where it was read to its end."""

    failed: Reply | None = None
    answered: bool = False  # something was asked, and the provider has answered it
    records: int = 0
    opened_ms: tuple[int, int] | None = None  # where open messages are that were new
    unsure: bool = False  # a visit before this one may have found what is in no window
    left: list[Work] = []  # windows that are still due
    more: bool = False  # read to the end of a slice, and the next one is due at once
    resumed: bool = False  # of a slice that an earlier visit began: what came since is not in it


def window_of(
    account: str,
    period: tuple[int, int],
    opened: tuple[int, int] | None,
    rescans: Ladder,
    now_ms: int,
    chance: Callable[[], float],
) -> Work | None:
    """The rescans of a period that was read up to now, `opened` being where something new in it
    is open; None: it is empty, or is not read again."""
    from_ms, to_ms = period
    if from_ms >= to_ms or not rescans.offsets_ms:
        return None
    due_ms = rescans.next_due_ms(now_ms, NEVER_MS, chance())
    assert due_ms is not None
    window = Work(
        account=account,
        kind=Kind.WINDOW,
        key=f"{from_ms}-{to_ms}",
        due_ms=due_ms,
        start_ms=now_ms,
        data={"from": from_ms, "to": to_ms},
    )
    if opened is not None:
        widen(window, *opened)
    return window


class WindowReader:
    """Reads the windows of one account."""

    def __init__(
        self,
        asker: Asker,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """`answered()` is told of each question that the provider has dealt with."""
        self._asker = asker
        self.answered = answered
        self._traits = asker.traits
        self._slow: tuple[int, int, str | None] | None = None  # the span that timed out last
        self.stopping = False
        self._totals: Totals | None = None  # None: nobody has looked yet what is known of them

    @property
    def halts(self) -> bool:
        """Whether a visit ends where it is, to be gone on with later."""
        return self.stopping or self._asker.shut() is not None

    async def read(
        self,
        stand: Stand,
        kind: Kind,
        slot: Slot | None,
        visit: Visit,
        moved: Callable[[Page], None],
    ) -> Reply | None:
        """Read span after span; `moved(page)` is told before a commit that ends a span.

        Returns the reply that failed, or None when all was read or the account halts. As long as
        spans are left, `stand` says where to go on.
        """
        if self._totals is None:
            told = await self._asker.store.read(lambda tx: tx.notes(TOTAL_IGNORED))
            known = False if self._asker.account.name in told else None
            self._totals = self._totals or Totals(known)
        stand.reading.totals = self._totals
        one_time = self._asker.traits.one_time  # then who asks is who commits
        width = 0 if one_time else self._asker.account.limits.concurrency - 1

        def committed(reply: Reply) -> None:
            visit.records += reply.records
            visit.opened_ms = joined(visit.opened_ms, reply.opened_ms)

        try:
            async with anyio.create_task_group() as group:
                ahead = Ahead(self._asker, group, width)
                behind = Behind(self._asker, group, committed)
                failed = await self._read(stand, kind, slot, visit, moved, ahead, behind)
                await behind.settle()
                await ahead.settle()
        except ExceptionGroup as errors:  # who asked has to know a store's failure from a fault
            raise errors.exceptions[0] from None
        return failed

    async def _read(
        self,
        stand: Stand,
        kind: Kind,
        slot: Slot | None,
        visit: Visit,
        moved: Callable[[Page], None],
        ahead: Ahead,
        behind: Behind,
    ) -> Reply | None:
        reading = stand.reading
        while reading.spans:
            span, progress = reading.spans[0], stand.progress
            if (short := divide_short(reading, self._traits)) is not None:
                if short.incidents:
                    await behind.settle()
                    await self._leave(span, short, stand, moved)
                continue
            question = self._question(kind, span, progress.page)
            ahead.ask(self._later(kind, reading, progress))
            reply = await ahead.take(question)
            if reply is None:
                slot = slot or await self._asker.place()
                if slot is None:
                    visit.more, visit.answered = True, False  # no success: it fails, or is held
                    return None
                reply = await ask_with(self._asker, question, slot)
                slot = None
            if self._too_slow(reply, span):
                cause = f"it timed out ({reply.outcome.cause})"
                reply.outcome = Outcome(verb=Verb.SPLIT, cause=cause)
            if not reply.answered:
                await self._asker.commit(reply.page)
                return reply
            self._slow = None
            visit.answered = True
            stand.answered_ms = self._asker.clock.now_ms()
            self.answered()
            if reply.outcome.server_ms is not None:
                stand.server.note(reply.outcome.server_ms, reply.page.observed_ms)
            progress.pages = reply.outcome.pages
            step = decide(
                reading,
                progress,
                reply.outcome,
                self._traits,
                rows=reply.rows,
                flaws=reply.flaws,
                keys=reply.keys,
            )
            self._note(span, step, reply.page, stand)
            stand.doubts += reply.flaws
            visit.opened_ms = joined(visit.opened_ms, reply.opened_ms)
            if step.same_span and not self._traits.one_time:
                await behind.put(reply)
            else:
                await behind.settle()
                if not step.same_span:
                    stand.progress = Progress()
                    moved(reply.page)
                await behind.commit(reply)
            if self.halts and reading.spans:
                visit.more = True
                return None
        return None

    async def _leave(
        self, span: Span, step: Next, stand: Stand, moved: Callable[[Page], None]
    ) -> None:
        """A span stays short: an incident, and the end of it."""
        page = self._asker.page()
        self._note(span, step, page, stand)
        moved(page)
        await self._asker.commit(page)

    def _later(self, kind: Kind, reading: Reading, progress: Progress) -> Iterator[Poll]:
        """What will be asked after this: the pages there are said to be, then the next spans."""
        span = reading.spans[0]
        for page in range(progress.page + 1, (progress.pages or 0) + 1):
            yield self._question(kind, span, page)
        for other in reading.spans[1:]:
            if other.received is None:
                yield self._question(kind, other, 1)

    def _question(self, kind: Kind, span: Span, page: int) -> Poll:
        return Poll(
            kind=kind,
            now_ms=self._asker.clock.now_ms(),
            from_ms=span.from_ms,
            to_ms=span.to_ms,
            channel=span.channel,
            page=page,
        )

    def _too_slow(self, reply: Reply, span: Span) -> bool:
        """Whether a span timed out twice running: the first time may have been a bad moment."""
        if not reply.timed_out or reply.answered or span.width_ms <= TIMEOUT_SPLIT_MIN_MS:
            return False
        this = (span.from_ms, span.to_ms, span.channel)
        again, self._slow = self._slow == this, this
        return again

    def _note(self, span: Span, step: Next, page: Page, stand: Stand) -> None:
        page.incidents = step.incidents
        stand.doubts += sum(one.kind == SHORT_WINDOW for one in step.incidents)
        tell = self._asker.telemetry.event
        for incident in step.incidents:
            tell(logging.ERROR, self._asker.account.name, incident.text)
        if step.cause and not step.incidents:
            width_s = span.width_ms / 1000
            tell(logging.INFO, self._asker.account.name, f"a window of {width_s:g} s: {step.cause}")
