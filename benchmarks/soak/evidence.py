"""Reading both sides at the end of a soak: the simulator's books, the sinks' files, the lateness.

It uses none of the engine's code: what it reads is what a user of the files would read.
"""

from __future__ import annotations

import gzip
import re
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from benchmarks.soak.balance import Given, Life, Line, Side, Sinks, Step

_LETTERS = {"sms": "S", "email": "E", "push": "P", "whatsapp": "W", "rcs": "R"}
_ROTATED = re.compile(r"reports-(\d{4}-\d\d-\d\d)(?:\.(\d+))?\.jsonl(?:\.gz)?")


class Record(msgspec.Struct, gc=False):
    """The fields of a record that the balance looks at."""

    event_id: str
    account: str
    channel: str
    direction: str
    message_id: str
    revision: int
    sender: str | None
    recipient: str | None
    state: str
    final: bool
    verdict: str | None
    provider_status: str | None
    error_code: str | None
    sent_at: datetime | None
    observed_at: datetime


def side(
    name: str,
    provider: str,
    truth: Iterable[dict[str, Any]],
    given: Iterable[dict[str, Any]],
    counts: dict[str, Any],
    books: dict[str, Any],
    violations: Iterable[dict[str, Any]],
) -> Side:
    """An account, from what the simulator and `stats` say of it."""
    return Side(
        name=name,
        provider=provider,
        lives={
            message["message_id"]: Life(
                message["sent_at"],
                tuple(
                    Step(step["at"], step["status"], step["state"], step["final"])
                    for step in message["transitions"]
                ),
            )
            for message in truth
        },
        given=[
            Given(
                one["message_id"],
                one["status"],
                one["answer"],
                one["at"],
                one["on_wire"],
                one["spoiled"],
            )
            for one in given
        ],
        counts=counts,
        books=books,
        violations=[
            f"{one['kind']}: {one['seen']} where {one['allowed']} are allowed,"
            f" window {one['per']:g} s, at {one['at']:.3f}"
            for one in violations
        ],
    )


def sinks(folder: Path, providers: dict[str, str]) -> Sinks:
    """What the lines and the tables hold; `providers` by account."""
    held = Sinks(lines=[])
    decode = msgspec.json.Decoder(Record).decode
    for path in line_files(folder):
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                try:
                    if not raw.endswith(b"\n"):
                        raise ValueError("no line end")
                    held.lines.append(_line(decode(raw), providers))
                except ValueError as error:
                    held.torn.append(f"{path.name}:{number}: {error}")
    with closing(sqlite3.connect(f"file:{folder / 'reports.db'}?mode=ro", uri=True)) as db:
        held.rows = [row[0] for row in db.execute("SELECT event_id FROM reports")]
        held.newest = [row[0] for row in db.execute("SELECT event_id FROM messages")]
    return held


def line_files(folder: Path) -> list[Path]:
    """The rotated files, oldest first, then the one that is written to."""
    found = [
        (match[1], int(match[2] or 0), path)
        for path in folder.iterdir()
        if (match := _ROTATED.fullmatch(path.name))
    ]
    live = folder / "reports.jsonl"
    return [path for _, _, path in sorted(found)] + ([live] if live.exists() else [])


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path)
    plain: BinaryIO = path.open("rb")
    return plain


def _line(record: Record, providers: dict[str, str]) -> Line:
    return Line(
        event_id=record.event_id,
        account=record.account,
        key=_key(record, providers.get(record.account, "")),
        revision=record.revision,
        state=record.state,
        final=record.final,
        verdict=record.verdict,
        status=record.provider_status,
        error_code=record.error_code,
        observed_at=record.observed_at.timestamp(),
    )


def _key(record: Record, provider: str) -> str:
    """The simulator's name for the message: messangi has no ids, so it is what it consists of."""
    if provider != "messangi":
        return record.message_id
    sent_ms = round(record.sent_at.timestamp() * 1000) if record.sent_at is not None else 0
    to = (record.recipient or "").removeprefix("+")
    way = "O" if record.direction == "mt" else "I"
    return f"{_LETTERS[record.channel]}|{record.sender}|{to}|{sent_ms}|{way}"


class Read(msgspec.Struct, frozen=True, gc=False):
    """A state that was recorded: by when the schedule should have read it, and how late it was."""

    account: str
    due: float
    late_s: float
    final: bool


def reads(
    sides: Sequence[Side], lines: Iterable[Line], rungs_s: Sequence[float], *, found_s: float
) -> Iterator[Read]:
    """Each recorded state that the schedule could read.

    On a ladder that is the first rung after the state came. A drained queue is asked within
    `found_s`; a windowed feed finds a message within `found_s`, and its rescans count from then.
    The time for which the worker was dead or stopped, and the faults, are all in it.
    """
    known = {side.name: side for side in sides}
    for line in lines:
        side = known.get(line.account)
        life = side.lives.get(line.key) if side is not None else None
        if side is None or life is None or line.verdict is not None:
            continue
        at = next((step.at for step in life.steps if step.status == line.status), None)
        if at is None:
            continue
        if side.provider == "infobip":
            due = at + found_s
        else:
            n = bisect_left(rungs_s, at - life.sent_at)
            if n == len(rungs_s):
                continue
            due = life.sent_at + rungs_s[n] + (0.0 if side.provider == "bulksms" else found_s)
        yield Read(line.account, due, line.observed_at - due, line.final)
