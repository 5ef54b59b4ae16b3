"""What the tests of Infobip share: an account, the documented example, and answers read by it."""

from __future__ import annotations

from typing import Any

from engine.core.contracts import Context, Kind, Poll
from engine.core.report import Report
from engine.core.secret import Secret
from engine.providers.infobip import Infobip, InfobipOptions
from engine.testing.provider_case import Read
from tests.unit.answers import WHOLE, json_of, read_answer

KEY = "key-4711-abcdef"
FEED = Poll(kind=Kind.FEED, now_ms=1_700_000_000_000)

# The documented example.
SAMPLE: dict[str, Any] = {
    "bulkId": "BULK-ID-123-xyz",
    "messageId": "MESSAGE-ID-123-xyz",
    "to": "41793026727",
    "sentAt": "2019-11-09T16:00:00.000+0000",
    "doneAt": "2019-11-09T16:00:00.000+0000",
    "smsCount": 1,
    "price": {"pricePerMessage": 0.01, "currency": "EUR"},
    "status": {
        "groupId": 3,
        "groupName": "DELIVERED",
        "id": 5,
        "name": "DELIVERED_TO_HANDSET",
        "description": "Message delivered to handset",
    },
    "error": {
        "groupId": 0,
        "groupName": "Ok",
        "id": 0,
        "name": "NO_ERROR",
        "description": "No Error",
        "permanent": False,
    },
    "entityId": "my-entity-id",
    "applicationId": "my-application-id",
}


def account(context: Context | None = None, **options: Any) -> Infobip:
    if not {"api_key", "username", "password", "authorization"} & set(options):
        options["api_key"] = Secret(KEY)
    return Infobip(InfobipOptions(**options), context or Context(account="a"))


def read(
    body: Any,
    *,
    provider: Infobip | None = None,
    poll: Poll = FEED,
    status: int = 200,
    cut: bool = False,
    step: int = WHOLE,
) -> Read:
    provider = provider or account()
    return read_answer(provider, poll, json_of(body), status, cut=cut, step=step)


def one(provider: Infobip | None = None, poll: Poll = FEED, **fields: Any) -> Report:
    """The report of a record that has these fields and an id."""
    answer = read({"results": [{"messageId": "m"} | fields]}, provider=provider, poll=poll)
    assert answer.flaws == []
    (report,) = answer.reports
    return report


def status_of(group: Any, name: Any = "X", **fields: Any) -> dict[str, Any]:
    return {"groupId": group, "name": name} | fields
