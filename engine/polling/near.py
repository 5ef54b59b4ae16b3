"""The near part of one account's schedule: a priority queue keyed on next-poll time.

Holds what is due within the horizon, and what is in flight; the rest stays in the store, so that
pending work costs disk and a restart loads next to nothing.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Set

from engine.core.clock import Clock
from engine.core.contracts import Kind
from engine.core.schedule import Ladder
from engine.core.windows import Rate
from engine.core.work import NEVER_DUE_MS, Committed, Work
from engine.stores.transaction import Store

# This far ahead, and about as many items at a time as the account's limits let through meanwhile.
HORIZON_MS = 60_000
QUEUE_MIN, QUEUE_MAX = 100, 2000
HELD_TIMES = 10  # items that fail and wait for another try are held, too: so many times that

# Overdue work found at a start is spread over at most this.
SPREAD_MAX_MS = 300_000
HERD_MIN = 10  # fewer polls at once trouble nobody

FROM_THE_START = (-(1 << 62), 0)


def near_max(rates: Iterable[Rate]) -> int:
    """How many items an account with these limits needs in memory."""
    asked = (rate.requests * math.ceil(HORIZON_MS / 1000 / rate.per_s) for rate in rates)
    return max(QUEUE_MIN, min(QUEUE_MAX, *asked))


class NearQueue:
    """What one account has to do next."""

    def __init__(
        self,
        account: str,
        store: Store,
        clock: Clock,
        *,
        queue_max: int = QUEUE_MAX,
        only: Kind | None = None,
    ) -> None:
        """`only`: works of this kind alone, of which there are few."""
        self._only = only
        self._account = account
        self._queue_max = queue_max
        self._store = store
        self._clock = clock
        self._heap: list[tuple[int, int, Work]] = []
        self._queued: set[int] = set()
        self._busy: set[int] = set()
        self._changed: set[int] = set()  # while the store is being read: what it shows is stale
        self._read_to = FROM_THE_START  # (due_ms, id): up to there all is in memory
        self._reading_to_ms = 0  # how far the latest refill reads
        self._count = 0
        self.all_loaded = False

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[tuple[int, Work]]:
        return ((due_ms, work) for due_ms, _, work in self._heap)

    @property
    def first(self) -> tuple[int, Work] | None:
        """What is due first, and when."""
        return (self._heap[0][0], self._heap[0][2]) if self._heap else None

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._busy)

    @property
    def in_flight(self) -> int:
        return len(self._busy)

    async def refill(self) -> None:
        """Look into the store again, where what is in memory may not be all that is near."""
        now_ms = self._clock.now_ms()
        far_enough = self._read_to[0] - now_ms > HORIZON_MS // 2
        enough = len(self._heap) >= self._queue_max and self._heap[0][0] <= now_ms
        full = len(self._heap) + len(self._busy) > HELD_TIMES * self._queue_max
        if far_enough or enough or full:
            return
        self._reading_to_ms = now_ms + HORIZON_MS
        self._changed = set()
        after, until_ms, most = self._read_to, self._reading_to_ms, self._queue_max
        if (only := self._only) is not None:
            works = await self._store.read(lambda tx: tx.find_works(self._account, only, None))
        else:
            works = await self._store.read(
                lambda tx: tx.works_due(self._account, until_ms, most, after=after)
            )
        for work in works:
            if work.id not in self._busy and work.id not in self._changed:
                self.push(work, work.due_ms)
        self.all_loaded = len(works) < most
        if self._read_to == after:  # nobody has asked to look again meanwhile
            self._read_to = (until_ms, 0)
            if works and not self.all_loaded:
                self._read_to = (works[-1].due_ms, works[-1].id or 0)

    def look_again(self) -> None:
        """The schedule was changed by another hand: the next refill reads it from the start."""
        self._read_to = FROM_THE_START

    def push(self, work: Work, due_ms: int) -> None:
        """Queue it; what is queued already stays as it is."""
        assert work.id is not None
        if work.id not in self._queued:
            self._queued.add(work.id)
            self._count += 1
            heapq.heappush(self._heap, (due_ms, self._count, work))

    def take(self) -> Work:
        """The first item; it is in flight until `done`, `again` or `enter`."""
        work = heapq.heappop(self._heap)[2]
        assert work.id is not None
        self._queued.discard(work.id)
        self._busy.add(work.id)
        return work

    def take_all(self, kind: Kind, now_ms: int) -> list[Work]:
        """All due items of a kind; they are in flight."""
        taken = [work for due_ms, _, work in self._heap if work.kind is kind and due_ms <= now_ms]
        ids = {work.id for work in taken if work.id is not None}
        self._forget(ids)
        self._busy |= ids
        return taken

    def done(self, works: Iterable[Work]) -> None:
        """They are not in flight any more."""
        ids = {work.id for work in works if work.id is not None}
        self._busy -= ids
        self._changed |= ids

    def again(self, work: Work, due_ms: int) -> None:
        """Not in flight any more, and to be taken again then."""
        self.done([work])
        self.push(work, due_ms)

    def enter(self, done: Committed) -> None:
        """What a commit changed in the schedule, as far as it is near."""
        self._changed.update(work.id for work in done.put if work.id is not None)
        for work in done.put:
            if work.due_ms <= self._reading_to_ms and work.id not in self._busy:
                self.push(work, work.due_ms)
        self._changed.update(done.ended)
        self._forget(set(done.ended))

    def hasten(self, kind: Kind, before_ms: int) -> None:
        """Items of a kind that are due before `before_ms` are due now."""
        now_ms = self._clock.now_ms()
        self._heap = [
            (min(due_ms, now_ms) if work.kind is kind and due_ms < before_ms else due_ms, n, work)
            for due_ms, n, work in self._heap
        ]
        heapq.heapify(self._heap)

    def set_back(self, by_ms: int) -> None:
        """The wall clock was put back by so much: what waits for a moment after an attempt, and not
        for a time of its own, is due as much earlier."""

        def moved(due_ms: int, work: Work) -> int:
            if work.kind is Kind.FEED:
                return due_ms - by_ms if due_ms < NEVER_DUE_MS else due_ms
            return max(due_ms - by_ms, min(due_ms, work.due_ms))

        self._heap = [(moved(due_ms, work), n, work) for due_ms, n, work in self._heap]
        heapq.heapify(self._heap)

    def recall(self, ids: Set[int]) -> None:
        """These are due at their own times again, whatever they were put off to."""
        if ids & self._queued:
            self._heap = [
                (work.due_ms if work.id in ids else due_ms, n, work)
                for due_ms, n, work in self._heap
            ]
            heapq.heapify(self._heap)

    def spread_herd(
        self, now_ms: int, asks: Set[str], ladder: Ladder, interval_ms: int, most: int
    ) -> None:
        """Overdue polls, found at a start, are not all made at once, where the limits do not spread
        them already: they let `most` through at a time."""
        overdue = sorted(
            (due_ms, n, work)
            for n, (due_ms, work) in enumerate(self)
            if due_ms < now_ms and work.kind.value in asks
        )
        if not HERD_MIN <= len(overdue) <= most:
            return
        works = [work for _, _, work in overdue]
        span_ms = min(interval_ms, SPREAD_MAX_MS)
        for work in works:
            span_ms = min(span_ms, ladder.gap_ms(work.answered_ms) or span_ms)
        due = {work.id: now_ms + span_ms * n // len(works) for n, work in enumerate(works)}
        self._heap = [(due.get(w.id, due_ms), n, w) for due_ms, n, w in self._heap]
        heapq.heapify(self._heap)

    def shuffle(self, rand: random.Random) -> int:
        """What is due now comes in any order, where else a few that always fail would come first
        each time. Returns now."""
        now_ms = self._clock.now_ms()
        due = [entry for entry in self._heap if entry[0] <= now_ms]
        due.sort(key=lambda _: rand.random())
        later = [entry for entry in self._heap if entry[0] > now_ms]
        first_ms = now_ms - len(due)
        self._heap = [(first_ms + place, n, work) for place, (_, n, work) in enumerate(due)] + later
        heapq.heapify(self._heap)
        return now_ms

    def _forget(self, ids: set[int]) -> None:
        if ids & self._queued:
            self._heap = [entry for entry in self._heap if entry[2].id not in ids]
            heapq.heapify(self._heap)
            self._queued -= ids
