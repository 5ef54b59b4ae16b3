"""`/push/{account}/{secret}`: what a provider sends by itself, durable before it is answered.

An account that there is not, one that takes no pushes and a wrong secret are answered alike, and as
any path that there is not. What cannot be read is set aside and answered as the rest is: sent again
it would be no better. A store in trouble is 503, and the provider sends it again.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from urllib.parse import unquote

import anyio
from aiohttp import web

from engine.books.pushing import PUSH_MAX, Pusher
from engine.config.model import AccountConfig
from engine.core.errors import StoreError

from .host import Host
from .server import NOWHERE, Port, Refusal

PREFIX = "/push/"

# For making a push durable; a store that takes longer is in trouble.
STORE_S = 10.0

_TROUBLE = "nothing was taken: the store cannot be used at present, send it again"


class Pushes:
    """Takes what is pushed, of all accounts."""

    def __init__(self, host: Host, port: Port) -> None:
        self._host = host
        self._port = port
        self._pushers: dict[str, Pusher] = {}

    async def take(self, request: web.BaseRequest) -> web.Response:
        account = self._account(request.rel_url.raw_path)
        if request.method not in ("GET", "POST"):
            allowed = "GET, POST"
            raise Refusal(405, f"this takes {allowed}", headers={"Allow": allowed})
        try:
            pusher = await self._pusher(account)
            query = request.rel_url.raw_query_string.encode()
            page = await pusher.read(self._pieces(request), query, request.content_type)
            with anyio.fail_after(STORE_S):
                await self._host.keep_pushed(pusher, page)
        except (StoreError, TimeoutError):
            raise Refusal(503, _TROUBLE, headers={"Retry-After": "60"}) from None
        return web.Response(text="ok\n")  # BulkSMS wants a character at least

    def _account(self, path: str) -> AccountConfig:
        """Whose secret stands in the path. Compared in a time that tells nothing of it."""
        name, _, given = path.removeprefix(PREFIX).partition("/")
        account = self._host.config.account(unquote(name))
        secret = account.push_secret if account is not None else None
        takes = account is not None and account.provider.traits.pushes and secret is not None
        wanted = secret.reveal() if secret is not None else ""
        same = hmac.compare_digest(
            unquote(given, errors="surrogateescape").encode("utf-8", "surrogateescape"),
            wanted.encode(),
        )
        if account is None or not (takes and same):
            raise Refusal(404, NOWHERE)
        return account

    async def _pusher(self, account: AccountConfig) -> Pusher:
        found = self._pushers.get(account.name)
        if found is None:
            with anyio.fail_after(STORE_S):
                found = await self._host.pusher(account)
            self._pushers[account.name] = found
        return found

    async def _pieces(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body: a POST's."""
        if request.method == "POST":
            async for piece in self._port.pieces(request, PUSH_MAX):
                yield piece
