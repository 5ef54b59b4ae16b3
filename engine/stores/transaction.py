"""What a store's driver offers: the primitives inside one transaction, and the store around them.

An internal seam: a driver is defined by `tests/conformance/test_store*.py`, and may change with
it at any time. The rules (what a commit does, when a ladder ends) are in `ledger`, once for all
drivers; a driver only reads and writes rows, in lists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import msgspec

from engine.core.contracts import Flaw, Form, Kind
from engine.core.reconcile import Known
from engine.core.state import State
from engine.core.work import Asked, Incident, LogRow, Work

T = TypeVar("T")

# A record's state in one byte of a log row's head.
STATE_CODES: tuple[State, ...] = tuple(State)
CODE_OF = {state: code for code, state in enumerate(STATE_CODES)}

NOTHING: Mapping[int, int] = MappingProxyType({})

Place = tuple[int, int]  # in an account's log: (row, index in the row) of the next record


# What is asked of a sink; `retry` and `forget` are of no account: any worker may do them.
SINK_KINDS = frozenset({"retry", "rewind", "forget"})


class InboxItem(msgspec.Struct, kw_only=True):
    """Something handed over by a process that does not own the account."""

    account: str
    kind: str  # "track", "late", "ingest", "backfill", or a question's
    payload: bytes
    at_ms: int
    id: int = 0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a process asks of the worker that has an account. The answer is left in a note of the
    account's, which the kind and the id name (`answer_note`)."""

    id: str = ""
    until_ms: int = 0  # how long the answer is waited for: it is not begun later


def answer_note(kind: str, question_id: str) -> str:
    """What the note is called in which an answer is left."""
    return f"{kind}:{question_id}"


class Trouble(msgspec.Struct, kw_only=True):
    """A set-aside piece or an incident, as kept: the same one again only raises `times`."""

    account: str
    kind: str  # "set_aside", or the incident's kind
    cause: str
    position: str
    raw: bytes  # its beginning
    first_ms: int
    last_ms: int
    times: int


class Piece(msgspec.Struct, kw_only=True):
    """A set-aside piece, whole, with what it takes to read it again."""

    id: int
    account: str
    cause: str
    position: str
    form: Form
    truncated: bool
    size: int
    asked: bytes  # see `kept.read_asked`
    raw: bytes
    at_ms: int  # when it was first received
    times: int


class DeadLetter(msgspec.Struct, kw_only=True):
    """A record that a sink refused for good, with its bytes: the log does not keep them for it.

    `sink` and `event_id` are its identity: the same one again only raises `times`.
    """

    sink: str
    account: str
    place: Place  # where in the account's log it stood
    message_id: str
    revision: int
    event_id: str
    cause: str  # of the last refusal
    record: bytes
    first_ms: int
    last_ms: int
    times: int = 1
    id: int = 0  # in the order in which they were first refused


class DeadCount(msgspec.Struct, kw_only=True):
    """The dead letters of a sink."""

    letters: int
    bytes: int
    first_ms: int  # the longest ago that one of them was first refused
    last_id: int


class Transaction(Protocol):
    """Primitives. Lists in, lists out; nothing here decides anything."""

    @property
    def wants_records(self) -> bool:
        """Whether messages that are put have to have their records with them: where not, it is
        enough that the log has them, at the messages' `place`."""
        ...

    def messages(
        self,
        account: str,
        ids: Sequence[tuple[str, str]],
        marks: Sequence[int | None] | None = None,
    ) -> dict[tuple[str, str], Known]:
        """Those of `(message_id, direction)` that are known, each without its record. `marks`: of
        each its `marks_of`, which makes it cheap to find; without it, it is found by its id."""
        ...

    def newest(self, messages: Sequence[Known]) -> None:
        """Fill in the newest record of each of these; all other look-ups leave it out."""
        ...

    def put_messages(self, messages: Sequence[Known]) -> None:
        """New ones (`row` is None) are inserted, the others replaced. One without a record keeps
        the record that it has, or the one at its `place`: see `wants_records`."""
        ...

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        """A batch's messages, or only those that are not final."""
        ...

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        """Of a batch: messages, those not final, those tracked and not final."""
        ...

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        """Open messages sent in the span, both ends included; `pending`: only those not final."""
        ...

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        """For `show`: by is message_id, batch_id, reference or recipient (a `recipient_key`)."""
        ...

    def drop_ended(self, before_ms: int, limit: int) -> list[Known]:
        """Remove final messages that last changed before, except those of a batch that is under
        way; those that went (without records)."""
        ...

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        """Those of which a tracked message is not final."""
        ...

    def work(self, work_id: int) -> Work | None: ...

    def works(self, ids: Sequence[int]) -> dict[int, Work]:
        """Those that are there."""
        ...

    def works_due(
        self, account: str, until_ms: int, limit: int, *, after: tuple[int, int] = (-(1 << 62), 0)
    ) -> list[Work]:
        """In order of `(due_ms, id)`, from the one after `after` on."""
        ...

    def find_works(self, account: str, kind: Kind, keys: Sequence[str] | None) -> list[Work]:
        """By key; `None`: all of the kind."""
        ...

    def find_batches(self, account: str, reference: str, limit: int) -> list[Work]:
        """For `show`: batches under way that were tracked with it. Looks through all of them."""
        ...

    def works_after(self, account: str, after_id: int, limit: int) -> list[Work]:
        """All of an account's works, in order of their ids."""
        ...

    def put_works(self, works: Sequence[Work]) -> list[Work]:
        """New ones (`id` is None) get an id; returns them all."""
        ...

    def move_works(self, works: Sequence[Work]) -> None:
        """Works that are there: `due_ms`, `answered_ms` and `data` as they are now."""
        ...

    def drop_works(self, ids: Sequence[int]) -> None: ...

    def count_works(self, now_ms: int) -> dict[str, dict[Kind, tuple[int, int, int]]]:
        """By account and kind: how many, how many due, the earliest `due_ms`."""
        ...

    def append_log(
        self, account: str, rows: Sequence[LogRow], replaced: Mapping[int, int] = NOTHING
    ) -> None:
        """`replaced`: by row, how many of its records are now no message's newest any more."""
        ...

    def next_log_seq(self, account: str) -> int:
        """The number that the account's next log row gets."""
        ...

    def log_rows(
        self, account: str, from_seq: int, limit: int, *, bytes_max: int
    ) -> list[LogRow]: ...

    def log_bounds(self) -> dict[str, tuple[int, int]]:
        """By account: the first row still kept and the row after the last (its next number)."""
        ...

    def drop_log(self, account: str, before_seq: int, before_ms: int, limit: int) -> int: ...

    def log_since(self, account: str, at_ms: int) -> int:
        """The first row kept that was written then or later; the next number where none was."""
        ...

    def log_records(self, account: str, from_seq: int) -> tuple[int, int | None]:
        """How many records there are in the rows from this one on, and when the earliest of these
        rows was written; None where there is none."""
        ...

    def places(self) -> dict[str, dict[str, Place]]:
        """By sink and account."""
        ...

    def put_places(self, sink: str, places: dict[str, Place]) -> None: ...

    def drop_places(self, sink: str) -> int:
        """Forget where a sink stands; in how many accounts it did."""
        ...

    def backlog(self) -> dict[str, dict[str, int]]:
        """By sink and account: bytes of the log from the sink's place on."""
        ...

    def reusable_bytes(self) -> int:
        """What was freed inside the store's file, and will be written to before it grows."""
        ...

    def add_tallies(self, account: str, changes: dict[str, int]) -> None: ...

    def tallies(self) -> dict[str, dict[str, int]]: ...

    def put_flaws(
        self,
        account: str,
        source: str,
        flaws: Sequence[Flaw],
        at_ms: int,
        asked: Asked | None = None,
    ) -> int:
        """Keep what was set aside; returns how many of them are new. `asked`: the question that
        they are pieces of the answer to; without it they are not to be read again."""
        ...

    def put_incident(self, account: str, incident: Incident, at_ms: int) -> bool:
        """Keep it; True when it is new."""
        ...

    def troubles(self, account: str | None, limit: int) -> list[Trouble]: ...

    def pieces(
        self, account: str, after_id: int, since_ms: int, limit: int, *, bytes_max: int
    ) -> list[Piece]:
        """Set-aside pieces that can be read again and were last seen since, in order of their ids:
        at most `limit`, and no further one once they have `bytes_max` bytes."""
        ...

    def drop_pieces(self, ids: Sequence[int]) -> int:
        """They have been digested, and with a whole answer all that was set aside of it. Returns
        how many went."""
        ...

    def drop_troubles(self, before_ms: int, keep: int, keep_bytes: int, limit: int) -> int:
        """Remove those last seen before, and the oldest beyond `keep` and `keep_bytes`; how many
        went."""
        ...

    def put_dead_letters(self, letters: Sequence[DeadLetter]) -> int:
        """Keep them; returns how many of them are new. One that is there (its sink and event id)
        takes the new cause, place and `last_ms`, and adds the new `times` to its own."""
        ...

    def dead_letters(
        self, sink: str, after_id: int, limit: int, *, bytes_max: int
    ) -> list[DeadLetter]:
        """Of a sink, in order of their ids: at most `limit`, and no further one once they have
        `bytes_max` bytes."""
        ...

    def drop_dead_letters(self, ids: Sequence[int]) -> int:
        """Returns how many went."""
        ...

    def trim_dead_letters(self, sink: str, keep: int, keep_bytes: int) -> dict[str, int]:
        """Remove the oldest (lowest ids) until at most `keep` of them with at most `keep_bytes` in
        all are left; by account, how many went."""
        ...

    def count_dead_letters(self) -> dict[str, DeadCount]:
        """By sink, those that have any."""
        ...

    def put_inbox(self, item: InboxItem) -> int: ...

    def inbox_waits(self, besides: Collection[int] = ()) -> bool:
        """Whether there is any but these."""
        ...

    def inbox(self, limit: int, besides: Collection[int] = ()) -> list[InboxItem]:
        """The oldest, in order, but for these. Nobody else gets them meanwhile: what is digested
        is to be dropped in the same transaction."""
        ...

    def drop_inbox(self, ids: Collection[int]) -> None: ...

    def put_note(self, account: str, name: str, value: bytes) -> None:
        """A small durable value of an account, such as a limiter's state."""
        ...

    def put_notes(self, notes: Mapping[tuple[str, str], bytes]) -> None:
        """Values by account and name."""
        ...

    def notes(self, name: str) -> dict[str, bytes]: ...

    def drop_note(self, account: str, name: str) -> None: ...


class Store(Protocol):
    """Runs jobs in transactions: all of a job happens, or nothing of it."""

    async def open(self, *, own: bool) -> None:
        """`own`: become the one worker of this store. Raises StoreBusy where there is one."""
        ...

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        """Durable when this returns, also against power loss, at the store's usual level. `lazy`:
        it may be lost to a power cut, with all that came after it, where the level allows it."""
        ...

    async def sync(self) -> None:
        """Make lazy writes durable: what others are given must not be lost here."""
        ...

    async def read(self, job: Callable[[Transaction], T]) -> T: ...

    async def close(self) -> None: ...


def known_payload(known: Known) -> dict[str, Any]:
    """A message's state without its bulky parts, for people and for `show --json`."""
    fields = msgspec.structs.asdict(known)
    for internal in ("record", "history", "row"):
        del fields[internal]
    return fields
