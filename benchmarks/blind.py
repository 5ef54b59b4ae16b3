"""A client that looks at nothing: how quick a server is when nobody does anything with its answers.

It counts bytes up to an answer's length and asks again. What it reaches is what the server can, or
nearly: no client that reads its answers can be quicker.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

END = b"\r\n\r\n"
LENGTH = b"Content-Length: "


class Blind(asyncio.Protocol):
    """One connection, one question at a time, until there are no more."""

    def __init__(self, questions: Iterator[bytes], done: asyncio.Future[int]) -> None:
        self._questions = questions
        self._done = done
        self._left = 0  # bytes of the answer that are still to come
        self._head = b""
        self._bytes = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        question = next(self._questions, None)
        if question is None:
            self._done.set_result(self._bytes)
            self._transport.close()
        else:
            self._transport.write(question)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            end = self._head.find(END)
            if end < 0:
                return
            start = self._head.index(LENGTH) + len(LENGTH)
            length = int(self._head[start : self._head.index(b"\r", start)])
            self._left = length - (len(self._head) - end - len(END))
            self._head = b""
        if not self._left:
            self._ask()


async def take(spec: dict[str, Any]) -> int:
    """Ask for all `paths` over so many connections at once; how many answers came."""
    where = urlsplit(spec["url"])
    trusted = ssl.create_default_context(cafile=spec["ca_file"]) if spec["ca_file"] else None
    head = f" HTTP/1.1\r\nHost: {where.netloc}\r\nAccept: */*\r\n\r\n".encode()
    if "paths" in spec:
        paths = (path.encode() for path in spec["paths"])
    else:
        first = spec["first"]
        paths = (spec["path"].encode() + b"%d" % (first + n) for n in range(spec["count"]))
    asked = 0

    def questions() -> Iterator[bytes]:
        nonlocal asked
        for path in paths:
            asked += 1
            yield b"GET " + path + head

    given = questions()
    loop = asyncio.get_running_loop()
    ends = []
    for _ in range(spec["connections"]):
        done: asyncio.Future[int] = loop.create_future()
        ends.append(done)
        await loop.create_connection(
            lambda done=done: Blind(given, done), where.hostname, where.port, ssl=trusted
        )
    await asyncio.gather(*ends)
    return asked
