"""A server in a process of its own: `python -m benchmarks.server KIND`, its wishes on stdin.

`sim` is the engine's own simulator, faithful and slow. `pages`, `polls` and `log` are stand-ins
that are quicker than any client, which the cases show beside their figures: their answers are put
together from ready pieces. `hook` takes what is posted. The URL is printed once they listen; they
serve until they are terminated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import uvloop

from benchmarks.shapes import Avaamo, BulkSMS, Infobip, Messangi

Handle = Callable[[str], bytes | Iterator[bytes]]


class Standin(asyncio.Protocol):
    """HTTP/1.1 as far as a client needs it: a GET in, a body with its length out."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._buffer = b""
        self._rest: Iterator[bytes] = iter(())
        self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            given = self._handle(head.split(b" ", 2)[1].decode())
            if isinstance(given, bytes):
                self._transport.write(given)
            else:
                self._rest = given
                self._stream()

    def pause_writing(self) -> None:
        self._held = True

    def resume_writing(self) -> None:
        self._held = False
        self._stream()

    def _stream(self) -> None:
        """As much as the client takes: a long body is never there as a whole."""
        while not self._held and (piece := next(self._rest, b"")):
            self._transport.write(piece)


def answer(body: bytes, kind: str = "application/json") -> bytes:
    return head(len(body), kind) + body


def head(size: int, kind: str = "application/json") -> bytes:
    lines = ("HTTP/1.1 200 OK", f"Content-Type: {kind}", f"Content-Length: {size}", "", "")
    return "\r\n".join(lines).encode()


class Pages:
    """One-time pages (infobip) or numbered ones (avaamo). A URL is /{run}/{account}/…; each run
    reads the same pages from the beginning."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._shape = Infobip(spec) if spec["style"] == "infobip" else Avaamo(spec)
        self._next: dict[tuple[str, str], int] = {}
        self._empty = answer(self._shape.empty)

    def __call__(self, target: str) -> bytes:
        _, run, account, *_ = target.partition("?")[0].split("/")
        if isinstance(self._shape, Infobip):
            n = self._next.get((run, account), 0)
            self._next[run, account] = n + 1
        else:
            n = int(parse_qs(urlsplit(target).query)["page"][0]) - 1
        if n >= self._shape.pages:
            return self._empty
        return answer(self._shape.body(account, n))


class Log:
    """Messangi: all of it in the first answer, nothing afterwards."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._shape = Messangi(spec)
        self._empty: bool = spec["empty"]

    def __call__(self, target: str) -> Iterator[bytes]:
        size, pieces = self._shape.stream(empty=self._empty)
        self._empty = True
        return chain([head(size)], pieces)


class Polls:
    """BulkSMS: any batch has one recipient, 44 and the batch's number, and was delivered.

    `/_times` tells when each batch was asked for, by this server's clock. With `open` a batch is
    known but has no rows yet, however often it is asked for.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._asked: list[tuple[str, float]] = []
        self._open: bool = spec.get("open", False)

    def __call__(self, target: str) -> bytes:
        if target == "/_times":
            return answer(json.dumps(self._asked).encode())
        at = time.time()
        batch = target.partition("batch_id=")[2].partition("&")[0]
        self._asked.append((batch, at))
        body = b"0|Returns to follow\n\n" if self._open else BulkSMS.body(batch)
        return answer(body, "text/plain")


async def _serve(handle: Handle, certificate: str | None) -> None:
    loop = asyncio.get_running_loop()
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    listener = await loop.create_server(lambda: Standin(handle), "127.0.0.1", 0, ssl=context)
    scheme, name = ("https", "localhost") if context else ("http", "127.0.0.1")
    print(f"{scheme}://{name}:{listener.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


async def _simulate(spec: dict[str, Any]) -> None:
    from engine.sim.profile import AccountProfile, Generate, Limits, Profile
    from engine.sim.server import Simulator

    os.nice(spec.get("nice", 0))
    accounts = [
        AccountProfile(
            **{
                **account,
                "limits": Limits(**account.get("limits", {})),
                "generate": Generate(**account.get("generate", {})),
            }
        )
        for account in spec["accounts"]
    ]
    async with Simulator(Profile(accounts)) as simulator:
        print(simulator.base_url, flush=True)
        await asyncio.Event().wait()


async def _receive() -> None:
    """Takes whatever is posted, and looks at none of it."""
    from aiohttp import web

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


STANDINS: dict[str, Callable[[dict[str, Any]], Handle]] = {
    "pages": Pages,
    "log": Log,
    "polls": Polls,
}


async def _main(kind: str, spec: dict[str, Any]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        if kind == "sim":
            await _simulate(spec)
        elif kind == "hook":
            await _receive()
        else:
            await _serve(STANDINS[kind](spec), spec.get("certificate"))


def main() -> None:
    kind, spec = sys.argv[1], json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(kind, spec))


if __name__ == "__main__":
    main()
