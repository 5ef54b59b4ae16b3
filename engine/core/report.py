"""The delivery report: the one record that every sink gets.

A provider fills in what its answer says; the engine fills in the rest (`event_id`, `account`,
`provider`, `revision`, `observed_at`, and what `track` knew) when the report is committed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal, cast

import msgspec
import orjson

from .state import State

Direction = Literal["mt", "mo"]
Reason = Literal[
    "invalid_recipient", "unreachable", "blocked", "unsubscribed", "content", "too_long",
    "credit", "quota", "routing", "sender", "duplicate", "expired", "cancelled", "device",
    "provider", "other",
]  # fmt: skip


class Report(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One state of one message. Times are RFC 3339 in UTC with milliseconds and `Z`.

    Reports may share one `extra`: it is replaced, never changed.
    """

    event_id: str = ""
    account: str = ""
    provider: str = ""
    channel: str = "sms"
    direction: Direction = "mt"
    message_id: str
    revision: int = 0
    reference: str | None = None
    batch_id: str | None = None
    campaign_id: str | None = None
    sender: str | None = None
    recipient: str | None = None
    msisdn: str | None = None
    state: State
    final: bool
    verdict: str | None = None
    provider_status: str | None = None
    provider_status_text: str | None = None
    reason: Reason | None = None
    error_code: str | None = None
    error_text: str | None = None
    error_permanent: bool | None = None
    sent_at: str | None = None
    done_at: str | None = None
    observed_at: str = ""
    parts: int | None = None
    price: str | None = None
    currency: str | None = None
    mcc_mnc: str | None = None
    content: str | None = None
    subject: str | None = None
    extra: dict[str, Any] = {}


FIELDS: tuple[str, ...] = Report.__struct_fields__

encode = msgspec.json.Encoder().encode
encode_lines = msgspec.json.Encoder().encode_lines
decode = msgspec.json.Decoder(Report).decode

_blank_digest = blake2b(digest_size=16)


def event_id(
    account: str,
    message_id: str,
    direction: str,
    provider_status: str | None,
    error_code: str | None,
    verdict: str | None,
    t: int,
) -> str:
    """The idempotency key: BLAKE2b-128 in hex over the compact JSON array of the arguments.

    `t` is the status time in epoch ms where every way of a provider carries one, else how many
    times the message has entered this status.
    """
    fact = [account, message_id, direction, provider_status, error_code, verdict, t]
    digest = _blank_digest.copy()  # half the cost of a new one
    digest.update(orjson.dumps(fact))
    return digest.hexdigest()


# What people, and typesetters, put between the digits of a telephone number.
_TYPESET = "\u2007" + "".join(map(chr, range(0x2009, 0x2016))) + "\u202f\u2212"
_PHONE_MARKS = str.maketrans("", "", "+ ()-./\u00a0" + _TYPESET)

# What `redact` puts in the place of a telephone number, and of any other recipient.
REDACTED_NUMBER = "tel_[0-9a-f]{24}"
REDACTED_ADDRESS = "adr_[0-9a-f]{24}"
_redacted_number = re.compile(REDACTED_NUMBER).fullmatch

# E.164 allows 15 digits, short codes have few. Longer digits are tokens, not numbers.
MSISDN_DIGITS_MIN = 1
MSISDN_DIGITS_MAX = 20


def msisdn(recipient: str | None) -> str | None:
    """The recipient as digits alone; None for addresses, device tokens and masked numbers. The hash
    of a redacted number stands for it and stays as it is."""
    if not recipient:
        return None
    digits = recipient if recipient.isdigit() else recipient.translate(_PHONE_MARKS)
    if digits.isascii() and digits.isdigit():
        return digits if MSISDN_DIGITS_MIN <= len(digits) <= MSISDN_DIGITS_MAX else None
    return recipient if _redacted_number(recipient) else None


def msisdns(recipients: Sequence[str | None]) -> Sequence[str | None]:
    """The `msisdn` of each; quick where all of them are digits alone, or behind a plus."""
    if None in recipients:
        return [msisdn(recipient) for recipient in recipients]
    bare = "\n".join(cast("Sequence[str]", recipients)).replace("+", "").split("\n")
    joined = "".join(bare)
    if joined.isascii() and joined.isdigit() and len(bare) == len(recipients):
        sizes = set(map(len, bare))
        if min(sizes) >= MSISDN_DIGITS_MIN and max(sizes) <= MSISDN_DIGITS_MAX:
            return bare
    return [msisdn(recipient) for recipient in recipients]


def recipient_key(recipient: str) -> str:
    """What a recipient is found by, whichever way it is spelled."""
    if recipient.isdigit() and recipient.isascii() and len(recipient) <= MSISDN_DIGITS_MAX:
        return recipient.removeprefix("00")
    if "+" in recipient:
        recipient = recipient.replace("(0)", "")  # the trunk prefix of +44 (0)20 is not dialled
    digits = msisdn(recipient)
    if digits is None:
        return recipient.translate(_PHONE_MARKS).casefold()
    return digits.removeprefix("00")
