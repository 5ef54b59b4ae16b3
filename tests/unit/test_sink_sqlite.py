"""The sqlite sink's own matters: the two tables, what SQLite cannot take, other programs."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.report import FIELDS, Report, encode
from engine.core.state import State
from engine.sinks import sqlite
from engine.sinks.sqlite import SqliteOptions, SqliteSink


def record(event: str, revision: int = 1, **more: Any) -> bytes:
    fields = {
        "event_id": event, "account": "a", "provider": "p", "message_id": "m",
        "revision": revision, "state": State.ENROUTE, "final": False,
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))


def make(path: Path, **options: Any) -> SqliteSink:
    return SqliteSink(SqliteOptions(path=path, **options))


def ask(path: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def do(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(sql)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.db"


@pytest.mark.parametrize("prefix", ["a b", "1x", "x;", 'x"', "é", "sqlite_", "x" * 41, "a-b"])
def test_a_wrong_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError):
        SqliteOptions(path=Path("x"), table_prefix=prefix)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": Path("x"), "prefix": ""}, SqliteOptions)


async def test_columns_hold_what_the_record_says(path: Path) -> None:
    sink = make(path)
    whole = record(
        "e1", error_permanent=True, parts=2, price="0.010", extra={"big": 2**80, "é": [None]}
    )
    await sink.write(Batch([whole, record("e2", message_id="n")]))
    await sink.close()
    found = ask(path, f"SELECT {', '.join(FIELDS)} FROM reports ORDER BY event_id")
    first = dict(zip(FIELDS, found[0], strict=True))
    assert json.loads(first.pop("extra")) == {"big": 2**80, "é": [None]}
    expected = json.loads(whole)
    del expected["extra"]
    assert first == {**expected, "final": 0, "error_permanent": 1}
    assert type(first["price"]) is str
    assert ask(path, "SELECT error_permanent, extra FROM reports WHERE event_id = 'e2'") == [
        (None, "{}")
    ]
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_messages_keep_the_newest(path: Path) -> None:
    sink = make(path)
    newest = "SELECT message_id, direction, revision, state FROM messages ORDER BY 1, 2"
    await sink.write(Batch([record("e1", 1), record("e3", 3, state=State.READ), record("e2", 2)]))
    await sink.write(Batch([record("o", 1, direction="mo"), record("e0", 2), record("e4", 3)]))
    assert ask(path, newest) == [("m", "mo", 1, "enroute"), ("m", "mt", 3, "read")]
    await sink.write(Batch([record("e5", 4, state=State.DELETED)]))
    await sink.close()
    assert ask(path, newest)[1] == ("m", "mt", 4, "deleted")
    assert ask(path, "SELECT count(*) FROM reports") == [(7,)]


async def test_what_cannot_be_held_is_named(path: Path) -> None:
    sink = make(path)
    good = [record(f"e{n}", n) for n in range(4)]
    bad = record("big", 9, parts=2**63)
    for _ in range(2):
        with pytest.raises(PartialWrite) as caught:
            await sink.write(Batch([good[0], bad, good[1], b"[]", good[2], b'{"x', good[3]]))
        assert sorted(caught.value.rejected) == [1, 3, 5]
        assert "parts" in caught.value.rejected[1]
    await sink.close()
    assert ask(path, "SELECT event_id FROM reports ORDER BY 1") == [(f"e{n}",) for n in range(4)]
    assert ask(path, "SELECT revision FROM messages") == [(3,)]


@pytest.mark.parametrize("how", ["ABORT", "FAIL", "ROLLBACK"])
async def test_what_a_constraint_refuses_costs_itself_alone(path: Path, how: str) -> None:
    """In one of the tables or in the other, it is in neither; also where the refusal ends the
    transaction that others are in."""
    sink = make(path)
    await sink.open()
    for table in ("reports", "messages"):
        when = f"BEFORE INSERT ON {table} WHEN new.reference = 'not {table}'"
        do(path, f"CREATE TRIGGER no_{table} {when} BEGIN SELECT RAISE({how}, 'no'); END")
    lines = [record(f"e{n}", message_id=f"m{n}") for n in range(20)]
    lines[3] = record("e3", message_id="m3", reference="not reports")
    lines[4] = b"no record"
    lines[19] = record("e19", message_id="m19", reference="not messages")
    with pytest.raises(PartialWrite) as caught:
        await sink.write(Batch(lines))
    await sink.close()
    assert list(caught.value.rejected) == [3, 4, 19]
    assert caught.value.rejected[3] == "SQLite cannot take it: no"
    assert ask(path, "SELECT count(*) FROM reports") == [(17,)]
    assert ask(path, "SELECT count(*) FROM messages") == [(17,)]


async def test_prefix_and_other_tables(path: Path) -> None:
    do(path, "CREATE TABLE reports (mine); INSERT INTO reports VALUES (1)")
    with pytest.raises(SinkError, match="table_prefix"):
        await make(path).open()
    sink = make(path, table_prefix="dlr_")
    await sink.open()
    await sink.write(Batch([record("e")]))
    await sink.close()
    assert ask(path, "SELECT * FROM reports") == [(1,)]
    assert ask(path, "SELECT event_id FROM dlr_reports") == [("e",)]
    assert ask(path, "SELECT message_id FROM dlr_messages") == [("m",)]


async def test_missing_columns_are_added(path: Path) -> None:
    do(path, "CREATE TABLE reports (event_id TEXT, Account TEXT, note TEXT DEFAULT 'n')")
    do(path, "INSERT INTO reports VALUES ('old', 'a', 'x')")
    sink = make(path)
    await sink.write(Batch([record("old"), record("new")]))
    await sink.close()
    assert ask(path, "SELECT event_id, state, note FROM reports ORDER BY rowid") == [
        ("old", None, "x"),
        ("new", "enroute", "n"),
    ]


async def test_causes_and_recovery(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    sink = make(path)
    await sink.open()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkError, match="locked by another program"):
            await sink.write(Batch([record("e1")]))
        other.execute("ROLLBACK")
    await sink.write(Batch([record("e1")]))
    do(path, "DROP TABLE messages")
    with pytest.raises(SinkError, match="no such table"):
        await sink.write(Batch([record("e2", 2)]))
    assert ask(path, "SELECT event_id FROM reports") == [("e1",)]
    await sink.write(Batch([record("e2", 2)]))
    for each in path.parent.glob("r.db*"):
        each.unlink()
    await sink.write(Batch([record("e3", 3)]))
    await sink.close()
    assert ask(path, "SELECT event_id FROM reports") == [("e3",)]


async def test_a_full_database(path: Path) -> None:
    sink = make(path)
    await sink.open()
    assert sink._db is not None
    sink._db.execute("PRAGMA max_page_count = 20")
    lines = Batch([record(f"e{n}", n, extra={"x": "y" * 5000}) for n in range(50)])
    with pytest.raises(SinkError, match="disk is full"):
        await sink.write(lines)
    assert ask(path, "SELECT count(*) FROM reports") == [(0,)]
    await sink.write(lines)
    await sink.close()
    assert ask(path, "SELECT count(*) FROM reports") == [(50,)]


async def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_bytes(b"some notes" * 100)
    with pytest.raises(SinkError, match="not an SQLite database"):
        await make(notes).open()
    assert notes.read_bytes() == b"some notes" * 100
    with pytest.raises(SinkError, match="Is a directory"):
        await make(tmp_path).open()
