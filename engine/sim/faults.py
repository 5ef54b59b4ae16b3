"""Which fault a request meets: the script's next one, else one drawn by the profile's odds.

The choice is made once, before anything is consumed, so that a fault that stands in front of the
provider (an overloaded gateway, a proxy's page) leaves a one-time queue as it was. It must never
depend on what the request asks for.
"""

from __future__ import annotations

from urllib.parse import urlencode

from engine.sim import bulksms
from engine.sim.account import Account
from engine.sim.answer import Answer, Call
from engine.sim.meter import retry_after
from engine.sim.profile import Fault
from engine.sim.wire import HTML

SPOILED = frozenset({"bad_encoding", "empty", "truncated", "wrong_type"})
"""The request was carried out, and its body is not what it should be."""
BROKEN = frozenset({"reset", "endless"})
"""Nothing was carried out, and there is no proper response."""
ODDS_RETRY_AFTER = 1.0
"""What a 503 or 429 that was drawn asks for, every second time."""
_WORDS = {
    "500": "Internal Server Error",
    "502": "Bad Gateway",
    "503": "Service Unavailable",
    "429": "Your connection is being rate limited",
}


def choose(account: Account) -> Fault | None:
    """The fault of this request, or None."""
    if account.script:
        fault = account.script.popleft()
        return None if fault.kind == "ok" else fault
    if not account.odds:
        return None
    draw = account.rand.random()
    for kind, share in account.odds.items():
        draw -= share
        if draw < 0:
            if kind == "ok":
                return None
            wait = ODDS_RETRY_AFTER if account.rand.random() < 0.5 else None
            return Fault(kind=kind, retry_after=wait)
    return None


def instead(account: Account, call: Call, fault: Fault, away: str, refusal: Answer) -> Answer:
    """What is answered where the provider itself was not reached.

    `refusal` is the provider's own error body; `away` another origin's address.
    """
    kind = fault.kind
    if kind == "html":
        return Answer(200, HTML, "text/html; charset=utf-8")
    if kind == "redirect":
        query = f"?{urlencode(call.query)}" if call.method == "GET" and call.query else ""
        place = f"/{account.profile.name}{call.path}{query}"
        return Answer(302, b"", headers={"Location": place})
    if kind == "redirect_away":
        return Answer(302, b"", headers={"Location": away})
    if kind.startswith("error"):
        return bulksms.first_line(account, call, kind)
    if fault.retry_after is not None and kind in ("503", "429"):
        refusal.headers["Retry-After"] = retry_after(call.now, fault.retry_after, fault.form)
    return refusal


def words(kind: str) -> str:
    """The reason in a refusal's body."""
    return _WORDS[kind]


def refuses(fault: Fault) -> bool:
    """The fault is an HTTP status."""
    return fault.kind in _WORDS
