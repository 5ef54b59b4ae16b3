"""What the tests of the jsonl sink share: batches, what they are in a file, and a sink at noon."""

from __future__ import annotations

import calendar
import os
from pathlib import Path
from typing import Any

import zstandard

from engine.core.contracts import Batch
from engine.sinks.jsonl import JsonlOptions, JsonlSink

DAY_S = 86400.0
NOON = calendar.timegm((2030, 5, 1, 12, 0, 0))


class Clock:
    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


def line(n: int, size: int = 20) -> bytes:
    return b'{"n":%d,"pad":"%s"}' % (n, b"x" * size)


def batch(*ns: int, size: int = 20) -> Batch:
    return Batch([line(n, size) for n in ns])


def text(*ns: int, size: int = 20) -> bytes:
    return b"".join(line(n, size) + b"\n" for n in ns)


def make(path: Path, clock: Any = None, **options: Any) -> JsonlSink:
    return JsonlSink(JsonlOptions(path=path, **options), clock=clock or Clock())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def in_order(folder: Path) -> list[bytes]:
    """What rotated files hold, and the live one at the end."""
    names = [f"r-2030-05-01{end}.jsonl" for end in ("", *(f".{n}" for n in range(1, 200)))]
    return [
        (folder / name).read_bytes() for name in [*names, "r.jsonl"] if (folder / name).exists()
    ]


def unzstd(data: bytes) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return bytes(reader.read())
