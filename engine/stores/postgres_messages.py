"""The PostgreSQL store's messages, and what all its rows have in common: leases, and writes that
wait (`postgres_pending`) until a look-up would miss them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from engine.core.errors import LeaseLost, StoreError
from engine.core.reconcile import Known
from engine.core.state import State

from .postgres_pending import MARK, Key, Pending, original, plain, plain_all
from .postgres_session import Session

_KNOWN = (
    "account, message_id, direction, revision, state, final, open, verdict, provider_status, "
    "error_code, status_ms, sent_ms, placed_ms, seen_ms, batch_id, reference, recipient, "
    "tracked, history, event_id, done_ms, mark, place_seq, place_index, id"
)
_NAMES = _KNOWN.split(", ")
_FIND_BY = {
    "message_id": "message_id = $1",
    "batch_id": "batch_id = $1",
    "reference": "left(reference, 256) = left($1, 256) AND reference = $1",
    "recipient": "recipient_key = $1",
}
_STATES = {state.value: state for state in State}
_DROP_ENDED = """
    DELETE FROM message USING (
        SELECT old.* FROM unnest($1::text[]) AS ours (name) CROSS JOIN LATERAL (
            SELECT message_id, account, direction FROM message
            WHERE account = ours.name AND final AND seen_ms < $2 AND NOT EXISTS (
                SELECT FROM work WHERE work.account = message.account AND work.kind = 'batch'
                AND work.key = message.batch_id
            )
            ORDER BY seen_ms LIMIT $3
        ) AS old LIMIT $3
    ) AS gone
    WHERE message.message_id = gone.message_id AND message.account = gone.account
    AND message.direction = gone.direction
    RETURNING {}
"""
_DROP_ENDED = _DROP_ENDED.format(
    ", ".join("''::bytea" if name == "history" else f"message.{name}" for name in _NAMES)
)
# From one account to the next by the index, not through all messages.
_ACCOUNTS = """
    WITH RECURSIVE known AS (
        (SELECT account FROM message WHERE final ORDER BY account LIMIT 1)
        UNION ALL
        SELECT (
            SELECT account FROM message WHERE final AND account > known.account
            ORDER BY account LIMIT 1
        ) FROM known WHERE account IS NOT NULL
    )
    SELECT account FROM known WHERE account IS NOT NULL
"""
# Of these accounts, those that have something to drop and that nobody else is writing.
_OLD = """
    SELECT name, pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext(name))
    FROM unnest($1::text[]) AS ours (name) WHERE EXISTS (
        SELECT FROM message WHERE account = ours.name AND final AND seen_ms < $2
    )
"""
# One transaction at a time has an account's rows, of whatever process; and as long as it has them,
# the lease that is ours does not change hands.
_ENTER = """
    WITH held AS (
        SELECT account FROM lease WHERE account = $1 AND fence = $2::bigint FOR SHARE
    )
    SELECT pg_{}advisory_xact_lock(hashtext(current_schema()), hashtext($1))::text,
        EXISTS (SELECT FROM held)
"""
_WAIT = _ENTER.format("")
_TRY = _ENTER.format("try_")
# Nobody takes these over until the transaction has ended.
_HOLD = """
    SELECT lease.account FROM unnest($1::text[], $2::bigint[]) AS ours (account, fence)
    JOIN lease ON lease.account = ours.account AND lease.fence = ours.fence
    ORDER BY lease.account FOR SHARE OF lease
"""


class Busy(BaseException):
    """Another transaction has an account's rows: the job is to be begun anew, once all of its
    `accounts` are free. No job is to take this for an error."""

    def __init__(self, accounts: frozenset[str]) -> None:
        super().__init__()
        self.accounts = accounts


class PostgresRows:
    """One transaction. `fences` are the leases that this process holds, None where there are none
    to hold; `careful`: what seems to be new may be there already."""

    def __init__(
        self,
        session: Session,
        fences: Mapping[str, int] | None,
        *,
        writes: bool,
        careful: bool = False,
    ) -> None:
        self._session = session
        self._fences = fences
        self._writes = writes
        self._careful = careful
        self._group = Pending()  # of jobs that are done
        self._job = Pending()
        self._heads: dict[str, tuple[int, int]] = {}  # of logs, as the server has them
        self._entered: set[str] = set()  # accounts whose rows are ours alone
        self._asked: set[str] = set()  # those that the present job has looked at
        self._held: set[str] = set()  # accounts whose lease is locked
        self.wrote = False  # something was written, or waits to be
        self.dirty = False  # something of the present job is with the server

    def start(self) -> None:
        """Another job begins; what the one before has left unfinished is forgotten."""
        self._job = Pending()
        self._asked = set()
        self.dirty = False

    def accept(self) -> None:
        """The job is done."""
        self._group.absorb(self._job)
        self._job = Pending()

    def finish(self, writer: str, number: int) -> None:
        """Write all that waits, and the number by which the transaction is known."""
        self._write(writer, number)

    def flush(self, waits: Callable[[Pending], object]) -> None:
        """Write what waits, where something of that kind does."""
        if waits(self._group) or waits(self._job):
            self.accept()
            self.dirty = True
            self._write("", None)

    def _write(self, writer: str, number: int | None) -> None:
        if self._group.messages:
            self._group.write_messages(self._session, careful=self._careful)
        if self._group.rest() or number is not None:
            self._group.write_rest(self._session, writer, number)
        self._heads |= self._group.heads
        self._group = Pending()

    def _to_write(self, *accounts: str) -> Pending:
        """Where writes to these accounts' rows go. Raises LeaseLost where they are not ours."""
        if not self._writes:
            raise StoreError("a job that was only to read has written")
        self.wrote = True
        if self._fences is not None:
            for account in set(accounts) - {""} - self._hold(accounts):
                raise LeaseLost(account)
        return self._job

    def enter(self, accounts: Iterable[str]) -> None:
        """Wait for all of them before anything else: in one order, so that no two transactions
        wait for each other."""
        for account in sorted(accounts):
            self._lock(account, _WAIT)

    def _enter(self, *accounts: str) -> None:
        """Before a job looks at rows that it may change: nobody else changes them meanwhile.

        Raises Busy rather than wait while other accounts, or rows, are held.
        """
        if not self._writes:
            return
        self._asked.update(accounts)
        for account in set(accounts) - self._entered:
            alone = not (self._entered or self.wrote)
            if not self._lock(account, _WAIT if alone else _TRY):
                raise Busy(frozenset(self._asked))

    def _lock(self, account: str, statement: str) -> bool:
        fence = self._fences.get(account) if self._fences is not None else None
        row = self._session.fetch(statement, account, fence)[0]
        if row[0] == "false":
            return False
        self._entered.add(account)
        if row[1]:
            self._held.add(account)
        return True

    def _write_now(self, *accounts: str) -> None:
        """Before a write that does not wait."""
        self._to_write(*accounts)
        self.dirty = True

    def _hold(self, accounts: Iterable[str]) -> set[str]:
        """Those whose lease is ours, and stays it until the transaction has ended."""
        fences = self._fences
        assert fences is not None
        asked = [name for name in set(accounts) - self._held if name in fences]
        if asked:
            numbers = [fences[name] for name in asked]
            self._held |= {row[0] for row in self._session.fetch(_HOLD, asked, numbers)}
        return self._held.intersection(accounts)


class PostgresMessages(PostgresRows):
    """The primitives on messages."""

    wants_records = True

    def messages(
        self,
        account: str,
        ids: Sequence[tuple[str, str]],
        marks: Sequence[int | None] | None = None,
    ) -> dict[tuple[str, str], Known]:
        """By their ids alone: an index here does not get slower by what stands between."""
        if not ids:
            return {}
        self._enter(account)
        self._flush_messages(account, ids)
        rows = self._session.fetch(
            f"SELECT {_KNOWN} FROM message WHERE message_id = ANY($1::text[]) AND account = $2",
            plain_all({message_id for message_id, _ in ids}),
            account,
        )
        wanted = set(ids)
        found = {(known.message_id, known.direction): known for known in map(_known, rows)}
        return {key: known for key, known in found.items() if key in wanted}

    def newest(self, messages: Sequence[Known]) -> None:
        for account in {known.account for known in messages}:
            ours = {
                (known.message_id, known.direction): known
                for known in messages
                if known.account == account and known.row is not None
            }
            self._flush_messages(account, ours)
            for message_id, way, record in self._session.fetch(
                "SELECT message_id, direction, record FROM message"
                " WHERE message_id = ANY($1::text[]) AND account = $2",
                plain_all(message_id for message_id, _ in ours),
                account,
            ):
                known = ours.get((original(message_id), way))
                if known is not None:
                    known.record = record

    def put_messages(self, messages: Sequence[Known]) -> None:
        accounts = {known.account for known in messages}
        self._enter(*accounts)
        pending = self._to_write(*accounts)
        for account in accounts:
            pending.put_messages(account, [one for one in messages if one.account == account])

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        self._flush_account(account)
        only = " AND NOT final" if pending else ""
        return self._some(
            f"WHERE batch_id = $1 AND account = $2{only} ORDER BY id LIMIT $3",
            plain(batch_id),
            account,
            limit,
        )

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        self._flush_account(account)
        row = self._session.fetch(
            "SELECT count(*), count(*) FILTER (WHERE NOT final),"
            " count(*) FILTER (WHERE NOT final AND tracked)"
            " FROM message WHERE batch_id = $1 AND account = $2",
            plain(batch_id),
            account,
        )[0]
        return (row[0], row[1], row[2])

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        if not batch_ids:
            return set()
        self._flush_account(account)
        rows = self._session.fetch(
            "SELECT DISTINCT batch_id FROM message WHERE batch_id = ANY($1::text[])"
            " AND account = $2 AND NOT final AND tracked",
            [plain(batch_id) for batch_id in batch_ids],
            account,
        )
        return {original(row[0]) for row in rows}

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        self._flush_account(account)
        only = " AND NOT final" if pending else ""
        return self._some(
            "WHERE open AND placed_ms IS NOT NULL AND account = $1"
            f" AND placed_ms BETWEEN $2 AND $3{only} ORDER BY placed_ms, id LIMIT $4",
            account,
            from_ms,
            to_ms,
            limit,
        )

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        self.flush(lambda waiting: waiting.messages)
        return self._some(f"WHERE {_FIND_BY[by]} ORDER BY id LIMIT $2", plain(value), limit)

    def drop_ended(self, before_ms: int, limit: int) -> list[Known]:
        """Of the accounts whose leases are held, where there are leases, and that nobody else is
        writing just now; where all of them are being written, one is waited for."""
        self.flush(lambda waiting: waiting.messages or waiting.rest())
        if self._fences is None:
            ours = [row[0] for row in self._session.fetch(_ACCOUNTS)]
        else:
            ours = sorted(self._hold(list(self._fences)))
        old = self._session.fetch(_OLD, ours, before_ms)
        free = {name for name, is_free in old if is_free}
        self._entered |= free
        if old and not free:
            free = {old[0][0]}
            self._enter(*free)
        self._write_now()
        ours = sorted(free)
        return [_known(row) for row in self._session.fetch(_DROP_ENDED, ours, before_ms, limit)]

    def _some(self, which: str, *values: Any) -> list[Known]:
        rows = self._session.fetch(f"SELECT {_KNOWN} FROM message {which}", *values)
        return [_known(row) for row in rows]

    def _flush_account(self, account: str) -> None:
        self._enter(account)
        self.flush(lambda waiting: account in waiting.messages)

    def _flush_messages(self, account: str, keys: Collection[Key]) -> None:
        def waits(waiting: Pending) -> bool:
            rows = waiting.messages.get(account)
            return rows is not None and not rows.keys().isdisjoint(keys)

        self.flush(waits)


def _known(row: Any) -> Known:
    (
        account, message_id, direction, revision, state, final, opened, verdict, provider_status,
        error_code, status_ms, sent_ms, placed_ms, seen_ms, batch_id, reference, recipient,
        tracked, history, event_id, done_ms, mark, place_seq, place_index, number,
    ) = row  # fmt: skip
    texts = f"{message_id}{provider_status}{error_code}{batch_id}{reference}{recipient}"
    if MARK in texts:
        message_id, provider_status, error_code, batch_id, reference, recipient = (
            original(text) if text is not None else None
            for text in (message_id, provider_status, error_code, batch_id, reference, recipient)
        )
    return Known(
        account=account,
        message_id=message_id,
        direction=direction,
        revision=revision,
        state=_STATES[state],
        final=final,
        open=opened,
        verdict=verdict,
        provider_status=provider_status,
        error_code=error_code,
        status_ms=status_ms,
        sent_ms=sent_ms,
        placed_ms=placed_ms,
        seen_ms=seen_ms,
        batch_id=batch_id,
        reference=reference,
        recipient=recipient,
        tracked=tracked,
        history=history,
        event_id=event_id,
        done_ms=done_ms,
        mark=mark,
        place=(place_seq, place_index) if place_seq is not None else None,
        row=number,
    )
