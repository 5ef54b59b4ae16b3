"""Rows of what was sent, as files and requests write them, made into tracked items.

One spelling for both: `track --file` and `POST /v1/track` read a row by the same function.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from engine.config.values import printable
from engine.core.units import time_ms
from engine.stores.tracked import Tracked

COLUMNS = ("batch_id", "message_id", "recipient", "reference", "sent_at")
JSON_COLUMNS = (*COLUMNS, "recipients")  # a cell has no array
SHOWN_MAX = 40


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row: a message, or a batch or a part of it."""

    batch_id: str | None
    message_id: str | None
    recipients: tuple[str, ...]
    reference: str | None
    sent_ms: int | None


def json_row(table: dict[str, Any]) -> Row:
    """A row that is a JSON object. Raises ValueError with the fault."""
    unknown = [name for name in table if name not in JSON_COLUMNS]
    if unknown:
        raise ValueError(unknown_column(unknown[0], JSON_COLUMNS))
    return row_of({key: value for key, value in table.items() if value not in (None, "")})


def item_of(
    words: dict[str, Any], recipients: object, recipient: object, sent_at: object, now_ms: int
) -> Tracked:
    """What a program hands over. `words`: batch_id, message_id and reference, "" being none. Raises
    ValueError with the fault."""
    table = {name: word for name, word in words.items() if word != ""}
    batch_id, message_id = _ids(table)
    if recipients is not None and (
        isinstance(recipients, (str, bytes)) or not isinstance(recipients, Iterable)
    ):
        raise ValueError(f"recipients: expected several texts, got {_shown(recipients)}")
    everyone = [*(recipients or ()), *(() if recipient is None else (recipient,))]
    return items_of([_row(table, batch_id, message_id, _words(everyone), sent_at)], now_ms)[0]


def items_of(rows: Sequence[Row], now_ms: int) -> list[Tracked]:
    """The messages, and the batches put together: a recipient that stands twice in one is
    two messages."""
    items: list[Tracked] = []
    batches: dict[str, list[Row]] = {}
    for row in rows:
        if row.batch_id is not None:
            batches.setdefault(row.batch_id, []).append(row)
        else:
            items.append(
                Tracked(
                    message_id=row.message_id,
                    recipients=list(row.recipients),
                    reference=row.reference,
                    sent_ms=now_ms if row.sent_ms is None else row.sent_ms,
                )
            )
    items.extend(_batch(batch_id, rows, now_ms) for batch_id, rows in batches.items())
    return items


def _batch(batch_id: str, rows: list[Row], now_ms: int) -> Tracked:
    pairs = [(recipient, row.reference) for row in rows for recipient in row.recipients]
    times = [row.sent_ms for row in rows if row.sent_ms is not None]
    told = {row.reference for row in rows}
    shared = told.pop() if len(told) == 1 else None
    return Tracked(
        batch_id=batch_id,
        recipients=[recipient for recipient, _ in pairs],
        references=[reference for _, reference in pairs] if told else [],
        times_ms=[row.sent_ms for row in rows for _ in row.recipients]
        if len(set(times)) > 1
        else [],
        reference=shared,
        sent_ms=min(times, default=now_ms),
    )


def unknown_column(name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name[:64], known, n=1, cutoff=0.0)
    hint = f', did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
    return f"unknown column {_shown(name)}{hint}"


def row_of(table: dict[str, Any]) -> Row:
    """A row without its blanks. Raises ValueError with the fault."""
    batch_id, message_id = _ids(table)
    if batch_id is None and message_id is None:
        raise ValueError("expected a batch_id or a message_id")
    recipient = _word(table, "recipient")
    recipients = _words(table.get("recipients"))
    if recipient is not None and recipients:
        raise ValueError("expected recipient or recipients, not both")
    everyone = recipients if recipient is None else (recipient,)
    return _row(table, batch_id, message_id, everyone, table.get("sent_at"))


def _ids(table: dict[str, Any]) -> tuple[str | None, str | None]:
    """The batch's and the message's, one of them at the most."""
    batch_id, message_id = _word(table, "batch_id"), _word(table, "message_id")
    if batch_id is not None and message_id is not None:
        raise ValueError("expected a batch_id or a message_id, not both")
    return batch_id, message_id


def _row(
    table: dict[str, Any],
    batch_id: str | None,
    message_id: str | None,
    recipients: tuple[str, ...],
    sent_at: object,
) -> Row:
    if message_id is not None and len(recipients) > 1:
        raise ValueError("a message has one recipient")
    return Row(
        batch_id=batch_id,
        message_id=message_id,
        recipients=recipients,
        reference=_word(table, "reference"),
        sent_ms=_sent(sent_at),
    )


def _word(table: dict[str, Any], name: str) -> str | None:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON can escape it
            raise ValueError(f"{name}: is not Unicode text: {_shown(value)}") from None
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{name}: expected a text, got {_shown(value)}")


def _words(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"recipients: expected an array, got {_shown(value)}")
    found = (_word({"recipients": item}, "recipients") for item in value)
    words = tuple(word for word in found if word is not None)
    if len(words) != len(value):
        raise ValueError("recipients: expected texts")
    return words


def _sent(value: object) -> int | None:
    if value is None:
        return None
    try:
        return time_ms(value)
    except (ValueError, OverflowError):
        raise ValueError(
            "sent_at: expected epoch seconds or a time with an offset such as"
            f" 2026-11-21T12:00:00Z, got {_shown(value)}"
        ) from None


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    cut = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return printable(json.dumps(cut, ensure_ascii=False), 4 * SHOWN_MAX)
