"""Inflater: what zlib makes of the whole, for every way of cutting, a bounded piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from engine.network import inflate
from engine.network.inflate import Damaged, Inflater
from tests.fuzz.draw import Draw, Patched, chunks, damaged

LENGTH = 256
WORDS = (b"\x1f\x8b\x08", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", b"\x78\x9c", b"\x00\x00")

# Small, so that short bodies fill it; more than zlib may keep inside (32 bits, each for a match of
# 258 bytes).
PIECE = 16 * 1024
_WBITS = {"gzip": 16 + 9, "deflate": 9, "raw": -9}


def seeds() -> Iterator[bytes]:
    for mode in range(3):
        yield bytes([mode, 0, 3, 5, 1, 0, 9]) + b"some text that is packed" * 3
    yield b"\x03\x00\x02\x05\x01" + _packed("gzip", b"report;" * 9, 6)
    yield b"\x03\x01\x02\x05\x01" + _packed("deflate", b"report;" * 9, 6)


def check(data: bytes) -> None:
    draw = Draw(data)
    mode = draw.byte() % 5
    kind = draw.pick(("gzip", "deflate", "raw"))
    coding = "gzip" if kind == "gzip" else "deflate"
    sizes = draw.sizes()
    text: bytes | None = None
    if mode == 4:
        body = draw.rest()
    else:
        body, text = _members(draw, kind)
        if mode == 3:
            body, text = damaged(draw, body, WORDS), None
    with Patched((inflate, "PIECE", PIECE)):
        out, ended, fault = read(coding, chunks(body, sizes))
        whole, also_ended, also_fault = read(coding, [body])
    assert (ended, fault) == (also_ended, also_fault)
    if fault:  # what a step brought before the damage may be lost with it
        assert out.startswith(whole) or whole.startswith(out)
    else:
        assert out == whole
        assert ended == _is_whole(coding, body)
    if text is not None:
        assert (out, ended, fault) == (text, True, False)
        with Patched((inflate, "PIECE", PIECE)):
            short, ended, _ = read(coding, [body[: draw.below(len(body)) or 1]])
        assert text.startswith(short)
        assert not ended or kind == "gzip" or len(short) == len(text)


def _packed(kind: str, text: bytes, level: int) -> bytes:
    # The smallest window and memory: what a packer allocates takes longer than packing so little.
    packer = zlib.compressobj(level, wbits=_WBITS[kind], memLevel=1)
    return packer.compress(text) + packer.flush()


def _members(draw: Draw, kind: str) -> tuple[bytes, bytes]:
    """A body and its text: several members where the coding has them, padding, bombs."""
    body, text = b"", b""
    for _ in range(1 + (draw.below(3) if kind == "gzip" else 0)):
        part = draw.take(draw.below(30)) * draw.pick((1, 1, 3, 20))
        if draw.chance(128):
            part += b"\0" * 40_000
        text += part
        body += _packed(kind, part, draw.pick((0, 1, 6, 9)))
        if draw.chance(4):
            body += b"\0" * draw.below(9)
    return body, text


def read(coding: str, parts: Sequence[bytes]) -> tuple[bytes, bool, bool]:
    """What came out, whether the body was whole, whether it was damaged."""
    inflater = Inflater(coding)
    out = []
    try:
        for part in parts:
            for piece in inflater.feed(part):
                assert 0 < len(piece) <= 2 * PIECE
                out.append(piece)
    except Damaged:
        return b"".join(out), False, True
    return b"".join(out), inflater.ended(), False


def _is_whole(coding: str, body: bytes) -> bool:
    """Whether zlib, given all of it at once, comes to an end of the last member."""
    if not body:
        return True
    if coding == "deflate":
        wbits = 15 if body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0 else -15
        reader = zlib.decompressobj(wbits)
        if len(body) > 1:
            reader.decompress(body)
        return reader.eof
    while True:
        reader = zlib.decompressobj(31)
        reader.decompress(body)
        body = reader.unused_data.lstrip(b"\0")
        if not reader.eof or not body:
            return reader.eof
