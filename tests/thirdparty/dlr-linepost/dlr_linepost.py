"""Line post (a made-up protocol): records over TCP, a batch at a time, each batch acknowledged.

client:  <key>\\n  <number of lines>\\n  <a record a line>
server:  ok\\n     or  no 3 7\\n, those that it will never take
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

import msgspec

from engine import Batch, PartialWrite, Secret, SinkError

ANSWER_S = 30.0  # how long the server may take over a batch
ANSWER_MAX = 1 << 20  # bytes of its answer


class LinePostOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str
    port: int
    key: Secret


class LinePost:
    name: ClassVar[str] = "linepost"
    Options: ClassVar[type[msgspec.Struct]] = LinePostOptions

    def __init__(self, options: LinePostOptions) -> None:
        self._options = options
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> None:
        await self._connected()

    async def write(self, batch: Batch) -> None:
        if not batch.lines:
            return
        try:
            answer = await self._post(batch)
        except BaseException:
            self._drop()  # what was half said is not gone on with
            raise
        verdict, *refused = answer.split()
        if verdict == "no":
            raise PartialWrite({int(index): "the server does not take it" for index in refused})

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(streams[1].wait_closed(), 1.0)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            place = (self._options.host, self._options.port)
            try:
                connecting = asyncio.open_connection(*place, limit=ANSWER_MAX)
                self._streams = await asyncio.wait_for(connecting, ANSWER_S)
            except OSError as error:  # its own words name the host
                raise SinkError(f"cannot connect: {type(error).__name__}") from None
        return self._streams

    async def _post(self, batch: Batch) -> str:
        reader, writer = await self._connected()
        head = f"{self._options.key.reveal()}\n{len(batch.lines)}\n".encode()
        try:
            writer.write(head + b"\n".join(batch.lines) + b"\n")
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
                answer = (await reader.readline()).decode()
        except TimeoutError:
            raise SinkError("the server does not answer") from None
        except (OSError, ValueError):
            raise SinkError("the connection was lost") from None
        if not answer.endswith("\n") or answer.split()[:1] not in (["ok"], ["no"]):
            raise SinkError("the connection was lost before the batch was acknowledged")
        return answer

    def _drop(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()
