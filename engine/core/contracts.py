"""The seams: what a provider and a sink are, and the values that cross them.

A provider is sans-IO. It turns a `Poll` into a `Request`, says how the answer's body is framed,
turns raw records into reports, and reads head and envelope into an `Outcome`: what to do next, as
a value. It never awaits, never looks at a clock, never touches a socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo
from enum import StrEnum
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec

from .report import Report, decode


class Kind(StrEnum):
    """The kinds of work, as the schedule stores them."""

    FEED = "feed"  # an account's reports as they come: drained or windowed
    BATCH = "batch"  # what was sent together, asked for by its id on the ladder
    MESSAGE = "message"  # one message, asked for by its id on the ladder
    ENDED = "ended"  # a batch that is over: what `track` said of it, for messages that come late
    WINDOW = "window"  # a period that was read and is read again while something in it is open
    BACKFILL = "backfill"  # a past period that is read in windows, as it was ordered
    PUSH = "push"  # what the provider has sent by itself; never stored as work
    PROBE = "probe"  # `check --connect`: one harmless request, never stored
    FILE = "file"  # a file that the provider has exported; only ever read, never asked for


class Poll(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One question to a provider. Which fields are set depends on `kind`."""

    kind: Kind
    now_ms: int
    batch_id: str | None = None
    message_id: str | None = None
    recipient: str | None = None  # one recipient of a batch, digits alone, where only it is open
    reference: str | None = None  # what `track` was told, for the reports of this answer
    sent_ms: int | None = None
    from_ms: int | None = None  # a window, both ends included
    to_ms: int | None = None
    channel: str | None = None  # the provider's own letter, where a window is read by channel
    page: int = 1
    nonce: str = ""  # a fresh UUID, for probes


class Request(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An HTTP request behind an account's `base_url`. It may hold secrets: never log one."""

    method: str = "GET"
    path: str = ""
    params: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    form: tuple[tuple[str, str], ...] = ()  # application/x-www-form-urlencoded, for POST
    json: bytes | None = None
    url: str | None = None  # absolute, instead of base_url + path (a login elsewhere)

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path.partition('?')[0]})"


class Head(msgspec.Struct, frozen=True, gc=False):
    """An answer's status line and headers; names in lower case."""

    status: int
    headers: Mapping[str, str]


class Form(StrEnum):
    """What the bytes of a flaw are, and so how they can be read again."""

    RECORD = "record"  # a record as it stood in the answer
    VALUE = "value"  # a record as the parser gave it, in JSON
    ANSWER = "answer"  # the body, from its first byte on
    REPORT = "report"  # a report as the reader made it, in JSON


class Flaw(msgspec.Struct, frozen=True, gc=False):
    """A piece of an answer that could not be taken, with its cause and place."""

    cause: str
    position: str
    raw: bytes
    truncated: bool = False
    form: Form = Form.RECORD


class Parser(Protocol):
    """Bytes to records, incremental and bounded."""

    rows: int
    complete: bool
    cause: str | None

    def feed(self, chunk: bytes) -> Sequence[Any]: ...

    def close(self, *, cut: bool = False) -> Sequence[Any]: ...

    def take_flaws(self) -> list[Flaw]: ...


@runtime_checkable
class Framing(Protocol):
    """What a parser may offer besides, so that single records can be read again."""

    def raw(self, record: Any) -> bytes:
        """A record as it stands in an answer."""
        ...

    def frame(self, raw: bytes) -> bytes:
        """An answer that holds this record alone."""
        ...


@runtime_checkable
class Shortcuts(Protocol):
    """What a parser may offer besides: to go straight from bytes to what its reader makes of them,
    wherever records are of the usual kind. The reader takes that for records as well."""

    def take_shortcuts(self, allowed: bool) -> None:
        """Whether it may. Not from the beginning, nor where records are redacted before they are
        read, or read one by one."""
        ...


class Verb(StrEnum):
    """What an answer asks of the engine."""

    DONE = "done"  # answered; for a window: `total`, `page`, `pages` say whether all was read
    MORE = "more"  # answered, and there is more: ask the same again at once
    SPLIT = "split"  # the window is too big: ask for halves
    ABSENT = "absent"  # the provider does not know what was asked for; answers the rung
    RETRY = "retry"  # it failed in passing: ask again after a backoff
    PAUSE = "pause"  # credentials or rights are wrong: the whole account waits
    LOGIN = "login"  # the token has run out: log in, then ask again once


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a provider reads in an answer besides its reports."""

    verb: Verb = Verb.DONE
    cause: str = ""  # for people: no secrets, no URLs
    code: str | None = None  # the provider's error code, carried into a verdict
    total: int | None = None  # how many rows the provider says there are
    page: int | None = None  # the page the provider says this is
    pages: int | None = None
    server_ms: int | None = None  # the provider's clock
    hold: bool = False  # RETRY that holds the account for Retry-After (429 and 503)


class Reader(Protocol):
    """Reads one answer. It may count what it has seen: an answer has one reader."""

    parser: Parser

    def reports(self, records: Sequence[Any]) -> list[Report]:
        """The reports in these records. What is unusable is kept for `take_flaws`."""
        ...

    def take_flaws(self) -> list[Flaw]:
        """What the parser and this reader have set aside since the last call."""
        ...

    def outcome(self) -> Outcome:
        """Asked once, after the parser was closed."""
        ...


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What every provider gets of its account besides its own options."""

    account: str
    content: bool = False  # whether the message's text goes into the record
    timezone: tzinfo = UTC  # of provider times that carry no offset


class Limit(msgspec.Struct, frozen=True):
    """At most `requests` in every window of `per_s` seconds."""

    requests: int
    per_s: float


# Fields that hold whom a message went to, in lower case: what `redact` looks for by default.
RECIPIENT_FIELDS = frozenset(
    {
        "destination", "email", "mobile", "msisdn", "phone", "phone_number", "phonenumber",
        "recipient", "recipient_email", "recipient_phone", "to", "to_phone",
    }
)  # fmt: skip


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine must know of a provider to schedule it, and the documented defaults."""

    feed: str | None = None  # "drained", "windowed" or None: it has no feed
    one_time: bool = False  # a report is given once: never two requests at a time
    sent_at_stays: bool = False  # all reports of a message carry the same time of sending
    dated: bool = False  # a status time that every way carries is part of the event's identity
    tracks: frozenset[str] = frozenset()  # of "batch", "message"
    asks: frozenset[str] = frozenset()  # which of these are asked for by id on the ladder
    pushes: bool = False  # what it sends by itself is read: `reader` takes polls of kind PUSH
    channel: str = "sms"  # of messages that nothing was ever heard of
    derives_ids: bool = False  # message id is `<batch_id>:<msisdn>`, known when a batch is tracked
    window_max_ms: int = 0  # the longest window to ask for
    window_min_ms: int = 0  # the shortest one that a split may lead to
    paged: bool = False  # a window comes in pages
    channels: tuple[str, ...] = ()  # what a window can still be split by when time is used up
    read_channels: tuple[str, ...] = ()  # the account reads each of these on its own
    limits: tuple[Limit, ...] = (Limit(5, 1.0),)
    concurrency: int = 1
    ladder_s: tuple[float, ...] = ()
    rescan_s: tuple[float, ...] = ()
    interval_s: float = 60.0
    idle_interval_s: float = 60.0
    overlap_s: float = 600.0
    lookback_s: float = 7 * 86400.0
    recipient_fields: frozenset[str] = RECIPIENT_FIELDS  # of a record, in lower case
    sender_fields: frozenset[str] = frozenset()  # who is the person in an inbound record
    files: str | None = None  # what `ingest` takes, for people: `reader` reads it for Kind.FILE


class Provider(Protocol):
    """A provider of delivery reports: mostly tables, a request builder and a reader.

    `Options` is a `msgspec.Struct` (`forbid_unknown_fields`) of the configuration keys that are
    the provider's own; fields of type `Secret`, `float` durations and times are understood.
    """

    name: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]]
    traits: Traits

    def __init__(self, options: Any, context: Context) -> None:
        """Raises ValueError, one line a fault, where options do not go together."""
        ...

    def request(self, poll: Poll, token: str | None = None) -> Request: ...

    def reader(self, poll: Poll, head: Head) -> Reader: ...

    def lists(self, report: Report) -> bool:
        """Whether the report's code stands in the provider's table; asked of `unknown` ones."""
        ...

    def login(self) -> Request | None:
        """The request whose answer holds a token; None: there is no login."""
        ...

    def token(self, head: Head, body: bytes) -> str | None:
        """The token in a login's answer; None: it was refused."""
        ...


class Batch(msgspec.Struct, frozen=True):
    """What a sink is given: records as they were encoded, one JSON object each, in order."""

    lines: Sequence[bytes]

    def reports(self) -> list[Report]:
        return [decode(line) for line in self.lines]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.lines))


class Sink(Protocol):
    """Where records go.

    `write` returning means that all were accepted and are durable there; raising means that all
    are kept and offered again; `PartialWrite` names by index those that can never be accepted.
    The dispatcher owns batching, retries, positions and dead letters.

    A class may bring `BATCH`, a mapping of `records`, `bytes` and `wait_s`: the batches it is given
    where the configuration does not say otherwise.
    """

    name: ClassVar[str]
    Options: ClassVar[type[msgspec.Struct]]

    def __init__(self, options: Any) -> None: ...

    async def open(self) -> None: ...

    async def write(self, batch: Batch) -> None: ...

    async def close(self) -> None: ...
