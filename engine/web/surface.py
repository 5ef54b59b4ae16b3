"""Which path is answered by whom.

GET  /healthz  /readyz                        200, or 503 and the reason
GET  /metrics                                 Prometheus text
GET  /  /live.json                            the live page, and what it fetches
POST /v1/track                                bearer token
GET  /v1/messages/{account}/{message_id}      bearer token
    GET, POST /push/{account}/{secret}            a provider's own reports
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import anyio
from aiohttp import web

from engine.config.describe import http_warnings
from engine.core.errors import StoreError

from . import api, live, metrics
from .exposition import CONTENT_TYPE, render
from .host import Host, Look
from .push import PREFIX, Pushes
from .server import NOWHERE, Port, Refusal, answer

# Whoever asks more often than this gets the same look again: also who asks for nothing else is to
# cost next to nothing, so one that took long is kept for so many times as long.
FRESH_S = 1.0
FRESH_TIMES = 20
LOOK_MAX_S = 5.0  # how long one may take

Answering = Callable[[web.BaseRequest], Awaitable[web.Response]]


class Surface:
    """The HTTP surface of one process."""

    def __init__(self, host: Host) -> None:
        http = host.config.http
        assert http is not None
        self._host = host
        self._began_s = host.clock.now_ms() / 1000
        self.port = Port(http, self._answer, host.telemetry)
        self._api = api.Api(host, self.port, http.token)
        self._pushes = Pushes(host, self.port)
        self._live_page = live.Page()
        self._looking = anyio.Lock()
        self._look: Look | None = None
        self._fresh_until_s = float("-inf")
        self._plain: dict[str, Answering] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/": self._page,
            "/live.json": self._live,
        }

    async def open(self) -> None:
        """Raises EngineError where it cannot listen."""
        http = self._host.config.http
        assert http is not None
        await self.port.open(self._host.config.source)
        for warning in http_warnings(http):
            self._host.telemetry.event(logging.WARNING, "http", warning)

    async def close(self) -> None:
        await self.port.close()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        path = request.rel_url.raw_path
        if (plain := self._plain.get(path)) is not None:
            _only(request, "GET", "HEAD")
            return await plain(request)
        if path == "/v1/track":
            self._api.authorize(request)
            _only(request, "POST")
            return await self._api.track(request)
        if path.startswith("/v1/messages/"):
            self._api.authorize(request)
            _only(request, "GET", "HEAD")
            account, _, message_id = path.removeprefix("/v1/messages/").partition("/")
            return await self._api.message(request, unquote(account), unquote(message_id))
        if path.startswith("/v1/"):
            self._api.authorize(request)
        if path.startswith(PREFIX):
            return await self._pushes.take(request)
        raise Refusal(404, NOWHERE)

    # Health

    async def _healthz(self, request: web.BaseRequest) -> web.Response:
        return _well(self._host.ailing())

    async def _readyz(self, request: web.BaseRequest) -> web.Response:
        try:
            return _well(self._host.ailing() or await self._host.unready())
        except StoreError as error:
            return _well(str(error))

    # Metrics

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        look = await self.look()
        found = metrics.families(look, began_s=self._began_s)
        return web.Response(body=render(found).encode(), headers={"Content-Type": CONTENT_TYPE})

    # The live page

    async def _page(self, request: web.BaseRequest) -> web.Response:
        return self._live_page.response()

    async def _live(self, request: web.BaseRequest) -> web.Response:
        look = await self.look()
        if look is None:
            raise Refusal(503, self._host.ailing() or "the store does not answer")
        return answer(live.table(self._host.config, look, self._host.ailing()))

    async def look(self) -> Look | None:
        """A look at the store, however many ask at once and how often; None: it does not answer."""
        async with self._looking:
            began_s = self._host.clock.monotonic()
            if began_s >= self._fresh_until_s:
                self._look = None
                with anyio.move_on_after(LOOK_MAX_S):
                    try:
                        self._look = await self._host.look()
                    except StoreError:
                        self._look = None
                ended_s = self._host.clock.monotonic()
                keep_s = max(FRESH_S, FRESH_TIMES * (ended_s - began_s) if self._look else 0.0)
                self._fresh_until_s = ended_s + keep_s
            return self._look


def _only(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise Refusal(405, f"this takes {allowed}", headers={"Allow": allowed})


def _well(trouble: str | None) -> web.Response:
    if trouble is None:
        return answer({"status": "ok"})
    return answer({"status": "failing", "reason": trouble}, 503)
