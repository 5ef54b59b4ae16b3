"""The jsonl sink's own matters: its options, repair, other hands on its file, and full disks."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.errors import SinkError
from engine.sinks.jsonl import JsonlOptions
from tests.unit.jsonl_files import (
    batch,
    make,
    text,
    unzstd,
)


@pytest.mark.parametrize("rotate", ["week", "0B", "-1MiB", "", 0])
def test_a_wrong_rotate_is_refused(rotate: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        JsonlOptions(path=Path("x"), rotate=rotate)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": Path("x"), "rotated": "day"}, JsonlOptions)


async def test_only_the_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "r.jsonl"
    sink = make(path)
    await sink.open()
    await sink.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("tail", [b"{", b'{"n":1,"pa', b"\0" * 5000, b'{"n":"' + b"x" * 3_000_000])
async def test_a_torn_line_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(text(1) + tail)
    sink = make(path)
    await sink.open()
    assert path.read_bytes() == text(1)
    await sink.write(batch(2))
    await sink.close()
    assert path.read_bytes() == text(1, 2)


async def test_a_whole_record_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(text(1, 2)[:-1])
    sink = make(path)
    await sink.write(batch(3))
    await sink.close()
    assert path.read_bytes() == text(1, 2, 3)


@pytest.mark.parametrize("compress", [None, "gzip", "zstd"])
@pytest.mark.parametrize(
    "foreign",
    [b"some notes", b"a,b\n1,2\n", b'{\n  "a": 1\n}', gzip.compress(b"x", mtime=0), b"\x28\xb5"],
)
async def test_a_foreign_file_is_left_alone(tmp_path: Path, foreign: bytes, compress: Any) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(foreign)
    sink = make(path, compress=compress)
    with pytest.raises(SinkError, match="did not write"):
        await sink.open()
    with pytest.raises(SinkError, match="did not write"):
        await sink.write(batch(1))
    assert path.read_bytes() == foreign


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
async def test_a_torn_member_is_cut(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "r.jsonl.packed"
    sink = make(path, compress=kind)
    await sink.write(batch(1, 2))
    await sink.write(batch(3))
    first = path.stat().st_size
    await sink.write(batch(4))
    await sink.close()
    whole = path.read_bytes()
    unpack = gzip.decompress if kind == "gzip" else unzstd
    assert unpack(whole) == text(1, 2, 3, 4)
    holed = whole[:-20] + b"\0" * 12 + whole[-8:]
    for torn in [*(whole[:n] for n in range(first, len(whole), 3)), whole[:first] + b"\0", holed]:
        path.write_bytes(torn)
        sink = make(path, compress=kind)
        await sink.write(batch(9))
        await sink.close()
        assert unpack(path.read_bytes()) == text(1, 2, 3, 9)


async def test_moved_truncated_or_shared(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    one, two = make(path), make(path)
    await one.write(batch(1))
    await two.write(batch(2))
    await one.write(batch(3))
    assert path.read_bytes() == text(1, 2, 3)
    path.rename(tmp_path / "moved")
    await one.write(batch(4))
    await two.write(batch(5))
    assert path.read_bytes() == text(4, 5)
    os.truncate(path, 0)
    await one.write(batch(6))
    assert path.read_bytes() == text(6)
    path.unlink()
    await two.write(batch(7))
    assert path.read_bytes() == text(7)
    await one.close()
    await two.close()


async def test_a_held_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.targets.append_file.LOCK_WAIT_S", 0.05)
    path = tmp_path / "r.jsonl"
    one, two = make(path), make(path)
    await one.open()
    one._acquire()
    with pytest.raises(SinkError, match="lock"):
        await two.write(batch(1))
    await one.close()
    await two.write(batch(1))
    await two.close()
    assert path.read_bytes() == text(1)


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SinkError, match="file"):
            await make(path).open()


FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import anyio
    from engine.core.contracts import Batch
    from engine.core.errors import SinkError
    from engine.sinks.jsonl import JsonlOptions, JsonlSink
    async def main():
        path = Path(sys.argv[1])
        sink = JsonlSink(JsonlOptions(path=path))
        lines = [b'{"n":%d}' % n for n in range(1000)]
        await sink.write(Batch(lines))
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, resource.RLIM_INFINITY))
        try:
            await sink.write(Batch(lines))
        except SinkError as exc:
            assert "rotate by size" in exc.cause, exc.cause
        else:
            raise AssertionError
        assert path.read_bytes() == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        await sink.write(Batch(lines))
        await sink.close()
        assert path.read_bytes() == before * 2
    anyio.run(main)
""")


def test_a_write_that_fails_halfway_leaves_no_trace(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path / "r.jsonl")], check=True, env=env
    )
