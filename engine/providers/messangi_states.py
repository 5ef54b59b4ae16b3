"""Messangi's status names, by channel: what each means, and why it was not delivered.

https://docs.messangi.com/docs/sms-status
https://docs.messangi.com/docs/email-status
https://docs.messangi.com/docs/push-notifications-status
https://docs.messangi.com/docs/whatsapp-status
https://docs.messangi.com/docs/rcs-status

Older accounts still see names that the pages no longer list, with spaces and slashes in them:
`BAD ADDRESS`, `BAD_CARRIER/FROM`. Names are compared in capitals, with `_` for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from ..core.report import Reason
from ..core.state import FINAL, State


class Meaning(NamedTuple):
    """What a status says of a message."""

    state: State
    final: bool
    reason: Reason | None = None
    listed: bool = True


NAMES: Mapping[State, str] = {
    State.ACCEPTED: "QUEUE QUEUED DEQUEUED PENDING BUFFRED BUFFERED",
    State.ENROUTE: "ACCEPTD ACCEPTED ENROUTE SENT SENDING DELIVERED_TO_CARRIER SENT_TO_DEVICE",
    State.DELIVERED: "DELIVRD DELIVERED DELIVERED_TO_DEVICE",
    State.READ: "READ OPEN CLICK COMPLAINED",  # who complains or clicks has read
    State.EXPIRED: "EXPIRED",
    State.DELETED: "DELETED",
    State.REJECTED: (
        "REJECTD REJECTED BLACKLISTED CODE_NOT_ALLOWED SEGMENTS_EXCEEDED PAYLOAD_LIMIT_EXCEEDED "
        "NOT_SENT NOT_ENOUGH_FUNDS QUOTA_EXCEEDED DEVICE_QUOTA_EXCEEDED MISMATCHED_TOKEN"
    ),
    State.UNDELIVERABLE: (
        "UNDELIV UNDELIVERED UNREACHABLE UNREGISTERED EXHAUSTED FALLBACK INTERNAL_ERROR "
        "CARRIER_GATEWAY_ERROR NOT_CONTEMPLATED_ERROR"
    ),
}
STATES: Mapping[str, State] = {
    name: state for state, names in NAMES.items() for name in names.split()
}

# Families: any name that begins so, unless it stands above.
FAMILIES: tuple[tuple[str, State], ...] = (
    ("BLOCKED_", State.REJECTED),
    ("INVALID_", State.REJECTED),
    ("BAD_", State.REJECTED),
    ("AUTH_", State.REJECTED),
    ("BOUNCED", State.UNDELIVERABLE),
    ("SERVER_", State.UNDELIVERABLE),
)

# Where a channel means something else by the word. Push never says more than SENT: a device does
# not report. INCOMPLETE waits for segments on SMS; elsewhere the message lacked data to fill in.
OF_CHANNEL: Mapping[tuple[str, str], Meaning] = {
    ("push", "SENT"): Meaning(State.ENROUTE, True),
    ("sms", "INCOMPLETE"): Meaning(State.ENROUTE, False),
    ("email", "INCOMPLETE"): Meaning(State.REJECTED, True, "content"),
    ("push", "INCOMPLETE"): Meaning(State.REJECTED, True, "content"),
    ("whatsapp", "INCOMPLETE"): Meaning(State.REJECTED, True, "content"),
    ("rcs", "INCOMPLETE"): Meaning(State.REJECTED, True, "content"),
}

REASONS: Mapping[str, Reason] = {
    "EXPIRED": "expired",
    "DELETED": "cancelled",
    "BLACKLISTED": "blocked",  # the list also holds numbers that nobody unsubscribed
    "CODE_NOT_ALLOWED": "sender",  # the sender is not activated, or not for this recipient
    "SEGMENTS_EXCEEDED": "too_long",
    "PAYLOAD_LIMIT_EXCEEDED": "too_long",
    "NOT_SENT": "provider",
    "NOT_ENOUGH_FUNDS": "credit",
    "QUOTA_EXCEEDED": "quota",
    "DEVICE_QUOTA_EXCEEDED": "quota",
    "MISMATCHED_TOKEN": "device",
    "UNREACHABLE": "unreachable",
    "UNREGISTERED": "device",
    "EXHAUSTED": "provider",  # tries to hand it on, not tries at the handset
    "FALLBACK": "routing",  # another channel was used instead
    "INTERNAL_ERROR": "provider",
    "CARRIER_GATEWAY_ERROR": "provider",
    "INVALID_ROUTING": "routing",
    "INVALID_MESSAGE": "content",
    "BAD_TO": "invalid_recipient",
    "BAD_ADDRESS": "invalid_recipient",
    "BAD_FROM": "sender",
    "BAD_CARRIER_FROM": "sender",
    "BAD_ENCODING": "content",
    "BAD_DEVICE_TOKEN": "device",
    "BAD_PLATFORM": "device",
    "BOUNCED": "unreachable",
    "BOUNCED_PERMANENT": "invalid_recipient",
}
REASONS_OF_FAMILIES: tuple[tuple[str, Reason], ...] = (
    ("BLOCKED_", "blocked"),
    ("AUTH_", "sender"),  # the app's own push credentials
    ("BOUNCED", "unreachable"),
    ("SERVER_", "provider"),
)

_BLANKS = str.maketrans(" /", "__")
UNLISTED = Meaning(State.UNKNOWN, False, None, False)


@lru_cache(maxsize=1024)
def meaning(channel: str, status: str | None) -> Meaning:
    """What a status, as the provider spells it, means on a channel (`sms`, `email`, …)."""
    if status is None:
        return UNLISTED
    name = status.strip().upper().translate(_BLANKS)
    if (special := OF_CHANNEL.get((channel, name))) is not None:
        return special
    state = STATES.get(name)
    if state is None:
        state = next((state for start, state in FAMILIES if name.startswith(start)), None)
    if state is None:
        return UNLISTED
    return Meaning(state, state in FINAL, _reason(state, name))


def _reason(state: State, name: str) -> Reason | None:
    if state not in FINAL or state is State.DELIVERED or state is State.READ:
        return None
    if (reason := REASONS.get(name)) is not None:
        return reason
    return next((why for start, why in REASONS_OF_FAMILIES if name.startswith(start)), "other")
