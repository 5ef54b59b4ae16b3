"""What holds personal data is readable by its owner alone, from its first moment on."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.core.contracts import Batch
from engine.core.report import Report, encode
from engine.core.state import State
from engine.registry import sinks
from engine.sinks.jsonl import JsonlOptions, JsonlSink
from engine.stores.sqlite import SqliteStore
from tests.integration.harness import BATCH, bulksms, configured, hasty, lines, until
from tests.integration.standin import Raw, Standin

UMASKS = [0o000, 0o022, 0o077]


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The modes that files have right after they were made by `os.open`."""
    seen: dict[str, int] = {}
    real = os.open

    def watched(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        made = flags & os.O_CREAT and not os.path.exists(path)
        descriptor = real(path, flags, mode, **more)
        if made:
            seen[Path(path).name] = mode_of(path)
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    return seen


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): mode_of(path) for path in folder.rglob("*")}


SINKS = [
    {"name": "lines", "type": "jsonl", "path": "out/deep/r.jsonl", "batch": BATCH},
    {"name": "packed", "type": "jsonl", "path": "r.gz", "compress": "gzip", "batch": BATCH},
    {"name": "db", "type": "sqlite", "path": "out/r.db", "batch": BATCH},
]


async def test_all_that_a_worker_writes(
    standin: Standin, tmp_path: Path, umask: int, created: dict[str, int]
) -> None:
    url = standin.answer("bulk", Raw("0|Returns to follow\n\n447700900001|11\n"))
    config = configured(tmp_path, bulksms(url), store="sqlite:///state/deep/state.db", sinks=SINKS)
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=["447700900001"])
        await until(lambda: lines(tmp_path / "out/deep"), 20)
        running = modes(tmp_path)
    for found in (running, modes(tmp_path)):
        for name, mode in found.items():
            wanted = 0o700 if (tmp_path / name).is_dir() else 0o600
            assert mode == wanted, (name, oct(mode))
    assert {"state/deep/state.db-wal", "state/deep/state.db-shm", "out/r.db-wal"} <= set(running)
    assert {"state.db", "state.db.lock", "r.jsonl", "r.gz", "r.db"} <= set(created)
    assert set(created.values()) == {0o600}


def record(number: int) -> bytes:
    return encode(Report(event_id=str(number), message_id="m", state=State.DELIVERED, final=True))


@pytest.mark.parametrize("compress", [None, "gzip", "zstd"])
@pytest.mark.parametrize("rotate", ["day", 100])
async def test_rotated_and_compressed_files(
    tmp_path: Path, umask: int, rotate: Any, compress: Any, created: dict[str, int]
) -> None:
    now = time.time()
    options = JsonlOptions(path=tmp_path / "r.jsonl", rotate=rotate, compress=compress)
    sink = JsonlSink(options, clock=lambda: now)
    await sink.open()
    for number in range(3):
        await sink.write(Batch([record(number)]))
        now += 86_400
    await sink.close()
    found = modes(tmp_path)
    assert len(found) == 3
    assert set(found.values()) == {0o600}
    assert set(created.values()) == {0o600}


async def test_what_was_wider_before_is_narrowed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    await store.write(lambda tx: tx.put_note("a", "b", b"c"))
    for name in modes(tmp_path):
        os.chmod(tmp_path / name, 0o666)
    other = SqliteStore(tmp_path / "state.db")  # a `track` beside the worker
    await other.open(own=False)
    assert mode_of(tmp_path / "state.db") == mode_of(tmp_path / "state.db-wal") == 0o600
    assert mode_of(tmp_path / "state.db-shm") == 0o600
    await other.close()
    await store.write(lambda tx: tx.put_note("a", "b", b"d"))
    await store.close()
    again = SqliteStore(tmp_path / "state.db")
    await again.open(own=True)
    assert await again.read(lambda tx: tx.notes("b")) == {"a": b"d"}
    await again.close()
    assert set(modes(tmp_path).values()) == {0o600}


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
async def test_a_sinks_file_that_was_wider_is_narrowed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r"
    path.touch(mode=0o644)
    path.chmod(0o644)
    cls = sinks()[kind]
    sink = cls(cls.Options(path=path))
    await sink.open()
    assert mode_of(path) == 0o600
    await sink.close()


def test_the_demo_writes_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.cli import main

    monkeypatch.chdir(tmp_path)
    before = os.umask(0)
    try:
        main(["demo", "--quiet", "--seconds", "5", "--messages", "10"])
    finally:
        os.umask(before)
    capsys.readouterr()
    found = modes(tmp_path)
    assert found.pop("demo-out") == 0o700
    assert "demo-out/engine.toml" in found
    assert set(found.values()) == {0o600}
