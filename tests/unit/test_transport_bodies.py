"""Encoded bodies, and bodies that are too large."""

# ruff: noqa: SIM117 - an exchange is one statement, nested as it is

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from test_transport import ASK, answer, fails, ok, read, serving

from engine.network.inflate import PIECE, Damaged, Inflater
from engine.network.transport import BadEncoding, Cut, Timeouts, TooLarge, Transport


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


TEXT = b"report;" * 50_000


@pytest.mark.parametrize(
    ("coding", "body", "expected"),
    [
        ("gzip", gzip.compress(TEXT), TEXT),
        ("X-GZIP", gzip.compress(b"a") + gzip.compress(TEXT) + b"\0" * 9, b"a" + TEXT),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("deflate", raw_deflate(TEXT), TEXT),
        ("identity", TEXT, TEXT),
        ("gzip", b"", b""),
        ("deflate", b"", b""),
    ],
)
async def test_encodings(coding: str, body: bytes, expected: bytes) -> None:
    async with serving(answer(ok(body, f"Content-Encoding: {coding}"))) as server:
        assert await read(server.url) == (200, expected)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_an_encoded_body_that_ends_early(coding: str) -> None:
    noise = bytes(i * i % 251 for i in range(20_000))
    body = gzip.compress(noise) if coding == "gzip" else zlib.compress(noise)
    error, got = await fails(answer(ok(body[:-9], f"Content-Encoding: {coding}")))
    assert type(error) is Cut
    assert error.cause == f"{coding} data ended early"
    assert noise.startswith(got)
    assert len(got) > 10_000


async def test_an_encoded_body_that_is_cut_by_the_network() -> None:
    body = gzip.compress(bytes(i * i % 251 for i in range(20_000)))
    error, got = await fails(answer(ok(body, "Content-Encoding: gzip")[:-20]))
    assert type(error) is Cut
    assert got


@pytest.mark.parametrize(
    ("coding", "body", "cause"),
    [
        ("gzip", b"plain text", "gzip data is damaged"),
        ("gzip", gzip.compress(b"abc", mtime=0) + b"garbage", "gzip data is damaged"),
        ("deflate", b"\xff\xff\xff\xff", "deflate data is damaged"),
        ("br", b"abc", "body is in an encoding that was not asked for"),
        ("gzip, gzip", b"abc", "body is in an encoding that was not asked for"),
    ],
)
async def test_bad_encodings(coding: str, body: bytes, cause: str) -> None:
    error, _ = await fails(answer(ok(body, f"Content-Encoding: {coding}")))
    assert type(error) is BadEncoding
    assert error.cause == cause


async def test_a_body_that_is_too_large_stops_at_the_limit() -> None:
    error, got = await fails(answer(ok(b"a" * 2_000_000)))
    assert type(error) is TooLarge
    assert error.cause == "body larger than 1 MiB"
    assert len(got) == 1 << 20


async def test_a_bomb_is_never_inflated_whole() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    largest = 0
    async with serving(answer(ok(bomb, "Content-Encoding: gzip"))) as server:
        async with Transport() as transport:
            tracemalloc.start()
            try:
                with pytest.raises(TooLarge):
                    limits = Timeouts(connect_or_byte_s=5, total_s=20, body_max=32 << 20)
                    async with transport.fetch(server.url, ASK, limits) as reply:
                        async for piece in reply.chunks():
                            largest = max(largest, len(piece))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert largest <= 256 * 1024
    assert peak < 4 << 20


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("wbits", [31, 15, -15])
def test_inflating_does_not_depend_on_how_the_data_is_cut(step: int, wbits: int) -> None:
    text = bytes(1 << 20) + bytes(i * i % 251 for i in range(3000)) + bytes(PIECE)
    packer = zlib.compressobj(9, wbits=wbits)
    data = packer.compress(text) + packer.flush()
    inflater = Inflater("gzip" if wbits == 31 else "deflate")
    got = b"".join(
        piece
        for start in range(0, len(data), step)
        for piece in inflater.feed(data[start : start + step])
    )
    assert got == text
    assert inflater.ended()


def test_what_comes_before_the_damage_is_inflated() -> None:
    data = gzip.compress(b"good") + b"bad"
    got = bytearray()
    with pytest.raises(Damaged):
        for piece in Inflater("gzip").feed(data):
            got += piece
    assert got == b"good"
