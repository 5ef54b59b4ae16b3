"""BulkSMS EAPI: a batch's rows as text.

developer.bulksms.com/eapi/status_reports/get_report. Refusals come with HTTP 200 and a code on
the first line, the same codes that rows have in their second field: only the place tells them
apart. It never orders or filters rows beyond what was asked for.
"""

from __future__ import annotations

from datetime import UTC, datetime

from engine.sim.account import Account
from engine.sim.answer import Answer, Call
from engine.sim.messages import Message, Transition

PATH = "/status_reports/get_report/2/2.0"
FIELDS = ("body", "completed_time", "created_time", "credits", "origin_address", "source_id")
_HEADER = {"returns": "0|Returns to follow", "results": "0|Results to follow"}
_REFUSALS = {
    "error22": "22|Internal fatal error|",
    "error23": "23|invalid credentials (username was: {user})|",
    "error24": "24|invalid or unknown batch_id|",
    "error40": "40|Temporarily unavailable|",
}


def handle(account: Account, call: Call) -> Answer:
    """The answer to one get_report."""
    profile = account.profile
    if call.path != PATH or call.method not in ("GET", "POST"):
        return refuse(account, call, 404, "Not Found")
    if (call.query.get("username"), call.query.get("password")) != (
        profile.username,
        profile.password,
    ):
        account.tally.unauthorized += 1
        return first_line(account, call, "error23")
    wanted = [f for f in call.query.get("optional_fields", "").split(",") if f]
    batch = account.batches.get(call.query.get("batch_id", ""))
    if batch is None or any(f not in FIELDS for f in wanted):
        return first_line(account, call, "error24")
    only = call.query.get("msisdn")
    rows = []
    for message in batch:
        if only and message.recipient != only:
            continue
        state = message.at(call.now)
        if state is not None:
            rows.append(_row(account, message, state, wanted))
    lines = [_HEADER[profile.header], "", *rows, ""]
    answer = _text(account, "\n".join(lines))
    answer.reports = len(rows)
    return answer


def first_line(account: Account, call: Call, kind: str) -> Answer:
    """A refusal in the first line of a 200."""
    user = call.query.get("username", "")
    return _text(account, _REFUSALS[kind].format(user=user) + "\n")


def refuse(account: Account, call: Call, status: int, words: str) -> Answer:
    """An HTTP error: everything but 200 is transient here."""
    answer = _text(account, f"{words}\n")
    answer.status = status
    return answer


def _text(account: Account, text: str) -> Answer:
    charset = account.profile.charset
    kind = f"text/plain; charset={charset}" if account.profile.declare_charset else "text/plain"
    return Answer(200, text.encode(charset, "replace"), kind)


def _row(account: Account, message: Message, state: Transition, wanted: list[str]) -> str:
    values = [message.recipient, state.status]
    values += [_field(account, message, state, name) for name in wanted]
    return "|".join(values)


def _field(account: Account, message: Message, state: Transition, name: str) -> str:
    if name == "body":
        return message.content
    if name == "completed_time":
        # only some networks tell it
        known = state.final and message.serial % 3
        return _time(account, state.at) if known else ""
    if name == "created_time":
        return _time(account, message.sent_at)
    if name == "credits":
        return "1.00"
    if name == "origin_address":
        return message.sender
    return message.reference or ""


def _time(account: Account, at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(account.profile.time_format)
