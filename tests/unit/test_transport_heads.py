"""Answers whose head breaks a rule of HTTP: a strict parser would throw all of the answer away."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_transport import ASK, TIMEOUTS, Script, answer, fails, ok, read, serving

from engine.core.amended import amended
from engine.core.contracts import Request
from engine.network.transport import Cut, Timeout, Timeouts, Transport

BODY = b'{"results": [{"messageId": "1"}]}'
N = len(BODY)
CHUNKS = b"5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:5], N - 5, BODY[5:])
CHUNKED = "Transfer-Encoding: chunked"
EMPTY = "HTTP/1.1 204 No Content"
HASTY = Timeouts(connect_or_byte_s=0.3, total_s=2.0, body_max=1 << 20)


def patient(seconds: float) -> Timeouts:
    return Timeouts(connect_or_byte_s=seconds, total_s=seconds, body_max=1 << 20)


def head(*lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([first, *lines]).encode("latin-1") + b"\r\n\r\n"


def length(n: object) -> str:
    return f"Content-Length: {n}"


def dripping(data: bytes, step: int) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            await asyncio.sleep(0.001)

    return script


CLEAR = {  # it is clear where the body ends
    "equal lengths": head(length(N), length(N)) + BODY,
    "equal lengths in one": head(length(f"{N}, {N}")) + BODY,
    "the larger length": head(length(N - 9), length(N)) + BODY,
    "a length that is none": head(length(""), length(N)) + BODY,
    "length and chunks": head(length(3), CHUNKED) + CHUNKS,
    "chunks and lengths": head(CHUNKED, length(N), length(7)) + CHUNKS,
    "identity and length": head("Transfer-Encoding: identity", length(N)) + BODY,
    "204 with length": head(length(N), first=EMPTY) + BODY,
    "204 with lengths": head(length(N), length(N), first=EMPTY) + BODY,
    "204 with chunks": head(CHUNKED, first=EMPTY) + CHUNKS,
    "a name with a space": head(length(N), "Bad name: x") + BODY,
    "no colon": head("bad", length(N)) + BODY,
    "a nul": head("X: a\0b", length(N)) + BODY,
    "another version": head(length(N), first="HTTP/2 200") + BODY,
    "after an early hint": head(first="HTTP/1.1 103 Early") + head(length(N), length(N)) + BODY,
    "lines without a return": b"HTTP/1.1 200 OK\nBad name: x\nContent-Length: %d\n\n" % N + BODY,
}
UNTIL_CLOSED = {
    "a smaller length": head(length(N), length(N + 9)) + BODY,
    "no length": head(length("abc")) + BODY,
    "a length below nought": head(length("-1")) + BODY,
    "a length beyond all": head(length("9" * 30)) + BODY,
    "204 with nothing": head(first=EMPTY) + BODY,
}


@pytest.mark.parametrize("data", CLEAR.values(), ids=CLEAR)
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_what_is_clear_is_read(data: bytes, step: int) -> None:
    """On a connection that stays open: nothing else ends the body."""
    async with serving(dripping(data, step)) as server:
        assert await read(server.url) == (200, BODY)


@pytest.mark.parametrize("data", UNTIL_CLOSED.values(), ids=UNTIL_CLOSED)
async def test_a_body_lasts_until_the_connection_ends(data: bytes) -> None:
    async with serving(answer(data)) as server:
        assert await read(server.url) == (200, BODY)


async def test_silence_at_one_of_the_lengths_ends_a_body() -> None:
    data = head(length(N), length(N + 9)) + BODY
    async with serving(answer(data, then_close=False)) as server:
        assert await read(server.url, timeouts=HASTY) == (200, BODY)


async def test_what_ends_at_none_of_the_lengths_was_cut() -> None:
    error, got = await fails(answer(head(length(N + 3), length(N + 9)) + BODY))
    assert (type(error), got) == (Cut, BODY)
    error, got = await fails(
        answer(head(length(N + 3), length(N + 9)) + BODY, then_close=False), HASTY
    )
    assert (type(error), got) == (Timeout, BODY)


async def test_a_body_that_is_not_in_the_chunks_of_its_head_is_handed_on_as_it_is() -> None:
    for lines in [CHUNKED], [CHUNKED, length(N)]:
        error, got = await fails(answer(head(*lines) + BODY))
        assert (type(error), got) == (Cut, BODY)


@pytest.mark.parametrize("data", CLEAR.values(), ids=CLEAR)
async def test_its_connection_is_not_used_again(data: bytes) -> None:
    replies = iter([data + ok(b"other"), ok(b"next")])

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(replies))

    async with serving(script) as server, Transport() as transport:
        for body in BODY, b"next":
            async with transport.fetch(server.url, ASK, TIMEOUTS) as reply:
                assert b"".join([piece async for piece in reply.chunks()]) == body
        assert server.connections == 2


async def test_a_204_without_a_body_stays_one() -> None:
    for lines in [[], [length(0)], [length(0), length(0)]]:
        for behind in b"", b"\r\n", head(first="HTTP/1.1 408 Timeout"):
            data = head(*lines, first=EMPTY) + behind
            async with serving(answer(data, then_close=False)) as server:
                assert await read(server.url) == (204, b"")


def behind(data: bytes, *, then_close: bool) -> Script:
    """A 204, and this in a packet of its own."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head(first=EMPTY))
        await writer.drain()
        await asyncio.sleep(0.05)
        await answer(data, then_close=then_close)(reader, writer)

    return script


async def test_a_body_that_comes_behind_a_204_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.network.exchange.LATE_BODY_S", 60.0)
    async with serving(behind(BODY, then_close=True)) as server:
        assert await read(server.url) == (200, BODY)
    error, got = await fails(behind(BODY, then_close=False), HASTY)
    assert (type(error), got) == (Timeout, BODY)


async def test_a_204_that_its_connection_ends_behind_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.network.exchange.LATE_BODY_S", 60.0)
    async with serving(behind(b"", then_close=True)) as server:
        assert await read(server.url, timeouts=patient(60.0)) == (204, b"")
    async with serving(behind(head(first="HTTP/1.1 408 Late"), then_close=False)) as server:
        assert await read(server.url, timeouts=patient(60.0)) == (204, b"")


async def test_a_204_is_held_for_who_asks_and_not_for_who_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A webhook's receiver mostly has nothing to say: its sender must not wait for it."""
    monkeypatch.setattr("engine.network.exchange.LATE_BODY_S", 60.0)
    tell = Request(method="POST", path="/hook", json=b"[]")
    async with serving(answer(head(first=EMPTY), then_close=False)) as server:
        assert await read(server.url, tell, timeouts=patient(60.0)) == (204, b"")


async def test_a_connection_is_used_again_after_a_204() -> None:
    async with (
        serving(answer(head(first=EMPTY), then_close=False)) as server,
        Transport() as transport,
    ):
        for _ in range(2):
            async with transport.fetch(server.url, ASK, TIMEOUTS) as reply:
                assert reply.head.status == 204
                assert [piece async for piece in reply.chunks()] == []
        assert server.connections == 1


async def test_what_else_the_head_says_is_kept() -> None:
    data = head("Retry-After: 7", length(N), "Bad name: x", "Retry-After: 9", "Content-Type: a/b")
    async with (
        serving(answer(data + BODY)) as server,
        Transport() as transport,
        transport.fetch(server.url, ASK, TIMEOUTS) as reply,
    ):
        headers = reply.head.headers
    assert (headers["retry-after"], headers["content-type"]) == ("7", "a/b")


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([
                length(1).encode(), length(2).encode(), length("1,2").encode(), b"X: \xff\x01",
                CHUNKED.encode(), b"Transfer-Encoding: gzip", b"Connection: keep-alive", b" fold",
                b"Upgrade: h2c",
            ]),
        ),
        max_size=8,
    ),
    st.sampled_from([b"200", b"204", b"404"]),
    st.booleans(),
)  # fmt: skip
def test_a_head_in_plain_words_needs_no_others(
    lines: list[bytes], status: bytes, followed: bool
) -> None:
    raw = b"HTTP/1.1 %s OK\r\n%s\r\n\r\n" % (status, b"\r\n".join(lines))
    plain = amended(raw, followed=followed)
    assert plain is not None
    again = amended(plain.head, followed=followed)
    assert again is not None
    assert again.head == plain.head
    assert again.lengths == frozenset()
    names = [line.partition(b":")[0].lower() for line in plain.head.split(b"\r\n")[1:-2]]
    assert len(names) == len(set(names))
    assert not {b"content-length", b"transfer-encoding"} <= set(names)
