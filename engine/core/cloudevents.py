"""A record as a CloudEvent 1.0 in structured mode, JSON format.

    id               the record's `event_id`: `source` and `id` together are unique, as is asked
    source           `/dlr-engine/<account>`, percent-encoded
    type             `dlr.report.<state>`, so that a broker can filter by what has happened
    time             the record's `observed_at`
    subject          the record's `message_id`
    datacontenttype  `application/json`
    data             the record, byte for byte

The record is not decoded beyond its few fields that stand outside. Where a field is empty, or holds
what an attribute may not (control characters), `data` alone says it exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

import msgspec

CONTENT_TYPE = "application/cloudevents+json"
BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"

Envelope = Literal["cloudevents"]

# What the specification keeps out of attributes: control characters and what is no character.
_BARRED = re.compile("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_REPLACED = "\ufffd"


class Heading(msgspec.Struct, frozen=True, gc=False):
    """The fields of a record that go on its envelope."""

    event_id: str
    account: str
    message_id: str
    state: str
    observed_at: str = ""

    @property
    def whose(self) -> tuple[str, str]:
        """What message it is about."""
        return self.account, self.message_id


heading = msgspec.json.Decoder(Heading).decode
"""Those fields of a record line; raises msgspec.DecodeError where the line is no record."""


class _Event(msgspec.Struct, kw_only=True, gc=False):
    specversion: str = "1.0"
    id: str
    source: str
    type: str
    time: str | msgspec.UnsetType = msgspec.UNSET
    subject: str | msgspec.UnsetType = msgspec.UNSET
    datacontenttype: str = "application/json"
    data: msgspec.Raw


_encode = msgspec.json.Encoder().encode


def event(line: bytes, known: Heading | None = None) -> bytes:
    """A record line as an event; `known` saves reading the line where that was done already.

    Raises msgspec.DecodeError where the line is no record.
    """
    head = heading(line) if known is None else known
    return _encode(
        _Event(
            id=_BARRED.sub(_REPLACED, head.event_id),
            source=f"/dlr-engine/{quote(head.account, safe='')}",
            type=f"dlr.report.{head.state}",
            time=head.observed_at or msgspec.UNSET,
            subject=_BARRED.sub(_REPLACED, head.message_id) or msgspec.UNSET,
            data=msgspec.Raw(line),
        )
    )


def events(lines: Sequence[bytes]) -> bytes:
    """Record lines as one JSON array of events: batched mode, for HTTP."""
    return b"[" + b",".join(map(event, lines)) + b"]"
