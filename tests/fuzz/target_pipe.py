"""PipeRows: the same for every way of cutting, equal to a plain split, bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.parsing.flaw import FLAW_RAW_MAX
from engine.parsing.pipe import LINE_MAX, PipeRows
from tests.fuzz.draw import Draw, chunks, damaged

LENGTH = 160
SAMPLES = Path(__file__).parents[1] / "samples"
WORDS = (
    b"0|In progress|\n", b"447700900001|11\n", b"|", b"\r\n", b"\n", b"||", b"\xef\xbb\xbf",
    b"23|auth failure\n", b"<html>", b"\x00", b"\xff", b"\xc3\xa9", b"1|1", b"\n\n", b" \n",
)  # fmt: skip
LINES = (
    b"447700900001|11", b"1|1|", b"9|0|a|b|c", b"12|10|caf\xc3\xa9", b"12|10|caf\xe9",
    b"44a|11", b"|", b"447700900001|", b"+4477|11|x", b"", b" ", b"more text", b"a|b",
    b"3|11|line one", b"\x1c", b"1|11|\r", b"7|50|2026-01-01 10:00:00|src|body",
)  # fmt: skip

_ROW = re.compile(r"[0-9]+\|[0-9]+(?:\||$)")


def seeds() -> Iterator[bytes]:
    for path in sorted(SAMPLES.glob("bulksms/*.txt")):
        for columns in range(4):
            yield bytes([0, columns, 3, 7]) + path.read_bytes()
    for mode in (1, 2, 3):
        yield bytes([mode, *range(70)])
        yield bytes([mode, *range(255, 60, -3)])


def check(data: bytes) -> None:
    draw = Draw(data)
    mode = draw.byte() % 4
    columns, open_last = 2 + draw.below(4), draw.flag()
    sizes = draw.sizes()
    line_max, cut = LINE_MAX, False
    if mode == 0:
        body = draw.rest()
    elif mode == 1:
        wanted = _table(draw, columns, open_last=open_last)
        body = _written(draw, wanted)
        rows, _ = read([body], columns, LINE_MAX, open_last=open_last, cut=False)
        assert rows == wanted
    else:
        body = b"".join(
            draw.pick(LINES) + draw.pick((b"\n", b"\n", b"\r\n")) for _ in range(draw.below(12))
        )
        body = b"0|ok|\n" + body if draw.below(4) else body
        if mode == 3:
            body = damaged(draw, body, WORDS)
            line_max = draw.pick((LINE_MAX, 40, 8))
        if draw.chance(64) and len(body) < 100:
            body *= 1 + draw.below(20)
        cut = draw.chance(4)
    if cut:
        _cut(draw, body, sizes, columns, line_max, open_last=open_last)
        return
    rows, pipe = read(chunks(body, sizes), columns, line_max, open_last=open_last, cut=False)
    whole, other = read([body], columns, line_max, open_last=open_last, cut=False)
    assert state(rows, pipe) == state(whole, other)
    _invariants(body, rows, pipe)
    if line_max == LINE_MAX:
        _compare(body, rows, pipe, columns, open_last=open_last)


def _table(draw: Draw, columns: int, *, open_last: bool) -> list[list[str]]:
    """Rows as a provider may give them; no line of a free text looks like a row."""
    rows = []
    for _ in range(draw.below(9)):
        row = [str(draw.whole(5)), str(draw.below(80))]
        row += [re.sub(r"[\s|]", "_", draw.text(6)) for _ in range(columns - 2)]
        if open_last and columns > 2:
            lines = [draw.pick(("a", "b|c", "|", "é", "x|11")) for _ in range(1 + draw.below(4))]
            row[-1] = draw.pick(("\n", "\r\n", "\n\n", "\n \n", "\r\n\r\n")).join(lines)
        rows.append(row)
    return rows


def _written(draw: Draw, rows: Sequence[Sequence[str]]) -> bytes:
    end = draw.pick(("\n", "\r\n"))
    text = end.join(["0|Returns to follow|", *map("|".join, rows)])
    return text.encode() + draw.pick(("", end, end + end)).encode()


def read(
    parts: Sequence[bytes], columns: int, line_max: int, *, open_last: bool, cut: bool
) -> tuple[list[list[str]], PipeRows]:
    """Rows and parser of one reading, with its memory looked after."""
    pipe = PipeRows(columns, line_max=line_max, open_last=open_last)
    rows: list[list[str]] = []
    for part in parts:
        rows += pipe.feed(part)
        assert sum(map(len, pipe._parts)) <= line_max + 2
        assert sum(map(len, pipe._open or ())) <= 4 * line_max
        assert len(pipe._refused or b"") <= FLAW_RAW_MAX
    return rows + pipe.close(cut=cut), pipe


def state(rows: list[list[str]], pipe: PipeRows) -> str:
    seen = (pipe.header, pipe.rows, pipe.complete, pipe.cause, pipe.flaws)
    return repr((rows, seen))


def _invariants(body: bytes, rows: list[list[str]], pipe: PipeRows) -> None:
    assert pipe.complete or pipe.cause
    assert pipe.header is not None or not rows
    refused = not pipe.complete and pipe.cause != "empty"
    assert pipe.rows == len(rows) + len(pipe.flaws) - refused
    for flaw in pipe.flaws:
        assert flaw.cause.isprintable()
        assert int(flaw.position.removeprefix("line ")) <= body.count(b"\n") + 1


def _cut(
    draw: Draw, body: bytes, sizes: list[int], columns: int, line_max: int, *, open_last: bool
) -> None:
    """What a cut body gives is what the whole one begins with."""
    whole, _ = read([body], columns, line_max, open_last=open_last, cut=False)
    body = body[: draw.below(len(body) + 1)]
    rows, pipe = read(chunks(body, sizes), columns, line_max, open_last=open_last, cut=True)
    again, other = read([body], columns, line_max, open_last=open_last, cut=True)
    assert state(rows, pipe) == state(again, other)
    assert not pipe.complete
    assert pipe.cause
    if line_max < LINE_MAX:  # a text that goes on may make its row too long
        return
    if rows and open_last:  # the text of the last one may have gone on behind the cut
        *_, last = rows
        full = whole[len(rows) - 1]
        assert last[:-1] == full[:-1]
        assert full[-1].startswith(last[-1])
        rows.pop()
    assert rows == whole[: len(rows)]


def _compare(
    body: bytes, rows: list[list[str]], pipe: PipeRows, columns: int, *, open_last: bool
) -> None:
    """Against the body split whole."""
    lines = body.split(b"\n")
    if not lines[-1]:
        lines.pop()
    lines[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in lines[:1]]
    texts = [_decoded(line) for line in lines]
    filled = [index for index, text in enumerate(texts) if text.strip()]
    if not filled:
        assert (rows, pipe.complete, pipe.cause) == ([], False, "empty")
        return
    first = filled.pop(0)
    if not re.match(r"[0-9]+\|", texts[first]):
        assert (rows, pipe.complete, pipe.rows) == ([], False, 0)
        return
    assert pipe.complete
    if open_last:
        expected, bad = _free(texts, filled, columns)
    else:
        split = [texts[index].removesuffix("\r").split("|") for index in filled]
        for row in split:  # a bar may close the line
            if len(row) == columns + 1 and not row[-1].strip():
                row.pop()
        good = [len(row) == columns and bool(_ROW.match("|".join(row))) for row in split]
        expected = [row for row, fits in zip(split, good, strict=True) if fits]
        bad = len(split) - len(expected)
    assert rows == expected
    assert pipe.rows == len(expected) + bad


def _free(texts: list[str], filled: list[int], columns: int) -> tuple[list[list[str]], int]:
    """Rows whose last column runs on until the next row begins, its blank lines included."""
    expected: list[list[str]] = []
    bad = 0
    starts = [index for index in filled if _ROW.match(texts[index].removesuffix("\r"))]
    before = filled[: filled.index(starts[0])] if starts else filled
    bad += len(before)
    for number, start in enumerate(starts):
        behind = starts[number + 1] if number + 1 < len(starts) else len(texts)
        last = max(index for index in filled if start <= index < behind)
        if texts[start].removesuffix("\r").count("|") < columns - 1:
            bad += sum(start <= index < behind for index in filled)
            continue
        text = "\n".join(texts[start : last + 1]).removesuffix("\r")
        expected.append(text.split("|", columns - 1))
    return expected, bad


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")
