"""CsvRows: the same for every way of cutting, equal to Python's reader, bounded memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from engine.parsing.csv import ROW_MAX, CsvRows
from tests.fuzz.draw import Draw, chunks, damaged

LENGTH = 160
WORDS = (
    b'"', b'""', b",", b";", b"\t", b"\r\n", b"\n", b"\r", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00",
    b"\xff", b"\xc3\xa9", b'"a\nb"', b"a,b,c\n", b"1,2,3\n", b'"\n', b",,\n",
)  # fmt: skip
LINES = (
    b"1,2,3", b'"1","2","3"', b'1,"two\nlines",3', b'1,"say ""x""",3', b"1,,", b",,", b"", b" ",
    b"1,2", b"1,2,3,4", b"1,2,3,", b'1,"open,3', b'1,"2" x,3', b"1,caf\xe9,3", b"1,2\r,3",
)  # fmt: skip
HEADS = (b"a,b,c", b'"a","b","c"', b"a;b;c", b"a\tb\tc", b"x,b,c", b"\xef\xbb\xbfa,b,c", b"a")


def seeds() -> Iterator[bytes]:
    for mode in range(4):
        yield bytes([mode, *range(70)])
        yield bytes([mode, *range(255, 60, -3)])
    yield bytes([0, 3]) + b'a,b,c\n1,"two\nlines",3\n4,5\n'


def check(data: bytes) -> None:
    draw = Draw(data)
    mode, sizes = draw.byte() % 4, draw.sizes()
    row_max, cut = ROW_MAX, False
    if mode == 0:
        body = draw.rest()
    elif mode == 1:
        body = _well_formed(draw)
    else:
        ends = (b"\n", b"\n", b"\r\n")
        rows = b"".join(draw.pick(LINES) + draw.pick(ends) for _ in range(draw.below(12)))
        body = draw.pick(HEADS) + b"\n" + rows
        if mode == 3:
            body = damaged(draw, body, WORDS)
            row_max = draw.pick((ROW_MAX, 40, 8))
        if draw.chance(64) and len(body) < 100:
            body *= 1 + draw.below(20)
        cut = draw.chance(4)
    parts = chunks(body, sizes)
    rows_found, parser = read(parts, row_max, cut=cut)
    whole, other = read([body], row_max, cut=cut)
    causes = row_max == ROW_MAX  # where a row is too long it may show another fault first
    assert state(rows_found, parser, causes) == state(whole, other, causes)
    assert parser.complete or parser.cause
    assert parser.rows == len(rows_found) + len(parser.flaws)
    for flaw in parser.flaws:
        assert flaw.cause.isprintable()
        line, byte = (int(word.split()[1]) for word in flaw.position.split(","))
        assert line <= body.count(b"\n") + 1
        assert byte <= len(body)


def names(words: Sequence[str]) -> Sequence[str] | None:
    known = [word.strip() for word in words]
    return known if known and known[0] == "a" and len(set(known)) == len(known) else None


def read(
    parts: Sequence[bytes], row_max: int, *, cut: bool
) -> tuple[list[dict[str, str | None]], CsvRows]:
    """Rows and parser of one reading, with its memory looked after."""
    parser = CsvRows(names, row_max=row_max)
    rows = []
    for part in parts:
        rows += parser.feed(part)
        assert sum(map(len, parser._rest)) <= row_max
    return rows + parser.close(cut=cut), parser


def state(rows: list[dict[str, str | None]], parser: CsvRows, causes: bool) -> str:
    flaws = [(flaw.position, flaw.raw, causes and flaw.cause) for flaw in parser.flaws]
    return repr((rows, parser.header, parser.rows, parser.complete, parser.cause, flaws))


def _well_formed(draw: Draw) -> bytes:
    """What Python's writer writes, and its reader reads, this reads in the same way."""
    table = [[draw.text(6).replace("\r", "") for _ in range(3)] for _ in range(draw.below(9))]
    table = [row for row in table if any(row)]
    text = io.StringIO(newline="")
    end = draw.pick(("\n", "\r\n"))
    quoting = draw.pick((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([["a", "b", "c"], *table])
    body = text.getvalue().encode()
    rows, _ = read([body], ROW_MAX, cut=False)
    assert [list(row.values()) for row in rows] == [[cell or None for cell in row] for row in table]
    return body
