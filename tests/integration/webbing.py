"""What the tests of the HTTP surface share: an engine with a port, and questions to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from engine.worker import Engine
from tests.integration.harness import configured, hasty

NOWHERE = "http://127.0.0.1:9"
ROWS = "0|Returns to follow\n\n"  # the head of what bulksms answers
LATER = {"ladder": ["1h"]}
TOKEN = "t0ken-canary-of-the-port"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HTTP = {"listen": "127.0.0.1:0", "token": TOKEN}


class Asker:
    """Asks one port."""

    def __init__(self, client: aiohttp.ClientSession, base: str) -> None:
        self._client = client
        self.base = base

    async def ask(
        self, path: str, method: str = "GET", **more: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON where it is that) and headers."""
        async with self._client.request(method, self.base + path, **more) as got:
            raw = await got.read()
            is_json = raw and got.content_type == "application/json"
            return got.status, orjson.loads(raw) if is_json else raw.decode(), dict(got.headers)

    async def track(self, rows: Any, query: str = "", **more: Any) -> tuple[int, Any]:
        more = {"headers": BEARER, **more}
        status, said, _ = await self.ask(f"/v1/track{query}", "POST", json=rows, **more)
        return status, said

    async def message(self, account: str, message_id: str, query: str = "") -> tuple[int, Any]:
        path = f"/v1/messages/{account}/{message_id}{query}"
        status, said, _ = await self.ask(path, headers=BEARER)
        return status, said


def address(poller: Engine) -> tuple[str, int]:
    assert poller.surface is not None
    return poller.surface.port.address


@asynccontextmanager
async def asking(base: str) -> AsyncIterator[Asker]:
    async with aiohttp.ClientSession() as client:
        yield Asker(client, base)


@asynccontextmanager
async def served(
    folder: Path, *accounts: dict[str, Any], http: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Engine, Asker]]:
    """An engine with these accounts, and whoever asks its port."""
    config = configured(folder, *accounts, http=HTTP if http is None else http, **more)
    async with hasty(config) as poller:
        host, port = address(poller)
        place = f"[{host}]" if ":" in host else host
        async with asking(f"http://{place}:{port}") as asker:
            yield poller, asker
