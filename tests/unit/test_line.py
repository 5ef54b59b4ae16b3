"""A connection that is dropped with whatever goes wrong, and what is said of why it failed."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trustme

from engine.core.errors import SinkError
from engine.targets.line import Line
from tests.services import HOST
from tests.unit.test_message_sink_options import made

MORE: dict[str, dict[str, Any]] = {
    "amqp": {"routing_key": "q"}, "nats": {"subject": "s", "stream": "S"}, "redis": {"stream": "s"},
}  # fmt: skip


async def refused(kind: str, url: str) -> str:
    sink = made(kind, url=url, **MORE[kind]).build()
    with pytest.raises(SinkError) as caught:
        await sink.open()
    await sink.close()
    assert caught.value.__cause__ is caught.value.__context__ is None
    return caught.value.cause.partition(": ")[2]


@pytest.mark.parametrize("kind", sorted(MORE))
async def test_a_name_that_is_not_known(kind: str) -> None:
    assert await refused(kind, f"{kind}://host.invalid") == "DNS: no such host"


@pytest.mark.parametrize("kind", sorted(MORE))
async def test_a_port_where_nobody_listens(kind: str) -> None:
    assert await refused(kind, f"{kind}://{HOST}:1") == "connection refused"


@pytest.mark.parametrize(("kind", "scheme"), [("amqp", "amqps"), ("redis", "rediss")])
async def test_a_certificate_that_nobody_knows(kind: str, scheme: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    server = await asyncio.start_server(lambda *_: None, HOST, 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await refused(kind, f"{scheme}://localhost:{port}")
    assert said.startswith("TLS: certificate verify failed: ")


class Wire:
    """A stand-in for a library's connection."""

    def __init__(self) -> None:
        self.ended = 0
        self.alive = True

    async def connect(self, closing: AsyncExitStack) -> Wire:
        closing.callback(self.end)
        return self

    def end(self) -> None:
        self.ended += 1


async def fail(wire: Wire, error: BaseException) -> None:
    raise error


async def number(wire: Wire, n: int) -> int:
    return n


async def test_it_is_made_once_and_dropped_with_what_goes_wrong() -> None:
    wire = Wire()
    line = Line("cannot write", wire.connect, (OSError,), lambda _: "why", lambda wire: wire.alive)
    assert [await line.use(number, n) for n in range(3)] == [0, 1, 2]
    assert (wire.ended, line.held) == (0, wire)
    with pytest.raises(SinkError, match=r"^cannot write: why$"):
        await line.use(fail, OSError("secret"))
    assert (wire.ended, line.held) == (1, None)
    for error in (ValueError("another's"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await line.use(fail, error)
    assert (wire.ended, line.held) == (3, None)
    await line.use(number, 0)
    wire.alive = False
    await line.use(number, 0)  # one that has died is not used
    assert wire.ended == 4
    await line.drop()
    await line.drop()
    assert wire.ended == 5


async def test_a_connection_that_was_only_begun_is_ended() -> None:
    wire = Wire()

    async def half(closing: AsyncExitStack) -> Wire:
        await wire.connect(closing)
        raise OSError

    line = Line("cannot write", half, (OSError,), lambda _: "why")
    with pytest.raises(SinkError):
        await line.use(number, 0)
    assert wire.ended == 1
