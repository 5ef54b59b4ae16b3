"""The sink against `engine.testing`: `python -m pytest` in this folder."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dlr_linepost import LinePost

from engine.testing import ServerSinkSuite, SinkCase, record

KEY = "hunter2-hunter2"
LINE_MAX = 16 << 20
REFUSED = "refuse this one"


class Server:
    """What a line post server does, on disk; and what it should not do, on request."""

    def __init__(self, file: Any) -> None:
        self.options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "key": KEY}
        self._file = file
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._soon = False
        self._answers = True

    async def read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        return [json.loads(line) for line in self._file]

    async def mend(self) -> None:
        self._answers = True
        if self._server is None:
            port = self.options["port"]
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", port, limit=LINE_MAX
            )
            self.options["port"] = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task, writer in list(self._tasks.items()):
            writer.transport.abort()
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def cut_soon(self) -> None:
        self._soon = True

    async def hang(self) -> None:
        self._answers = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            while key := await reader.readline():
                assert key.decode().strip() == KEY
                await self._take(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            del self._tasks[task]

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = int(await reader.readline())
        lines = []
        for n in range(count):
            if self._soon and n > count // 2:
                self._soon = False
                raise ConnectionAbortedError
            lines.append(await reader.readuntil(b"\n"))
        if not self._answers:
            await asyncio.Event().wait()
        refused = [n for n, line in enumerate(lines) if REFUSED.encode() in line]
        self._file.seek(0, 2)
        self._file.writelines(line for n, line in enumerate(lines) if n not in refused)
        writer.write(f"no {' '.join(map(str, refused))}\n".encode() if refused else b"ok\n")
        await writer.drain()


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    with tempfile.TemporaryFile() as file:
        made = Server(file)
        await made.mend()
        yield made
        await made.cut()


class TestLinePost(ServerSinkSuite):
    @pytest.fixture
    def case(self) -> SinkCase[Server]:
        return SinkCase(
            LinePost,
            server,
            refuses=lambda n: record(n, subject=REFUSED),
            patience="dlr_linepost.ANSWER_S",
            hides=("127.0.0.1",),
        )
