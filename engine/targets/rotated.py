"""The files that a live file was before: `<stem>-<day>[.N]<suffix>`, compressed if asked for.

A file that is to be compressed has a mark from before it is renamed until its compressed copy has
taken its place, so a crash anywhere between is gone on from. The copy grows in the mark, a part at
a time: a day's file may take longer than anybody waits for a batch.

It must never overwrite a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import zstandard

from engine.machine.disk_causes import file_cause
from engine.machine.private import open_file, sync_folder

from ..telemetry import log
from .framing import CHUNK, GZIP_LEVEL, ZSTD_LEVEL, Compression

# Bytes of a file that are compressed at a time, before records are written again.
PART = 64 << 20

_ENDINGS: dict[Compression, str] = {"gzip": ".gz", "zstd": ".zst"}


class Rotated:
    """What `path` was before; `kind` is how it is compressed, None: not at all."""

    def __init__(self, path: Path, kind: Compression | None) -> None:
        self._path = path
        self._kind = kind
        self._named = re.compile(
            rf"{re.escape(path.stem)}-\d{{4}}-\d\d-\d\d(\.\d+)?{re.escape(path.suffix)}"
        )
        self._pending: list[Path] = []
        self._begun: tuple[Path, Generator[int]] | None = None  # the first, and what is left of it

    def rotate(self, day: str) -> None:
        """Rename the live file. It is compressed once `find` has found it."""
        stem, suffix, count = f"{self._path.stem}-{day}", self._path.suffix, 0
        target = self._path.with_name(stem + suffix)
        while any(os.path.lexists(f"{target}{end}") for end in ("", *_ENDINGS.values())):
            count += 1
            target = self._path.with_name(f"{stem}.{count}{suffix}")
        if self._kind:
            os.close(open_file(_mark(target), os.O_WRONLY | os.O_CREAT))
        os.rename(self._path, target)
        sync_folder(self._path.parent)

    def find(self) -> None:
        """Those that are still to be compressed; what a crash left over is removed."""
        names = set(os.listdir(self._path.parent))
        begun, self._pending = self._begun and self._begun[0], []
        for name in sorted(filter(self._named.fullmatch, names)):
            plain = self._path.with_name(name)
            if any(name + ending in names for ending in _ENDINGS.values()):
                plain.unlink(missing_ok=True)  # its compressed copy is whole
            elif self._kind and _mark(plain).name in names:
                self._pending.append(plain)
        self._pending.sort(key=lambda plain: plain != begun)  # that stays the first
        if begun not in self._pending:
            self.drop()
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                plain = self._path.with_name(name[1:-4])
                if self._named.fullmatch(plain.name) and plain not in self._pending:
                    _mark(plain).unlink(missing_ok=True)

    def leave(self, size_max: int) -> None:
        """Leave larger ones to the next `find`. Raises OSError."""
        self._pending = [each for each in self._pending if each.stat().st_size <= size_max]
        if self._begun is not None and self._begun[0] not in self._pending:
            self.drop()

    def compress(self, check: Callable[[], None], *, whole: bool = False) -> None:
        """Compress a `PART` of what is left to be; `whole`: all of it. `check` is called between
        two chunks, and may raise; the next call goes on from there."""
        done = 0
        while self._pending and self._kind:
            plain = self._pending[0]
            try:
                if self._begun is None:
                    self._begun = plain, compress(self._kind, plain)
                for size in self._begun[1]:
                    check()
                    done += size
                    if done >= PART and not whole:
                        return
            except OSError as exc:  # the records are safe as they are, and matter more
                if exc.errno != errno.ENOENT:  # else another worker has done it
                    why = file_cause(exc)
                    log.warning("cannot compress %s, it stays plain for now: %s", plain, why)
            self._begun = None
            del self._pending[0]

    def drop(self) -> None:
        """Let go of one that was begun: whoever finds it next begins anew."""
        begun, self._begun = self._begun, None
        if begun is not None:
            with contextlib.suppress(OSError):  # of what it holds back nothing counts
                begun[1].close()


def compress(kind: Compression, plain: Path) -> Generator[int]:
    """Put a compressed copy in the place of a file, a chunk a step; the bytes of each. At no moment
    is there neither."""
    mark = _mark(plain)
    with open(plain, "rb") as source:
        try:
            fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another worker is at it
        if not plain.exists():
            return  # another worker was at it
        packer: Any = zstandard.ZstdCompressor(ZSTD_LEVEL, write_checksum=True).compressobj()
        if kind == "gzip":
            packer = zlib.compressobj(GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)
        opened = open_file(mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with open(opened, "wb") as target:
                while chunk := source.read(CHUNK):
                    target.write(packer.compress(chunk))
                    yield len(chunk)
                target.write(packer.flush())
                target.flush()
                os.fsync(target.fileno())
            os.rename(mark, f"{plain}{_ENDINGS[kind]}")
        except BaseException:  # also left in its middle
            with contextlib.suppress(OSError):
                os.truncate(mark, 0)
            raise
        sync_folder(plain.parent)
        plain.unlink(missing_ok=True)
        sync_folder(plain.parent)


def _mark(plain: Path) -> Path:
    return plain.with_name(f".{plain.name}.tmp")
