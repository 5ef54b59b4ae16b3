"""Answers whose frame is wrong: what came in it may be the only copy there is."""

from __future__ import annotations

import gzip

import pytest
from test_transport import ASK, TIMEOUTS, answer, chunked, fails, ok, read, serving

from engine.network.transport import BadEncoding, Cut, Transport

NOISE = bytes(i * i % 251 for i in range(60_000))


async def test_a_bad_chunk_does_not_take_those_along_that_came_with_it() -> None:
    error, got = await fails(answer(chunked(b"a" * 500, b"b" * 20, end=False) + b"zz\r\nq"))
    assert type(error) is Cut
    assert got == b"a" * 500 + b"b" * 20


@pytest.mark.parametrize("behind", [b"}", b"\r\n\r\ngarbage"])
@pytest.mark.parametrize("body", [b"abc", b""])
async def test_bytes_behind_an_answer_do_not_spoil_it(body: bytes, behind: bytes) -> None:
    async with serving(answer(ok(body) + behind)) as server:
        assert await read(server.url) == (200, body)
    async with serving(answer(chunked(*[body] * bool(body)) + behind)) as server:
        assert await read(server.url) == (200, body)


async def test_what_stands_behind_an_answer_is_not_taken_for_the_next_one() -> None:
    both = answer(ok(b"one") + ok(b"other"), then_close=False)
    async with serving(both) as server, Transport() as transport:
        for _ in range(2):
            async with transport.fetch(server.url, ASK, TIMEOUTS) as reply:
                assert b"".join([piece async for piece in reply.chunks()]) == b"one"


@pytest.mark.parametrize("coding", ["UTF-8", "none", "binary", "identity, utf-8"])
async def test_a_coding_that_is_none_is_passed_over(coding: str) -> None:
    async with serving(answer(ok(NOISE, f"Content-Encoding: {coding}"))) as server:
        assert await read(server.url) == (200, NOISE)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "identity, zstd"])
async def test_what_cannot_be_inflated_is_handed_on_as_it_is(coding: str) -> None:
    body = b'{"results": []}' * 9000
    error, got = await fails(answer(ok(body, f"Content-Encoding: {coding}")))
    assert type(error) is BadEncoding
    assert got == body


async def test_what_was_inflated_before_the_damage_is_handed_on() -> None:
    packed = bytearray(gzip.compress(NOISE))
    packed[-8] ^= 1  # the checksum: all of it is inflated by then, in one step
    error, got = await fails(answer(ok(bytes(packed), "Content-Encoding: gzip")))
    assert type(error) is BadEncoding
    assert got == NOISE[:-1]
