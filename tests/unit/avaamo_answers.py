"""What the tests of Avaamo share: the page's own sample, a question, and answers read."""

from __future__ import annotations

from typing import Any

from engine.core.contracts import Context, Head, Kind, Poll, Provider
from engine.core.report import Report
from engine.core.secret import Secret
from engine.providers.avaamo import Avaamo, AvaamoOptions
from engine.testing.provider_case import Read
from tests.unit.answers import half, json_of, read_answer

NOW = 1_700_000_000_000
TEXT = "New Message - Appt Reminder - John Doe has an appointment on 05-12-2022 at 11:30"
REFUSED = "Unable to create record: The 'To' number +11234567890 is not a valid phone number."
SAMPLE: dict[str, Any] = {
    "current_page": 1,
    "per_page": 25,
    "total_entries": 2,
    "total_pages": 1,
    "time_token": 1670940238.4926484,
    "entries": [
        {
            "uuid": "xxxxxx36-bbff-4b13-963f-40c733xxxxxx",
            "from_phone": "+11231231234",
            "to_phone": "+1(123) 456-xxxx",
            "message": TEXT,
            "created_at": 1670923358.0,
            "sms_status": "sent",
        },
        {
            "uuid": "xxxxxx06-7cbd-4a1f-9798-594a01xxxxxx",
            "from_phone": "+11231231234",
            "to_phone": "+1(123) 456-xxxx",
            "message": TEXT,
            "created_at": 1670923397.0,
            "sms_status": "failed",
            "sms_status_response": REFUSED,
        },
    ],
}
ENTRY: dict[str, Any] = {"uuid": "u-1", "created_at": 1670923358.0, "sms_status": "sent"}


def provider(context: Context | None = None, **options: Any) -> Avaamo:
    given = {"agent_id": 5157, "access_token": Secret("tok-secret"), **options}
    return Avaamo(AvaamoOptions(**given), context or Context(account="bot"))


def window(**fields: Any) -> Poll:
    return Poll(kind=Kind.FEED, now_ms=NOW, from_ms=NOW - 5000, to_ms=NOW, **fields)


def read(
    body: Any, status: int = 200, *, cut: bool = False, of: Provider | None = None, **poll: Any
) -> Read:
    raw = json_of(body)
    return read_answer(of or provider(), window(**poll), raw, status, cut=cut, step=half(raw))


def one(entry: dict[str, Any], context: Context | None = None, **poll: Any) -> Report:
    reader = provider(context).reader(window(**poll), Head(200, {}))
    (report,) = reader.reports([entry])
    assert reader.take_flaws() == []
    return report
