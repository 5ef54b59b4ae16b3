"""What no statement of a schema can do by itself: rows that are made anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from itertools import count
from typing import Any

from engine.core.reconcile import Known
from engine.core.report import decode
from engine.core.state import State
from engine.core.units import iso_ms

from .sqlite_accounts import Account
from .sqlite_messages import SqliteMessages

# Messages that are held in memory at once.
ROWS = 1000

_OLD = (
    "account.name, message_id, direction, revision, state, final, open, verdict, provider_status, "
    "error_code, status_ms, sent_ms, placed_ms, seen_ms, batch_id, reference, recipient, "
    "tracked, record, history"
)
_INDEXES = (
    "CREATE INDEX message_elsewhere ON message (elsewhere, account) WHERE elsewhere IS NOT NULL",
    "CREATE INDEX message_batch ON message (batch, account) WHERE batch IS NOT NULL",
    "CREATE INDEX message_open ON message (account, open_ms) WHERE open_ms IS NOT NULL",
)
# Where a message's recipient or reference becomes known after its row was sorted into a run.
_TRIGGERS = tuple(
    f"CREATE TRIGGER message_{column} AFTER UPDATE OF {column} ON message"
    f" WHEN new.{column} IS NOT old.{column} AND new.{column} IS NOT NULL BEGIN"
    f" INSERT INTO lookup (run, hash, message) SELECT 0, new.{column}, new.id WHERE NOT EXISTS"
    f" (SELECT 1 FROM lookup WHERE run = 0 AND hash = new.{column} AND message = new.id); END"
    for column in ("who", "reference")
)


def upgrade_messages(db: sqlite3.Connection, version: int) -> None:
    """Once the schema is that of version 6: messages as that keeps them."""
    if version < 4:
        _without_records(db)
    else:
        db.execute("INSERT INTO by_key (key, message) SELECT key, id FROM message ORDER BY key, id")
        db.execute("DROP INDEX message_key")


def _without_records(db: sqlite3.Connection) -> None:
    """From version 3: messages in the order in which they came, without their records."""
    db.execute("ALTER TABLE message RENAME TO message_old")
    for name in ("identity", "batch", "reference", "recipient", "open", "ended"):
        db.execute(f"DROP INDEX message_{name}")
    db.execute("ALTER TABLE message_new RENAME TO message")
    for statement in (*_INDEXES, *_TRIGGERS):
        db.execute(statement)
    accounts: dict[str, Account] = {}
    messages = SqliteMessages(db, accounts)
    old = db.execute(
        f"SELECT {_OLD} FROM message_old JOIN account ON account.id = account"
        " ORDER BY message_old.id"
    )
    numbers = count(1)
    while rows := old.fetchmany(ROWS):
        known = [_known(row, next(numbers), messages.ask_by_id) for row in rows]
        messages.put_messages(known)
        messages.sort(len(known), max(one.seen_ms for one in known))
    db.execute("DROP TABLE message_old")


def _known(row: tuple[Any, ...], number: int, ask_by_id: Callable[[str], Account]) -> Known:
    ask_by_id(row[0])  # an old message is found by its id alone
    newest = decode(row[18]) if row[18] else None
    done_at = newest.done_at if newest is not None else None
    return Known(
        row=number,
        account=row[0],
        message_id=row[1],
        direction=row[2],
        revision=row[3],
        state=State(row[4]),
        final=bool(row[5]),
        open=bool(row[6]),
        verdict=row[7],
        provider_status=row[8],
        error_code=row[9],
        status_ms=row[10],
        sent_ms=row[11],
        placed_ms=row[12],
        seen_ms=row[13],
        batch_id=row[14],
        reference=row[15],
        recipient=row[16],
        tracked=bool(row[17]),
        record=row[18],
        history=row[19],
        event_id=newest.event_id if newest is not None else "",
        done_ms=iso_ms(done_at) if done_at is not None else None,
    )
