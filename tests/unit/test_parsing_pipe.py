"""PipeRows: headers, rows, what is set aside, cuts; the same for any chunking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.parsing.flaw import FLAW_RAW_MAX
from engine.parsing.pipe import PipeRows

SAMPLES = Path(__file__).parent.parent / "samples" / "bulksms"


def read(
    body: bytes, columns: int = 2, size: int = 1 << 30, *, cut: bool = False, **options: Any
) -> tuple[list[list[str]], PipeRows]:
    pipe = PipeRows(columns, **options)
    rows: list[list[str]] = []
    for start in range(0, len(body), size):
        rows += pipe.feed(body[start : start + size])
    rows += pipe.close(cut=cut)
    return rows, pipe


def seen(rows: list[list[str]], pipe: PipeRows) -> tuple[Any, ...]:
    return rows, pipe.header, pipe.rows, pipe.complete, pipe.cause, pipe.flaws


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_samples(size: int) -> None:
    rows, pipe = read((SAMPLES / "success.txt").read_bytes(), size=size)
    assert rows == [["447900000001", "11"], ["447900000002", "0"], ["447900000003", "53"]]
    assert pipe.header == ("0", "Returns to follow")
    assert (pipe.complete, pipe.cause, pipe.rows) == (True, None, 3)
    rows, pipe = read((SAMPLES / "auth_failure.txt").read_bytes(), size=size)
    assert (rows, pipe.header) == ([], ("23", "invalid credentials (username was: john)"))
    rows, pipe = read((SAMPLES / "with_optional_fields.txt").read_bytes(), 5, size)
    assert rows[0] == ["447900000001", "11", "24-05-31 09:15:02", "1.00", "order-17"]
    assert rows[2] == ["447900000003", "53", "", "0.50", ""]
    assert not pipe.flaws


def test_line_ends_blank_lines_and_a_mark_in_front() -> None:
    rows, pipe = read(b"\xef\xbb\xbf\r\n\n0|Results to follow|\r\n\r\n1|11\r\n \n2|0\n\n3|1")
    assert pipe.header == ("0", "Results to follow")
    assert rows == [["1", "11"], ["2", "0"], ["3", "1"]]
    assert pipe.complete


def test_no_rows_yet_and_nothing_at_all() -> None:
    rows, pipe = read(b"0|Returns to follow\n\n\n")
    assert (rows, pipe.complete, pipe.cause) == ([], True, None)
    rows, pipe = read(b"\n\n")
    assert (rows, pipe.complete, pipe.cause, pipe.header) == ([], False, "empty", None)


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
@pytest.mark.parametrize("cut", [False, True])
def test_not_a_report(size: int, cut: bool) -> None:
    body = b"<html><body>\r\n1|11\n2|11\n</html>"
    rows, pipe = read(body, size=size, cut=cut)
    assert (rows, pipe.rows, pipe.header) == ([], 0, None)
    assert (pipe.complete, pipe.cause) == (False, "not a report: begins with '<html'")
    assert [flaw.raw for flaw in pipe.take_flaws()] == [body]
    rows, pipe = read(b"<html>" * 200_000, size=60_000 if size > 5 else 600)
    (flaw,) = pipe.take_flaws()
    assert (len(flaw.raw), flaw.truncated) == (FLAW_RAW_MAX, True)


def test_bad_rows_cost_only_themselves() -> None:
    rows, pipe = read(b"0|ok\n1|11\n2\n3|x\n4|1|5\n+5|1\n6|11\n")
    assert rows == [["1", "11"], ["6", "11"]]
    assert pipe.rows == 6
    assert pipe.complete
    assert [(flaw.position, flaw.raw) for flaw in pipe.flaws] == [
        ("line 3", b"2"),
        ("line 4", b"3|x"),
        ("line 5", b"4|1|5"),
        ("line 6", b"+5|1"),
    ]
    assert pipe.flaws[2].cause == "3 columns where 2 were expected"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_bar_may_close_a_line(end: str) -> None:
    lines = ["0|ok|", "1|11|", "2|22", "3|0||", "4|caf\xe9|", "5|12|"]
    rows, pipe = read(end.join(lines).encode() + b"\n")
    assert rows == [["1", "11"], ["2", "22"], ["5", "12"]]
    assert [flaw.position for flaw in pipe.flaws] == ["line 4", "line 5"]
    rows, _ = read(b"0|ok\n1|11||\n2|11|a|\n3|11|\n", columns=3)
    assert rows == [["1", "11", ""], ["2", "11", "a"], ["3", "11", ""]]


def test_digits_are_ascii_digits() -> None:
    rows, pipe = read("0|ok\n1|²\n٣|11\n1|11\n".encode())
    assert rows == [["1", "11"]]
    assert len(pipe.flaws) == 2


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_text_is_decoded_line_by_line(size: int) -> None:
    rows, pipe = read("0|ok\n1|11|é€\n".encode() + b"2|11|\xe9\n3|11|x\n", 3, size)
    assert [row[2] for row in rows] == ["é€", "é", "x"]
    assert not pipe.flaws


def test_a_cut_line_is_no_row() -> None:
    rows, pipe = read(b"0|ok\n1|11\n2|1", cut=True)
    assert rows == [["1", "11"]]
    assert (pipe.complete, pipe.cause) == (False, "cut after 1 rows (line 2)")
    (flaw,) = pipe.flaws
    assert (flaw.raw, flaw.position) == (b"2|1", "line 3")
    rows, pipe = read(b"0|ok\n1|11\n", cut=True)
    assert (len(rows), pipe.complete, pipe.flaws) == (1, False, [])
    rows, pipe = read(b"0|Ret", cut=True)
    assert (rows, pipe.header, pipe.rows, len(pipe.flaws)) == ([], None, 0, 1)


@pytest.mark.parametrize("size", [1, 10, 1 << 20])
def test_long_lines_are_passed_over(size: int) -> None:
    body = b"0|ok\n1|" + b"1" * 500 + b"\r\n2|11\n" + b"3" * 500
    rows, pipe = read(body, size=size, line_max=50)
    assert rows == [["2", "11"]]
    assert [flaw.cause for flaw in pipe.flaws] == ["a line of more than 50 bytes"] * 2
    assert pipe.flaws[0].raw == b"1|" + b"1" * 48
    rows, pipe = read(b"0|ok\n1|" + b"1" * 48 + b"\r\n", size=size, line_max=50)
    assert len(rows) == 1


@pytest.mark.parametrize("size", [1, 10, 1 << 20])
def test_the_last_column_may_hold_anything(size: int) -> None:
    body = b"0|ok\n\n1|11|a|b\n\nmore | text\n\n2|11|\n3|11\nlost\n4|0|x\n\n"
    rows, pipe = read(body, 3, size, open_last=True)
    assert rows == [["1", "11", "a|b\n\nmore | text"], ["2", "11", ""], ["4", "0", "x"]]
    assert [flaw.raw for flaw in pipe.flaws] == [b"3|11", b"lost"]
    assert pipe.rows == 5


@pytest.mark.parametrize("size", [1, 10, 1 << 20])
def test_a_text_keeps_its_blank_lines_as_they_are(size: int) -> None:
    body = b"0|ok\n1|11|a\n \t\r\nb\r\n\nc\r\n \n2|11|d\n  "
    rows, _ = read(body, 3, size, open_last=True)
    assert [row[2] for row in rows] == ["a\n \t\r\nb\r\n\nc", "d"]


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_blank_lines_without_end_are_bounded(size: int) -> None:
    body = b"0|ok\n1|11|a\n" + b" \n" * 100 + b"2|11|b\n" + b" \n" * 100 + b"more\n3|0|c"
    rows, pipe = read(body, 3, size, open_last=True, line_max=50)
    assert rows == [["1", "11", "a"], ["3", "0", "c"]]
    assert [flaw.cause for flaw in pipe.flaws] == ["a row of more than 50 bytes"]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_cut_text_takes_its_row_along(size: int) -> None:
    body = b"0|ok\n1|11|a\n2|11|b\n"
    rows, pipe = read(body + b"and mo", 3, size, open_last=True, cut=True)
    assert rows == [["1", "11", "a"]]
    assert [flaw.raw for flaw in pipe.flaws] == [b"2|11|b\nand mo"]
    rows, pipe = read(body + b"3|1", 3, size, open_last=True, cut=True)
    assert rows == [["1", "11", "a"], ["2", "11", "b"]]
    assert [flaw.raw for flaw in pipe.flaws] == [b"3|1"]


def test_a_text_without_end_is_bounded() -> None:
    body = b"0|ok\n1|11|" + b"line\n" * 100 + b"2|11|x\n"
    rows, pipe = read(body, 3, 7, open_last=True, line_max=50)
    assert rows == [["2", "11", "x"]]
    (flaw,) = pipe.flaws
    assert flaw.truncated
    assert len(flaw.raw) <= 50
    assert pipe.rows == 2


def test_misuse() -> None:
    with pytest.raises(ValueError):
        PipeRows(1)
    pipe = PipeRows(2)
    pipe.close()
    assert pipe.close() == []
    with pytest.raises(RuntimeError):
        pipe.feed(b"x")


LINE = st.one_of(
    st.sampled_from([b"1|11", b"2|0|x", b"", b" ", b"\r", b"3", b"<html>", b"4|11|\xe9", b"0|ok|"]),
    st.binary(max_size=12).map(lambda raw: b"5|11|" + raw),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(LINE, max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_chunking_changes_nothing(
    lines: list[bytes], end: bytes, size: int, cut: bool, open_last: bool, headed: bool
) -> None:
    body = end.join([b"0|Returns to follow", b"", *lines] if headed else lines)
    options: dict[str, Any] = {"cut": cut, "open_last": open_last, "line_max": 30}
    expected = seen(*read(body, 3, **options))
    assert seen(*read(body, 3, size, **options)) == expected
    assert seen(*read(body, 3, 1, **options)) == expected
    assert len(expected[0]) + len(expected[5]) >= expected[2]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(1, 9))
def test_any_bytes(body: bytes, size: int) -> None:
    assert seen(*read(body, size=size)) == seen(*read(body))
