"""The parquet sink's own matters: what any reader sees, days, whole files, what a crash leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import engine
from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.report import FIELDS, Report, encode
from engine.core.state import State
from engine.sinks import parquet
from engine.sinks.parquet import ParquetOptions, ParquetSink


def record(event: str, observed_at: str = "2026-01-01T12:30:00.500Z", **more: Any) -> bytes:
    fields = {
        "event_id": event, "account": "a", "provider": "p", "message_id": "m", "revision": 1,
        "state": State.ENROUTE, "final": False, "observed_at": observed_at,
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))


def files(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())


async def stored(path: Path, *lines: bytes) -> dict[int, str]:
    """What was refused of a batch."""
    sink = ParquetSink(ParquetOptions(path=path))
    await sink.open()
    try:
        await sink.write(Batch(lines))
    except PartialWrite as error:
        return error.rejected
    finally:
        await sink.close()
    return {}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reports"


TIMES = ("sent_at", "done_at", "observed_at")


def by_arrow(path: Path) -> list[dict[str, Any]]:
    table = ds.dataset(path, partitioning="hive").to_table().sort_by("event_id")
    for field in TIMES:
        place = table.schema.get_field_index(field)
        table = table.set_column(place, field, table.column(field).cast(pa.int64()))
    return list(table.to_pylist())


def by_duckdb(path: Path) -> list[dict[str, Any]]:
    columns = [f"epoch_ms({field})" if field in TIMES else field for field in FIELDS]
    with duckdb.connect() as db:
        rows = db.execute(
            f"SELECT {', '.join(columns)}, day::VARCHAR"
            f" FROM read_parquet('{path}/**/*.parquet', hive_partitioning = true) ORDER BY event_id"
        ).fetchall()
    return [dict(zip((*FIELDS, "day"), row, strict=True)) for row in rows]


async def test_two_readers_see_the_same(path: Path) -> None:
    extra = {"big": 2**80, "é": [None], "nul": "\0"}
    await stored(
        path,
        record("e1", parts=2, error_permanent=True, price="0.010", extra=extra),
        record("e2", "2026-01-02T00:00:00.000Z", sent_at="2025-12-31T23:59:59.999Z"),
    )
    first, second = found = by_arrow(path)
    assert (first["day"], first["parts"], first["price"]) == ("2026-01-01", 2, "0.010")
    assert json.loads(first["extra"]) == extra
    assert first["observed_at"] == 1767270600500
    assert (second["day"], second["sent_at"]) == ("2026-01-02", 1767225599999)
    assert by_duckdb(path) == found


async def test_types_are_in_the_file(path: Path) -> None:
    await stored(path, record("e1"))  # whatever is null in it
    (file,) = files(path)
    schema = pq.read_schema(path / file)
    assert tuple(schema.names) == FIELDS
    kinds = {field.name: str(field.type) for field in schema if field.type != pa.string()}
    assert kinds == {
        "revision": "int64", "parts": "int64", "final": "bool", "error_permanent": "bool",
        "sent_at": "timestamp[ms, tz=UTC]", "done_at": "timestamp[ms, tz=UTC]",
        "observed_at": "timestamp[ms, tz=UTC]",
    }  # fmt: skip


async def test_a_folder_a_day_and_a_file_a_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "SLICE", 3)
    days = ["2026-01-01T23:59:59.999Z", "2026-01-02T00:00:00.000Z"]
    lines = [record(f"e{n}", days[n % 2]) for n in range(10)]
    await stored(path, *lines)
    first, second = files(path)
    assert first.startswith("day=2026-01-01/235959-")
    assert second.startswith("day=2026-01-02/000000-")
    events = [pq.read_table(path / each).column("event_id").to_pylist() for each in (first, second)]
    assert events == [[f"e{n}" for n in range(0, 10, 2)], [f"e{n}" for n in range(1, 10, 2)]]
    await stored(path, *lines)
    assert files(path) == [first, second]
    await stored(path, *lines[:8])
    assert len(files(path)) == 4


async def test_only_the_owner_may_read(path: Path) -> None:
    await stored(path / "deep", record("e1"))
    (file,) = files(path)
    parts = [path / file, *(path / file).parents][:4]
    assert parts[-1] == path
    assert [stat.S_IMODE(os.stat(part).st_mode) for part in parts] == [0o600] + [0o700] * 3


async def test_what_does_not_fit_is_refused_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "SLICE", 2)
    bad = await stored(path, record("e1"), b"x", record("e2", parts=2**63), record("e3"), b"{}")
    assert list(bad) == [1, 2, 4]
    assert all(why.startswith("not a record: ") for why in bad.values())
    (file,) = files(path)
    assert pq.read_table(path / file).num_rows == 2
    assert len(await stored(path, b"x")) == 1
    assert files(path) == [file]


async def test_what_a_crash_left_is_removed_unless_it_is_being_written(path: Path) -> None:
    await stored(path, record("e1"))
    (file,) = files(path)
    for name in (".unfinished-dead", ".unfinished-alive", "notes"):
        (path / name).write_bytes(b"PAR1")
    with (path / ".unfinished-alive").open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        await stored(path, record("e1"))
    assert files(path) == [".unfinished-alive", file, "notes"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
async def test_a_failure_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sink = ParquetSink(ParquetOptions(path=path))
    await sink.open()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(SinkError, match=f"cannot write {path}: No space left on device"):
            await sink.write(Batch([record("e1")]))
    assert files(path) == []
    await sink.write(Batch([record("e1")]))
    await sink.close()
    assert len(files(path)) == 1


def test_its_batches_are_larger_unless_told_otherwise(tmp_path: Path) -> None:
    def batch(**keys: Any) -> tuple[int, int, float]:
        account = {
            "name": "a", "provider": "bulksms", "base_url": "https://h", "username": "u",
            "password": "p",
        }  # fmt: skip
        sink = {"name": "s", "type": "parquet", "path": "days", **keys}
        config = engine.configure({"accounts": [account], "sinks": [sink]}, base=tmp_path)
        found = config.sinks[0].batch
        return found.records, found.bytes, found.wait_s

    assert batch() == (20_000, 16 << 20, 60.0)
    assert batch(batch={"wait": "5s"}) == (20_000, 16 << 20, 5.0)
    assert batch(batch={"records": 10, "bytes": "1kB"}) == (10, 1000, 60.0)
