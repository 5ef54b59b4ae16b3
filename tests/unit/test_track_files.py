"""Files of sent messages: what is wrong with which line, and files that change meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.books.sent import Row
from engine.cli import track
from engine.cli.rows import Faulty, Source
from engine.core.errors import ConfigError, EngineError


def batches_alone(row: Row) -> None:
    if row.batch_id is None:
        raise ConfigError(["takes batch ids, not a message id"])


def faults(path: Path) -> list[str]:
    with Source(path) as source:
        try:
            for _ in source.chunks(batches_alone):
                pass
        except Faulty as faulty:
            return [line.removeprefix(f"{path.name}: ") for line in faulty.lines[:-1]]
    return []


@pytest.mark.parametrize(
    ("name", "data", "lines"),
    [
        (
            "a.csv",
            b"batch_id,message_id,recipient\n1,,2\n,m,2\n3,,4,5\n,n,2\n",
            [
                "line 3: takes batch ids, not a message id",
                "line 4: has 4 cells, the header has 3",
                "line 5: takes batch ids, not a message id",
            ],
        ),
        (
            "b.jsonl",
            b'{"batch_id":1}\r\n\r\n{"message_id":2}\r\n{"batch_id":true}',
            [
                "line 3: takes batch ids, not a message id",
                'line 4: batch_id: expected a text, got "true"',
            ],
        ),
        ("c.csv", b"\xef\xbb\xbfbatch_id\r\n1\r\n", []),
        (
            "d.csv",
            b"batch_id,recipient\r1,2\r",
            [
                "line 1: is not CSV: a carriage return alone, where a line should end with a line"
                " feed"
            ],
        ),
        ("e.csv", "batch_id\n1\n".encode("utf-16"), ["line 1: is UTF-16, expected UTF-8"]),
        ("f.jsonl", '{"batch_id":1}'.encode("utf-16"), ["line 1: is UTF-16, expected UTF-8"]),
        ("g.csv", b"batch_id,n\xe4me\n1,2\n", ["line 1: is not UTF-8"]),
        ("h.csv", b"batch_id;recipient\n1;2\n", ["line 1: expected commas between the columns"]),
        ("i.csv", b"batch_id\trecipient\n1\t2\n", ["line 1: expected commas between the columns"]),
        (
            "j.csv",
            b"batch_id,,\n1,,\n",
            ["line 1: column 2 has no name", "line 1: column 3 has no name"],
        ),
    ],
)
def test_each_fault_has_its_line(tmp_path: Path, name: str, data: bytes, lines: list[str]) -> None:
    (tmp_path / name).write_bytes(data)
    assert faults(tmp_path / name) == lines


def test_what_is_written_behind_its_end_meanwhile_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    path.write_bytes(b'{"batch_id":"1"}\n{"batch_id":"2"}')
    with Source(path) as source:
        first = [row.batch_id for chunk in source.chunks() for row in chunk]
        with path.open("ab") as writer:
            writer.write(b'\n{"batch_id":"3"}\n{"batch')
        assert [row.batch_id for chunk in source.chunks() for row in chunk] == first == ["1", "2"]


def test_what_is_changed_meanwhile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    path.write_bytes(b'{"batch_id":"1"}\n')
    with Source(path) as source:
        path.write_bytes(b"x" * 17)
        with pytest.raises(EngineError, match="changed while it was read"):
            list(track._read(source, 0))
