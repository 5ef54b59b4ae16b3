"""Rows of an exported table: comma-separated text behind a row that names its columns.

RFC 4180, and what programs make of it: a byte order mark, either line end, semicolons or tabs in
the place of commas, quoted cells with line ends in them. The format has no stated character set, so
each line is decoded by itself (UTF-8, else Latin-1, which cannot fail). What is empty is null: the
format cannot tell the two apart.

The parser must never guess: a row that has not the cells that the header names is set aside with
its line and byte. Behind a quote that is wrong or never closed it goes on with the next line, so
that one stray quote does not swallow the rows after it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from engine.parsing.flaw import Flaw, set_aside

# A row has some hundreds of bytes. One that is longer than this is no row, or a quote is open.
ROW_MAX: Final = 1024 * 1024

# Names that are looked at of a header; an export has a dozen.
COLUMNS_MAX: Final = 1000

NO_EXPORT: Final = "its first row does not name the columns of an export"
UTF_16: Final = "it is UTF-16: save it as UTF-8"
QUOTE: Final = "a quote that is wrong or not closed"
DELIMITERS: Final = (",", ";", "\t")
_BOM: Final = b"\xef\xbb\xbf"
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff")  # UTF-16

Row = dict[str, str | None]
Names = Callable[[Sequence[str]], Sequence[str] | None]


class CsvRows:
    """CSV in, rows as dictionaries out; chunk by chunk."""

    def __init__(self, names: Names, *, row_max: int = ROW_MAX) -> None:
        """`names` are the keys of a row's cells by the header's words, one each and no two alike;
        None: this is no such table."""
        self.rows = 0
        self.complete = False
        self.cause: str | None = None
        self.flaws: list[Flaw] = []
        self.header: tuple[str, ...] | None = None
        self._names = names
        self._row_max = row_max
        self._delimiter = ","
        self._head = b""  # the header row as it stood, in front of every row that is set aside
        self._rest: list[bytes] = []  # what is not read yet: its row has not ended
        self._rest_size = 0
        self._open = False  # … for it has a quote that is not closed
        self._fault: str | None = None  # why the row that was read last cannot be one
        self._skipping = False  # a line without end, which was set aside: up to its end
        self._line = 0  # lines before what is being read, and bytes
        self._byte = 0
        self._refused = False
        self._closed = False
        self._given = 0  # rows that were given out before the latest block
        self._places: list[int] = []  # the lines of the latest block on which its rows began
        self._block: list[bytes] = []
        self._size = 0
        self._block_at = (0, 0)
        self._ends: list[int] | None = None  # of the latest block's lines, once asked for

    def feed(self, chunk: bytes) -> list[Row]:
        """Take the next bytes; return the rows that ended in them."""
        if self._closed:
            raise RuntimeError("fed after close")
        if self._refused:
            return []
        if self._skipping:
            chunk = self._skip(chunk)
        if chunk:
            self._rest.append(chunk)
            self._rest_size += len(chunk)
        self._open = self._open and b'"' not in chunk  # perhaps: it is read again
        ends = b"\n" in chunk and not self._open
        if not ends and self._rest_size <= self._row_max:
            return []
        out: list[Row] = []
        self._read(out, last=False)
        return out

    def close(self, *, cut: bool = False) -> list[Row]:
        """Say that there are no more bytes; return the last rows that are whole."""
        if self._closed:
            return []
        self._closed = True
        out: list[Row] = []
        if not self._refused:
            self._read(out, last=not cut)
        if self._refused:
            return out
        if cut:
            self.cause = f"cut after {self.rows} rows (line {self._line + 1})"
            left = b"".join(self._rest)
            if left.strip() and self.header is not None:
                self.rows += 1
                self._flaw("cut off before its end", left, self._line + 1, self._byte)
        elif self.header is None:
            self.cause = "empty"
        else:
            self.complete = True
        self._rest.clear()
        return out

    def take_flaws(self) -> list[Flaw]:
        """Hand over what was set aside since the last time."""
        taken, self.flaws = self.flaws, []
        return taken

    def place(self, number: int) -> str:
        """Where a row stands that the latest feed gave out, the first of all being number 1."""
        index = number - self._given - 1
        if not 0 <= index < len(self._places):
            return f"row {number}"
        return self._position(self._places[index])

    # -- blocks --------------------------------------------------------------------------------

    def _skip(self, chunk: bytes) -> bytes:
        """Up to the end of a line that is longer than any row."""
        end = chunk.find(b"\n") + 1
        gone = end or len(chunk)
        self._byte += gone
        if end:
            self._line += 1
            self._skipping = False
        return chunk[gone:]

    def _read(self, out: list[Row], *, last: bool) -> None:
        """Read what is there; what has not ended stays, unless it is the `last` or too long."""
        block = b"".join(self._rest)
        end = len(block) if last else block.rfind(b"\n") + 1
        self._rest = [block[end:]] if end < len(block) else []
        self._rest_size = len(block) - end
        if end:
            self._take(block[:end], out, last=last)
        if not self._refused and self._rest_size > self._row_max:
            self._too_long()

    def _take(self, block: bytes, out: list[Row], *, last: bool) -> None:
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        self._block, self._block_at, self._ends = lines, (self._line, self._byte), None
        self._size = len(block)
        self._given += len(self._places)
        self._places = []
        texts = _texts(block, lines)
        at = 0
        if self.header is None:
            at = self._take_header(texts)
            if self._refused:
                return
        while at < len(texts) and self.header is not None:
            at = self._take_rows(texts, at, out)
            if at < len(texts):
                size = len(block) - self._start_of(at) + self._rest_size
                if self._fault is None and not last and size <= self._row_max:
                    break  # it goes on
                self.rows += 1
                self._set_aside(self._fault or QUOTE, at, at + 1)
                at += 1
        left = block[self._start_of(at) :] if at < len(lines) else b""
        self._open = bool(left)
        if left:
            self._rest.insert(0, left)
            self._rest_size += len(left)
        self._line += at
        self._byte += len(block) - len(left)

    def _take_rows(self, texts: list[str], at: int, out: list[Row]) -> int:
        """Rows from this line on, up to one whose quotes do not hold; the line of that one."""
        names = self.header
        assert names is not None
        width, first, had = len(names), at, len(out)
        self._fault = None
        large = self._size > self._row_max
        reader = csv.reader(_from(texts, at), strict=True, delimiter=self._delimiter)
        try:
            for cells in reader:
                if len(cells) == width + 1 and not cells[-1]:
                    cells.pop()  # each row ends with a delimiter
                if large and (fault := self._oversize(at, first + reader.line_num)):
                    self._fault = fault
                    break
                if not any(cells):
                    pass
                elif len(cells) == width:
                    out.append(dict(zip(names, [cell or None for cell in cells], strict=True)))
                    self._places.append(at)
                else:
                    self.rows += 1
                    cause = f"{len(cells)} cells where the header has {width}"
                    self._set_aside(cause, at, first + reader.line_num)
                at = first + reader.line_num
        except csv.Error as error:
            self._fault = self._oversize(at, at + 1) or _fault(str(error))
        self.rows += len(out) - had
        return at

    def _oversize(self, at: int, until: int) -> str | None:
        """Why lines cannot be a row, where they are too long for one."""
        if self._start_of(until) - 1 - self._start_of(at) <= self._row_max:
            return None
        if until == at + 1:
            return f"a row of more than {self._row_max} bytes"
        return QUOTE

    def _take_header(self, texts: list[str]) -> int:
        """The first line that holds anything; returns the one behind it."""
        for at, text in enumerate(texts):
            if self._line + at == 0 and self._block[0].startswith(_WIDE):
                self._refuse(UTF_16)
                return at
            if self._oversize(at, at + 1):
                self._refuse(NO_EXPORT)
                return at
            if not text.strip():
                continue
            self._head = self._block[at].removeprefix(_BOM).removesuffix(b"\r")
            self._read_header(text)
            return at + 1
        return len(texts)

    def _read_header(self, text: str) -> None:
        """The delimiter is the one that makes most words of it."""
        text, words = text.removeprefix("\ufeff"), [""]
        for delimiter in DELIMITERS:
            try:
                split = next(csv.reader([text], strict=True, delimiter=delimiter))
            except csv.Error:
                continue
            if len(split) > len(words):
                words, self._delimiter = split, delimiter
        while len(words) > 1 and not words[-1].strip():
            words.pop()
        within = len(words) <= COLUMNS_MAX
        found = self._names([word.strip() for word in words]) if within else None
        if found is None:
            self._refuse(NO_EXPORT)
        else:
            self.header = tuple(found)

    def _refuse(self, cause: str) -> None:
        self._refused, self.cause = True, cause
        self._rest.clear()
        self._rest_size = 0

    # -- what is set aside ---------------------------------------------------------------------

    def _too_long(self) -> None:
        """A line without end."""
        raw = b"".join(self._rest)
        if self.header is None:
            self._refuse(UTF_16 if self._byte == 0 and raw.startswith(_WIDE) else NO_EXPORT)
            return
        self.rows += 1
        cause = f"a row of more than {self._row_max} bytes"
        self._flaw(cause, raw, self._line + 1, self._byte)
        self._byte += len(raw)
        self._rest.clear()
        self._rest_size, self._skipping = 0, True

    def _set_aside(self, cause: str, at: int, until: int) -> None:
        raw = b"\n".join(self._block[at:until])
        self._flaw(cause, raw, self._block_at[0] + at + 1, self._block_at[1] + self._start_of(at))

    def _flaw(self, cause: str, raw: bytes, line: int, byte: int) -> None:
        """With the header in front of it, so that it can be read again by itself."""
        whole, where = self._head + b"\n" + raw[: self._row_max], f"line {line}, byte {byte}"
        self.flaws.append(set_aside(cause, where, whole, truncated=len(raw) > self._row_max))

    def _position(self, at: int) -> str:
        line, byte = self._block_at
        return f"line {line + at + 1}, byte {byte + self._start_of(at)}"

    def _start_of(self, at: int) -> int:
        """The byte of the latest block with which a line of it begins."""
        if self._ends is None:
            self._ends = list(accumulate(len(line) + 1 for line in self._block))
        return self._ends[at - 1] if at else 0


def _texts(block: bytes, lines: list[bytes]) -> list[str]:
    """The lines as text, each with its end."""
    try:
        texts = block.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return [_text(line) + "\n" for line in lines]
    return [text + "\n" for text in texts[: len(lines)]]


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _fault(said: str) -> str | None:
    """What is wrong with a row, by the words of Python's reader; None: it has not ended."""
    if "unexpected end of data" in said:
        return None
    if "field limit" in said:
        return f"a cell of more than {csv.field_size_limit():,} characters"
    if "new-line" in said:
        return "a line end in a cell without quotes"
    return QUOTE


def _from(texts: list[str], at: int) -> Iterator[str]:
    """Lines from this one on, without a copy of them."""
    for index in range(at, len(texts)):
        yield texts[index]
