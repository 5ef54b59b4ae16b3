"""Avaamo: an agent's messages by the time they were created, in numbered pages.

docs.avaamo.com sms-reporting-api. Pages are cut out of what is there when each is asked for, so
rows that turn up meanwhile move others from page to page. It never shows when a status changed:
the provider does not.
"""

from __future__ import annotations

import math
import re

from engine.sim.account import Account
from engine.sim.answer import Answer, Call, json_answer
from engine.sim.messages import Message

DEFAULT_PAGE = 25
MAX_PAGE = 100
Place = tuple[float, int]
LATEST = 3
"""How many entries there are where from_timetoken is missing."""
_FORMATTING = re.compile(r"[()\-\s]")


class _Bad(Exception):
    """A parameter cannot be used."""


def handle(account: Account, call: Call) -> Answer:
    """The answer to one page."""
    profile = account.profile
    path = f"/api/v1/agents/{profile.agent_id}/sms/report.json"
    if call.path != path or call.method != "GET":
        return refuse(account, call, 404, "Not Found")
    token = profile.access_token
    if token is not None and call.headers.get("access-token") != token:
        account.tally.unauthorized += 1
        return refuse(account, call, 401, "Unauthorized")
    skewed = call.now + profile.clock_skew
    try:
        start = _number(call, "from_timetoken", -math.inf)
        end = _number(call, "to_timetoken", skewed)
        page = int(_number(call, "page", 1))
        size = int(_number(call, "per_page", DEFAULT_PAGE))
    except _Bad as error:
        return refuse(account, call, 422, str(error))
    if end < start:
        return refuse(account, call, 422, "To Date cannot be before From Date")
    rows = account.window(start, end, call.now)
    rows = _filtered(account, call, rows)
    if math.isinf(start):
        rows = rows[-LATEST:]
    answer = _page(account, call, rows, max(page, 1), size)
    _move(account, call, start, end)
    return answer


def refuse(account: Account, call: Call, status: int, words: str) -> Answer:
    """An error with the provider's one field."""
    return json_answer(status, {"error": words})


def _number(call: Call, name: str, default: float) -> float:
    text = call.query.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise _Bad(f"{name} is invalid") from None
    if not math.isfinite(value):
        raise _Bad(f"{name} is invalid")
    return value


def _filtered(account: Account, call: Call, places: list[Place]) -> list[Place]:
    status = call.query.get("status")
    if status:
        places = [p for p in places if _status(account.messages[p[1]], call.now)[0] == status]
    for name in ("from_phone", "to_phone"):
        phone = call.query.get(name)
        if phone:
            # a "+" that was not encoded arrives as a blank, and fits nothing
            number = phone if phone.startswith(" ") else _FORMATTING.sub("", phone)
            field = "sender" if name == "from_phone" else "recipient"
            places = [
                p
                for p in places
                if _FORMATTING.sub("", getattr(account.messages[p[1]], field)) == number
            ]
    return places


def _page(account: Account, call: Call, rows: list[Place], page: int, size: int) -> Answer:
    profile = account.profile
    size = min(max(size, 1), profile.page_cap or MAX_PAGE)
    if profile.ignore_page:
        page = 1
    total = len(account.messages) if profile.global_total else len(rows)
    if profile.order == "newest":
        rows.reverse()
    shown = rows[(page - 1) * size : page * size]
    answer = json_answer(
        200,
        {
            "current_page": page,
            "per_page": size,
            "total_entries": total,
            "total_pages": math.ceil(total / size),
            "time_token": call.now + profile.clock_skew,
            "entries": [_entry(m, call.now) for m in account.rows(shown)],
        },
    )
    answer.reports = len(shown)
    return answer


def _entry(message: Message, now: float) -> dict[str, object]:
    status, words = _status(message, now)
    entry: dict[str, object] = {
        "uuid": message.message_id,
        "from_phone": message.sender,
        "to_phone": message.recipient,
        "message": message.content,
        "created_at": message.sent_at,
        "sms_status": status,
    }
    if words:
        entry["sms_status_response"] = words.replace("{to}", message.recipient)
    return entry


def _status(message: Message, now: float) -> tuple[str, str | None]:
    state = message.at(now)
    if state is None:  # a row is there from the start, with the status that comes first
        return "sent", None
    if state.status in ("failed", "undelivered"):
        return state.status, state.error or "Message Delivery - Unknown error"
    return state.status, None


def _move(account: Account, call: Call, start: float, end: float) -> None:
    """One more row within the window, as they turn up late."""
    if math.isinf(start) or account.moved >= account.profile.total_moves:
        return
    account.moved += 1
    account.send(call.now, 1, sent_at=max(start, min(end, call.now) - 0.001))
