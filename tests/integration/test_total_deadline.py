"""`request.total_timeout` ends what would never end: bodies, heads and logins that drip or go on.

An idle deadline alone does not see these: a byte always comes in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import avaamo, configured, hasty, infobip, lines, messangi, until

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]

DEADLINE = {"timeout": "5s", "total_timeout": "400ms"}
DRIP_S = 0.02
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
REPORT = (
    b'{"messageId":"m%d","to":"447900000001",'
    b'"status":{"groupId":3,"groupName":"DELIVERED","name":"DELIVERED_TO_HANDSET"}}'
)


def piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """A byte at a time, again and again."""
    while True:
        for n in range(len(data)):
            writer.write(data[n : n + 1])
            await writer.drain()
            await asyncio.sleep(DRIP_S)


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await drip(writer, b"x")


async def dripping_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    await drip(writer, b'{"results": [')


async def dripping_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    while True:
        writer.write(piece(b" "))
        await writer.drain()
        await asyncio.sleep(DRIP_S)


async def endless_garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(CHUNKED)
    while True:
        writer.write(piece(b"}{[" * 20_000))
        await writer.drain()
        await asyncio.sleep(0)


async def endless_reports(writer: asyncio.StreamWriter) -> None:
    """A huge answer in good order is bound by the same deadline; what came whole of it counts."""
    writer.write(CHUNKED + piece(b'{"results":[' + REPORT % 0))
    number = 0
    while True:
        number += 1
        writer.write(piece(b"," + REPORT % number))
        await writer.drain()
        await asyncio.sleep(0.001)


class Asked:
    """How often the server was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.times = 0
        self.running = 0


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Asked]:
    asked = Asked()
    tasks: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        asked.times += 1
        asked.running += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            await script(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            asked.running -= 1
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    asked.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield asked
    finally:
        server.close()
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.sleep(0.05)


ONE_AT_A_TIME = {"requests": 100, "per": "1s", "concurrency": 1}
ENDLESS = [dripping_head, dripping_body, dripping_chunks, endless_garbage, endless_reports]


@pytest.mark.parametrize("script", ENDLESS)
@pytest.mark.parametrize("make", [infobip, avaamo])
async def test_what_never_ends_is_cut(
    tmp_path: Path, script: Script, make: Callable[..., dict[str, Any]]
) -> None:
    async with serving(script) as asked:
        account = make(asked.url, request=DEADLINE, limits=ONE_AT_A_TIME)
        if make is avaamo:  # a window that is too short to be halved for being slow
            account["lookback"] = "30s"
        async with hasty(configured(tmp_path, account)) as poller:
            (only,) = poller.pollers.values()
            await until(lambda: only.health.failures >= 2, 20)
            assert "took longer than 0.4 s" in (only.health.failing or "")
            assert asked.running <= 1, "the connection is given up, too"
        if script is endless_reports and make is infobip:
            ids = [one["message_id"] for one in lines(tmp_path)]
            assert ids, "what came whole is kept"
            assert len(set(ids)) == len(ids)
            assert ids[:2] == ["m0", "m1"]


@pytest.mark.parametrize("script", [dripping_head, dripping_body, endless_garbage])
async def test_a_login_that_never_ends_is_cut(tmp_path: Path, script: Script) -> None:
    async with serving(script) as asked:
        account = messangi(
            asked.url,
            headers={},
            login_url=f"{asked.url}/login",
            username="u",
            password="a-secret-word",
            request=DEADLINE,
        )
        async with hasty(configured(tmp_path, account)) as poller:
            (only,) = poller.pollers.values()
            await until(lambda: only.health.failures >= 1 or only.health.paused, 20)
            said = only.health.failing or only.health.paused or ""
            assert "the login" in said
            if script is not endless_garbage:  # that is cut by its size
                assert "took longer than 0.4 s" in said
            assert asked.running <= 1
