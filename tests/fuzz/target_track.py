"""Files of sent messages: only faults by line, and rows equal to those of plain csv and json."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from atexit import register
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.books.sent import COLUMNS, Row, items_of
from engine.cli.rows import FAULTS_MAX, Faulty, Source
from engine.core.units import iso
from engine.stores.tracked import Tracked
from tests.fuzz.draw import Draw, damaged

LENGTH = 160
WORDS = (
    b"batch_id", b"message_id", b"recipient", b"recipients", b"reference", b"sent_at", b",", b'"',
    b'""', b"\r\n", b"\n", b'{"', b'":', b"[", b"]", b"}", b"\xef\xbb\xbf", b"\xff", b"\x00",
    b"2026-11-01T00:00:00Z", b"1780000000", b"NaN", b"1e999", b'"message_id":"m1"', b"\\ud800",
)  # fmt: skip
TEXTS = ("4711", " m1 ", 'quo"te', "a,b", "two\nlines", "é", "a\u2028b", "447700900001", "x" * 50)
NOW_MS = 1_780_000_000_000


@cache
def _folder() -> Path:
    """Where files are written: into memory, where the system has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def seeds() -> Iterator[bytes]:
    table = b"message_id,recipient,reference,sent_at\nm1,447700900001,o-1,2026-11-01T00:00:00Z\n"
    yield b"\x00\x00" + table
    yield b"\x00\x00" + table.replace(b"message", b"batch").replace(b"\n", b"\r\n") * 2
    yield b"\x00\x01" + b'{"batch_id":"b","recipients":["1","2"],"sent_at":1780000000}\n' * 2
    for mode in (1, 2, 3):
        yield bytes([mode, 0, *range(70)])
        yield bytes([mode, 1, *range(190, 20, -3)])


def check(data: bytes) -> None:
    draw = Draw(data)
    mode, kind = draw.byte() % 4, draw.pick((".csv", ".jsonl"))
    expected: list[Row] | None = None
    if mode == 0:
        body = draw.rest()
    else:
        rows = [_row(draw) for _ in range(draw.below(5))]
        body = _csv(draw, rows) if kind == ".csv" else _jsonl(draw, rows)
        if mode == 3:
            body = damaged(draw, body, WORDS)
        else:
            expected = [_expected(row) for row in rows]
    path = _folder() / f"sent{kind}"
    path.write_bytes(body)
    found, faults = _read(path)
    if expected is not None and (expected or kind == ".jsonl"):
        assert faults == []
        assert found == expected
    elif kind == ".csv" and not faults:
        assert found == _plain(body)
    _grouped(found)


def _read(path: Path) -> tuple[list[Row], list[str]]:
    found: list[Row] = []
    with Source(path) as source:
        try:
            for chunk in source.chunks():
                found += chunk
        except Faulty as error:
            faults = error.lines
        else:
            return found, []
    assert 2 <= len(faults) <= FAULTS_MAX + 2
    for line in faults:
        assert line.startswith(f"{path.name}: ")
        assert line.isprintable(), "a fault is one line of what can be shown"
        assert len(line) < 400
    return found, faults


def _row(draw: Draw) -> dict[str, Any]:
    row: dict[str, Any] = {draw.pick(("batch_id", "message_id")): draw.pick(TEXTS)}
    for name in ("recipient", "reference"):
        if draw.flag():
            row[name] = draw.pick(TEXTS)
    if draw.flag():
        ms = draw.whole(5) * (1 if draw.flag() else 1000) % 4_000_000_000_000
        row["sent_at"] = draw.pick((iso(ms), f"{ms // 1000}.{ms % 1000:03}"))
    return row


def _csv(draw: Draw, rows: list[dict[str, Any]]) -> bytes:
    start = draw.below(len(COLUMNS))
    columns = [*COLUMNS[start:], *COLUMNS[:start]]
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        columns,
        restval=draw.pick(("", " ")),
        quoting=draw.pick((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
        lineterminator=draw.pick(("\n", "\r\n")),
    )
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        if draw.chance(6):
            text.write("\n")
    return draw.pick((b"", b"\xef\xbb\xbf")) + text.getvalue().encode()


def _jsonl(draw: Draw, rows: list[dict[str, Any]]) -> bytes:
    lines = []
    for row in rows:
        if "batch_id" in row and "recipient" in row and draw.flag():
            row["recipients"] = [row.pop("recipient"), draw.pick(TEXTS)]
        if "sent_at" in row and not row["sent_at"].endswith("Z"):
            row["sent_at"] = float(row["sent_at"])
        lines.append(json.dumps(row, ensure_ascii=draw.flag()))
        if draw.chance(6):
            lines.append("  ")
    return draw.pick(("\n", "\r\n")).join(lines).encode()


def _expected(row: dict[str, Any]) -> Row:
    sent = row.get("sent_at")
    if isinstance(sent, str) and sent.endswith("Z"):
        # By the text itself: `iso` wrote it.
        sent_ms = _ms(sent)
    else:
        sent_ms = None if sent is None else round(float(sent) * 1000)
    words = row.get("recipients", [row["recipient"]] if "recipient" in row else [])
    return Row(
        batch_id=_stripped(row.get("batch_id")),
        message_id=_stripped(row.get("message_id")),
        recipients=tuple(word.strip() for word in words),
        reference=_stripped(row.get("reference")),
        sent_ms=sent_ms,
    )


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _stripped(text: str | None) -> str | None:
    return None if text is None else text.strip() or None


def _plain(body: bytes) -> list[Row]:
    """The rows by csv.DictReader, given the text whole."""
    text = io.StringIO(body.decode("utf-8-sig"), newline="")
    table = csv.reader(text, strict=True)
    filled = (cells for cells in table if any(cell.strip() for cell in cells))
    names = [name.strip() for name in next(filled, [])]
    rows = []
    for cells in filled:
        row = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
        sent = row.get("sent_at", "").strip()
        if sent and "T" not in sent and ":" not in sent and sent.count("-") < 2:
            row["sent_at"] = sent
        elif sent:
            row["sent_at"] = str(_ms(sent) / 1000)
        rows.append(_expected(row))
    return rows


def _grouped(rows: list[Row]) -> None:
    """Put together for tracking, nothing is lost and nothing is doubled."""
    items = items_of(rows, NOW_MS)
    assert msgspec.json.decode(msgspec.json.encode(items), type=list[Tracked]) == items
    batches = [item for item in items if item.batch_id is not None]
    assert len(batches) == len({row.batch_id for row in rows if row.batch_id is not None})
    assert len(items) - len(batches) == sum(row.message_id is not None for row in rows)
    assert sum(len(item.recipients) for item in items) == sum(len(row.recipients) for row in rows)
    for item in batches:
        for aligned in (item.references, item.times_ms):
            assert len(aligned) in (0, len(item.recipients))
