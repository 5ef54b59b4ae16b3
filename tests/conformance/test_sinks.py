"""The sinks without a server, through the suite that everybody's sink has to pass.

A `Case` says how a sink is made, how what it holds is read back, and how it is taken down and
brought back.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard

from engine.core.errors import SinkError
from engine.core.report import FIELDS
from engine.sinks.jsonl import JsonlSink
from engine.sinks.parquet import ParquetSink
from engine.sinks.sqlite import SqliteSink
from engine.sinks.stdout import StdoutSink
from engine.testing import SinkCase, SinkSuite, batch, numbers, record
from engine.testing.records import Record

OUT = SimpleNamespace(stdout=io.TextIOWrapper(io.BytesIO()))
"""Stands for `sys` in the sink: pytest puts its own stdout into the real one."""
KILLS = 3


@dataclass
class Folder:
    """A place on this machine: a file, or a folder of files, in a folder of its own."""

    path: Path
    options: dict[str, Any]
    reader: Callable[[Path], list[Record]]
    down: Callable[[Path], AbstractContextManager[None]]
    away: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    async def read(self) -> list[Record]:
        return self.reader(self.path)

    async def cut(self) -> None:
        self.away.enter_context(self.down(self.path))

    async def mend(self) -> None:
        self.away.close()


@dataclass(frozen=True)
class Case(SinkCase[Folder]):
    """A sink under test that has no server."""

    durable: bool = True  # what was accepted outlives a killed process
    memory_max: int = 48 << 20  # less than what 100,000 records take


def case(
    name: str,
    sink: type[Any],
    options: dict[str, Any],
    read: Callable[[Path], list[Record]],
    down: Callable[[Path], AbstractContextManager[None]],
    **more: Any,
) -> Case:
    @contextlib.asynccontextmanager
    async def place() -> AsyncIterator[Folder]:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            path = Path(folder) / "records.out"
            keys = {**options, "path": path}
            patch.setattr("engine.sinks.sqlite.BUSY_S", 0.1)
            if sink is StdoutSink:
                keys = options
                patch.setattr(OUT, "stdout", io.TextIOWrapper(io.FileIO(path, "w")))
                patch.setattr("engine.sinks.stdout.sys", OUT)
            yield Folder(path, keys, read, down)
            if sink is StdoutSink:
                OUT.stdout.close()

    return Case(sink, place, name, **more)


def parse(data: bytes) -> list[Record]:
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def read_jsonl(path: Path) -> list[Record]:
    return parse(path.read_bytes())


def read_gzip(path: Path) -> list[Record]:
    return parse(gzip.decompress(path.read_bytes()))


def unzstd(path: Path) -> bytes:
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return reader.read()


def read_zstd(path: Path) -> list[Record]:
    return parse(unzstd(path))


def read_rotated(path: Path) -> list[Record]:
    def place(name: str) -> tuple[str, int]:
        day, _, rest = name.removeprefix(path.stem + "-").partition(".")
        return day, int(rest.partition(".")[0]) if rest[:1].isdigit() else 0

    names = [each.name for each in path.parent.glob(f"{path.stem}-*")]
    packed = {name.removesuffix(".zst") for name in names if name.endswith(".zst")}
    plain = {name for name in names if not name.endswith(".zst")}
    assert not packed & plain
    data = b""
    for name in sorted(packed | plain, key=place):
        there = path.with_name(name)
        data += there.read_bytes() if name in plain else unzstd(path.with_name(name + ".zst"))
    return parse(data + path.read_bytes())


def read_sqlite(path: Path) -> list[Record]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute(f"SELECT {', '.join(FIELDS)} FROM reports ORDER BY rowid").fetchall()
    found = [dict(zip(FIELDS, row, strict=True)) for row in rows]
    for each in found:
        each["extra"] = json.loads(each["extra"])
        each["final"] = bool(each["final"])
    return found


def read_parquet(path: Path) -> list[Record]:
    """A folder of files has no order of its own: by number."""
    rows = [
        row
        for file in path.glob("day=*/*.parquet")
        for row in pq.read_table(file, partitioning=None).to_pylist()
    ]
    for row in rows:
        for name in ("sent_at", "done_at", "observed_at"):
            time = row[name]
            row[name] = time and time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row["extra"] = json.loads(row["extra"])
    return sorted(rows, key=lambda row: row["event_id"])


@contextlib.contextmanager
def folder_in_the_way(path: Path) -> Iterator[None]:
    """The path cannot be written; what was there is put back afterwards."""
    aside = path.with_name("aside")
    path.rename(aside)
    path.mkdir()
    yield
    path.rmdir()
    aside.rename(path)


@contextlib.contextmanager
def file_in_the_way(path: Path) -> Iterator[None]:
    aside = path.with_name("aside")
    path.rename(aside)
    path.touch()
    yield
    path.unlink()
    aside.rename(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


class Full(io.BytesIO):
    def write(self, data: Any) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@contextlib.contextmanager
def reader_gone(_path: Path) -> Iterator[None]:
    kept = OUT.stdout
    OUT.stdout = io.TextIOWrapper(Full())
    yield
    OUT.stdout = kept


CASES = [
    case("jsonl", JsonlSink, {}, read_jsonl, folder_in_the_way),
    case("jsonl-gzip", JsonlSink, {"compress": "gzip"}, read_gzip, folder_in_the_way),
    case("jsonl-zstd", JsonlSink, {"compress": "zstd"}, read_zstd, folder_in_the_way),
    case(
        "jsonl-rotated", JsonlSink, {"rotate": "300kB", "compress": "zstd"}, read_rotated,
        folder_in_the_way,
    ),
    case(
        "sqlite", SqliteSink, {}, read_sqlite, locked, once=True,
        refuses=lambda n: record(n, revision=2**70),
    ),
    case(
        "parquet", ParquetSink, {}, read_parquet, file_in_the_way, once=True,
        refuses=lambda n: b"no record, the %dth" % n,
    ),
    case("stdout", StdoutSink, {}, read_jsonl, reader_gone, durable=False),
]  # fmt: skip
DURABLE = [each for each in CASES if each.durable]


class TestSinks(SinkSuite):
    @pytest.fixture(params=CASES, ids=lambda case: case.id)
    def case(self, request: pytest.FixtureRequest) -> Case:
        found: Case = request.param
        return found


@pytest.mark.parametrize("case", DURABLE, ids=lambda case: case.id)
def test_what_cannot_be_written_is_named(case: Case) -> None:
    async def check(place: Folder) -> None:
        sink = case.make(place)
        await sink.open()
        await sink.write(batch(0, 10))
        await place.cut()
        with pytest.raises(SinkError) as caught:
            await sink.write(batch(10, 10))
        await place.mend()
        await sink.close()
        assert "cannot write" in caught.value.cause
        assert str(place.path) in caught.value.cause

    case.run(check)


WRITER = textwrap.dedent("""
    import json, pathlib, sys
    import anyio, msgspec
    import importlib
    from engine.core.contracts import Batch
    module, kind, options, template, start = json.loads(sys.argv[1])
    made = getattr(importlib.import_module(module), kind)
    def line(n):
        return template.replace("@", f"{n:032x}", 1).replace("@", str(n)).encode()
    async def main():
        sink = made(msgspec.convert(options, made.Options, dec_hook=lambda t, v: t(v)))
        await sink.open()
        n = start
        while True:
            await sink.write(Batch([line(n + i) for i in range(200)]))
            n += 200
            print(n, flush=True)
    anyio.run(main)
""")


def run_and_kill(spec: list[Any], after_s: float) -> int:
    """How many records the child was told are accepted before it was killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, json.dumps(spec)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    assert child.stdout is not None
    with child, child.stdout as told:
        first = told.readline()
        time.sleep(after_s)
        child.kill()
        return int((first + told.read()).split()[-1])


@pytest.mark.parametrize("case", DURABLE, ids=lambda case: case.id)
def test_killed_while_writing(case: Case) -> None:
    async def check(place: Folder) -> None:
        rand = random.Random(7)
        template = record(0, event_id="@", message_id="m@").decode()
        made: Any = case.sink
        options = {**place.options, "path": str(place.path)}
        accepted = 0
        for _ in range(KILLS):
            spec = [made.__module__, made.__name__, options, template, accepted]
            accepted = run_and_kill(spec, rand.uniform(0.005, 0.08))
        sink = case.make(place)
        await sink.open()
        await sink.write(batch(accepted, 100))
        await sink.close()
        found = numbers(await place.read())  # reading also proves that every line is whole
        assert set(found) >= set(range(accepted + 100))
        if case.once and made is not ParquetSink:  # it may cut its batches otherwise after a crash
            assert found == list(range(len(found)))
        else:
            assert list(dict.fromkeys(found)) == list(range(len(set(found))))

    case.run(check)
