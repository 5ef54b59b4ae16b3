"""What every sink owes the dispatcher, as one suite over all of them.

A sink from elsewhere is put through it by a `Case` of its own: how it is made, how what it holds
is read back, and how it is taken down and brought back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pyarrow.parquet as pq
import pytest
import zstandard

from engine.core.contracts import Batch, Sink
from engine.core.errors import SinkError
from engine.core.report import FIELDS
from engine.sinks.jsonl import JsonlSink
from engine.sinks.parquet import ParquetSink
from engine.sinks.sqlite import SqliteSink
from engine.sinks.stdout import StdoutSink
from tests.conformance.places import batch, numbers, record

Record = dict[str, Any]
OUT = SimpleNamespace(stdout=io.TextIOWrapper(io.BytesIO()))
"""Stands for `sys` in the sink: pytest puts its own stdout into the real one."""
KILLS = 3
MANY = 100_000
MEMORY_MAX = 48 << 20  # less than what MANY records take


@dataclass(frozen=True)
class Case:
    """A sink under test."""

    id: str
    sink: type[Any]
    options: dict[str, Any]
    read: Callable[[Path], list[Record]]
    down: Callable[[Path], AbstractContextManager[None]]
    once: bool = False  # a repeated batch leaves no repeated record
    durable: bool = True  # what was accepted outlives a killed process

    def make(self, path: Path) -> Sink:
        options = {**self.options, "path": path} if self.durable else self.options
        sink: Sink = self.sink(msgspec.convert(options, self.sink.Options))
        return sink


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
        for field in ("sent_at", "done_at", "observed_at"):
            time = row[field]
            row[field] = time and time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row["extra"] = json.loads(row["extra"])
    return sorted(rows, key=lambda row: row["event_id"])


def read_stdout(_path: Path) -> list[Record]:
    return parse(OUT.stdout.buffer.getvalue())


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
    Case("jsonl", JsonlSink, {}, read_jsonl, folder_in_the_way),
    Case("jsonl-gzip", JsonlSink, {"compress": "gzip"}, read_gzip, folder_in_the_way),
    Case("jsonl-zstd", JsonlSink, {"compress": "zstd"}, read_zstd, folder_in_the_way),
    Case(
        "jsonl-rotated", JsonlSink, {"rotate": "300kB", "compress": "zstd"}, read_rotated,
        folder_in_the_way,
    ),
    Case("sqlite", SqliteSink, {}, read_sqlite, locked, once=True),
    Case("parquet", ParquetSink, {}, read_parquet, file_in_the_way, once=True),
    Case("stdout", StdoutSink, {}, read_stdout, reader_gone, durable=False),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    found: Case = request.param
    if not found.durable:
        monkeypatch.setattr(OUT, "stdout", io.TextIOWrapper(io.BytesIO()))
        monkeypatch.setattr("engine.sinks.stdout.sys", OUT)
    monkeypatch.setattr("engine.sinks.sqlite.BUSY_S", 0.1)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.out"


async def test_accepts_all_in_order(case: Case, path: Path) -> None:
    sink = case.make(path)
    await sink.open()
    await sink.write(Batch([]))
    for start in range(0, 100, 25):
        await sink.write(batch(start, 25))
    await sink.close()
    assert numbers(case.read(path)) == list(range(100))


async def test_a_record_comes_back_as_it_was(case: Case, path: Path) -> None:
    text = 'line\nbreak\r\n\t"quoted" \\ \u2028 \0 😀 é'
    huge = {"deep": [{"n": 2**70, "text": text}] * 3, "long": "x" * 3_000_000}
    lines = [record(1, content=text, message_id="é\n", extra=huge), record(2, parts=3)]
    sink = case.make(path)
    await sink.open()
    await sink.write(Batch(lines))
    await sink.close()
    assert case.read(path) == [json.loads(line) for line in lines]


async def test_the_same_batch_twice(case: Case, path: Path) -> None:
    sink = case.make(path)
    await sink.open()
    await sink.write(batch(0, 10))
    await sink.write(batch(0, 10))
    await sink.close()
    assert numbers(case.read(path)) == list(range(10)) * (1 if case.once else 2)


async def test_a_restart_appends(case: Case, path: Path) -> None:
    for start in (0, 10, 20):
        sink = case.make(path)
        await sink.open()
        await sink.write(batch(start, 10))
        await sink.close()
    assert numbers(case.read(path)) == list(range(30))


async def test_down_and_back(case: Case, path: Path) -> None:
    sink = case.make(path)
    await sink.open()
    await sink.write(batch(0, 10))
    with case.down(path):
        for _ in range(2):
            with pytest.raises(SinkError) as caught:
                await sink.write(batch(10, 10))
            assert "cannot write" in caught.value.cause
            if case.durable:
                assert str(path) in caught.value.cause
    await sink.write(batch(10, 10))
    await sink.close()
    assert numbers(case.read(path)) == list(range(20))


@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
async def test_cancelled_then_written_again(case: Case, path: Path, native: bool) -> None:
    sink = case.make(path)
    await sink.open()
    for turn in range(8):
        work = batch(turn * 500, 500)
        delay = turn * 0.001
        if native:
            task = asyncio.create_task(sink.write(work))  # type: ignore[arg-type]
            await anyio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
        else:
            with anyio.move_on_after(delay):
                await sink.write(work)
        await sink.write(work)
    await sink.close()
    found = numbers(case.read(path))
    assert list(dict.fromkeys(found)) == list(range(4000))
    if case.once:
        assert len(found) == 4000


async def test_many_records_in_bounded_memory(case: Case, path: Path) -> None:
    sink = case.make(path)
    await sink.open()
    if not case.durable:
        OUT.stdout = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    template = record(0, event_id="@", message_id="m@")

    def thousand(start: int) -> Batch:
        return Batch([template.replace(b"@", b"%032x" % (start + n)) for n in range(1000)])

    await sink.write(thousand(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(1000, MANY, 1000):
        await sink.write(thousand(start))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    await sink.close()
    if not case.durable:
        OUT.stdout.close()
    assert grown < MEMORY_MAX


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


@pytest.mark.parametrize("case", [c for c in CASES if c.durable], ids=lambda c: c.id, indirect=True)
async def test_killed_while_writing(case: Case, path: Path) -> None:
    rand = random.Random(7)
    template = record(0, event_id="@", message_id="m@").decode()
    options = {**case.options, "path": str(path)}
    accepted = 0
    for _ in range(KILLS):
        spec = [case.sink.__module__, case.sink.__name__, options, template, accepted]
        accepted = run_and_kill(spec, rand.uniform(0.005, 0.08))
    sink = case.make(path)
    await sink.open()
    await sink.write(batch(accepted, 100))
    await sink.close()
    found = numbers(case.read(path))  # reading also proves that every line is whole
    assert set(found) >= set(range(accepted + 100))
    if case.once and case.sink is not ParquetSink:  # its batches may be cut otherwise after a crash
        assert found == list(range(len(found)))
    else:
        assert list(dict.fromkeys(found)) == list(range(len(set(found))))
