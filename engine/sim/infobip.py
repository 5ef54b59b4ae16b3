"""Infobip: a queue of reports, each of which is given once.

infobip.com/docs/api/channels/sms/logs-and-status-reports/
get-outbound-sms-message-delivery-reports. A read consumes, also one with a filter, and also one
whose answer is lost; the ledger says what was given and how far it came. It never gives a report
a second time.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

import orjson

from engine.sim.account import Account, Report
from engine.sim.answer import Answer, Call, json_answer
from engine.sim.messages import Given
from engine.sim.plans import INFOBIP_ERROR, INFOBIP_STATUS

PATHS = (
    "/sms/1/reports",
    "/sms/3/reports",
    "/rcs/2/reports",
    "/mms/2/reports",
    "/viber/2/reports",
)
DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
DATES_KEPT = 4096
_VERSION = re.compile(r"^/[a-z-]+/(\d+)/")
_SHIFTED = timezone(timedelta(hours=5, minutes=30))
_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 404: "NOT_FOUND", 429: "TOO_MANY_REQUESTS"}
_PRICE = orjson.Fragment(b'{"pricePerMessage":0.01,"currency":"EUR"}')
_PLATFORM = orjson.Fragment(b'{"entityId":"my-entity-id","applicationId":"my-application-id"}')


def handle(account: Account, call: Call) -> Answer:
    """The answer to one read of the queue."""
    if call.path not in (*PATHS, *account.profile.paths) or call.method != "GET":
        return refuse(account, call, 404, "Not Found")
    if not _welcome(account, call):
        account.tally.unauthorized += 1
        return refuse(account, call, 401, "Invalid login details")
    cap = account.profile.page_cap or MAX_LIMIT
    asked = call.query.get("limit", "")
    limit = DEFAULT_LIMIT
    if asked and asked != "null":
        if not asked.isascii() or not asked.isdigit() or not 1 <= int(asked) <= MAX_LIMIT:
            return refuse(account, call, 400, "Bad request")
        limit = int(asked)
    ids, bulks = _set(call, "messageId"), _set(call, "bulkId")
    taken = account.take(call.now, min(limit, cap), ids, bulks)
    return _render(account, call, taken)


def refuse(account: Account, call: Call, status: int, words: str) -> Answer:
    """An error in the family of the path's version."""
    if _v3(account, call.path):
        body: object = {
            "errorCode": f"E{status}",
            "description": words,
            "action": "Check the request and its authorization.",
            "violations": [],
            "resources": [],
        }
    else:
        code = _CODES.get(status, "GENERAL_ERROR")
        body = {"requestError": {"serviceException": {"messageId": code, "text": words}}}
    return json_answer(status, body)


def _set(call: Call, name: str) -> set[str] | None:
    given = call.query.get(name)
    return set(given.split(",")) if given else None


def _v3(account: Account, path: str) -> bool:
    style = account.profile.style
    if style != "auto":
        return style == "v3"
    version = _VERSION.match(path)
    return version is not None and int(version[1]) >= 3


def _welcome(account: Account, call: Call) -> bool:
    profile = account.profile
    valid = set()
    if profile.authorization is not None:
        valid.add(profile.authorization)
    if profile.api_key is not None:
        valid.add(f"App {profile.api_key}")
    if profile.ibsso is not None:
        valid.add(f"IBSSO {profile.ibsso}")
    if profile.bearer is not None:
        valid.add(f"Bearer {profile.bearer}")
    if profile.username is not None:
        pair = f"{profile.username}:{profile.password or ''}".encode()
        valid.add("Basic " + base64.b64encode(pair).decode())
    return not valid or call.headers.get("Authorization") in valid


def _render(account: Account, call: Call, taken: list[Report]) -> Answer:
    """The body, one report after the other, so that the end of each in it is known."""
    v3 = _v3(account, call.path)
    parts = [b'{"results":[']
    place = len(parts[0])
    ledger = []
    for n, report in enumerate(taken):
        if n:
            parts.append(b",")
            place += 1
        done = _date(account, report.transition.at, report.seq)
        row = _row_v3(report, done) if v3 else _row_v1(report, done)
        row["sentAt"] = _date(account, report.message.sent_at, report.seq)
        raw = orjson.dumps(row)
        parts.append(raw)
        place += len(raw)
        given = Given(
            message_id=report.message.message_id,
            status=report.transition.status,
            done_at=done,
            answer=call.number,
            at=call.now,
        )
        ledger.append((place, given))
        account.given.append(given)
    parts.append(b"]}")
    return Answer(200, b"".join(parts), reports=len(taken), ledger=ledger)


def _row_v1(report: Report, done: str) -> dict[str, object]:
    message = report.message
    row: dict[str, object] = {
        "bulkId": message.batch_id,
        "messageId": message.message_id,
        "to": message.recipient,
        "from": message.sender,
        "sentAt": "",
        "doneAt": done,
        "smsCount": 1,
        "mccMnc": "null" if message.serial % 5 == 0 else "22801",
        "price": _PRICE,
        "status": _status(report.transition.status),
        "error": _error(report.transition.error, "Ok"),
        "entityId": "my-entity-id",
        "applicationId": "my-application-id",
    }
    if message.reference is not None:
        row["callbackData"] = message.reference
    return row


def _row_v3(report: Report, done: str) -> dict[str, object]:
    message = report.message
    row: dict[str, object] = {
        "bulkId": message.batch_id,
        "price": _PRICE,
        "status": _status(report.transition.status),
        "error": _error(report.transition.error, "OK"),
        "messageId": message.message_id,
        "to": message.recipient,
        "sender": message.sender,
        "sentAt": "",
        "doneAt": done,
        "messageCount": 1,
        "mccMnc": "22801",
        "platform": _PLATFORM,
    }
    if message.reference is not None:
        row["callbackData"] = message.reference
    return row


def _status(name: str) -> orjson.Fragment:
    made = _STATUS_JSON.get(name)
    if made is None:  # a plan may name a status no table has
        made = orjson.Fragment(orjson.dumps({"groupId": 9, "groupName": "NEW", "name": name}))
    return made


def _error(name: str | None, ok: str) -> orjson.Fragment:
    return _ERROR_JSON[name or "NO_ERROR", ok]


def _date(account: Account, at: float, n: int) -> str:
    style = account.profile.dates
    if style == "mixed":
        style = ("plain", "colon", "zulu", "shifted")[n % 4]
    second, ms = divmod(round(at * 1000), 1000)
    head, tail = _second(second, style)
    return f"{head}.{ms:03d}{tail}"


@lru_cache(maxsize=DATES_KEPT)
def _second(second: int, style: str) -> tuple[str, str]:
    """What stands before and behind the milliseconds."""
    text = datetime.fromtimestamp(second, _SHIFTED if style == "shifted" else UTC).isoformat()
    head, offset = text[:-6], text[-6:]
    if style == "zulu":
        return head, "Z"
    return head, offset if style == "colon" else offset.replace(":", "")


_STATUS_JSON = {
    name: orjson.Fragment(
        orjson.dumps(
            {"groupId": gid, "groupName": group, "id": n, "name": name, "description": words}
        )
    )
    for name, (gid, group, n, words, _) in INFOBIP_STATUS.items()
}
_ERROR_JSON = {
    (name, ok): orjson.Fragment(
        orjson.dumps(
            {
                "groupId": gid,
                "groupName": group if gid else ok,
                "id": n,
                "name": name,
                "description": words,
                "permanent": permanent,
            }
        )
    )
    for name, (gid, group, n, words, permanent) in INFOBIP_ERROR.items()
    for ok in ("Ok", "OK")
}
