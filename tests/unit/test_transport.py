"""The transport against a real server that misbehaves on the wire, byte by byte."""

# ruff: noqa: SIM117 - an exchange is one statement, nested as it is

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from engine.core.contracts import Request
from engine.network.transport import (
    Cut,
    Timeout,
    Timeouts,
    Transport,
    TransportError,
)

CANARY = "s3cr3t-canary"
HOST = "http://h"  # by name, as a traceback quotes the source
NOWHERE = "http://no-such-host.invalid"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
TIMEOUTS = Timeouts(connect_or_byte_s=2.0, total_s=5.0, body_max=1 << 20)
ASK = Request(path="/reports", params=(("password", CANARY), ("a b", "x+y&z")))


class Server:
    """Counts the requests it gets and answers each with the script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        self.bodies.append(await reader.readexactly(int(line.split(b":")[1])))
                await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server(script)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await asyncio.sleep(0.01)


def answer(data: bytes, *, then_close: bool = True, reset: bool = False) -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if reset:
            await asyncio.sleep(0.05)
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if then_close:
            writer.transport.abort() if reset else writer.close()
            raise ConnectionResetError

    return script


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(*parts: bytes, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + body + (b"0\r\n\r\n" if end else b"")


def no_secret(error: BaseException) -> None:
    text = "".join(traceback.format_exception(error)) + repr(error) + str(error.args)
    assert CANARY not in text
    assert "http://" not in text
    seen: BaseException | None = error
    while seen is not None:
        assert seen is error or not isinstance(seen, aiohttp.ClientError)
        seen = seen.__cause__ or seen.__context__


async def read(
    url: str, request: Request = ASK, timeouts: Timeouts = TIMEOUTS
) -> tuple[int, bytes]:
    async with Transport() as transport, transport.fetch(url, request, timeouts) as got:
        return got.head.status, b"".join([piece async for piece in got.chunks()])


async def fails(
    script: Script, timeouts: Timeouts = TIMEOUTS, request: Request = ASK
) -> tuple[TransportError, bytes]:
    got = bytearray()
    async with serving(script) as server:
        with pytest.raises(TransportError) as caught:
            async with Transport() as transport:
                async with transport.fetch(server.url, request, timeouts) as reply:
                    async for piece in reply.chunks():
                        got += piece
        assert len(server.heads) == 1
    no_secret(caught.value)
    assert caught.value.sent
    return caught.value, bytes(got)


async def test_a_request_is_sent_as_it_was_built() -> None:
    async with serving(answer(ok(b"hello", "X-Two: a", "x-two: b"))) as server:
        async with Transport() as transport, transport.fetch(server.url, ASK, TIMEOUTS) as got:
            assert got.head.status == 200
            assert got.head.headers["x-two"] == "a, b"
            assert [piece async for piece in got.chunks()] == [b"hello"]
            assert got.received_bytes == 5
    head = server.heads[0]
    assert head.startswith(b"GET /reports?password=" + CANARY.encode() + b"&a+b=x%2By%26z HTTP/1.1")
    assert b"Accept-Encoding: gzip, deflate\r\n" in head
    assert head.count(b"User-Agent: dlr-engine") == 1


async def test_forms_json_and_absolute_urls() -> None:
    async with serving(answer(ok(b""), then_close=False)) as server:
        form = Request(method="POST", path="/f", form=(("user", "j"), ("pass", "a&b c")))
        await read(server.url + "/", form)
        json = Request(method="POST", path="/f", json=b"{}", headers=(("X-A", "b"),))
        await read(server.url, json)
        await read(NOWHERE, Request(url=f"{server.url}/login"))
    assert server.bodies == [b"user=j&pass=a%26b+c", b"{}"]
    assert b"Content-Type: application/x-www-form-urlencoded\r\n" in server.heads[0]
    assert server.heads[0].startswith(b"POST /f ")
    assert b"Content-Type: application/json\r\n" in server.heads[1]
    assert b"X-A: b\r\n" in server.heads[1]
    assert server.heads[2].startswith(b"GET /login ")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_whose_kept_connection_is_closed_is_not_sent_again(method: str) -> None:
    replies = iter([True, False, True])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(ok(b"one"), then_close=not next(replies))(reader, writer)

    async def second_closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 2:
            raise ConnectionResetError
        writer.write(ok(b"one"))

    async with serving(second_closes) as server, Transport() as transport:
        request = Request(method=method, path="/x")
        async with transport.fetch(server.url, request, TIMEOUTS) as got:
            assert [piece async for piece in got.chunks()] == [b"one"]
        with pytest.raises(Cut, match="connection closed") as caught:
            async with transport.fetch(server.url, request, TIMEOUTS):
                pass
        assert caught.value.sent
        assert (server.connections, len(server.heads)) == (1, 2)
        async with transport.fetch(server.url, request, TIMEOUTS) as got:
            assert got.head.status == 200
        assert (server.connections, len(server.heads)) == (2, 3)


async def test_a_library_that_resends_would_be_noticed() -> None:
    """The control: aiohttp's own session does send it again."""

    async def second_closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.heads) == 2:
            raise ConnectionResetError
        writer.write(ok(b"one"))

    async with serving(second_closes) as server, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.get(server.url) as response:
                await response.read()
        assert len(server.heads) == 3


async def test_a_large_body_goes_out_whole() -> None:
    body = bytes(range(256)) * 12_000
    async with serving(answer(ok(b"taken"), then_close=False)) as server:
        assert await read(server.url, Request(method="POST", json=body)) == (200, b"taken")
    assert server.bodies == [body]


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_ones() -> None:
    """Servers say 408 to a connection that was idle for long, and close it a moment later."""

    async def says_more(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"%d" % len(server.heads)))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    async with serving(says_more) as server, Transport() as transport:
        for number in (1, 2):
            async with transport.fetch(server.url, ASK, TIMEOUTS) as got:
                assert got.head.status == 200
                assert [piece async for piece in got.chunks()] == [b"%d" % number]
            await asyncio.sleep(0.05)
        assert (server.connections, len(server.heads)) == (2, 2)


async def test_on_sent_is_called_once_and_before_a_slow_answer() -> None:
    times: list[float] = []

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        await asyncio.sleep(0.05)
        writer.write(ok(b""))

    sent: list[float] = []
    async with serving(slow) as server, Transport() as transport:
        for request in (Request(path="/"), Request(method="POST", form=(("a", "b"),))):
            async with transport.fetch(
                server.url, request, TIMEOUTS, lambda: sent.append(time.monotonic())
            ):
                arrived = times[-1]
                assert abs(sent[-1] - arrived) < 0.04
    assert len(sent) == 2


async def test_a_cut_body_hands_on_what_came() -> None:
    whole = ok(b"x" * 1000)
    error, got = await fails(answer(whole[:-400]))
    assert type(error) is Cut
    assert error.cause == "body ended early, after 600 bytes"
    assert (got, error.received_bytes) == (b"x" * 600, 600)


async def test_a_cut_chunked_body_hands_on_what_came() -> None:
    error, got = await fails(answer(chunked(b"a" * 500, b"b" * 20, end=False)))
    assert type(error) is Cut
    assert got == b"a" * 500 + b"b" * 20
    assert "520 bytes" in error.cause


async def test_a_broken_chunk_hands_on_what_came() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(b"abc", end=False))
        await asyncio.sleep(0.05)
        writer.write(b"zz\r\nnonsense\r\n")
        await asyncio.sleep(0.05)

    error, got = await fails(script)
    assert isinstance(error, Cut)
    assert got == b"abc"


async def test_a_reset_hands_on_what_came() -> None:
    error, got = await fails(answer(ok(b"y" * 1204 + b"z" * 99)[:-99], reset=True))
    assert type(error) is Cut
    assert got == b"y" * 1204
    assert "1,204 bytes" in error.cause


async def test_a_slow_reader_still_gets_all_that_came_before_a_cut() -> None:
    got = 0
    async with serving(answer(ok(b"q" * 900_000)[:-1000])) as server, Transport() as transport:
        with pytest.raises(Cut):
            async with transport.fetch(server.url, ASK, TIMEOUTS) as reply:
                async for piece in reply.chunks():
                    got += len(piece)
                    await asyncio.sleep(0.01)
    assert got == 899_000


async def test_no_answer_at_all() -> None:
    error, _ = await fails(answer(b""))
    assert type(error) is Cut
    assert error.cause == "connection closed after 0 bytes"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async with serving(answer(b"HTTP/1.0 200 OK\r\n\r\nabc")) as server:
        assert await read(server.url) == (200, b"abc")


async def test_a_redirect_is_returned_as_it_is() -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: http://other.invalid/\r\nContent-Length: 0\r\n\r\n"
    async with serving(answer(data)) as server, Transport() as transport:
        async with transport.fetch(server.url, ASK, TIMEOUTS) as got:
            assert got.head.status == 302
            assert got.head.headers["location"] == "http://other.invalid/"


async def test_cookies_are_not_kept() -> None:
    async with serving(answer(ok(b"", "Set-Cookie: a=b"), then_close=False)) as server:
        async with Transport() as transport:
            for _ in range(2):
                async with transport.fetch(server.url, ASK, TIMEOUTS):
                    pass
    assert b"cookie" not in server.heads[1].lower()


async def test_silence_before_the_head_and_in_the_body() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1)

    async def half(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"0123456789")[:-5])
        await asyncio.sleep(1)

    short = Timeouts(connect_or_byte_s=0.1, total_s=5, body_max=100)
    error, _ = await fails(silent, short)
    assert type(error) is Timeout
    assert error.cause == "timed out after 0.1 s without a byte"
    error, got = await fails(half, short)
    assert type(error) is Timeout
    assert (got, error.received_bytes) == (b"01234", 5)


async def test_a_drip_ends_at_the_deadline() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    error, got = await fails(drip, Timeouts(connect_or_byte_s=2, total_s=0.3, body_max=10_000))
    assert type(error) is Timeout
    assert error.cause == "body took longer than 0.3 s"
    assert 0 < len(got) < 1000  # what came by then, and not the whole of it


async def test_a_slow_reader_meets_the_deadline_too() -> None:
    async with serving(answer(ok(b"x" * 8_000_000))) as server, Transport() as transport:
        limits = Timeouts(connect_or_byte_s=2, total_s=0.1, body_max=1 << 30)
        with pytest.raises(Timeout):
            async with transport.fetch(server.url, ASK, limits) as reply:
                async for _ in reply.chunks():
                    await asyncio.sleep(0.06)


async def test_a_transport_that_is_not_open() -> None:
    with pytest.raises(RuntimeError):
        async with Transport().fetch("http://h", ASK, TIMEOUTS):
            pass


async def test_many_at_once_wait_for_nothing() -> None:
    waiting, all_there = 0, asyncio.Event()

    async def patient(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 60:
            all_there.set()
        await all_there.wait()  # nobody is answered before all have asked
        writer.write(ok(b"x"))

    async def one(transport: Transport, url: str) -> None:
        async with transport.fetch(url, ASK, TIMEOUTS) as got:
            assert [piece async for piece in got.chunks()] == [b"x"]

    async with serving(patient) as server, Transport() as transport:
        await asyncio.gather(*(one(transport, server.url) for _ in range(60)))


async def test_a_header_that_is_no_utf_8_is_text_all_the_same() -> None:
    data = ok(b"", "X-Note: caf\xe9", "X-Other: na\u00efve").replace(b"caf\xc3\xa9", b"caf\xe9")
    async with serving(answer(data)) as server:
        async with Transport() as transport, transport.fetch(server.url, ASK, TIMEOUTS) as got:
            heard = got.head.headers
    assert (heard["x-note"], heard["x-other"]) == ("caf\xe9", "na\xefve")
    assert heard["x-note"].encode()  # half a surrogate could be kept nowhere
