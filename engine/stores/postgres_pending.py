"""What a transaction of the PostgreSQL store is to write, kept back until it has to go.

Most of a page's writes are answered with nothing: they wait for the end of the group, or for a
look-up that would miss them, and then go together. Messages in numbers go by COPY: new ones
straight into their table, the others by way of a temporary one; all that is left is one statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import zstandard

from engine.core.reconcile import Known
from engine.core.report import recipient_key
from engine.core.work import LogRow

from .postgres_session import Session
from .transaction import Place

K = TypeVar("K")
V = TypeVar("V")

# From so many on a COPY, with its round trips, is cheaper than a statement with arrays.
COPY_MIN = 32

# A text of PostgreSQL cannot hold a NUL: it is written as two characters, of which the first is
# written as two itself.
_NUL, MARK = "\0", "\x1a"

_LEVEL = 1
_NO_PLACE = (None, None)

_TYPES = {
    "message_id": "text",
    "account": "text",
    "direction": "text",
    "revision": "integer",
    "state": "text",
    "final": "boolean",
    "open": "boolean",
    "tracked": "boolean",
    "status_ms": "bigint",
    "sent_ms": "bigint",
    "placed_ms": "bigint",
    "seen_ms": "bigint",
    "done_ms": "bigint",
    "mark": "bigint",
    "place_seq": "bigint",
    "place_index": "integer",
    "event_id": "text",
    "verdict": "text",
    "provider_status": "text",
    "error_code": "text",
    "batch_id": "text",
    "reference": "text",
    "recipient": "text",
    "recipient_key": "text",
    "record": "bytea",
    "history": "bytea",
}
COLUMNS = tuple(_TYPES)
_NAMES = ", ".join(COLUMNS)
_RECORD = COLUMNS.index("record")
_SET = ", ".join(
    # A record that is left out has not changed.
    f"{name} = CASE WHEN excluded.record = '' THEN kept.record ELSE excluded.record END"
    if name == "record"
    else f"{name} = excluded.{name}"
    for name in COLUMNS[3:]
)
_ARRAYS = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(_TYPES.values(), 1))
_PUT = f"""
    INSERT INTO message AS kept ({_NAMES}) SELECT * FROM {{}}
    ON CONFLICT (message_id, account, direction) DO UPDATE SET {_SET}
"""
_PUT_FEW = _PUT.format(f"unnest({_ARRAYS})")
_PUT_STAGED = _PUT.format("dlr_staged")
# For a session that writes.
STAGE = "CREATE TEMP TABLE dlr_staged ({}) ON COMMIT DELETE ROWS".format(
    ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
)

_PUT_REST = """
    WITH a AS (
        INSERT INTO account AS kept (name, log_next, log_bytes)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
        ON CONFLICT (name) DO UPDATE
            SET log_next = excluded.log_next, log_bytes = excluded.log_bytes
    ), b AS (
        INSERT INTO log (account, seq, at_ms, before_bytes, states, body)
        SELECT * FROM
            unnest($4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bytea[])
    ), c AS (
        INSERT INTO tally AS kept (account, name, n)
        SELECT * FROM unnest($10::text[], $11::text[], $12::bigint[])
        ON CONFLICT (account, name) DO UPDATE SET n = kept.n + excluded.n
    ), d AS (
        INSERT INTO place (sink, account, seq, record)
        SELECT * FROM unnest($13::text[], $14::text[], $15::bigint[], $16::integer[])
        ON CONFLICT (sink, account) DO UPDATE SET seq = excluded.seq, record = excluded.record
    ), e AS (
        INSERT INTO note (account, name, value)
        SELECT * FROM unnest($17::text[], $18::text[], $19::bytea[])
        ON CONFLICT (name, account) DO UPDATE SET value = excluded.value
    ), f AS (
        DELETE FROM note USING unnest($20::text[], $21::text[]) AS gone (account, name)
        WHERE note.name = gone.name AND note.account = gone.account
    ), g AS (
        DELETE FROM work WHERE id = ANY($22::bigint[])
    ), h AS (
        UPDATE work
        SET due_ms = moved.due_ms, answered_ms = moved.answered_ms, data = moved.data
        FROM unnest($23::bigint[], $24::bigint[], $25::bigint[], $26::bytea[])
            AS moved (id, due_ms, answered_ms, data)
        WHERE work.id = moved.id
    )
    INSERT INTO writer AS kept (id, n, seen) SELECT $27, $28::bigint, now() WHERE $28 IS NOT NULL
    ON CONFLICT (id) DO UPDATE SET n = excluded.n, seen = excluded.seen
"""

Key = tuple[str, str]  # message id, direction
_Row = tuple[bool, tuple[Any, ...]]  # whether it is new, and its columns


class Pending:
    """Writes that wait; of two to the same row the later one holds."""

    def __init__(self) -> None:
        self.messages: dict[str, dict[Key, _Row]] = {}  # of each account
        self.heads: dict[str, tuple[int, int]] = {}  # of the log: next number, bytes so far
        self.log: list[tuple[str, int, int, int, bytes, bytes]] = []
        self.tallies: dict[tuple[str, str], int] = {}
        self.places: dict[tuple[str, str], Place] = {}
        self.notes: dict[tuple[str, str], bytes | None] = {}  # None: it goes
        self.ended: set[int] = set()  # works
        self.moved: dict[int, tuple[int, int, bytes]] = {}  # works: due, answered, data

    def rest(self) -> bool:
        """Whether anything but messages waits."""
        return bool(self.heads or self.tallies or self.places or self.notes or self.works())

    def works(self) -> bool:
        """Whether works wait to be changed."""
        return bool(self.ended or self.moved)

    def put_messages(self, account: str, messages: Iterable[Known]) -> None:
        """As they are now: whose they are may change them afterwards."""
        waiting = self.messages.setdefault(account, {})
        for known in messages:
            row = (known.row is None, _row(known))
            _put_row(waiting, (known.message_id, known.direction), row)

    def append(self, account: str, rows: Sequence[LogRow], head: tuple[int, int]) -> None:
        """Rows of the log behind `head`, packed here: by the server it would take longer."""
        size = head[1]
        packer = zstandard.ZstdCompressor(level=_LEVEL)
        for row in rows:
            packed = packer.compress(row.body)
            self.log.append((account, row.seq, row.at_ms, size, row.states, packed))
            size += len(row.body)
        self.heads[account] = (rows[-1].seq + 1, size)

    def tally(self, account: str, changes: dict[str, int]) -> None:
        for name, by in changes.items():
            if by:
                key = account, name
                self.tallies[key] = self.tallies.get(key, 0) + by

    def absorb(self, later: Pending) -> None:
        """Take over what waits in another one, which is newer."""
        for account, rows in later.messages.items():
            waiting = self.messages.setdefault(account, rows)
            if waiting is not rows:
                for key, row in rows.items():
                    _put_row(waiting, key, row)
        self.heads |= later.heads
        self.log += later.log
        for (account, name), by in later.tallies.items():
            self.tally(account, {name: by})
        self.places |= later.places
        self.notes |= later.notes
        self.moved |= later.moved
        self.ended |= later.ended

    def write_messages(self, session: Session, *, careful: bool) -> None:
        """`careful`: what seems to be new may be there already."""
        # In the order in which they came, in which they lie together in memory: no order of keys is
        # needed, since nobody else writes these accounts' rows meanwhile.
        new: list[tuple[Any, ...]] = []
        rest: list[tuple[Any, ...]] = []
        for rows in self.messages.values():
            for is_new, row in rows.values():
                (new if is_new and not careful else rest).append(row)
        if len(new) < COPY_MIN:
            rest += new
        else:
            session.copy("message", COLUMNS, new)
        if len(rest) >= COPY_MIN:
            if session.staged:  # in this transaction; its end empties the table
                session.execute("DELETE FROM dlr_staged")
            session.copy("dlr_staged", COLUMNS, rest)
            session.execute(_PUT_STAGED)
            session.staged = True
        elif rest:
            session.execute(_PUT_FEW, *_columns(rest, len(COLUMNS)))

    def write_rest(self, session: Session, writer: str, number: int | None) -> None:
        """All but messages; with the transaction's number where this is the last of it."""
        kept = [(*key, value) for key, value in self.notes.items() if value is not None]
        gone = [key for key, value in self.notes.items() if value is None]
        session.execute(
            _PUT_REST,
            *_columns([(name, *head) for name, head in self.heads.items()], 3),
            *_columns(self.log, 6),
            *_columns([(*key, by) for key, by in sorted(self.tallies.items())], 3),
            *_columns([(*key, *place) for key, place in self.places.items()], 4),
            *_columns(kept, 3),
            *_columns(gone, 2),
            list(self.ended),
            *_columns([(n, *row) for n, row in self.moved.items() if n not in self.ended], 4),
            writer,
            number,
        )


def _columns(rows: Iterable[tuple[Any, ...]], count: int) -> list[list[Any]]:
    """Rows turned into columns; `count` of them, also where there is no row."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(count)]


def _put_row(waiting: dict[Key, _Row], key: Key, row: _Row) -> None:
    before = waiting.get(key)
    if before is not None and not row[1][_RECORD]:
        kept = list(row[1])
        kept[_RECORD] = before[1][_RECORD]
        row = (row[0], tuple(kept))
    waiting[key] = row


def _row(known: Known) -> tuple[Any, ...]:
    """A message as its columns."""
    recipient = known.recipient
    place_seq, place_index = known.place or _NO_PLACE
    row = (
        known.message_id,
        known.account,
        known.direction,
        known.revision,
        known.state,
        known.final,
        known.open,
        known.tracked,
        known.status_ms,
        known.sent_ms,
        known.placed_ms,
        known.seen_ms,
        known.done_ms,
        known.mark,
        place_seq,
        place_index,
        known.event_id,
        known.verdict,
        known.provider_status,
        known.error_code,
        known.batch_id,
        known.reference,
        recipient,
        recipient_key(recipient) if recipient is not None else None,
        known.record,
        known.history,
    )
    texts = f"{row[0]}{row[18]}{row[19]}{row[20]}{row[21]}{recipient}"
    if _NUL in texts or MARK in texts:
        return tuple(plain(value) if isinstance(value, str) else value for value in row)
    return row


def plain(text: str) -> str:
    """A text as the database can hold it."""
    return text.replace(MARK, f"{MARK}1").replace(_NUL, f"{MARK}0")


def plain_all(texts: Iterable[str]) -> list[str]:
    """Each of them so; quick where all are as they can be."""
    found = list(texts)
    joined = "".join(found)
    return [plain(text) for text in found] if MARK in joined or _NUL in joined else found


def original(text: str) -> str:
    """The text that `plain` was given."""
    if MARK not in text:
        return text
    return text.replace(f"{MARK}0", _NUL).replace(f"{MARK}1", MARK)
