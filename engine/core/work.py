"""Work: what the durable schedule holds, and what one answer changes in it."""

from __future__ import annotations

from typing import Any

import msgspec

from .contracts import Flaw, Head, Kind, Poll, Traits
from .report import Report
from .schedule import NEVER_MS, Ladder

# Where a feed's end has been reached: it is never due again.
NEVER_DUE_MS = 253_402_300_000_000


class Work(msgspec.Struct, kw_only=True):
    """An item of the schedule. `due_ms` is never null: an item without a time would be lost."""

    account: str
    kind: Kind
    key: str  # batch id, message id, "<from>-<to>" of a window, "" for the feed
    due_ms: int
    start_ms: int  # what offsets count from: when it was sent, or first read
    answered_ms: int = NEVER_MS  # the last offset that was answered
    data: dict[str, Any] = {}
    id: int | None = None


class Settle(msgspec.Struct, gc=False, kw_only=True):
    """A rung was answered (or given up): what the answer held, to decide what comes next."""

    work: Work
    ladder: Ladder
    now_ms: int
    rows: int = 0  # what could not be read included
    finals: int = 0
    flaws: int = 0  # of the rows: those that could not be read
    alone: bool = False  # the one recipient that is still open was asked for, not the batch
    code: str | None = None  # the provider does not know it, and said so with this code
    text: str | None = None
    chance: float = 0.0  # for the next rung's jitter
    over: bool = False  # no rung is left: end it with a verdict


class Expire(msgspec.Struct, kw_only=True):
    """The last rescan of a period has passed: end what is still pending in it."""

    from_ms: int
    to_ms: int
    limit: int = 1000


class Incident(msgspec.Struct, kw_only=True):
    """A gap that could not be closed: never silent, kept, counted and shown."""

    kind: str  # "short_window", "total_ignored", …
    text: str
    from_ms: int | None = None
    to_ms: int | None = None
    channel: str | None = None
    expected: int | None = None
    received: int | None = None


class Asked(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Which question an answer belongs to: what it takes to read its bytes once more."""

    poll: Poll
    head: Head


class Page(msgspec.Struct, gc=False, kw_only=True):
    """What one transaction commits: reports, what was set aside, and the schedule's next step."""

    account: str
    provider: str
    traits: Traits
    observed_ms: int
    ladder: Ladder = Ladder(())  # after which a message gets its verdict
    reports: list[Report] = []
    span: tuple[int, int] | None = None  # the window that was asked for, both ends included
    revisit_ms: int | None = None  # what is new and open is to be read again, counted from then
    marks: list[int | None] | None = None  # of the reports as they came: a commit completes them
    unlisted: frozenset[int] = frozenset()  # indexes of reports whose code no table lists
    source: str = "poll"
    asked: Asked | None = None  # what `flaws` are pieces of the answer to
    replayed: list[int] = []  # set-aside pieces that these reports were read from
    flaws: list[Flaw] = []
    flaws_beyond: int = 0  # those that were only counted
    put: list[Work] = []
    cover: tuple[int, int] | None = None  # what is open in there, a window in `put` has to hold
    quiet_due_ms: int | None = None  # when a feed in `put` is due instead, if nothing was news
    drop: list[int] = []  # works that are over; with an `expire`, once that has no more to end
    settle: Settle | None = None
    together: list[Settle] = []  # of further rungs, whose answers are committed in one with this
    expire: Expire | None = None
    incidents: list[Incident] = []

    @property
    def once(self) -> bool:
        """Whether nobody gives it again: an answer of a one-time provider, or a push."""
        return self.traits.one_time or self.source == "push"

    @property
    def changes(self) -> bool:
        """Whether there is anything in it to be made durable."""
        read = self.reports or self.flaws or self.flaws_beyond or self.replayed or self.incidents
        return bool(read or self.put or self.drop or self.settle or self.expire)

    @property
    def settles(self) -> list[Settle]:
        return [self.settle, *self.together] if self.settle is not None else []


class Committed(msgspec.Struct, gc=False, kw_only=True):
    """What became of a page."""

    records: int = 0
    repeated: int = 0
    lost: int = 0
    verdicts: int = 0
    opened_ms: tuple[int, int] | None = None  # where new open messages are, first and last
    ended: list[int] = []  # ids of works that are over
    put: list[Work] = []  # works as they stand now, with their ids
    remaining: bool = False  # an `expire` has more to end


class LogRow(msgspec.Struct, gc=False, kw_only=True):
    """A chunk of the log: records as they were encoded, and what a sink may filter by."""

    seq: int
    at_ms: int
    states: bytes  # one byte a record: index into STATE_CODES
    body: bytes  # records joined by a line feed
