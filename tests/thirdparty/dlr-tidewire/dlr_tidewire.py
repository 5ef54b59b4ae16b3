"""Tidewire (a made-up provider): receipts as they come, each given once.

    GET /receipts?max=500  ->  {"receipts": [{"ref": "t1", "to": "447700900001", "code": "D",
                                              "at": 1700000000, "tag": "order-17"}], "more": false}

Whatever else a receipt holds goes into `extra`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec

from engine import (
    FINAL,
    Context,
    Flaw,
    Head,
    JsonItems,
    Limit,
    Outcome,
    Parser,
    Poll,
    Report,
    Request,
    Secret,
    State,
    Traits,
    Verb,
    msisdn,
    outcome_of_status,
)

CODES = {
    "Q": State.ACCEPTED,
    "S": State.ENROUTE,
    "D": State.DELIVERED,
    "U": State.UNDELIVERABLE,
    "X": State.EXPIRED,
    "R": State.REJECTED,
}
AT_MAX = 253_402_300_799  # the last second that a calendar has


class TidewireOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: str
    password: Secret
    page: Annotated[int, msgspec.Meta(ge=1, le=500)] = 500


class Receipt(msgspec.Struct):
    ref: Annotated[str, msgspec.Meta(min_length=1)]
    code: str
    to: str | None = None
    at: Annotated[int, msgspec.Meta(ge=0, le=AT_MAX)] | None = None
    tag: str | None = None


class Tidewire:
    name: ClassVar[str] = "tidewire"
    Options: ClassVar[type[msgspec.Struct]] = TidewireOptions
    traits = Traits(
        feed="drained",
        one_time=True,
        dated=True,
        limits=(Limit(5, 1.0),),
        interval_s=10.0,
        idle_interval_s=60.0,
    )

    def __init__(self, options: TidewireOptions, context: Context) -> None:
        pair = b64encode(f"{options.user}:{options.password.reveal()}".encode()).decode()
        self._headers = (("Authorization", f"Basic {pair}"),)
        self._page = options.page

    def request(self, poll: Poll, token: str | None = None) -> Request:
        return Request(path="/receipts", params=(("max", str(self._page)),), headers=self._headers)

    def reader(self, poll: Poll, head: Head) -> _Reader:
        return _Reader(head)

    def lists(self, report: Report) -> bool:
        return report.provider_status in CODES

    def login(self) -> Request | None:
        return None

    def token(self, head: Head, body: bytes) -> str | None:
        return None


class _Reader:
    def __init__(self, head: Head) -> None:
        self._items = JsonItems("receipts")
        self.parser: Parser = self._items
        self._head = head
        self._flaws: list[Flaw] = []

    def reports(self, records: Sequence[Any]) -> list[Report]:
        found = []
        for record in records:
            try:
                found.append(_report(record, msgspec.convert(record, Receipt)))
            except (msgspec.ValidationError, TypeError) as error:
                raw = msgspec.json.encode(record)
                self._flaws.append(Flaw(f"not a receipt: {error}", "receipt", raw))
        return found

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = self.parser.take_flaws() + self._flaws, []
        return flaws if self._head.status == 200 else []

    def outcome(self) -> Outcome:
        if (bad := outcome_of_status(self._head.status)) is not None:
            return bad
        if not self.parser.complete:
            return Outcome(verb=Verb.RETRY, cause=self.parser.cause or "the answer was cut short")
        return Outcome(verb=Verb.MORE if self._items.envelope.get("more") is True else Verb.DONE)


def _report(record: dict[str, Any], receipt: Receipt) -> Report:
    state = CODES.get(receipt.code, State.UNKNOWN)
    moment = None
    if receipt.at is not None:
        moment = datetime.fromtimestamp(receipt.at, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return Report(
        message_id=receipt.ref,
        recipient=receipt.to,
        msisdn=msisdn(receipt.to),
        reference=receipt.tag,
        state=state,
        final=state in FINAL,
        provider_status=receipt.code,
        done_at=moment,
        extra={key: record[key] for key in record if key not in Receipt.__struct_fields__},
    )
