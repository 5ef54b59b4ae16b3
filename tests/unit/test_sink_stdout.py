"""The stdout sink's own matters: outputs that break, fill up or are missing."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from engine.core.contracts import Batch
from engine.core.errors import SinkError
from engine.sinks.stdout import StdoutOptions, StdoutSink

LINES = Batch([b'{"n":1}', b'{"n":2}', b'{"n":3}'])
TEXT = b'{"n":1}\n{"n":2}\n{"n":3}\n'


class Narrow(io.RawIOBase):
    """Takes `room` bytes and then fails."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        piece = bytes(data)[: self.room]
        self.room -= len(piece)
        self.taken += piece
        return len(piece)


def put(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    monkeypatch.setattr("engine.sinks.stdout.sys", SimpleNamespace(stdout=stream))


@pytest.mark.parametrize("room", range(len(TEXT)))
async def test_a_torn_line_is_finished_first(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    raw = Narrow(room)
    put(monkeypatch, SimpleNamespace(buffer=io.BufferedWriter(raw)))
    sink = StdoutSink(StdoutOptions())
    await sink.open()
    for _ in range(2):
        with pytest.raises(SinkError, match="No space left"):
            await sink.write(LINES)
    raw.room = 1000
    await sink.write(LINES)
    await sink.close()
    whole = -(-room // 8) * 8
    assert raw.taken == TEXT[:whole] + TEXT


async def test_what_was_printed_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Narrow(1000)
    stream = io.BufferedWriter(raw)
    stream.write(b"hello\n")
    put(monkeypatch, SimpleNamespace(buffer=stream))
    await StdoutSink(StdoutOptions()).write(LINES)
    assert raw.taken == b"hello\n" + TEXT


async def test_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        put(monkeypatch, stream)
        with pytest.raises(SinkError, match="reader has gone"):
            await StdoutSink(StdoutOptions()).write(LINES)


async def test_an_output_that_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = 300_000
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as source:
            got.append(source.read())

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(writer, "w") as stream:
        put(monkeypatch, stream)
        await StdoutSink(StdoutOptions()).write(Batch([b"x" * size] * 3))
    thread.join()
    assert got == [(b"x" * size + b"\n") * 3]


@pytest.mark.parametrize("closed", [False, True])
async def test_no_output(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    if closed:
        stream.close()
    put(monkeypatch, stream if closed else None)
    with pytest.raises(SinkError, match="standard output"):
        await StdoutSink(StdoutOptions()).write(LINES)


async def test_several_sinks_write_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is one, and what a pipe has no room for is written later."""

    class Pipe(Narrow):
        """Takes three bytes, and lets another thread go on."""

        def write(self, data: Any) -> int:
            self.room = 3
            taken = super().write(data)
            time.sleep(0)
            return taken

    raw = Pipe(0)
    put(monkeypatch, SimpleNamespace(buffer=io.BufferedWriter(raw)))
    sinks = [StdoutSink(StdoutOptions()) for _ in range(3)]
    async with anyio.create_task_group() as writing:
        for n, sink in enumerate(sinks):
            writing.start_soon(
                sink.write, Batch([b'{"of":%d,"n":%d}' % (n, i) for i in range(500)])
            )
    for sink in sinks:
        await sink.close()
    found = [json.loads(line) for line in raw.taken.splitlines()]
    for n in range(3):
        assert [one["n"] for one in found if one["of"] == n] == list(range(500))


async def test_one_finishes_the_line_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Narrow(10)
    put(monkeypatch, SimpleNamespace(buffer=io.BufferedWriter(raw)))
    first, second = StdoutSink(StdoutOptions()), StdoutSink(StdoutOptions())
    with pytest.raises(SinkError, match="No space left"):
        await first.write(LINES)
    raw.room = 1000
    await second.write(Batch([b'{"n":4}']))
    await first.close()
    await second.close()
    assert raw.taken == TEXT[:16] + b'{"n":4}\n'
