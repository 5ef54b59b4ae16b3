"""`/v1/*`: what was sent, and what has become of it, for whoever has the token."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from engine.books.lookup import find, message_table
from engine.books.redacting import known_redactors
from engine.books.sent import Row, items_of, json_row
from engine.books.tracking import Handed, check_tracked
from engine.config.model import AccountConfig
from engine.core.errors import ConfigError, StoreError
from engine.core.secret import Secret
from engine.stores.tracked import Tracked

from .host import Host
from .server import Port, Refusal, answer

# A body of `/v1/track`, its rows, and how many of these are named where they are wrong.
TRACK_MAX = 4 << 20
ROWS_MAX = 10_000
FAULTS_MAX = 100

_SHUT = "http.token is not configured: without it /v1/* is shut"
_UNHEARD = 'expected "Authorization: Bearer …" with the token of http.token'
_TROUBLE = "the store cannot be used at present: nothing was taken, try again"


class Taken(NamedTuple):
    """A request's rows by account, with what is wrong of them."""

    rows: dict[str, list[Row]]
    faults: list[str]


class Api:
    """What is answered behind the token."""

    def __init__(self, host: Host, port: Port, token: Secret | None) -> None:
        self._host = host
        self._port = port
        self._token = token

    def authorize(self, request: web.BaseRequest) -> None:
        """Raises Refusal. Compared in a time that tells nothing of how much was right."""
        if self._token is None:
            raise Refusal(403, _SHUT)
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        wanted = self._token.reveal().encode()
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), wanted)
        if scheme.lower() != "bearer" or not same:
            raise Refusal(401, _UNHEARD, headers={"WWW-Authenticate": "Bearer"})

    # What was sent

    async def track(self, request: web.BaseRequest) -> web.Response:
        body = b"".join([piece async for piece in self._port.pieces(request, TRACK_MAX)])
        taken = self._read(_tables(body), request.rel_url.query.get("account"))
        if taken.faults:
            more = len(taken.faults) - FAULTS_MAX
            rest = [f"and {more:,} more rows with a fault"] if more > 0 else []
            raise Refusal(400, *taken.faults[:FAULTS_MAX], *rest, "nothing was tracked")
        now_ms = self._host.clock.now_ms()
        items = {name: items_of(rows, now_ms) for name, rows in taken.rows.items()}
        try:
            done = await self._host.track(items)
        except ConfigError as error:
            raise Refusal(400, *error.faults, "nothing was tracked") from None
        except StoreError:
            raise Refusal(503, _TROUBLE, headers={"Retry-After": "5"}) from None
        return answer(_summary(items, done), 202)

    def _read(self, tables: Sequence[Any], default: str | None) -> Taken:
        taken = Taken({}, [])
        for number, table in enumerate(tables, 1):
            try:
                account, row = self._row(table, default)
                check_tracked(account, items_of([row], 0))
                taken.rows.setdefault(account.name, []).append(row)
            except ConfigError as error:
                taken.faults.append(f"row {number}: {'; '.join(error.faults)}")
            except ValueError as error:
                taken.faults.append(f"row {number}: {error}")
        return taken

    def _row(self, table: Any, default: str | None) -> tuple[AccountConfig, Row]:
        if not isinstance(table, dict):
            raise ValueError("expected a JSON object")
        rest = {key: value for key, value in table.items() if key != "account"}
        named = table.get("account", default)
        return self._account(named), json_row(rest)

    def _account(self, name: Any) -> AccountConfig:
        accounts = self._host.config.accounts
        tracking = [account for account in accounts if account.provider.traits.tracks]
        if name is None and len(tracking) == 1:
            return tracking[0]
        names = ", ".join(account.name for account in accounts)
        if name is None:
            raise ValueError(f"account: missing; there are {names}")
        for account in accounts:
            if account.name == name:
                return account
        raise ValueError(f"account: there is none of that name; there are {names}")

    # What has become of it

    async def message(
        self, request: web.BaseRequest, account: str, message_id: str
    ) -> web.Response:
        """As `show --json` has it; `?direction=mo` for one that came in under the same id."""
        host, direction = self._host, request.rel_url.query.get("direction")

        def look(tx: Any) -> list[dict[str, Any]]:
            redactors = known_redactors(tx, host.config)
            found = find(tx, [account], "message_id", message_id, redactors, account=account)
            return [message_table(host.config, known, found) for known in found.messages]

        try:
            tables = await host.read(look) if host.config.account(account) else []
        except StoreError:
            raise Refusal(503, "the store cannot be used at present: try again") from None
        chosen = [table for table in tables if direction in (None, table["direction"])]
        if not chosen:
            raise Refusal(404, "no such message")
        return answer(sorted(chosen, key=lambda table: table["direction"] != "mt")[0])


def _tables(body: bytes) -> list[Any]:
    """The rows: an object is one of them."""
    try:
        value = json.loads(body) if body else None
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON", "nothing was tracked") from None
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list) or not value:
        wanted = "expected a JSON object, or an array of them"
        raise Refusal(400, wanted, "nothing was tracked")
    if len(value) > ROWS_MAX:
        raise Refusal(
            413, f"more than {ROWS_MAX:,} rows: send them in parts", "nothing was tracked"
        )
    return value


def _summary(items: Mapping[str, Sequence[Tracked]], done: Handed) -> dict[str, Any]:
    """What was taken, and what of it was new or has grown. What waits in the inbox of another
    worker's account is not known to be new."""
    everything = [item for own in items.values() for item in own]
    works = [work for own in done.values() for work in own or ()]
    new = [{"account": work.account, f"{work.kind.value}_id": work.key} for work in works]
    return {
        "batches": sum(item.batch_id is not None for item in everything),
        "messages": sum(item.batch_id is None for item in everything),
        "new": len(new),
        "items": new,
        "handed_over": sorted(name for name, own in done.items() if own is None),
    }
