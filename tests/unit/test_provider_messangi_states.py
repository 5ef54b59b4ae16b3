"""Messangi: every status on every channel, and the reasons."""

from __future__ import annotations

import pytest

from engine.core.state import State
from engine.providers.messangi import CHANNELS
from engine.providers.messangi_states import meaning
from tests.unit.messangi_answers import one, provider

TABLE = {
    State.ACCEPTED: "QUEUE QUEUED DEQUEUED PENDING BUFFRED BUFFERED",
    State.ENROUTE: "ACCEPTD ACCEPTED ENROUTE SENT SENDING DELIVERED_TO_CARRIER SENT_TO_DEVICE",
    State.DELIVERED: "DELIVRD DELIVERED DELIVERED_TO_DEVICE",
    State.READ: "READ OPEN CLICK COMPLAINED",
    State.EXPIRED: "EXPIRED",
    State.DELETED: "DELETED",
    State.REJECTED: "REJECTD REJECTED BLACKLISTED BLOCKED_DUE_BAD_BEHAVIOUR CODE_NOT_ALLOWED "
    "SEGMENTS_EXCEEDED PAYLOAD_LIMIT_EXCEEDED INVALID_ROUTING INVALID_MESSAGE BAD_TO BAD_FROM "
    "BAD_ENCODING BAD_CARRIER/FROM BAD_DEVICE_TOKEN BAD_PLATFORM NOT_SENT NOT_ENOUGH_FUNDS "
    "QUOTA_EXCEEDED DEVICE_QUOTA_EXCEEDED AUTH_MISSING AUTH_ERROR MISMATCHED_TOKEN INVALID_NEW",
    State.UNDELIVERABLE: "UNDELIV UNDELIVERED UNREACHABLE UNREGISTERED EXHAUSTED BOUNCED "
    "BOUNCED_PERMANENT FALLBACK INTERNAL_ERROR CARRIER_GATEWAY_ERROR SERVER_UNAVAILABLE "
    "SERVER_ERROR NOT_CONTEMPLATED_ERROR",
    State.UNKNOWN: "TELEPATHY BLOCKED INVALID SENT2 SERVER UNKNOWN",
}
ENDS = {State.EXPIRED, State.DELETED, State.REJECTED, State.UNDELIVERABLE}


@pytest.mark.parametrize("letter", CHANNELS)
@pytest.mark.parametrize("state", TABLE)
def test_every_status_on_every_channel(state: State, letter: str) -> None:
    for name in TABLE[state].split():
        for status in (name, name.lower(), f" {name.replace('_', ' ')} "):
            report = one({"channel": letter, "recipient": "1", "status": status})
            final = state in ENDS | {State.DELIVERED, State.READ}
            final = final or (letter, name) == ("P", "SENT")
            assert (report.state, report.final) == (state, final), status
            assert report.provider_status == status
            assert (report.reason is not None) is (state in ENDS), status
            assert provider().lists(report) is (state is not State.UNKNOWN)


def test_incomplete_depends_on_the_channel() -> None:
    for letter, channel in CHANNELS.items():
        report = one({"channel": letter, "recipient": "1", "status": "INCOMPLETE"})
        wanted = (
            (State.ENROUTE, False, None) if letter == "S" else (State.REJECTED, True, "content")
        )
        assert (report.state, report.final, report.reason) == wanted
        assert report.channel == channel


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("BLACKLISTED", "blocked"),
        ("BLOCKED_DUE_BAD_BEHAVIOUR", "blocked"),
        ("UNREACHABLE", "unreachable"),
        ("INVALID ROUTING", "routing"),
        ("INVALID_MESSAGE", "content"),
        ("INVALID_NEW", "other"),
        ("BAD_TO", "invalid_recipient"),
        ("BAD ADDRESS", "invalid_recipient"),
        ("BAD_FROM", "sender"),
        ("BAD_CARRIER/FROM", "sender"),
        ("BAD_ENCODING", "content"),
        ("BAD_DEVICE_TOKEN", "device"),
        ("CODE_NOT_ALLOWED", "sender"),
        ("NOT_ENOUGH_FUNDS", "credit"),
        ("QUOTA_EXCEEDED", "quota"),
        ("DEVICE_QUOTA_EXCEEDED", "quota"),
        ("SEGMENTS_EXCEEDED", "too_long"),
        ("PAYLOAD_LIMIT_EXCEEDED", "too_long"),
        ("EXPIRED", "expired"),
        ("DELETED", "cancelled"),
        ("UNREGISTERED", "device"),
        ("MISMATCHED_TOKEN", "device"),
        ("SERVER_UNAVAILABLE", "provider"),
        ("INTERNAL ERROR", "provider"),
        ("CARRIER GATEWAY ERROR", "provider"),
        ("BOUNCED", "unreachable"),
        ("BOUNCED_PERMANENT", "invalid_recipient"),
        ("AUTH_MISSING", "sender"),
        ("FALLBACK", "routing"),
        ("REJECTD", "other"),
        ("UNDELIV", "other"),
        ("DELIVRD", None),
        ("SENT", None),
        ("TELEPATHY", None),
    ],
)
def test_reasons(status: str, reason: str | None) -> None:
    assert meaning("sms", status).reason == reason


def test_no_status_and_odd_ones() -> None:
    assert one({"channel": "S", "recipient": "1"}).provider_status is None
    long = one({"channel": "S", "recipient": "1", "status": "BAD_" + "X" * 99})
    assert (long.state, long.provider_status) == (State.REJECTED, "BAD_" + "X" * 99)
    assert one({"channel": "S", "recipient": "1", "status": 5}).provider_status == "5"
