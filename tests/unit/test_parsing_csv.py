"""CsvRows: what it takes and sets aside, the same for every way of cutting, in bounded memory."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.parsing.csv import CsvRows
from engine.parsing.flaw import Flaw

HEAD = b"a,b,c\n"


def names(words: Sequence[str]) -> Sequence[str] | None:
    """A table with these three columns, or with any from `a` to `z`."""
    return words if words and all(word and word in "abcdefghijklmnopqrstuvwxyz" for word in words) \
        else None  # fmt: skip


def read(
    *chunks: bytes, cut: bool = False, **keys: Any
) -> tuple[list[list[str | None]], list[Flaw], CsvRows]:
    parser = CsvRows(names, **keys)
    rows = [row for chunk in chunks for row in parser.feed(chunk)]
    rows += parser.close(cut=cut)
    return [list(row.values()) for row in rows], parser.take_flaws(), parser


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1,2,3\n4,5,6\n", [["1", "2", "3"], ["4", "5", "6"]]),
        (b"1,2,3\r\n4,5,6", [["1", "2", "3"], ["4", "5", "6"]]),
        (b'"1","2, and ""more""","3"\n', [["1", '2, and "more"', "3"]]),
        (b'1,"two\r\nlines\n",3\n', [["1", "two\r\nlines\n", "3"]]),
        (b'1,,""\n', [["1", None, None]]),
        (b"\n\r\n1,2,3\n,,\n\n", [["1", "2", "3"]]),
        (b"1,2,3,\n4,5,6,\n", [["1", "2", "3"], ["4", "5", "6"]]),
        ("1,żółw,3\n".encode(), [["1", "żółw", "3"]]),
        (b"1,caf\xe9,3\n2,caf\xc3\xa9,3\n", [["1", "café", "3"], ["2", "café", "3"]]),
        (b"1,2\x00,3\n", [["1", "2\x00", "3"]]),
        (b"1,\xe2\x80\xa8\x0b\x0c,3\n", [["1", "\u2028\x0b\x0c", "3"]]),
    ],
)
def test_rows(body: bytes, rows: list[list[str | None]]) -> None:
    found, flaws, parser = read(HEAD + body)
    assert (found, flaws, parser.rows, parser.complete) == (rows, [], len(rows), True)


@pytest.mark.parametrize(
    "head",
    [b"\xef\xbb\xbfa,b,c\n", b'\n \n"a","b",c\r\n', b"a;b;c\n", b"a\tb\tc\n", b" a , b, c,\n"],
)
def test_heads(head: bytes) -> None:
    delimiter = b";" if b";" in head else b"\t" if b"\t" in head else b","
    found, flaws, parser = read(head + delimiter.join((b"1", b"2", b"3")) + b"\n")
    assert (found, flaws, parser.header) == ([["1", "2", "3"]], [], ("a", "b", "c"))


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"447700900001,2,3\n", "its first row does not name the columns of an export"),
        (b"<html>\n", "its first row does not name the columns of an export"),
        (b'a,"b\n1,2\n', "its first row does not name the columns of an export"),
        (b"x" * 300, "its first row does not name the columns of an export"),
        ("a,b,c\n1,2,3\n".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
    ],
)
def test_what_is_no_export(body: bytes, cause: str) -> None:
    found, flaws, parser = read(body, row_max=200)
    assert (found, flaws, parser.complete, parser.cause) == ([], [], False, cause)


BAD = [
    (b"1,2\n", "2 cells where the header has 3"),
    (b"1,2,3,4\n", "4 cells where the header has 3"),
    (b'1,"2" x,3\n', "a quote that is wrong or not closed"),
    (b'1,"2,3\n', "a quote that is wrong or not closed"),
    (b"1,2\r,3\n", "a line end in a cell without quotes"),
    (b"1," + b"x" * 200_000 + b",3\n", "a cell of more than 131,072 characters"),
    (b"1," + b"y" * (1 << 20) + b"\n", "a row of more than 1048576 bytes"),
]


@pytest.mark.parametrize(("row", "cause"), BAD)
@pytest.mark.parametrize("size", [1 << 30, 60_000])
def test_a_bad_row_costs_only_itself(row: bytes, cause: str, size: int) -> None:
    """Its flaw says where it stood, and holds what it takes to read it again."""
    before, after = b'0,"a\nb",c\n' * 3, b"7,8,9\n" * 50
    body = HEAD + before + row + after
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    found, flaws, parser = read(*chunks)
    assert found == [["0", "a\nb", "c"]] * 3 + [["7", "8", "9"]] * 50
    (flaw,) = flaws
    assert flaw.cause == cause
    assert flaw.position == f"line 8, byte {len(HEAD + before)}"
    assert flaw.raw == (HEAD + row.rstrip(b"\n"))[: 1 << 20]
    assert flaw.form == "record"
    assert flaw.truncated is (len(row) > 1 << 20)
    assert parser.rows == 54
    assert not read(flaw.raw)[0]


def test_a_quote_that_is_closed_by_another_row_takes_that_row_along_and_no_other() -> None:
    """It has become a row with too many or too few cells: whole, for its quotes do hold."""
    found, (flaw,), _ = read(HEAD + b'1,"2,3\n4,5",6,7\n7,8,9\n')
    assert found == [["7", "8", "9"]]
    assert flaw.raw == HEAD + b'1,"2,3\n4,5",6,7'


def test_what_is_cut_off_is_no_row() -> None:
    for cut_at, whole in ((b"4,5,6", 1), (b'4,"5', 1), (b'4,"5\n5', 1), (b"4,5,6\n", 2)):
        found, flaws, parser = read(HEAD + b"1,2,3\n" + cut_at, cut=True)
        assert (len(found), parser.complete) == (whole, False)
        assert [flaw.cause for flaw in flaws] == ["cut off before its end"] * (2 - whole)
        assert parser.cause is not None
        assert parser.cause.startswith("cut after")


def test_places() -> None:
    parser = CsvRows(names)
    assert len(parser.feed(HEAD + b'1,"2\n2",3\n4,5,6\n')) == 2
    assert [parser.place(n) for n in (1, 2, 3)] == ["line 2, byte 6", "line 4, byte 16", "row 3"]
    assert len(parser.feed(b"bad\n7,8,9\n")) == 1
    assert [parser.place(n) for n in (1, 3)] == ["row 1", "line 6, byte 26"]


PIECES = st.sampled_from(
    [b'"', b'""', b",", b"\n", b"\r\n", b"1", b"two", b"\xe9", b"\xc3\xa9", b",3\n", b'1,"x",3\n',
     b"1,2,3\n", b'"\n', b"\r", b"\x00", b'1,"two\nlines",3\n']
)  # fmt: skip


@given(st.lists(PIECES, max_size=40), st.integers(1, 30), st.booleans(), st.sampled_from([30, 999]))
def test_every_way_of_cutting_gives_the_same(
    pieces: list[bytes], size: int, cut: bool, row_max: int
) -> None:
    body = HEAD + b"".join(pieces)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    rows, flaws, parser = read(body, cut=cut, row_max=row_max)
    again = read(*parts, cut=cut, row_max=row_max)
    assert again[0] == rows
    # Where a row is too long it may show another fault first.
    seen = [(flaw.position, flaw.raw, row_max > 30 and flaw.cause) for flaw in flaws]
    assert [(f.position, f.raw, row_max > 30 and f.cause) for f in again[1]] == seen
    assert again[2].rows == parser.rows == len(rows) + len(flaws)


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), max_size=8), st.booleans())
def test_what_is_well_formed_is_what_csv_reads(table: list[list[str]], windows: bool) -> None:
    table = [[cell.replace("\r", "") for cell in row] for row in table if any(row)]
    table = [row for row in table if any(row)]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n" if windows else "\n").writerows(
        [["a", "b", "c"], *table]
    )
    body = text.getvalue().encode("utf-8", "surrogatepass").decode("utf-8", "ignore").encode()
    expected = list(csv.reader(io.StringIO(body.decode(), newline=""), strict=True))[1:]
    assert read(body)[0] == [[cell or None for cell in row] for row in expected if any(row)]


def test_memory_is_bounded() -> None:
    """Neither a quote that is never closed nor a line without end, nor a million rows."""
    parser = CsvRows(names)
    parser.feed(HEAD)
    tracemalloc.start()
    try:
        for piece in (b'\n1,"' + b"x" * 60_000, b"y" * 60_000, b"1,2,3\n" * 3_000):
            for _ in range(100):
                parser.feed(piece)
                parser.take_flaws()
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
