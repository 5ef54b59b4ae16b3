"""A server in a process of its own: `python -m benchmarks.server KIND`, its wishes on stdin.

`sim` is the engine's own simulator, faithful and slow. `pages` and `polls` are stand-ins that are
quicker than any client: what they answer is ready before the first request comes. `hook` takes what
is posted. The URL is printed once they listen; they serve until they are terminated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import uvloop
from aiohttp import web

from engine.sim.profile import AccountProfile, Generate, Limits, Profile
from engine.sim.server import Simulator

Handle = Callable[[str], bytes]

_REPORT = (
    '{"bulkId":"BULK-%(page)d","messageId":"%(account)s-7822-4e72-%(n)012d",'
    '"to":"4179%(n)07d","from":"SHOP","sentAt":"2026-11-09T17:%(minute)02d:00.000+0000",'
    '"doneAt":"2026-11-09T17:%(minute)02d:05.%(ms)03d+0000","smsCount":1,"mccMnc":"22801",'
    '"price":{"pricePerMessage":0.01,"currency":"EUR"},'
    '"status":{"groupId":3,"groupName":"DELIVERED","id":5,"name":"DELIVERED_TO_HANDSET",'
    '"description":"Message delivered to handset"},'
    '"error":{"groupId":0,"groupName":"Ok","id":0,"name":"NO_ERROR","description":"No Error",'
    '"permanent":false}}'
)
_ENTRY = (
    '{"uuid":"%(n)08x-9c27-4cde-a5bc-%(n)012x","from_phone":"+15005550006",'
    '"to_phone":"+1415%(n)07d","message":"Your code is 123456","created_at":%(at).3f,'
    '"sms_status":"delivered"}'
)


class Standin(asyncio.Protocol):
    """HTTP/1.1 as far as a client needs it: a GET in, a body with its length out."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            self._transport.write(self._handle(head.split(b" ", 2)[1].decode()))


def answer(body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Pages:
    """One-time pages (infobip) or numbered ones (avaamo). A URL is /{run}/{account}/…; each run
    reads the same pages from the beginning."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._style: str = spec["style"]
        size, pages = int(spec["size"]), int(spec["pages"])
        make = _reports if self._style == "infobip" else _entries
        self._pages = {name: make(name, size, pages) for name in spec["accounts"]}
        self._next: dict[tuple[str, str], int] = {}
        empty = b'{"results":[]}' if self._style == "infobip" else b'{"entries":[]}'
        self._empty = answer(empty)

    def __call__(self, target: str) -> bytes:
        _, run, account, *_ = target.partition("?")[0].split("/")
        if self._style == "infobip":
            n = self._next.get((run, account), 0)
            self._next[run, account] = n + 1
        else:
            n = int(parse_qs(urlsplit(target).query)["page"][0]) - 1
        pages = self._pages.get(account, ())
        return pages[n] if n < len(pages) else self._empty


def _reports(account: str, size: int, pages: int) -> list[bytes]:
    out = []
    for page in range(pages):
        rows = [
            _REPORT % {"account": account, "page": page, "n": n, "minute": n % 60, "ms": n % 1000}
            for n in range(page * size, (page + 1) * size)
        ]
        out.append(answer(f'{{"results":[{",".join(rows)}]}}'.encode()))
    return out


def _entries(account: str, size: int, pages: int) -> list[bytes]:
    """The entries lie within the minute before the start, so that any window has them."""
    out = []
    start, count = time.time() - 60, size * pages
    for page in range(pages):
        numbers = range(page * size, (page + 1) * size)
        entries = ",".join(_ENTRY % {"n": n, "at": start + 60 * n / count} for n in numbers)
        body = (
            f'{{"current_page":{page + 1},"per_page":{size},"total_entries":{count},'
            f'"total_pages":{pages},"entries":[{entries}]}}'
        )
        out.append(answer(body.encode()))
    return out


class Polls:
    """BulkSMS: any batch has one recipient, 44 and the batch's number, and was delivered.

    `/_times` tells when each batch was asked for, by this server's clock.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._asked: list[tuple[str, float]] = []

    def __call__(self, target: str) -> bytes:
        if target == "/_times":
            return answer(json.dumps(self._asked).encode())
        at = time.time()
        batch = target.partition("batch_id=")[2].partition("&")[0]
        self._asked.append((batch, at))
        body = f"0|Returns to follow\n\n44{int(batch):010d}|11\n"
        return answer(body.encode(), "text/plain")


async def _serve(handle: Handle) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Standin(handle), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


async def _simulate(spec: dict[str, Any]) -> None:
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
            await _serve(Pages(spec) if kind == "pages" else Polls(spec))


def main() -> None:
    kind, spec = sys.argv[1], json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(kind, spec))


if __name__ == "__main__":
    main()
