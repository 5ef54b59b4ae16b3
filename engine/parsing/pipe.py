r"""Rows of BulkSMS text: a line `code|text`, then lines `msisdn|status[|field...]`.

The format has no escapes, no stated character set and no end mark. So a line is decoded by
itself (UTF-8, else Latin-1, which cannot fail), a block of plain ASCII lines goes through without
any of that, and whether the text was cut is for the transport to say: only it knows.

The parser must never guess: a row that does not have the columns which were asked for is set
aside with its line number, and a page of HTML yields no rows at all.
"""

from __future__ import annotations

import re
from typing import Final

from engine.core.report import REDACTED_NUMBER
from engine.parsing.flaw import FLAW_RAW_MAX, Flaw, opening, set_aside

# A row has some 30 bytes, with a body some hundreds: a megabyte without a line end is no row.
LINE_MAX: Final = 1024 * 1024

# msisdn and status; without them there is nothing to report on.
COLUMNS_MIN: Final = 2

_BOM: Final = b"\xef\xbb\xbf"
_CODE: Final = re.compile(r"[0-9]+\|")
# What was redacted before it was kept is read again, too.
_ROW: Final = re.compile(rf"(?:[0-9]+|{REDACTED_NUMBER})\|[0-9]+(?:\||\Z)")
# What may be the beginning of a row, when the rest of the line did not arrive.
_MAYBE_HEADER: Final = re.compile(r"[0-9]*\Z|[0-9]+\|")
_MAYBE_ROW: Final = re.compile(r"[0-9]*\Z|[0-9]+\|[0-9]*\Z|[0-9]+\|[0-9]+\|")


class PipeRows:
    """BulkSMS text in, rows of strings out; chunk by chunk."""

    def __init__(self, columns: int, *, line_max: int = LINE_MAX, open_last: bool = False) -> None:
        if columns < COLUMNS_MIN:
            raise ValueError("a row has at least msisdn and status")
        self.header: tuple[str, str] | None = None
        self.rows = 0
        self.complete = False
        self.cause: str | None = None
        self.flaws: list[Flaw] = []
        self._columns = columns
        self._line_max = line_max
        self._open_last = open_last
        self._parts: list[bytes] = []  # the line whose end has not come
        self._parts_size = 0
        self._line = 0  # lines seen
        self._refused: bytearray | None = None  # not a report: what is kept of it
        self._refused_more = False
        self._refused_line = 0
        self._open: list[str] | None = None  # lines of the row that may go on, each with its \r
        self._open_size = 0
        self._open_line = 0
        self._open_ended = False  # it was set aside: what continues it goes the same way
        self._blanks: list[str] = []  # blank lines since, inside or after that row
        self._blanks_size = 0
        self._closed = False

    def feed(self, chunk: bytes) -> list[list[str]]:
        """Take the next bytes; return the rows that ended in them."""
        if self._closed:
            raise RuntimeError("fed after close")
        if self._is_refused():
            self._refuse(chunk)
            return []
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            self._carry(chunk)
            return []
        out: list[list[str]] = []
        start = 0
        if self._parts:
            start = chunk.find(b"\n") + 1
            self._carry(chunk[: start - 1])
            self._end_line(out)
            if self._is_refused():
                self._refuse(b"\n")
        if start < cut and not self._is_refused():
            self._block(chunk[start : cut - 1], out)
        elif start < cut:
            self._refuse(chunk[start:cut])
        if self._is_refused():
            self._refuse(chunk[cut:])
        else:
            self._carry(chunk[cut:])
        return out

    def close(self, *, cut: bool = False) -> list[list[str]]:
        """Say that there are no more bytes; return the last row if it is whole."""
        if self._closed:
            return []
        self._closed = True
        out: list[list[str]] = []
        if cut:
            self._cut(out)
        elif self._parts:
            self._end_line(out)
        self._finish_open(out)
        if self._refused is not None:
            raw = bytes(self._refused)
            self.cause = f"not a report: begins with {opening(raw)}"
            position = f"line {self._refused_line}"
            self.flaws.append(set_aside(self.cause, position, raw, truncated=self._refused_more))
        elif cut:
            pass  # the cause was said before the last line was counted
        elif self.header is None:
            self.cause = "empty"
        else:
            self.complete = True
        return out

    def take_flaws(self) -> list[Flaw]:
        """Hand over what was set aside since the last time."""
        taken, self.flaws = self.flaws, []
        return taken

    def raw(self, record: list[str]) -> bytes:
        """A row as it stands in an answer."""
        return "|".join(record).encode()

    def frame(self, raw: bytes) -> bytes:
        """An answer with this row alone."""
        return b"0|\n" + raw + b"\n"

    # -- lines ---------------------------------------------------------------------------------

    def _carry(self, part: bytes) -> None:
        """Keep the beginning of a line; of a line that is too long only what a flaw shows."""
        if not part:
            return
        # Two bytes more than the limit: a line end of "\r\n" is not part of the line.
        room = max(0, self._line_max + 2 - self._parts_size)
        if room:
            self._parts.append(part[:room])
        self._parts_size += len(part)

    def _end_line(self, out: list[list[str]]) -> None:
        raw = b"".join(self._parts)
        size = self._parts_size
        self._parts.clear()
        self._parts_size = 0
        if size == len(raw):
            self._take_line(raw, out)
        else:
            self._take_long_line(raw)

    def _block(self, block: bytes, out: list[list[str]]) -> None:
        """Take whole lines, the last one without its line end."""
        plain = not self._open_last and len(block) <= self._line_max and block.isascii()
        if plain and self.header is not None:
            self._plain_block(block, out)
            return
        lines = block.split(b"\n")
        for index, raw in enumerate(lines, 1):
            self._take_line(raw, out)
            if self._refused is not None:
                self._refuse(b"\n".join([b"", *lines[index:], b""]))
                return
            if plain and out and index < len(lines):  # header and first row are behind
                self._plain_block(b"\n".join(lines[index:]), out)
                return

    def _plain_block(self, block: bytes, out: list[list[str]]) -> None:
        """Take ASCII lines of which none can be too long: the way nearly all rows go."""
        columns = self._columns
        if b"\r" in block:
            block = (block + b"\n").replace(b"\r\n", b"\n")[:-1]
        before = self._line
        had = len(out)
        text = block.decode("ascii")
        rows = [line.split("|") for line in text.split("\n")]
        if _are_usual(rows, block, columns):
            out += rows
            self.rows += len(rows)
            self._line += len(rows)
            return
        lines = text.split("\n")
        for index, line in enumerate(lines, 1):
            row = self._columns_of(line)
            fits = len(row) == columns and row[1].isdigit()
            if fits and (row[0].isdigit() or _ROW.match(line)):
                out.append(row)
            elif line and not line.isspace():
                self.rows += 1
                self._set_aside_row(line.encode(), before + index)
        self.rows += len(out) - had
        self._line = before + len(lines)

    def _take_line(self, raw: bytes, out: list[list[str]]) -> None:
        whole = raw
        with_cr = raw.endswith(b"\r")
        raw = raw.removesuffix(b"\r")
        if len(raw) > self._line_max:
            self._take_long_line(raw)
            return
        self._line += 1
        if self._line == 1:
            raw = raw.removeprefix(_BOM)
        text = _text(raw)
        if not text or text.isspace():
            self._keep_blank(text + "\r" if with_cr else text)
        elif self.header is None:
            self._take_header(whole, text)
        elif self._open_last:
            self._take_open(raw, text, out, end="\r" if with_cr else "")
        else:
            row = self._columns_of(text)
            self.rows += 1
            if len(row) == self._columns and _ROW.match(text):
                out.append(row)
            else:
                self._set_aside_row(raw, self._line)

    def _columns_of(self, line: str) -> list[str]:
        """Some installations close each line with a bar, as the header."""
        row = line.split("|")
        if len(row) == self._columns + 1 and not row[-1].strip():
            row.pop()
        return row

    def _take_long_line(self, raw: bytes) -> None:
        self._line += 1
        if self.header is None:
            self._refused_line = self._line
            self._refused = bytearray()
            self._refuse(raw[: self._line_max])
            self._refused_more = True
            return
        self.rows += 1
        cause = f"a line of more than {self._line_max} bytes"
        self._flaw(cause, self._line, raw[: self._line_max], truncated=True)

    def _take_header(self, raw: bytes, text: str) -> None:
        if not _CODE.match(text):
            self._refused_line = self._line
            self._refused = bytearray()
            self._refuse(raw)
            return
        code, _, rest = text.partition("|")
        self.header = (code, rest.rstrip("| \t\r"))

    def _is_refused(self) -> bool:
        return self._refused is not None

    def _refuse(self, raw: bytes) -> None:
        """Keep the beginning of what is not a report."""
        kept = self._refused if self._refused is not None else bytearray()
        room = FLAW_RAW_MAX - len(kept)
        kept += raw[:room]
        self._refused_more = self._refused_more or len(raw) > room
        self._refused = kept

    # -- rows whose last column is free text ---------------------------------------------------

    def _take_open(self, raw: bytes, text: str, out: list[list[str]], *, end: str) -> None:
        if _ROW.match(text):
            self._finish_open(out)
            self.rows += 1
            self._open, self._open_size, self._open_line = [text + end], len(raw), self._line
            self._open_ended = False
            if text.count("|") < self._columns - 1:
                self._set_aside_row(raw, self._line)
                self._open = None
            return
        if self._open is None:
            if not self._open_ended:
                self.rows += 1
                self._set_aside_row(raw, self._line)
            return
        self._open_size += len(raw) + 1 + self._blanks_size
        if self._open_size > self._line_max:
            kept = "\n".join(self._open).encode()
            cause = f"a row of more than {self._line_max} bytes"
            self._flaw(cause, self._open_line, kept, truncated=True)
            self._open, self._open_ended = None, True
            self._forget_blanks()
            return
        # A blank line inside a text belongs to it; one after it does not. Lines stay as they came:
        # the last line end alone is the row's own.
        self._open.extend(self._blanks)
        self._open.append(text + end)
        self._forget_blanks()

    def _keep_blank(self, text: str) -> None:
        """A blank line, which the row before may go on behind; no more than a row may have."""
        if self._open is None:
            return
        self._blanks_size += len(text) + 1
        if self._open_size + self._blanks_size <= self._line_max:
            self._blanks.append(text)

    def _forget_blanks(self) -> None:
        self._blanks.clear()
        self._blanks_size = 0

    def _finish_open(self, out: list[list[str]]) -> None:
        if self._open is not None:
            text = "\n".join(self._open).removesuffix("\r")
            out.append(text.split("|", self._columns - 1))
        self._open = None
        self._forget_blanks()

    def _cut(self, out: list[list[str]]) -> None:
        """Set the last line aside: the end of a number may be missing.

        A row whose line has ended counts, also where its free text may have gone on.
        """
        self.cause = f"cut after {self.rows} rows (line {self._line})"
        raw = b"".join(self._parts)
        more = self._parts_size > len(raw)
        self._parts.clear()
        if not raw.strip():
            return
        if self.header is None and not _MAYBE_HEADER.match(_text(raw.removeprefix(_BOM))):
            self._take_header(raw, _text(raw))
            return
        if self._open is not None and not _MAYBE_ROW.match(_text(raw)):
            # The text of the row before goes on here, so that row is not whole either.
            lines = [*self._open, *self._blanks]
            more = more or self._open_size + self._blanks_size > self._line_max
            raw = "\n".join(lines).encode() + b"\n" + raw
            self._flaw("cut off before its end", self._open_line, raw, truncated=more)
            self._open = None
            return
        self._finish_open(out)
        self._line += 1
        self.rows += self.header is not None
        self._flaw("cut off before its end", self._line, raw, truncated=more)

    def _set_aside_row(self, raw: bytes, line: int) -> None:
        text = _text(raw)
        columns = text.count("|") + 1
        wrong = columns != self._columns
        if self._open_last:
            wrong = columns < self._columns
        if _ROW.match(text) and wrong:
            cause = f"{columns} columns where {self._columns} were expected"
        else:
            cause = "does not begin with a phone number and a status"
        self._flaw(cause, line, raw)

    def _flaw(self, cause: str, line: int, raw: bytes, *, truncated: bool = False) -> None:
        self.flaws.append(set_aside(cause, f"line {line}", raw, truncated=truncated))


def _are_usual(rows: list[list[str]], block: bytes, columns: int) -> bool:
    """Whether all rows, which are the block's lines, have their columns, a number and a status.

    All are looked at together, which costs a third of looking at one after the other.
    """
    if set(map(len, rows)) != {columns}:
        return False
    if columns == COLUMNS_MIN:
        cells_end = b"\n" + block.replace(b"|", b"\n") + b"\n"
        return block.translate(None, b"|\n").isdigit() and b"\n\n" not in cells_end
    numbers, codes, *_ = zip(*rows, strict=True)
    none_empty = "" not in numbers and "" not in codes
    return none_empty and "".join(numbers).isdigit() and "".join(codes).isdigit()


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
