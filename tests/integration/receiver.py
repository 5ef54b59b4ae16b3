"""A webhook sink's table, and the server that it posts to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from aiohttp import web


class Receiver:
    """Where the webhook of a configuration posts to; it refuses what it is told to."""

    def __init__(self) -> None:
        self.refuse: set[str] = set()
        self.down = False
        self.hold: anyio.Event | None = None  # no answer before
        self.taken: list[dict[str, Any]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        if self.down:
            return web.Response(status=503)
        records = json.loads(await request.read())
        if any(one["state"] in self.refuse for one in records):
            return web.Response(status=422, text="unknown state")
        self.taken += records
        if self.hold is not None:
            await self.hold.wait()
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


WEBHOOK = """
[[sinks]]
name = "{name}"
type = "webhook"
url = "{url}"
secret = "whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0"
batch = {{ wait = "10ms" }}
timeout = "5s"
"""
