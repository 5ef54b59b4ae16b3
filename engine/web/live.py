"""The live page, and what it fetches: counts and conditions, in our own words.

Nobody is asked for a token here, so there is no recipient in it, no id, and no word of a provider's
or a sink's: those are in `stats`. The page is one file without assets of others, and its policy
lets nothing run but the script that it holds.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib import resources
from typing import Any

from aiohttp import web

from engine.config.model import AccountConfig, Config, SinkConfig
from engine.core.work import NEVER_DUE_MS

from .host import Look


class Page:
    """The page with its headers."""

    def __init__(self) -> None:
        self._text = (resources.files("engine.web") / "page.html").read_text(encoding="utf-8")
        inline = {name: self._hashes(name) for name in ("script", "style")}
        self._policy = "; ".join(
            [
                "default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'",
                "form-action 'none'", "frame-ancestors 'none'",
                *(f"{name}-src {hashes}" for name, hashes in inline.items()),
            ]
        )  # fmt: skip

    def _hashes(self, name: str) -> str:
        found = re.findall(rf"(?s)<{name}>(.*?)</{name}>", self._text)
        digests = (b64encode(sha256(one.encode()).digest()).decode() for one in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    def response(self) -> web.Response:
        headers = {"Content-Security-Policy": self._policy}
        return web.Response(text=self._text, content_type="text/html", headers=headers)


def table(config: Config, look: Look, trouble: str | None) -> dict[str, Any]:
    """What the page shows."""
    accounts = [account for account in config.accounts if account.name in look.accounts]
    return {
        "at_ms": look.at_ms,
        "workers": [worker for worker in look.counts if worker],
        "trouble": trouble,
        "accounts": [_account(account, look) for account in accounts],
        "sinks": [_sink(sink, look) for sink in config.sinks],
    }


def _account(account: AccountConfig, look: Look) -> dict[str, Any]:
    name = account.name
    tally, works = look.tallies.get(name, {}), look.works.get(name, {}).values()
    status = look.statuses.get(name, {})
    state, detail = _condition(status)
    following = [first for count, _, first in works if count and first < NEVER_DUE_MS]
    shut_ms = max(
        look.at_ms + 1000 * status.get("hold_s", 0), status.get("paused_until_ms") or look.at_ms
    )
    incidents = sum(n for key, n in tally.items() if key.startswith("incident:"))
    return {
        "name": name,
        "provider": account.provider_name,
        "state": state,
        "detail": detail,
        "next_ms": max(min(following), shut_ms) if following else None,
        "limits": status.get("used", []),
        "due": sum(due for _, due, _ in works),
        "incidents": incidents,
        **{key: tally.get(key, 0) for key in ("known", "final", "pending", "records", "set_aside")},
    }


def _condition(status: dict[str, Any]) -> tuple[str, str]:
    """A word for it, and what there is to say besides."""
    if not status:
        return "new", "no worker has it yet"
    if status.get("paused"):
        return "paused", "the provider refuses its credentials"
    if status.get("waits"):
        return "waits", str(status["waits"])
    if status.get("failing"):
        row = status.get("failures", 0)
        often = f"{row} times in a row" if row > 1 else "the latest request"
        return "failing", f"{often}: see dlr-engine stats"
    if status.get("hold_s"):
        return "held", "the provider wants to be left alone"
    return "ok", "" if status.get("answered_ms") else "not asked yet"


def _sink(sink: SinkConfig, look: Look) -> dict[str, Any]:
    takes = [name for name in look.accounts if sink.accounts is None or name in sink.accounts]
    failing = look.sinks.get(sink.name) is not None
    dead = look.dead.get(sink.name)
    backlog = look.backlog.get(sink.name, {})
    return {
        "name": sink.name,
        "type": sink.type,
        "state": "failing" if failing else "ok",
        "detail": "see dlr-engine stats" if failing else "",
        "behind_rows": sum(look.behind(sink.name, account) for account in takes),
        "behind_bytes": sum(backlog.get(account, 0) for account in takes),
        "dead_letters": dead.letters if dead is not None else 0,
    }
