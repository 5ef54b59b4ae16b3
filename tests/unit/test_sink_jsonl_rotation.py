"""The jsonl sink: rotation by day and by size, compression of what was rotated, and crashes."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.core.contracts import Batch
from engine.core.errors import SinkError
from engine.machine.offload import Interrupted
from tests.unit.jsonl_files import (
    DAY_S,
    NOON,
    Clock,
    batch,
    in_order,
    line,
    make,
    names,
    text,
    unzstd,
)


async def test_rotation_by_day(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "r.jsonl"
    sink = make(path, clock, rotate="day")
    await sink.open()
    await sink.write(batch(1))
    await sink.write(batch(2))
    clock.now += DAY_S
    await sink.write(batch(3))
    clock.now -= DAY_S  # a clock that steps back starts no file
    await sink.write(batch(4))
    clock.now += 3 * DAY_S
    await sink.write(batch(5))
    await sink.close()
    assert names(tmp_path) == ["r-2030-05-01.1.jsonl", "r-2030-05-01.jsonl", "r.jsonl"]
    assert (tmp_path / "r-2030-05-01.jsonl").read_bytes() == text(1, 2)
    assert (tmp_path / "r-2030-05-01.1.jsonl").read_bytes() == text(3, 4)
    assert path.read_bytes() == text(5)


async def test_rotation_by_day_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(text(1))
    os.utime(path, (NOON - DAY_S, NOON - DAY_S))
    sink = make(path, rotate="day")
    await sink.open()
    await sink.write(batch(2))
    await sink.close()
    assert (tmp_path / "r-2030-04-30.jsonl").read_bytes() == text(1)
    assert path.read_bytes() == text(2)


async def test_rotation_by_size_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    (tmp_path / "r-2030-05-01.1.jsonl").write_bytes(b"mine")
    (tmp_path / "r-2030-05-01.2.jsonl.gz").write_bytes(b"mine")
    sink = make(path, rotate=str(len(text(1, 2))))
    for n in range(1, 6):
        await sink.write(batch(n))
    await sink.write(batch(6, 7, 8, 9))  # goes on where the file before has room
    await sink.close()
    assert (tmp_path / "r-2030-05-01.1.jsonl").read_bytes() == b"mine"
    assert (tmp_path / "r-2030-05-01.jsonl").read_bytes() == text(1, 2)
    assert (tmp_path / "r-2030-05-01.3.jsonl").read_bytes() == text(3, 4)
    assert (tmp_path / "r-2030-05-01.5.jsonl").read_bytes() == text(7, 8)
    assert path.read_bytes() == text(9)


async def test_rotation_by_size_within_a_batch(tmp_path: Path) -> None:
    sink = make(tmp_path / "r.jsonl", rotate="1kB")
    await sink.write(batch(*range(100)))
    await sink.write(Batch([line(100, 5000), line(101)]))  # a line larger than a file: alone in one
    await sink.close()
    files = in_order(tmp_path)
    assert b"".join(files) == text(*range(100)) + text(100, size=5000) + text(101)
    assert files[-2:] == [text(100, size=5000), text(101)]
    assert all(1000 - len(text(99)) < len(data) <= 1000 for data in files[:-3])


class Crash(BaseException):
    """As a kill would be: nothing is tidied up."""


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
async def test_a_crash_within_a_batch_that_is_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """At each such call: lines stay whole, and only what was not acknowledged comes again."""
    real = getattr(os, call)
    for left in itertools.count():
        folder = tmp_path / str(left)
        sink = make(folder / "r.jsonl", rotate="100B")
        await sink.write(batch(0))
        calls = itertools.count()

        def dying(*args: Any, after: int = left, calls: Any = calls) -> Any:
            if next(calls) < after:
                return real(*args)
            if call == "write":
                real(args[0], bytes(args[1])[:9])
            raise Crash

        monkeypatch.setattr(os, call, dying)
        with contextlib.suppress(Crash):
            await sink.write(batch(*range(1, 10)))
        monkeypatch.undo()
        crashed = next(calls) > left
        with contextlib.suppress(SinkError):
            await sink.close()
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder / "r.jsonl", (NOON, NOON))
        again = make(folder / "r.jsonl", rotate="100B")
        await again.open()
        found = [json.loads(row)["n"] for row in b"".join(in_order(folder)).splitlines()]
        assert found == list(range(len(found)))
        await again.write(batch(*range(1, 10)))
        await again.close()
        kept = b"".join(in_order(folder))
        assert kept == text(*found) + text(*range(1, 10))
        assert all(len(data) <= 100 for data in in_order(folder))
        if not crashed:
            break
    assert left > 3


async def test_a_batch_that_failed_in_its_second_file_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, write, calls = make(tmp_path / "r.jsonl", rotate="100B"), os.write, itertools.count()

    def full(*args: Any) -> int:
        if next(calls) == 2:
            write(args[0], bytes(args[1])[:9])
            raise OSError(28, "No space left on device")
        return write(*args)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkError):
        await sink.write(batch(*range(10)))
    await sink.write(batch(*range(10)))
    await sink.write(batch(*range(10)))  # the same once more is another batch
    await sink.close()
    assert b"".join(in_order(tmp_path)) == text(*range(10), *range(10))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
async def test_rotated_files_are_compressed(tmp_path: Path, kind: Any) -> None:
    clock, path = Clock(), tmp_path / "r.jsonl"
    sink = make(path, clock, rotate="day", compress=kind)
    await sink.write(batch(1, 2))
    clock.now += DAY_S
    await sink.write(batch(3))
    await sink.close()
    ending = {"gzip": ".gz", "zstd": ".zst"}[kind]
    packed = tmp_path / f"r-2030-05-01.jsonl{ending}"
    assert names(tmp_path) == [packed.name, "r.jsonl"]
    unpack = gzip.decompress if kind == "gzip" else unzstd
    assert unpack(packed.read_bytes()) == text(1, 2)
    assert packed.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == text(3)


async def test_a_crash_between_rotating_and_compressing(tmp_path: Path) -> None:
    """Each step that may be the last one before a crash is finished by the next run."""
    (tmp_path / "r-2030-01-01.jsonl").write_bytes(text(1))  # marked, half compressed
    (tmp_path / ".r-2030-01-01.jsonl.tmp").write_bytes(b"half")
    (tmp_path / "r-2030-01-02.jsonl").write_bytes(text(2))  # compressed, not yet removed
    (tmp_path / "r-2030-01-02.jsonl.gz").write_bytes(gzip.compress(text(2)))
    (tmp_path / ".r-2030-01-03.jsonl.tmp").write_bytes(b"")  # marked, never rotated
    (tmp_path / "r-2030-01-04.jsonl").write_bytes(text(4))  # from before `compress` was set
    (tmp_path / "r-other.jsonl").write_bytes(b"mine")
    (tmp_path / ".other.tmp").write_bytes(b"mine")
    sink = make(tmp_path / "r.jsonl", rotate="day", compress="gzip")
    await sink.open()
    await sink.close()
    assert names(tmp_path) == [
        ".other.tmp", "r-2030-01-01.jsonl.gz", "r-2030-01-02.jsonl.gz", "r-2030-01-04.jsonl",
        "r-other.jsonl", "r.jsonl",
    ]  # fmt: skip
    assert gzip.decompress((tmp_path / "r-2030-01-01.jsonl.gz").read_bytes()) == text(1)


async def test_a_failed_compression_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.targets.rotated.compress", full)
    sink = make(tmp_path / "r.jsonl", rotate="1B", compress="gzip")
    with caplog.at_level(logging.WARNING):
        await sink.write(batch(1))
        await sink.write(batch(2))
        await sink.close()
    said = {(each.name, each.getMessage().partition(": ")[2]) for each in caplog.records}
    assert said == {("dlr_engine", "No space left on device; free some space")}
    assert (tmp_path / "r-2030-05-01.jsonl").read_bytes() == text(1)
    monkeypatch.undo()
    again = make(tmp_path / "r.jsonl", rotate="1B", compress="gzip")
    await again.open()
    await again.close()
    assert names(tmp_path) == ["r-2030-05-01.jsonl.gz", "r.jsonl"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_long_compression_holds_no_batch_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """A part of it is done before each batch; and where that is given up it goes on there, or a
    file that takes longer than a sink's `timeout` would be begun again and again."""
    monkeypatch.setattr("engine.targets.rotated.CHUNK", 1000)
    monkeypatch.setattr("engine.targets.rotated.PART", 5000)
    path, packed = tmp_path / "r.jsonl", tmp_path / "r-2030-01-01.jsonl.gz"
    path.write_bytes(b"")
    old = text(*range(1000))
    (tmp_path / "r-2030-01-01.jsonl").write_bytes(old)
    (tmp_path / "r-2030-01-02.jsonl").write_bytes(text(1))
    for day in (1, 2):
        (tmp_path / f".r-2030-01-0{day}.jsonl.tmp").write_bytes(b"")
    sink = make(path, rotate="day", compress="gzip")
    await sink.open()
    check, looks = sink._thread.check, 0

    def interrupted() -> None:
        nonlocal looks
        looks += 1
        if cancelled and looks % 3 == 0:
            raise Interrupted
        check()

    monkeypatch.setattr(sink._thread, "check", interrupted)
    written = 0
    while not packed.exists():
        assert looks <= -(-len(old) // 1000)  # no chunk twice
        with contextlib.suppress(Interrupted):
            await sink.write(batch(written))
            written += 1
    assert cancelled or written > 2
    assert path.read_bytes() == text(*range(written))
    await sink.close()
    assert gzip.decompress(packed.read_bytes()) == old
    assert names(tmp_path) == [packed.name, "r-2030-01-02.jsonl.gz", "r.jsonl"]


async def test_one_that_is_not_through_at_the_end_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.targets.rotated.CHUNK", 1000)
    monkeypatch.setattr("engine.targets.rotated.PART", 5000)
    monkeypatch.setattr("engine.sinks.jsonl.CLOSE_COMPRESS_MAX", 1000)
    plain, mark = tmp_path / "r-2030-01-01.jsonl", tmp_path / ".r-2030-01-01.jsonl.tmp"
    plain.write_bytes(text(*range(1000)))
    mark.write_bytes(b"")
    sink = make(tmp_path / "r.jsonl", rotate="day", compress="gzip")
    await sink.open()
    await sink.write(batch(1))
    await sink.close()
    assert plain.read_bytes() == text(*range(1000))
    assert mark.stat().st_size == 0


async def test_a_cancelled_compression_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.targets.rotated.CHUNK", 64)
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"")
    plain = tmp_path / "r-2030-01-01.jsonl"
    plain.write_bytes(text(*range(50_000)))
    (tmp_path / ".r-2030-01-01.jsonl.tmp").write_bytes(b"")
    sink = make(path, rotate="day", compress="gzip")
    await sink.open()
    check = sink._thread.check

    def dawdle() -> None:
        """Between two chunks, until nobody waits any more: it is never through before that."""
        for _ in range(10_000):
            check()
            time.sleep(0.001)

    monkeypatch.setattr(sink._thread, "check", dawdle)
    with anyio.move_on_after(0.02) as scope:
        await sink.write(batch(1))
    assert scope.cancelled_caught
    assert path.read_bytes() == b""
    monkeypatch.undo()
    await sink.write(batch(1))
    await sink.close()
    assert names(tmp_path) == ["r-2030-01-01.jsonl.gz", "r.jsonl"]
    assert path.read_bytes() == text(1)
