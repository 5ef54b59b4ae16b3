"""What cannot be reached or understood, and that no failure tells a secret."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import aiohttp
import pytest
import uvloop
from test_transport import (
    ASK,
    CANARY,
    NOWHERE,
    TIMEOUTS,
    answer,
    fails,
    no_secret,
    ok,
    read,
    serving,
)

from engine.core.contracts import Request
from engine.network.exchange import Exchange
from engine.network.transport import (
    BadAnswer,
    Cut,
    Timeout,
    Timeouts,
    Transport,
    TransportError,
    Unreachable,
    Withheld,
)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nX: " + CANARY.encode() + b"\r\n\r\nab",
        b'{"results": []}',
        b"\x15\x03\x01\x00\x02\x02",
    ],
)
async def test_what_is_not_http_is_handed_on_as_it_is(data: bytes) -> None:
    error, got = await fails(answer(data))
    assert type(error) is BadAnswer
    assert error.cause == "answer is not valid HTTP"
    assert got == data


FLOODS = {
    "a long header": lambda size: b"X-Long: " + b"a" * size + b"\r\n",
    "many headers": lambda size: b"".join(b"X-%d: a\r\n" % n for n in range(size // 10)),
    "a bad one among them": lambda size: b"Bad name: x\r\n" + b"X: %s\r\n" % (b"a" * size),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_large_head_is_read(flood: Callable[[int], bytes]) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + flood(200_000) + b"Content-Length: 2\r\n\r\nok"
    async with serving(answer(data)) as server:
        assert await read(server.url) == (200, b"ok")


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_head_without_end_is_handed_on_as_it_is(flood: Callable[[int], bytes]) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + flood(400_000) + b"Content-Length: 2\r\n\r\nok"
    error, got = await fails(answer(data))
    assert type(error) is BadAnswer
    assert error.cause == "answer's head is larger than 256 KiB"
    assert got == data


async def test_early_hints_are_no_part_of_the_head() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 100_000 + b"\r\n\r\n"
    async with serving(answer(5 * hints + ok(b"ok"))) as server:
        assert await read(server.url) == (200, b"ok")


async def test_connection_refused() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(Unreachable) as caught:
        await read(url)
    assert caught.value.cause == "connection refused"
    assert not caught.value.sent
    no_secret(caught.value)


@pytest.mark.parametrize("request_", [ASK, Request(method="POST", path="/f", json=b"{}")])
async def test_a_request_that_may_not_go_out_any_more(request_: Request) -> None:
    """It is asked once there is a connection, and not a byte goes over it."""
    async with serving(answer(ok(b"x"))) as server, Transport() as transport:
        asked: list[None] = []

        def may_send() -> bool:
            asked.append(None)
            return False

        with pytest.raises(Withheld) as caught:
            async with transport.fetch(server.url, request_, TIMEOUTS, may_send=may_send):
                pass
        await asyncio.sleep(0.05)
        assert len(asked) == 1
        assert (server.connections, server.heads) == (1, [])
    assert not caught.value.sent
    no_secret(caught.value)


async def test_no_such_host() -> None:
    with pytest.raises(Unreachable) as caught:
        await read(NOWHERE)
    assert caught.value.cause.startswith("DNS: ")
    assert not caught.value.sent
    no_secret(caught.value)


async def test_tls_with_a_server_that_has_none() -> None:
    async with serving(answer(b"HTTP/1.1 200 OK\r\n\r\n")) as server:
        port = server.url.rpartition(":")[2]

        async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        listener = await asyncio.start_server(garbage, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match=r"^TLS: ") as caught:
            await read(f"https://127.0.0.1:{port}")
        listener.close()
    assert not caught.value.sent
    no_secret(caught.value)


@pytest.mark.parametrize(
    "request_",
    [
        Request(url=f"ftp://host/{CANARY}"),
        Request(url=f"http://[{CANARY}/"),
        Request(path="/", headers=(("X-Bad", f"{CANARY}\r\nX: y"),)),
        Request(url=f"/{CANARY}"),
    ],
)
async def test_a_request_that_cannot_be_built(request_: Request) -> None:
    async with serving(answer(ok(b""))) as server:
        with pytest.raises(TransportError) as caught:
            await read(server.url, request_)
        assert not server.heads
    no_secret(caught.value)


@pytest.mark.parametrize(
    ("raised", "kind", "cause"),
    [
        (aiohttp.ConnectionTimeoutError(CANARY), Timeout, "no connection after 2 s"),
        (TimeoutError(), Timeout, "answer took longer than 5 s"),
        (aiohttp.ClientOSError(113, CANARY), Cut, "host unreachable after 0 bytes"),
        (aiohttp.ClientOSError(28, CANARY), Cut, "no space left on device after 0 bytes"),
        (aiohttp.ClientConnectionError(CANARY), Cut, "connection lost after 0 bytes"),
        (aiohttp.ClientError(CANARY), Unreachable, "request cannot be built"),
    ],
)
async def test_the_table_of_errors(
    raised: Exception, kind: type[TransportError], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Exchange, "run", fail)
    async with serving(answer(ok(b""))) as server:
        with pytest.raises(TransportError) as caught:
            await read(server.url)
    assert type(caught.value) is kind
    assert caught.value.cause == cause
    no_secret(caught.value)


@pytest.mark.parametrize("part", ["head", "body"])
def test_what_arrived_while_the_process_stood_still_is_read(part: str) -> None:
    """When it goes on its patience is over, and the answer has been in the socket for long.

    It stands still where a busy loop does: while it handles what another socket brought. uvloop
    then runs the timers before it looks at the sockets again.
    """
    head, body = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"once"

    def serve(listener: socket.socket) -> None:
        taken, _ = listener.accept()
        with taken:
            taken.recv(65536)
            if part == "body":
                taken.sendall(head)
            time.sleep(0.2)  # the client stands still by now
            taken.sendall(body if part == "body" else head + body)
            taken.recv(1)

    async def ask(url: str) -> bytes:
        patience = Timeouts(connect_or_byte_s=0.4, total_s=30.0, body_max=100)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        loop.add_reader(ours, lambda: (ours.recv(1), time.sleep(1.0)))
        try:
            async with (
                Transport() as transport,
                transport.fetch(
                    url, ASK, patience, on_sent=lambda: loop.call_later(0.1, theirs.send, b"!")
                ) as found,
            ):
                return b"".join([piece async for piece in found.chunks()])
        finally:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(ask(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        server.join()
    assert found == b"once"
