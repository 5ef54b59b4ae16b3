"""A slow, odd or hostile client of the port: every bound, and no fault of ours."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.web import server
from engine.worker import Engine
from tests.integration.harness import bulksms, until
from tests.integration.webbing import BEARER, LATER, NOWHERE, TOKEN, address, served

# How long an answer is waited for: sooner than the port itself would have ended the connection.
PATIENCE_S = server.ANSWER_S / 2


async def test_bodies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.web import api

    monkeypatch.setattr(api, "TRACK_MAX", 1000)
    async with served(tmp_path, bulksms(NOWHERE)) as (_, web):
        status, said, _ = await web.ask("/v1/track", "POST", data=b" " * 1001, headers=BEARER)
        assert (status, said["errors"]) == (413, ["the body is longer than 1,000 bytes"])

        async def pieces() -> Any:
            for _ in range(100):
                yield b" " * 100

        status, _, _ = await web.ask("/v1/track", "POST", data=pieces(), headers=BEARER)
        assert status == 413
        packed = {**BEARER, "Content-Encoding": "gzip"}
        assert (await web.ask("/v1/track", "POST", data=b"\x1f\x8b", headers=packed))[0] == 415
        monkeypatch.setattr(server, "BODIES_MAX", 10)
        status, _, back = await web.ask("/v1/track", "POST", data=b" " * 11, headers=BEARER)
        assert (status, back["Retry-After"]) == (503, "1")


async def test_a_body_of_unsaid_length_takes_the_room_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODIES_MAX", 1000)
    count, come, rest = 9, 0, anyio.Event()
    said: list[int] = []
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (poller, web):
        assert poller.surface is not None
        port = poller.surface.port

        async def small(n: int) -> Any:
            nonlocal come
            yield b'{"batch_id": '
            come += 1
            await rest.wait()
            yield b'"%d"}' % n

        async def ask(body: Any) -> None:
            said.append((await web.ask("/v1/track", "POST", data=body, headers=BEARER))[0])

        async def large() -> Any:
            for _ in range(11):
                yield b" " * 100

        async with anyio.create_task_group() as asking:
            for n in range(count):
                asking.start_soon(ask, small(n))
            await until(lambda: come == count and port._bodies == count * len('{"batch_id": '))
            await ask(large())
            assert said == [503]
            rest.set()
        assert said == [503] + [202] * count
        await until(lambda: port._bodies == 0)


async def test_expect_continue_is_answered_only_to_who_may(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (poller, _):
        for token, first in ((TOKEN, b"HTTP/1.1 100 Continue"), ("x", b"HTTP/1.1 401")):
            reader, writer = await asyncio.open_connection(*address(poller))
            body = b'{"batch_id": "1"}'
            head = (
                f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
            )
            writer.write(head.encode())
            assert (await reader.readline()).startswith(first)
            if token == TOKEN:
                await reader.readline()
                writer.write(body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 202")
            writer.close()


async def test_a_slow_client_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its head is whole, within its body, and one that does not read its answer."""
    monkeypatch.setattr(server, "CONNECTION_S", 1.0)
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    head = f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n"
    begun = [b"", b"GET /he", f"{head}Content-Length: 100\r\n\r\n{{".encode()]
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        for sent in begun:
            reader, writer = await asyncio.open_connection(*address(poller))
            writer.write(sent)
            with anyio.fail_after(PATIENCE_S):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        assert (await web.ask("/healthz"))[0] == 200


def connections(poller: Engine) -> int:
    assert poller.surface is not None
    assert poller.surface.port._server is not None
    return len(poller.surface.port._server.connections)


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 3)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        held = [await asyncio.open_connection(*address(poller)) for _ in range(3)]
        await until(lambda: connections(poller) == 3)
        reader, writer = await asyncio.open_connection(*address(poller))
        with anyio.fail_after(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()
        for _, other in held:
            other.close()
        await until(lambda: connections(poller) == 0)
        assert (await web.ask("/healthz"))[0] == 200


async def test_a_fault_in_the_program_says_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):

        async def broken(items: Any) -> Any:
            raise RuntimeError("c4n4ry")

        poller.track_many = broken  # type: ignore[method-assign]
        status, said = await web.track({"batch_id": "c4n4ry"})
        assert (status, said["errors"]) == (500, ["a fault in the program: please report it"])
        assert poller.telemetry.of("faults", "") == 1
    assert "c4n4ry" not in caplog.text


async def test_what_is_no_http_is_neither_logged_nor_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, _):
        asyncio.get_running_loop().set_debug(True)
        for sent in (
            b"c4n4ry\r\n\r\n", b"GET /push/a/c4n4ry\x01 HTTP/1.1\r\n\r\n",
            b"GET /push/a/c4n4ry HTTP/9.9\r\nHost: h\r\n\r\n", b"\x16\x03\x01c4n4ry\r\n\r\n",
            b"GET /push/a/c4n4ry HTTP/1.1\r\nHost: h\r\nc4n4ry\r\n\r\n",
            b"GET /" + b"c4n4ry" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /push/a/c4n4ry?a=\xe9 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /v1/m HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer c4n4ry\x01\r\n\r\n",
        ):  # fmt: skip
            reader, writer = await asyncio.open_connection(*address(poller))
            writer.write(sent)
            with anyio.fail_after(PATIENCE_S):
                answered = await reader.read()
            assert not answered.startswith(b"HTTP/1.1 2")
            assert b"Traceback" not in answered
            assert b"c4n4ry" not in answered
            assert answered == b"" or b"Server: dlr-engine\r\n" in answered
            writer.close()
        asyncio.get_running_loop().set_debug(False)
    assert "c4n4ry" not in caplog.text
    said = capfd.readouterr()
    assert "c4n4ry" not in said.out + said.err


ODD = (
    "GET //x HTTP/1.1", "GET http://h:99999/healthz HTTP/1.1", "OPTIONS * HTTP/1.1",
    "CONNECT h:1 HTTP/1.1", "GET /v1/messages HTTP/1.1", "GET /v1/messages/ HTTP/1.1",
    "GET /v1/messages/%ff/%00 HTTP/1.1", "GET /push/%zz/%f HTTP/1.1", "GET /?a=%zz HTTP/1.1",
    "GET /metrics?x[]=1 HTTP/1.0", "POST /v1/track?account=%ff HTTP/1.1",
    "GET /../healthz HTTP/1.1",
    "GET /v1/messages/bulk/a?direction=%ff HTTP/1.1", "BREW /healthz HTTP/1.1",
    "GET /push/bulk HTTP/1.1", "GET http://[::1/x HTTP/1.1", "GET x HTTP/1.1", "GET /é HTTP/1.1",
)  # fmt: skip
ODD_HEADS = (
    "", "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked", "Expect: x",
    "Authorization: Bearer \xff", "Content-Encoding: x",
    "Upgrade: websocket\r\nConnection: Upgrade",
)  # fmt: skip


async def test_odd_requests_are_no_fault_of_ours(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE, push_secret="s")) as (poller, web):
        for line in ODD:
            for head in ODD_HEADS:
                reader, writer = await asyncio.open_connection(*address(poller))
                asked = f"{line}\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n{head}".strip()
                writer.write(asked.encode("latin-1") + b"\r\n\r\nhello0\r\n\r\n")
                writer.write_eof()
                with anyio.fail_after(PATIENCE_S), suppress(ConnectionError):
                    answered = await reader.read()
                    assert not answered.startswith(b"HTTP/1.1 500"), (line, head)
                writer.close()
        assert poller.telemetry.of("faults", "") == 0
        assert (await web.ask("/healthz"))[0] == 200


async def test_open_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """One that is silent, and one that is in the middle of its body."""
    with anyio.CancelScope() as ending:
        async with served(tmp_path, bulksms(NOWHERE)) as (poller, _):
            silent = await asyncio.open_connection(*address(poller))
            halfway = await asyncio.open_connection(*address(poller))
            head = f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n"
            halfway[1].write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            await anyio.sleep(0.1)
            ending.deadline = anyio.current_time() + PATIENCE_S
    assert not ending.cancelled_caught
    for _, writer in (silent, halfway):
        writer.close()
