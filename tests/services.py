"""The servers that some tests need, and a line to them that can be cut.

Where a server or a package is missing such a test is skipped and says so; with `CI=true` that is a
failure, so that nothing is left out unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest

CI = os.environ.get("CI", "").lower() in ("1", "true")
HOST = "127.0.0.1"
PORTS = {"amqp": 5672, "nats": 4222, "postgres": 5432, "redis": 6379}
REACH_S = 5.0
TRIES = 100
PIECE = 1 << 16


def missing(why: str) -> NoReturn:
    """End the test: something that it needs is not here."""
    if CI:
        pytest.fail(f"{why}, and CI leaves nothing out", pytrace=False)
    pytest.skip(why)


def require(service: str) -> tuple[str, int]:
    """Where a server listens; skips the test where it does not."""
    port = PORTS[service]
    try:
        socket.create_connection((HOST, port), REACH_S).close()
    except OSError as error:
        missing(f"no {service} server at {HOST}:{port} ({error.strerror or error})")
    return HOST, port


def require_package(module: str, extra: str) -> None:
    """A package that an extra brings."""
    if importlib.util.find_spec(module) is None:
        missing(f"{module} is not installed: pip install dlr-engine[{extra}]")


@contextlib.asynccontextmanager
async def own_schema() -> AsyncIterator[str]:
    """The URL of a schema in the shared PostgreSQL that is there for one test."""
    require_package("asyncpg", "postgres")
    import asyncpg

    host, port = require("postgres")
    url, schema = f"postgresql://postgres@{host}:{port}/test", f"dlr_test_{uuid.uuid4().hex[:12]}"
    database = await asyncpg.connect(url)
    try:
        await database.execute(f"CREATE SCHEMA {schema}")
        yield f"{url}?search_path={schema}"
    finally:
        await database.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await database.close()


class Line:
    """A TCP line to a server, at a port of its own, that can be cut, mended and made to hang."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Event()
        self._moving.set()
        self._left: int | None = None
        self.port = 0

    async def __aenter__(self) -> Line:
        await self.mend()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Let connections through, again."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """End what is open, and refuse what comes."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self._end()
        self._moving.set()
        self._left = None
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cut_after(self, count: int) -> None:
        """End the connection, once, when so many more bytes have gone to the server."""
        self._left = count

    def hang(self) -> None:
        """Connections stay open, and nothing moves until `cut` or `thaw`."""
        self._moving.clear()

    def thaw(self) -> None:
        """What hung goes on as if nothing had been."""
        self._moving.set()

    def _end(self) -> None:
        for end in list(self._ends):
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        if self._listener is None:  # cut just as it came
            writer.transport.abort()
        there, back = await asyncio.open_connection(*self._server)
        if writer.transport.is_closing():
            back.transport.abort()
            self._ends.discard(writer)
            return
        self._ends.add(back)
        for source, target, counted in ((reader, back, True), (there, writer, False)):
            task = asyncio.create_task(self._move(source, target, counted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _move(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counted: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(PIECE):
                await self._moving.wait()
                if counted and self._left is not None:
                    self._left -= len(piece)
                    if self._left < 0:
                        self._left = None
                        self._end()
                        break
                target.write(piece)
                await target.drain()
        target.transport.abort()
        self._ends.discard(target)


@contextlib.asynccontextmanager
async def own_redis(*settings: str) -> AsyncIterator[int]:
    """A Redis of the test's own, with settings that the shared one must not have; its port."""
    program = shutil.which("redis-server")
    if program is None:
        missing("there is no redis-server")
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(
        program, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no",
        "--dir", tempfile.gettempdir(), *settings, stdout=quiet, stderr=quiet,
    )  # fmt: skip
    try:
        for _ in range(TRIES):
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), REACH_S).close()
                break
            await asyncio.sleep(REACH_S / TRIES)
        yield port
    finally:
        server.kill()
        await server.wait()
