"""Records into a file, one JSON object a line; at least once, and never half a line.

A batch counts once it was fsynced; a torn record is cut off, and offered again, since the position
never moved. `rotate` renames the live file to `<stem>-<day>[.N]<suffix>`, the day being that of its
last write (UTC). By size, a file takes as many lines as it has room for, and the batch goes on in
the next: it is larger than asked only where a single line is. With `compress` as well, rotated
files are compressed before the next batches are written, a part before each. `compress` alone makes
the live file itself a stream of gzip members or zstd frames, one a batch, under the name as it was
configured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import ClassVar

import msgspec

from engine.machine.disk_causes import write_cause

from ..core.contracts import Batch
from ..core.units import size_bytes
from ..targets.append_file import AppendFile
from ..targets.framing import Compression, Lines, Members
from ..targets.own_thread import OwnThread
from ..targets.rotated import Rotated

CLOSE_COMPRESS_MAX = 256 << 20  # a larger file would hold up a shutdown: it waits for the next run


class JsonlOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rotate` is "day", or a size such as "100MiB"."""

    path: Path
    rotate: str | int | None = None
    compress: Compression | None = None

    def __post_init__(self) -> None:
        if self.rotate not in (None, "day"):
            try:
                size = size_bytes(self.rotate)
            except ValueError:
                size = 0
            if size <= 0:
                raise ValueError(f'rotate: expected "day" or a size, got {self.rotate!r}')


class JsonlSink:
    """Appends batches to a file. All file work is in a worker thread, one call at a time."""

    name: ClassVar[str] = "jsonl"
    Options: ClassVar[type[msgspec.Struct]] = JsonlOptions

    def __init__(self, options: JsonlOptions, *, clock: Callable[[], float] = time.time) -> None:
        path, rotate, kind = options.path, options.rotate, options.compress
        self._clock = clock
        self._by_day = rotate == "day"
        self._max = 0 if rotate in (None, "day") else size_bytes(rotate)
        self._file = AppendFile(path, Members(kind) if kind and rotate is None else Lines())
        self._rotated = Rotated(path, None if rotate is None else kind)
        self._thread = OwnThread("dlr-jsonl", f"cannot write {path}", self._file.drop, write_cause)
        self._day = ""  # of the last write
        self._kept: list[bytes] = []  # of a batch that failed: its lines that are in files already

    async def open(self) -> None:
        await self._thread.run(self._prepare)

    async def write(self, batch: Batch) -> None:
        if batch.lines:
            await self._thread.run(self._append, batch.lines)

    async def close(self) -> None:
        try:
            await self._thread.run(self._finish)
        finally:
            await self._thread.close()

    # All below runs on its thread; whatever it raises drops the file.

    def _prepare(self) -> None:
        self._acquire()
        self._file.release()

    def _acquire(self) -> None:
        if self._file.acquire():
            self._day = _day(self._file.modified_s)
            self._rotated.find()

    def _append(self, lines: Sequence[bytes]) -> None:
        # Before the batch: cancelled here, nothing of it was written.
        self._rotated.compress(self._thread.check)
        kept = self._kept
        if list(lines[: len(kept)]) != kept:
            kept.clear()  # it is not the batch that failed
        while rest := lines[len(kept) :]:
            self._acquire()
            today = _day(self._clock())
            if count := self._room(rest, today):
                self._file.append(rest[:count])
                self._day = today
                kept += rest[:count]
            else:
                self._rotated.rotate(self._day)
                self._file.drop()
        kept.clear()
        self._file.release()

    def _room(self, lines: Sequence[bytes], today: str) -> int:
        """How many of these the live file takes; 0: it is rotated first."""
        if self._by_day and self._file.size and today > self._day:
            return 0
        if not self._max:
            return len(lines)
        ends = accumulate((len(line) + 1 for line in lines), initial=self._file.size)
        fit = sum(1 for _ in takewhile(lambda end: end <= self._max, ends)) - 1
        return max(fit, 0 if self._file.size else 1)

    def _finish(self) -> None:
        try:
            with contextlib.suppress(OSError):  # they stay marked, and are found by the next run
                self._rotated.leave(CLOSE_COMPRESS_MAX)
                self._rotated.compress(self._thread.check, whole=True)
        finally:
            self._rotated.drop()


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))
