"""Records into a file, one JSON object a line; at least once, and never half a line.

The file is only ever appended to, a batch at a time, and a batch counts once it was fsynced. What
a crash or a full disk leaves behind its last whole batch is cut off before the next one is
written: the position of a torn record never moved, so it is offered again. Each write takes the
file's lock and looks whether `path` still names it: several workers may share a file, and
logrotate may move it away.

`rotate` renames the live file to `<stem>-<day>[.N]<suffix>`, the day being that of its last write
(UTC). By size, a file takes as many lines as it has room for, and the batch goes on in the next: it
is larger than asked only where a single line is. With `compress` as well, rotated files are
compressed before the next batch is written. `compress` alone makes the live file itself a stream of
gzip members or zstd frames, one a batch, under the name as it was configured; each says its own
length, so that its end is found without unpacking what is before it.

It must never cut a file that it did not write, nor overwrite one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import zstandard

from ..core.contracts import Batch
from ..core.errors import SinkError
from ..core.units import size_bytes
from ..disk_causes import file_cause
from ..offload import Offload
from ..private import make_folder, open_file, sync_folder

GZIP_LEVEL = 6
ZSTD_LEVEL = 3
CHUNK = 1 << 20
WRITTEN_TOGETHER = 64  # lines
TAIL_MAX = 256 << 20  # a line longer than this is no record
LOCK_WAIT_S = 5.0
LOCK_STEP_S = 0.01
MOVES_MAX = 10  # how often the file may be replaced while one write waits for its lock
CLOSE_COMPRESS_MAX = 256 << 20  # a larger file would hold up a shutdown: it waits for the next run

# What each member of a compressed live file starts with; its length as u32 follows. For gzip that
# is an extra field of the header, for zstd a skippable frame: readers pass over both.
_HEADS = {
    "gzip": b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", 8) + b"DR" + struct.pack("<H", 4),
    "zstd": struct.pack("<II", 0x184D2A50, 4),
}
_ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
_log = logging.getLogger(__name__)


class JsonlOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`rotate` is "day", or a size such as "100MiB"."""

    path: Path
    rotate: str | int | None = None
    compress: Literal["gzip", "zstd"] | None = None

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
        self._path = options.path
        self._clock = clock
        self._by_day = options.rotate == "day"
        self._max = 0 if options.rotate in (None, "day") else size_bytes(options.rotate)
        self._live = options.compress if options.rotate is None else None
        self._packed = options.compress if options.rotate is not None else None
        self._rotated = re.compile(
            rf"{re.escape(self._path.stem)}-\d{{4}}-\d\d-\d\d(\.\d+)?{re.escape(self._path.suffix)}"
        )
        self._offload = Offload("dlr-jsonl")
        self._fd = -1
        self._size = 0  # whole records; nothing behind it counts
        self._day = ""
        self._pending: list[Path] = []
        self._kept: list[bytes] = []  # of a batch that failed: its lines that are in files already

    async def open(self) -> None:
        await self._run(self._prepare)

    async def write(self, batch: Batch) -> None:
        if batch.lines:
            await self._run(self._append, batch.lines)

    async def close(self) -> None:
        try:
            await self._run(self._finish)
        finally:
            await self._offload.close()

    async def _run(self, work: Callable[..., None], *args: Any) -> None:
        try:
            await self._offload.run(self._guarded, work, *args)
        except OSError as exc:
            raise SinkError(f"cannot write {self._path}: {file_cause(exc)}") from exc

    # All below runs in a worker thread, under the guard.

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException:
            self._drop()  # the next call starts from what the disk says
            raise

    def _prepare(self) -> None:
        self._acquire()
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _append(self, lines: Sequence[bytes]) -> None:
        self._compress_pending()  # before the batch: cancelled here, nothing of it was written
        kept = self._kept
        if list(lines[: len(kept)]) != kept:
            kept.clear()  # it is not the batch that failed
        while rest := lines[len(kept) :]:
            self._acquire()
            today = time.strftime("%Y-%m-%d", time.gmtime(self._clock()))
            if count := self._room(rest, today):
                self._put(rest[:count])
                self._day = today
                kept += rest[:count]
            else:
                self._rotate()
        kept.clear()
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _room(self, lines: Sequence[bytes], today: str) -> int:
        """How many of these the live file takes; 0: it is rotated first."""
        if self._by_day and self._size and today > self._day:
            return 0
        if not self._max:
            return len(lines)
        ends = accumulate((len(line) + 1 for line in lines), initial=self._size)
        fit = sum(1 for _ in takewhile(lambda end: end <= self._max, ends)) - 1
        return max(fit, 0 if self._size else 1)

    def _put(self, lines: Sequence[bytes]) -> None:
        pieces, size = _pieces(lines), self._size
        if self._live:
            pieces = iter((_member(self._live, b"".join(pieces)),))
        try:
            for data in pieces:
                _write_all(self._fd, data)
                size += len(data)
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # else the next call cuts it
                os.ftruncate(self._fd, self._size)
                os.fsync(self._fd)
            raise
        self._size = size

    def _finish(self) -> None:
        with contextlib.suppress(OSError):  # it stays marked, and is found by the next run
            self._pending = [p for p in self._pending if p.stat().st_size <= CLOSE_COMPRESS_MAX]
            self._compress_pending()
        self._drop()

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _acquire(self) -> None:
        """Hold the lock of the file that `path` names, knowing where its whole records end."""
        fresh = False
        for _ in range(MOVES_MAX):
            if self._fd < 0:
                fresh = True
                make_folder(self._path.parent)
                self._fd = open_file(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self._lock()
            seen = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(seen, os.stat(self._path)):
                    break
            self._drop()
        else:
            raise SinkError(f"cannot write {self._path}: something replaces it all the time")
        if not os.path.isfile(self._path):
            raise SinkError(f"cannot write {self._path}: not a regular file; name another path")
        if fresh:
            self._day = time.strftime("%Y-%m-%d", time.gmtime(seen.st_mtime))
            self._pending = self._leftovers()
            sync_folder(self._path.parent)
        if fresh or seen.st_size != self._size:
            start = 0 if fresh or seen.st_size < self._size else self._size
            self._size = self._mend(start, seen.st_size)

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SinkError(
                        f"cannot write {self._path}: another program holds its lock"
                    ) from None
                time.sleep(LOCK_STEP_S)
            else:
                return

    def _mend(self, start: int, size: int) -> int:
        """Cut what is not whole behind `start`; the length that is left."""
        find = self._whole_members if self._live else self._whole_lines
        whole = find(start, size)
        if whole < size:
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)
        return whole

    def _whole_lines(self, start: int, size: int) -> int:
        if size and not start and os.pread(self._fd, 1, 0) not in (b"{", b"\0"):
            raise self._foreign()
        end, tail = size, b""
        while end > start and len(tail) <= TAIL_MAX:
            at = max(start, end - CHUNK)
            piece = os.pread(self._fd, end - at, at)
            newline = piece.rfind(b"\n")
            if newline >= 0:
                end, tail = at + newline + 1, piece[newline + 1 :] + tail
                break
            end, tail = at, piece + tail
        if not tail:
            return size
        if len(tail) > TAIL_MAX or not tail.startswith((b"{", b"\0")):
            raise self._foreign()
        try:
            msgspec.json.decode(tail)
        except msgspec.DecodeError:
            return end
        _write_all(self._fd, b"\n")  # a whole record that lacks its newline alone
        os.fsync(self._fd)
        return size + 1

    def _whole_members(self, start: int, size: int) -> int:
        kind = self._live or "gzip"
        head = _HEADS[kind]
        last, at = start, start
        while at < size:
            found = os.pread(self._fd, len(head) + 4, at)
            if not found.startswith(head) and not head.startswith(found) and found.strip(b"\0"):
                raise self._foreign()
            if len(found) < len(head) + 4 or not found.startswith(head):
                return at
            end = at + len(found) + struct.unpack("<I", found[-4:])[0]
            if end > size:
                return at
            last, at = at, end
        # A power cut may keep a write's end and lose its middle: the last member has to unpack.
        if at == last or _unpacks(kind, os.pread(self._fd, at - last, last)):
            return at
        return last

    def _foreign(self) -> SinkError:
        return SinkError(
            f"cannot write {self._path}: it holds something that this sink did not write with these"
            " settings; move it away or name another path"
        )

    def _rotate(self) -> None:
        stem, suffix, count = f"{self._path.stem}-{self._day}", self._path.suffix, 0
        target = self._path.with_name(stem + suffix)
        while any(os.path.lexists(f"{target}{end}") for end in ("", *_ENDINGS.values())):
            count += 1
            target = self._path.with_name(f"{stem}.{count}{suffix}")
        if self._packed:
            os.close(open_file(_mark(target), os.O_WRONLY | os.O_CREAT))
        os.rename(self._path, target)
        sync_folder(self._path.parent)
        self._drop()  # opening the next file finds the mark

    def _leftovers(self) -> list[Path]:
        """The rotated files that are still to be compressed; what a crash left over is removed."""
        names = set(os.listdir(self._path.parent))
        pending = []
        for name in sorted(filter(self._rotated.fullmatch, names)):
            plain = self._path.with_name(name)
            if any(name + ending in names for ending in _ENDINGS.values()):
                plain.unlink(missing_ok=True)  # its compressed copy is whole
            elif self._packed and _mark(plain).name in names:
                pending.append(plain)
        for name in names:
            if name.startswith(".") and name.endswith(".tmp"):
                plain = self._path.with_name(name[1:-4])
                if self._rotated.fullmatch(plain.name) and plain not in pending:
                    _mark(plain).unlink(missing_ok=True)
        return pending

    def _compress_pending(self) -> None:
        while self._pending and self._packed:
            plain = self._pending[0]
            try:
                _compress(self._packed, plain, self._offload.check)
            except OSError as exc:  # the records are safe as they are, and matter more
                if exc.errno != errno.ENOENT:  # else another worker has done it
                    _log.warning("cannot compress %s, it stays plain for now: %s", plain, exc)
            del self._pending[0]


def _compress(kind: str, plain: Path, check: Callable[[], None]) -> None:
    """Put a compressed copy in the place of a rotated file; at no moment is there neither.

    The copy grows in the mark, which says until then that the file is to be compressed. `check`
    raises where nobody waits for it any more.
    """
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
                    check()
                    target.write(packer.compress(chunk))
                target.write(packer.flush())
                target.flush()
                os.fsync(target.fileno())
            os.rename(mark, f"{plain}{_ENDINGS[kind]}")
        except BaseException:
            with contextlib.suppress(OSError):
                os.truncate(mark, 0)
            raise
        sync_folder(plain.parent)
        plain.unlink(missing_ok=True)
        sync_folder(plain.parent)


def _pieces(lines: Sequence[bytes]) -> Iterator[bytes]:
    """What is written at once: in one piece a batch would cost twice the time, in fresh memory."""
    for start in range(0, len(lines), WRITTEN_TOGETHER):
        yield b"\n".join([*lines[start : start + WRITTEN_TOGETHER], b""])


def _member(kind: str, data: bytes) -> bytes:
    if kind == "gzip":
        packer = zlib.compressobj(GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
        check = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
        body = packer.compress(data) + packer.flush() + check
    else:
        body = zstandard.ZstdCompressor(ZSTD_LEVEL, write_checksum=True).compress(data)
    return _HEADS[kind] + struct.pack("<I", len(body)) + body


def _unpacks(kind: str, member: bytes) -> bool:
    try:
        if kind == "gzip":
            unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
            return unpacker.decompress(member).endswith(b"\n") and unpacker.eof
        body = member[len(_HEADS[kind]) + 4 :]
        return zstandard.ZstdDecompressor().decompress(body).endswith(b"\n")
    except (zlib.error, zstandard.ZstdError):
        return False


def _mark(plain: Path) -> Path:
    return plain.with_name(f".{plain.name}.tmp")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
