"""The simulator's own paths: sending messages and asking what is true, over HTTP.

For a person with curl, and for tests whose engine runs in another process. They are not limited
and not counted: a provider has nothing like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

import msgspec
import orjson
from aiohttp import web

from engine.sim.account import Account
from engine.sim.messages import Given, Sent, Truth
from engine.sim.meter import Violation
from engine.sim.profile import Share

PREFIX = "/_sim"
MAX_SENT = 100_000
"""Messages of one POST."""
_SECRETS = ("Authorization", "access-token", "Cookie")


class Controlled(Protocol):
    """What these paths need of a simulator."""

    accounts: dict[str, Account]

    def send(
        self,
        account: str,
        n: int | None = None,
        recipients: list[str] | None = None,
        *,
        batch: str | None = None,
        channel: str | None = None,
        direction: str = "O",
        sent_at: float | None = None,
        reference: str | None = None,
        plan: list[tuple[float, str]] | None = None,
    ) -> Sent: ...

    def fail(self, account: str, odds: Mapping[str, float]) -> None: ...

    def counts(self, account: str) -> object: ...

    def truth(self, account: str) -> list[Truth]: ...

    def given(self, account: str) -> list[Given]: ...

    def violations(self, account: str) -> list[Violation]: ...


class Trouble(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /_sim/faults."""

    account: str
    odds: dict[str, Share]


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /_sim/send."""

    account: str
    n: int | None = None
    recipients: list[str] | None = None
    batch: str | None = None
    channel: str | None = None
    direction: str = "O"
    sent_at: float | None = None
    reference: str | None = None
    plan: list[tuple[float, str]] | None = None


def mount(app: web.Application, simulator: Controlled) -> None:
    """Add the paths below /_sim."""

    async def send(request: web.Request) -> web.Response:
        try:
            order = msgspec.json.decode(await request.read(), type=Order)
            count = len(order.recipients or ()) if order.n is None else order.n
            if not 0 <= count <= MAX_SENT:
                raise ValueError(f"at most {MAX_SENT} messages at once")
            sent = simulator.send(**msgspec.structs.asdict(order))
        except (ValueError, msgspec.MsgspecError) as error:
            return _json({"error": str(error)}, 400)
        return _json(sent)

    async def fail(request: web.Request) -> web.Response:
        try:
            trouble = msgspec.json.decode(await request.read(), type=Trouble)
            simulator.fail(trouble.account, trouble.odds)
        except (ValueError, msgspec.MsgspecError) as error:
            return _json({"error": str(error)}, 400)
        return _json({"account": trouble.account, "odds": trouble.odds})

    async def counts(request: web.Request) -> web.Response:
        return _json({name: simulator.counts(name) for name in simulator.accounts})

    async def ask(request: web.Request) -> web.Response:
        name = request.match_info["account"]
        if name not in simulator.accounts:
            return _json({"error": f"no such account: {name}"}, 404)
        what = request.match_info["what"]
        if what == "truth":
            return _json(simulator.truth(name))
        if what == "given":
            return _json(simulator.given(name))
        return _json(simulator.violations(name))

    async def away(request: web.Request) -> web.Response:
        account = simulator.accounts.get(request.match_info["account"])
        if account is not None:
            account.tally.strayed += 1
            if _carries_secret(account, request):
                account.tally.leaked += 1
        return _json({"error": "this is another origin"}, 404)

    app.router.add_post(f"{PREFIX}/send", send)
    app.router.add_post(f"{PREFIX}/faults", fail)
    app.router.add_get(f"{PREFIX}/counts", counts)
    app.router.add_get(f"{PREFIX}/{{what:truth|given|violations}}/{{account}}", ask)
    app.router.add_get(f"{PREFIX}/mailed/{{account}}", partial(_mailed, simulator))
    app.router.add_route("*", f"{PREFIX}/away/{{account}}", away)


async def _mailed(simulator: Controlled, request: web.Request) -> web.Response:
    account = simulator.accounts.get(request.match_info["account"])
    if account is None or account.mailed is None:
        return _json({"error": "nothing was mailed"}, 404)
    return web.Response(body=account.mailed, content_type="text/csv")


def _carries_secret(account: Account, request: web.Request) -> bool:
    if any(name in request.headers for name in (*_SECRETS, *account.profile.headers)):
        return True
    return "password" in request.query


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(body=body, status=status, content_type="application/json")
