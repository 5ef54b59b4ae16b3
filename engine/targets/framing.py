"""How records stand in a file, and where in it the last whole one ends.

A crash, a full disk or a power cut may leave half of what was written last. What is whole before it
is found from the end where records are lines, and from member to member where they are compressed:
each member says its own length, so that none has to be unpacked for that.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import msgspec
import zstandard

Compression = Literal["gzip", "zstd"]

GZIP_LEVEL = 6
ZSTD_LEVEL = 3
CHUNK = 1 << 20
WRITTEN_TOGETHER = 64  # lines
TAIL_MAX = 256 << 20  # a line longer than this is no record

# What each member starts with; its length as u32 follows. For gzip that is an extra field of the
# header, for zstd a skippable frame: readers pass over both.
_HEADS: dict[Compression, bytes] = {
    "gzip": b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", 8) + b"DR" + struct.pack("<H", 4),
    "zstd": struct.pack("<II", 0x184D2A50, 4),
}


class Foreign(Exception):
    """Something stands there that was not written here, or not in this framing."""


class Framing(Protocol):
    """A way in which records stand in a file."""

    def pieces(self, lines: Sequence[bytes]) -> Iterator[bytes]:
        """The bytes of these records, in what is best written at once."""
        ...

    def whole(self, fd: int, start: int, size: int) -> int:
        """How far, of a file of `size` that is whole up to `start`, it is. Raises Foreign, OSError.

        A record that lacks no more than its end is given it.
        """
        ...


class Lines:
    """One JSON object a line."""

    def pieces(self, lines: Sequence[bytes]) -> Iterator[bytes]:
        """In one piece a batch would cost twice the time, in fresh memory."""
        for start in range(0, len(lines), WRITTEN_TOGETHER):
            yield b"\n".join([*lines[start : start + WRITTEN_TOGETHER], b""])

    def whole(self, fd: int, start: int, size: int) -> int:
        if size and not start and os.pread(fd, 1, 0) not in (b"{", b"\0"):
            raise Foreign
        end, tail = size, b""
        while end > start and len(tail) <= TAIL_MAX:
            at = max(start, end - CHUNK)
            piece = os.pread(fd, end - at, at)
            newline = piece.rfind(b"\n")
            if newline >= 0:
                end, tail = at + newline + 1, piece[newline + 1 :] + tail
                break
            end, tail = at, piece + tail
        if not tail:
            return size
        if len(tail) > TAIL_MAX or not tail.startswith((b"{", b"\0")):
            raise Foreign
        try:
            msgspec.json.decode(tail)
        except msgspec.DecodeError:
            return end
        write_all(fd, b"\n")
        return size + 1


class Members:
    """Lines in a stream of gzip members or zstd frames, one for all that is written together."""

    def __init__(self, kind: Compression) -> None:
        self._kind = kind
        self._head = _HEADS[kind]

    def pieces(self, lines: Sequence[bytes]) -> Iterator[bytes]:
        data = b"\n".join([*lines, b""])
        if self._kind == "gzip":
            packer = zlib.compressobj(GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
            check = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
            body = packer.compress(data) + packer.flush() + check
        else:
            body = zstandard.ZstdCompressor(ZSTD_LEVEL, write_checksum=True).compress(data)
        yield self._head + struct.pack("<I", len(body)) + body

    def whole(self, fd: int, start: int, size: int) -> int:
        head = self._head
        last, at = start, start
        while at < size:
            found = os.pread(fd, len(head) + 4, at)
            if not found.startswith(head) and not head.startswith(found) and found.strip(b"\0"):
                raise Foreign
            if len(found) < len(head) + 4 or not found.startswith(head):
                return at
            end = at + len(found) + struct.unpack("<I", found[-4:])[0]
            if end > size:
                return at
            last, at = at, end
        # A power cut may keep a write's end and lose its middle: the last member has to unpack.
        return at if at == last or self._unpacks(os.pread(fd, at - last, last)) else last

    def _unpacks(self, member: bytes) -> bool:
        try:
            if self._kind == "gzip":
                unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
                return unpacker.decompress(member).endswith(b"\n") and unpacker.eof
            body = member[len(self._head) + 4 :]
            return zstandard.ZstdDecompressor().decompress(body).endswith(b"\n")
        except (zlib.error, zstandard.ZstdError):
            return False


def write_all(fd: int, data: bytes) -> None:
    """As `os.write`, all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
