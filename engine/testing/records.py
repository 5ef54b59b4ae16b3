"""Made-up records for sinks, each known by its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.core.contracts import Batch
from engine.core.report import Report, encode
from engine.core.state import State

Record = dict[str, Any]  # as a sink's place gives it back: the JSON object

DEFAULTS: Record = {
    "account": "a", "provider": "p", "revision": 1, "state": State.DELIVERED, "final": True,
    "recipient": "447700900001", "observed_at": "2026-01-01T00:00:00.000Z",
}  # fmt: skip


def record(n: int, **more: Any) -> bytes:
    """A record as the engine encodes it: event `n` of message `m<n>`, with `more` of its fields."""
    own = {"event_id": f"{n:032x}", "message_id": f"m{n}"}
    return encode(Report(**{**DEFAULTS, **own, **more}))


def batch(start: int, count: int) -> Batch:
    """`count` records, numbered from `start` on."""
    return Batch([record(n) for n in range(start, start + count)])


def number(found: Record) -> int:
    """The number that a record was made with."""
    return int(found["event_id"], 16)


def numbers(records: Sequence[Record]) -> list[int]:
    return [number(found) for found in records]


def thousand(start: int) -> Batch:
    """A thousand records, made quickly."""
    template = record(0, event_id="@", message_id="m@")
    return Batch([template.replace(b"@", b"%032x" % (start + n)) for n in range(1000)])
