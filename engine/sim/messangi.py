"""Messangi: messages by the time they were sent, a window an answer.

docs.messangi.com/docs/reporting. There is no page parameter: what does not fit into an answer is
left out, and only pagination.total tells; or the report is "too big" and has no items at all,
with HTTP 200. It never holds a generated answer in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from engine.sim import messangi_export
from engine.sim.account import Account
from engine.sim.answer import Answer, Call, json_answer
from engine.sim.messages import Message

PATH = "/v3/mlog"
LOGIN = "/login"
MAX_DAYS = 92
TOO_LONG = "The date range exceeds the allowed limit: 92"
TOO_BIG = "The size of the report is too big. Please contact support"
DATES_KEPT = 4096
ITEMS_A_CHUNK = 500
"""Of a generated answer: what is in memory at a time."""


def handle(account: Account, call: Call) -> Answer:
    """The answer to one window, or to a login."""
    if call.path == LOGIN and call.method == "POST":
        return _login(account, call)
    if call.path != PATH or call.method not in ("GET", "POST"):
        return refuse(account, call, 404, "Not Found")
    if not _welcome(account, call):
        account.tally.unauthorized += 1
        return refuse(account, call, 401, "Unauthorized")
    start, end = _instant(call.query.get("from")), _instant(call.query.get("to"))
    if start is None or end is None or end < start:
        return refuse(account, call, 400, "The parameters from and to are required, in this order")
    channel = call.query.get("channel")
    if channel is not None and channel not in tuple("SEPWR"):
        return refuse(account, call, 400, "The parameter channel is not valid")
    if end - start > MAX_DAYS * 86400:
        return json_answer(200, {"meta": _meta(account, call, TOO_LONG)})
    if account.profile.bulk_items:
        if call.method == "POST":
            return json_answer(200, {"meta": _meta(account, call, TOO_BIG)})
        return _bulk(account, call, start, end)
    rows = _filtered(call, account.rows(account.window(start, end, call.now)))
    if call.method == "POST":
        return _export(account, call, rows)
    most = account.profile.report_max_items
    if most and len(rows) > most:
        return json_answer(200, {"meta": _meta(account, call, TOO_BIG)})
    return _report(account, call, rows)


def refuse(account: Account, call: Call, status: int, words: str) -> Answer:
    """An HTTP error with a message."""
    return json_answer(status, {"meta": _meta(account, call, None), "message": words})


def _login(account: Account, call: Call) -> Answer:
    try:
        sent = orjson.loads(call.body) if call.body else dict(call.query)
    except orjson.JSONDecodeError:
        sent = dict(call.query)
    profile = account.profile
    given = (sent.get("username"), sent.get("password")) if isinstance(sent, dict) else (None, None)
    if profile.username is None or given != (profile.username, profile.password):
        account.tally.unauthorized += 1
        return refuse(account, call, 401, "Unauthorized")
    token = account.login(call.now)
    return Answer(200, b"", "application/json", {"authorization": f"Bearer {token}"})


def _welcome(account: Account, call: Call) -> bool:
    profile = account.profile
    shown = call.headers.get("Authorization", "")
    if profile.authorization is None and profile.username is None:
        return True
    if profile.authorization is not None and shown == profile.authorization:
        return True
    until = account.tokens.get(shown.removeprefix("Bearer "))
    return shown.startswith("Bearer ") and until is not None and call.now < until


def _instant(text: str | None) -> float | None:
    """RFC 3339 with Z, to the millisecond."""
    if not text or not text.endswith("Z"):
        return None
    try:
        moment = datetime.fromisoformat(text[:-1])
    except ValueError:
        return None
    if moment.tzinfo is not None:
        return None
    return round(moment.replace(tzinfo=UTC).timestamp() * 1000) / 1000


def _meta(account: Account, call: Call, explain: str | None) -> dict[str, object]:
    digest = hashlib.blake2b(f"{account.profile.name}:{call.number}".encode(), digest_size=16)
    raw = digest.hexdigest()
    meta: dict[str, object] = {
        "timestamp": round((call.now + account.profile.clock_skew) * 1000),
        "transactionId": f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
    }
    if explain is not None:
        meta["explain"] = explain
    return meta


def _filtered(call: Call, rows: list[Message]) -> list[Message]:
    query = call.query
    if channel := query.get("channel"):
        rows = [m for m in rows if m.channel == channel]
    if recipient := query.get("recipient"):
        to = recipient.removeprefix("+")
        rows = [m for m in rows if m.recipient.removeprefix("+") == to]
    if sender := query.get("sender"):
        rows = [m for m in rows if m.sender == sender]
    if campaign := query.get("campaignID"):
        rows = [m for m in rows if str(m.campaign_id) == campaign]
    if status := query.get("status"):
        wanted = set(status.split(","))
        rows = [m for m in rows if _status(m, call.now)[0] in wanted]
    return rows


def _report(account: Account, call: Call, rows: list[Message]) -> Answer:
    profile = account.profile
    total = len(account.messages) if profile.global_total else len(rows)
    if profile.order == "newest":
        rows.reverse()
    if profile.page_max_items:
        rows = rows[: profile.page_max_items]
    item = _item if _pretty(call) else _letters
    answer = json_answer(
        200,
        {
            "meta": _meta(account, call, None),
            "pagination": {"total": total},
            "items": [item(m, call.now) for m in rows],
        },
    )
    answer.reports = len(rows)
    return answer


def _export(account: Account, call: Call, rows: list[Message]) -> Answer:
    """The window's messages go into a file, and words into the answer."""
    try:
        body = orjson.loads(call.body)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not {"emails", "from", "timezone"} <= body.keys():
        return refuse(account, call, 400, "The parameters emails, from and timezone are required")
    account.mailed = messangi_export.written(rows, lambda message: _item(message, call.now))
    return json_answer(200, {"meta": _meta(account, call, messangi_export.PROCESSED)})


def _pretty(call: Call) -> bool:
    return call.query.get("pretty", "true").lower() != "false"


def _status(message: Message, now: float) -> tuple[str, float]:
    state = message.at(now)
    return (state.status, state.at) if state else ("QUEUE", message.sent_at)


def _item(message: Message, now: float) -> dict[str, object]:
    status, at = _status(message, now)
    # the long form shows WhatsApp numbers without their plus, the short one with it
    bare = message.channel == "W"
    email = message.channel == "E"
    return {
        "channel": message.channel,
        "sender": message.sender,
        "recipient": message.recipient.removeprefix("+") if bare else message.recipient,
        "date": _date(message.sent_at),
        "campaignid": message.campaign_id,
        "status": status,
        "statusdate": _date(at),
        "content": None if email or message.channel == "P" else message.content,
        "platform": "A" if message.channel == "P" else None,
        "subject": "New Promo!" if email else None,
        "direction": message.direction,
        "subscriberid": None,
    }


def _letters(message: Message, now: float) -> dict[str, object]:
    status, at = _status(message, now)
    email, push = message.channel == "E", message.channel == "P"
    item: dict[str, object] = {
        "a": message.channel,
        "b": message.sender,
        "c": message.recipient,
        "d": _date(message.sent_at),
        "e": message.recipient if email else None,
        "f": None if email or push else message.recipient,
        "g": "dev",
        "h": "dev@example.com",
        "i": str(message.campaign_id),
        "j": status,
        "k": _date(at),
        "l": None if push else message.content,
        "m": None,
        "n": None,
        "o": f"0cb04d8c{message.serial:016x}",
        "p": message.sender if push else None,
        "r": "A" if push else None,
        "s": "New Promo!" if email else None,
        "t": message.direction,
        "u": None,
        "v": None,
        "w": None,
    }
    if message.channel in "WR" and status in ("BLACKLISTED", "QUOTA_EXCEEDED", "FALLBACK"):
        item["sd"] = f"Not delivered: {status.lower().replace('_', ' ')}"
    return item


def _date(at: float) -> str:
    second, ms = divmod(round(at * 1000), 1000)
    return f"{_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=DATES_KEPT)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:-6]


# -- a generated report of any size --------------------------------------------------------


def _bulk(account: Account, call: Call, start: float, end: float) -> Answer:
    """Items that lie evenly over bulk_span before the start, as many as the window covers."""
    profile = account.profile
    first = round((account.started - profile.bulk_span) * 1000)
    step = profile.bulk_span * 1000 / profile.bulk_items
    low = _index(start * 1000 - first, step, profile.bulk_items)
    high = _index(math.floor(end * 1000 - first + 0.5) + 1, step, profile.bulk_items)
    if call.query.get("channel", "S") != "S":
        high = low
    count = high - low
    if profile.report_max_items and count > profile.report_max_items:
        return json_answer(200, {"meta": _meta(account, call, TOO_BIG)})
    shown = min(count, profile.page_max_items or count)
    head = orjson.dumps({"meta": _meta(account, call, None), "pagination": {"total": count}})
    chunks = _stream(head, range(low, low + shown), first, step, _pretty(call))
    return Answer(200, chunks=chunks, reports=shown)


def _index(offset: float, step: float, most: int) -> int:
    """The first item whose whole millisecond is not before this offset."""
    n = min(max(int(offset / step) - 2, 0), most)
    while n < most and int(n * step) < offset:
        n += 1
    return n


def _stream(head: bytes, numbers: range, first: int, step: float, pretty: bool) -> Iterator[bytes]:
    yield head[:-1] + b',"items":['
    keys = _PRETTY if pretty else _SHORT
    for low in range(0, len(numbers), ITEMS_A_CHUNK):
        rows = []
        for n in numbers[low : low + ITEMS_A_CHUNK]:
            at = (first + int(n * step)) / 1000
            status = "DELIVRD" if n % 10 else "UNDELIV"
            values = f"+52{n:010d}", _date(at), str(11000 + n % 7), status, _date(at + 1.5)
            rows.append(keys % values)
        text = ",".join(rows).encode()
        yield b"," + text if low else text
    yield b"]}"


_PRETTY = (
    '{"channel":"S","sender":"STRESS1","recipient":"%s","date":"%s","campaignid":"%s",'
    '"status":"%s","statusdate":"%s","content":"Bulk","platform":null,"subject":null,'
    '"direction":"O","subscriberid":null}'
)
_SHORT = (
    '{"a":"S","b":"STRESS1","c":"%s","d":"%s","e":null,"f":null,"g":"dev","h":null,"i":"%s",'
    '"j":"%s","k":"%s","l":"Bulk","m":null,"n":null,"o":null,"p":null,"r":null,"s":null,'
    '"t":"O","u":null,"v":null,"w":null}'
)
