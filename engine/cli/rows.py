"""The rows of a file of sent messages, as `track --file` takes them: .csv or .jsonl.

Read as a stream, in chunks that do not tear a batch apart where its rows follow one another, so
that millions of rows need little memory. Every faulty row is found and named by its line; the
values of a good one are taken as they are.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from engine.books.sent import COLUMNS, Row, json_row, row_of, unknown_column
from engine.core.errors import ConfigError

CHUNK_ROWS = 10_000
CHUNK_ROWS_MAX = 200_000  # for one batch without end
FAULTS_MAX = 100
LINE_MAX = 16 << 20

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = ";\t|"  # that programs write in the place of commas

Chunk = list[Row]


class Faulty(Exception):
    """The file has faults, a line for each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Source:
    """A file that can be read more than once, a pipe included: up to the end that it had when it
    was opened, since whoever writes it may go on meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = path.suffix.lower()
        if self.kind not in (".csv", ".jsonl"):
            raise ConfigError([f"{path.name or path}: expected a .csv or .jsonl file"])
        try:
            self._stream: BinaryIO = path.open("rb")
            if not self._stream.seekable():
                copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
                shutil.copyfileobj(self._stream, copy)
                self._stream.close()
                self._stream = copy
            self._size = self._stream.seek(0, os.SEEK_END)
        except OSError as error:
            cause = error.strerror or "input/output error"
            raise ConfigError([f"{path.name}: cannot be read: {cause}"]) from None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def chunks(self, check: Callable[[Row], None] = lambda row: None) -> Iterator[Chunk]:
        """All rows from the beginning; at the end Faulty, where there were faults.

        `check` raises ConfigError where a row is none for the account.
        """
        faults = _Faults(self.path.name)
        self._stream.seek(0)
        chunk: Chunk = []
        for row in self._rows(faults, check):
            apart = row.batch_id is None or not chunk or row.batch_id != chunk[-1].batch_id
            if len(chunk) >= (CHUNK_ROWS if apart else CHUNK_ROWS_MAX):
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk
        faults.raise_any()

    def _rows(self, faults: _Faults, check: Callable[[Row], None]) -> Iterator[Row]:
        lines = _lines(self._stream, self._size, faults)
        cells = self.kind == ".csv"
        tables = _csv(lines, faults) if cells else _jsonl(lines, faults)
        for number, table in tables:
            try:
                row = row_of(table) if cells else json_row(table)
                check(row)
            except ValueError as error:
                faults.add(number, str(error))
            except ConfigError as error:
                faults.add(number, "; ".join(error.faults))
            else:
                yield row


class _Faults:
    """Faults by line; beyond a number they are only counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.more = 0

    def add(self, number: int, text: str) -> None:
        if len(self.lines) < FAULTS_MAX:
            self.lines.append(f"{self.name}: line {number}: {text}")
        else:
            self.more += 1

    def raise_any(self) -> None:
        if not self.lines:
            return
        lines = self.lines
        if self.more:
            lines = [*lines, f"{self.name}: and {self.more:,} more lines with a fault"]
        raise Faulty([*lines, f"{self.name}: nothing was tracked"])


def _lines(stream: BinaryIO, size: int, faults: _Faults) -> Iterator[tuple[int, str]]:
    """The lines of the first `size` bytes with their numbers; one that is no UTF-8 is a fault."""
    number = 0
    while line := stream.readline(min(LINE_MAX, size)):
        size -= len(line)
        number += 1
        if number == 1 and line.startswith(_UTF_16):
            faults.add(number, "is UTF-16, expected UTF-8")
            return
        if len(line) >= LINE_MAX and not line.endswith(b"\n"):
            faults.add(number, f"is longer than {LINE_MAX >> 20} MiB")
            return
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            faults.add(number, "is not UTF-8")


def _csv(lines: Iterator[tuple[int, str]], faults: _Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for number, text in lines:
            at = number
            yield text

    reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cause = str(error)
            if "new-line" in cause:  # goes on with advice on how to open files in Python
                cause = "a carriage return alone, where a line should end with a line feed"
            faults.add(at, f"is not CSV: {cause}")
            return
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        if header is None and faults.lines:
            return  # the header row itself could not be read
        if header is None:
            header = [cell.strip() for cell in cells]
            if _bad_header(header, at, faults):
                return
        elif len(cells) != len(header):
            faults.add(at, f"has {len(cells)} cells, the header has {len(header)}")
        else:
            yield at, {k: v for k, v in zip(header, cells, strict=True) if v.strip()}
    if header is None and not faults.lines:
        faults.add(1, f"expected a header row with some of {', '.join(COLUMNS)}")


def _bad_header(header: list[str], number: int, faults: _Faults) -> bool:
    unknown = [(at, name) for at, name in enumerate(header, 1) if name not in COLUMNS]
    for at, name in unknown:
        if not name:
            faults.add(number, f"column {at} has no name")
        elif any(part.strip() in COLUMNS for mark in _SEPARATORS for part in name.split(mark)):
            faults.add(number, "expected commas between the columns")
        else:
            faults.add(number, unknown_column(name, COLUMNS))
    twice = {name for name in header if header.count(name) > 1 and name in COLUMNS}
    for name in sorted(twice):
        faults.add(number, f"the column {name} is there twice")
    if not unknown and not {"batch_id", "message_id"} & set(header):
        faults.add(number, "expected a column batch_id or message_id")
        return True
    return bool(unknown or twice)


def _jsonl(
    lines: Iterator[tuple[int, str]], faults: _Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in lines:
        if not text.strip():
            continue
        try:
            table = json.load(io.StringIO(text))
        except (ValueError, RecursionError):
            faults.add(number, "is not JSON")
            continue
        if not isinstance(table, dict):
            faults.add(number, "expected a JSON object")
            continue
        yield number, table
