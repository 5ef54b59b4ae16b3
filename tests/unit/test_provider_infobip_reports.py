"""Infobip: every field under every name, states and reasons, odd types, what is no report."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from engine.core.contracts import Context, Kind, Outcome, Poll, Verb
from engine.core.report import Report
from engine.core.state import State
from tests.unit.infobip_answers import SAMPLE, account, one, read, status_of

DONE = "2019-11-09T16:00:00.000Z"
SEEN_STATE = (State.READ, True)

# -- the documented example and its later names --------------------------------------------------


@pytest.mark.parametrize("step", [1, 50, 1 << 20])
def test_every_field_of_the_documented_example(step: int) -> None:
    answer = read({"results": [SAMPLE, SAMPLE | {"messageId": "12db39c3"}]}, step=step)
    first = Report(
        provider="infobip",
        channel="sms",
        direction="mt",
        message_id="MESSAGE-ID-123-xyz",
        batch_id="BULK-ID-123-xyz",
        recipient="41793026727",
        msisdn="41793026727",
        state=State.DELIVERED,
        final=True,
        provider_status="DELIVERED_TO_HANDSET",
        provider_status_text="Message delivered to handset",
        sent_at=DONE,
        done_at=DONE,
        parts=1,
        price="0.01",
        currency="EUR",
        extra={
            "entityId": "my-entity-id",
            "applicationId": "my-application-id",
            "status": {"groupId": 3, "groupName": "DELIVERED", "id": 5},
            "error": {"groupId": 0, "groupName": "Ok", "id": 0},
        },
    )
    assert answer.reports == [first, msgspec.structs.replace(first, message_id="12db39c3")]
    assert answer.flaws == []
    assert answer.outcome == Outcome(verb=Verb.DONE)


def test_every_field_of_a_failure() -> None:
    report = one(
        **{"from": "Acme", "callbackData": "order-17", "mccMnc": "22801", "bulkId": ""},
        to="+41 79 302",
        status=status_of(
            5, "REJECTED_DND", groupName="REJECTED", id=10, description="d", action="Contact us"
        ),
        error={
            "groupId": 1,
            "groupName": "HANDSET_ERRORS",
            "id": 1,
            "name": "EC_UNKNOWN_SUBSCRIBER",
            "description": "Unknown",
            "permanent": True,
        },
        campaignReferenceId=None,
    )
    assert report == Report(
        provider="infobip",
        message_id="m",
        reference="order-17",
        sender="Acme",
        recipient="+41 79 302",
        msisdn="4179302",
        state=State.REJECTED,
        final=True,
        provider_status="REJECTED_DND",
        provider_status_text="d",
        reason="invalid_recipient",
        error_code="EC_UNKNOWN_SUBSCRIBER",
        error_text="Unknown",
        error_permanent=True,
        mcc_mnc="22801",
        extra={
            "campaignReferenceId": None,
            "status": {
                "groupId": 5,
                "groupName": "REJECTED",
                "id": 10,
                "action": "Contact us",
            },
            "error": {"groupId": 1, "groupName": "HANDSET_ERRORS", "id": 1},
        },
    )


def test_later_names_are_the_same_fields() -> None:
    report = one(
        sender="Acme",
        destination="41793026727",
        messageCount=3,
        platform={"entityId": "e", "applicationId": "a"},
        tomorrow=[1, {"x": None}],
    )
    assert (report.sender, report.recipient, report.parts) == ("Acme", "41793026727", 3)
    assert report.extra == {
        "platform": {"entityId": "e", "applicationId": "a"},
        "tomorrow": [1, {"x": None}],
    }
    assert one(mmsCount=2).parts == 2


def test_both_names_at_once_lose_nothing() -> None:
    report = one(**{"from": "A", "sender": "B", "smsCount": 1, "messageCount": 2})
    assert (report.sender, report.parts) == ("A", 1)
    assert report.extra == {"sender": "B", "messageCount": 2}


def test_the_channel_of_the_account_or_of_the_item() -> None:
    email = account(channel="email")
    assert one(email).channel == "email"
    assert one(email, channel="RCS").channel == "rcs"
    report = one(email, channel="VIBER_BM")
    assert (report.channel, report.extra) == ("email", {"channel": "VIBER_BM"})
    assert one(email, channel=3).channel == "email"


# -- states and reasons --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (status_of(1, "PENDING_ENROUTE"), State.ENROUTE),
        (status_of(1, "PENDING_WAITING_DELIVERY"), State.ENROUTE),
        (status_of(1, "PENDING_ACCEPTED"), State.ACCEPTED),
        (status_of(2, "BUSY"), State.UNDELIVERABLE),
        (status_of(3, "DELIVERED_TO_HANDSET"), State.DELIVERED),
        (status_of(3, "DELIVERED_TO_OPERATOR"), State.ENROUTE),
        (status_of(4, "SIGNALS_BLOCKED", id=87), State.EXPIRED),
        (status_of(5, "SIGNALS_BLOCKED", id=87), State.REJECTED),
        (status_of(5, "UNDELIVERABLE_REJECTED_PLATFORM", id=100), State.REJECTED),
        (status_of(3, "NEW_TOMORROW"), State.DELIVERED),
        (status_of("4"), State.EXPIRED),
        ({"groupName": "undeliverable", "name": "X"}, State.UNDELIVERABLE),
        ({"groupName": "Delivered", "name": "DELIVERED_TO_OPERATOR"}, State.ENROUTE),
        (status_of(True, "X"), State.UNKNOWN),
        (status_of(9, "X", groupName="Y"), State.UNKNOWN),
        (status_of([1], {"a": 1}, groupName=[2]), State.UNKNOWN),
    ],
)
def test_states(status: dict[str, Any], state: State) -> None:
    report = one(status=status)
    assert report.state is state
    assert report.final == (state not in {State.ENROUTE, State.ACCEPTED, State.UNKNOWN})
    if state is not State.UNKNOWN:
        assert account().lists(report)


def test_an_unknown_group_is_not_listed() -> None:
    report = one(status=status_of(9, "STRANGE"))
    assert (report.state, report.final, report.provider_status) == (
        State.UNKNOWN,
        False,
        "STRANGE",
    )
    assert not account().lists(report)
    assert account().lists(one())  # no status at all is no code


def test_a_status_without_a_name_goes_by_its_group() -> None:
    report = one(status={"groupId": 2, "groupName": "UNDELIVERABLE"})
    assert report.provider_status == "UNDELIVERABLE"
    assert report.extra == {"status": {"groupId": 2, "groupName": "UNDELIVERABLE"}}
    assert one(status={"groupId": 7}).provider_status == "7"


@pytest.mark.parametrize(
    ("group", "name", "error", "reason"),
    [
        (5, "REJECTED_NOT_ENOUGH_CREDITS", None, "credit"),
        (5, "REJECTED_PREFIX_MISSING", None, "invalid_recipient"),
        (5, "REJECTED_SENDER", None, "sender"),
        (5, "REJECTED_ROUTE_NOT_AVAILABLE", None, "routing"),
        (5, "REJECTED_FLOODING_FILTER", None, "quota"),
        (5, "REJECTED_DUPLICATE_MESSAGE_ID", None, "duplicate"),
        (5, "REJECTED_MESSAGE_TOO_LONG", None, "too_long"),
        (5, "REJECTED_DND", None, "blocked"),
        (2, "CANCELLED", None, "cancelled"),
        (2, "UNDELIVERABLE_NOT_DELIVERED", "EC_UNKNOWN_ERROR", "unreachable"),
        (2, "UNDELIVERABLE_NOT_DELIVERED", "EC_CALL_BARRED", "blocked"),
        (4, "EXPIRED_EXPIRED", "EC_ABSENT_SUBSCRIBER", "unreachable"),
        (4, "EXPIRED_EXPIRED", "NO_ERROR", "expired"),
        (2, "NEW", None, "other"),
        (5, "NEW", "NEW", "provider"),
        (4, "NEW", None, "expired"),
        (1, "PENDING_ENROUTE", "EC_ABSENT_SUBSCRIBER", None),
        (3, "DELIVERED_TO_OPERATOR", "EC_CALL_BARRED", None),
        (3, "DELIVERED_TO_HANDSET", "EC_CALL_BARRED", None),
        (9, "REJECTED_DND", "EC_CALL_BARRED", None),
    ],
)
def test_reasons(group: int, name: str, error: str | None, reason: str | None) -> None:
    error_body = {} if error is None else {"error": {"id": 1, "name": error}}
    assert one(status=status_of(group, name), **error_body).reason == reason


@pytest.mark.parametrize(
    "error", [{"name": "NO_ERROR", "id": 7}, {"id": 0, "description": "OK", "permanent": False}, {}]
)
def test_no_error_is_null(error: dict[str, Any]) -> None:
    report = one(error=error)
    assert report.error_code is report.error_text is report.error_permanent is None
    assert report.extra == ({"error": {"id": error["id"]}} if "id" in error else {})


# -- single fields -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2035-08-18T12:08:42.777Z", "2035-08-18T12:08:42.777Z"),
        ("2035-08-18T12:08:42.777+0000", "2035-08-18T12:08:42.777Z"),
        ("2019-W01-1T16:00:00.000+0000", "2018-12-31T16:00:00.000Z"),
        ("2035-08-18T13:08:42.777+01:00", "2035-08-18T12:08:42.777Z"),
        ("2035-08-18T17:38:42.777+0530", "2035-08-18T12:08:42.777Z"),
        ("2035-08-18T09:08:42.777-0300", "2035-08-18T12:08:42.777Z"),
        ("2035-08-18T12:08:42+00:00", "2035-08-18T12:08:42.000Z"),
        ("2035-08-18T14:08:42.777", "2035-08-18T12:08:42.777Z"),
        (1704106800000, "2024-01-01T11:00:00.000Z"),
        ("1704106800000", "2024-01-01T11:00:00.000Z"),
        (1704106800000.0, "2024-01-01T11:00:00.000Z"),
        (0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_times(value: Any, expected: str) -> None:
    provider = account(Context(account="a", timezone=ZoneInfo("Europe/Madrid")))
    report = one(provider, sentAt=value, doneAt=value)
    assert (report.sent_at, report.done_at) == (expected, expected)
    assert report.extra == {}


@pytest.mark.parametrize(
    "value",
    ["string", "2035-08-18T25:08:42.777+0000", "2035-08-18X12:08:42.77+00000", 1e300, 10**30,
     True, [], {}, "0000-01-01T00:00:00.000+0000"],
)  # fmt: skip
def test_an_unreadable_time_is_null_and_kept(value: Any) -> None:
    report = one(doneAt=value)
    assert report.done_at is None
    assert report.extra == {"doneAt": value}


def test_sent_at_falls_back_on_what_was_tracked() -> None:
    poll = Poll(kind=Kind.MESSAGE, now_ms=0, message_id="m", sent_ms=1_700_000_000_000)
    assert one(poll=poll).sent_at == "2023-11-14T22:13:20.000Z"
    assert one(poll=poll, sentAt=SAMPLE["sentAt"]).sent_at == DONE


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("0.01", "0.01"), ("1e-05", "0.00001"), ("0", "0"), ("0.0", "0"), ("-0.0", "0"),
        ("12", "12"), ("0.1", "0.1"), ('"0.0100"', "0.0100"), ('"1E-5"', "0.00001"),
        ("1e22", "10000000000000000000000"), ("2.50", "2.5"),
    ],
)  # fmt: skip
def test_prices(raw: str, expected: str) -> None:
    body = b'{"results":[{"messageId":"m","price":{"pricePerMessage":%s}}]}' % raw.encode()
    (report,) = read(body).reports
    assert (report.price, report.extra) == (expected, {})


@pytest.mark.parametrize("price", [[], "free", 3, {"pricePerMessage": "NaN"}, {"currency": [1]}])
def test_odd_prices_are_kept(price: Any) -> None:
    report = one(price=price)
    assert report.price is report.currency is None
    assert report.extra == {"price": price}


def test_an_id_that_is_a_long_number_keeps_all_its_digits() -> None:
    (report,) = read(b'{"results":[{"messageId":33640241674303572142}]}').reports
    assert report.message_id == "33640241674303572142"


def test_the_text_null_is_null() -> None:
    assert one(mccMnc="null").mcc_mnc is None
    assert one(mccMnc=22801).mcc_mnc == "22801"
    assert one(bulkId="").batch_id is None


def test_recipients_that_are_no_numbers() -> None:
    report = one(to="jane@example.org")
    assert (report.recipient, report.msisdn) == ("jane@example.org", None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [("x", "x"), ("", None), (None, None), ({"a": [1]}, '{"a":[1]}'), (7, "7"),
     (10**30, "1" + "0" * 30)],
)  # fmt: skip
def test_callback_data(data: Any, expected: str | None) -> None:
    report = one(callbackData=data)
    assert (report.reference, report.extra) == (expected, {})


def test_a_reference_of_ours_goes_first() -> None:
    poll = Poll(kind=Kind.MESSAGE, now_ms=0, message_id="m", reference="ours")
    report = one(poll=poll, callbackData="theirs")
    assert (report.reference, report.extra) == ("ours", {"callbackData": "theirs"})
    assert one(poll=poll, callbackData="ours").extra == {}


def test_odd_types_are_kept_under_their_own_names() -> None:
    odd: dict[str, Any] = {
        "bulkId": [1],
        "to": {"x": 1},
        "from": False,
        "smsCount": -1,
        "mccMnc": 2.5,
        "status": "DELIVERED",
        "error": [None],
        "price": "1",
    }
    report = one(**odd)
    assert report.extra == odd
    assert report.state is State.UNKNOWN
    nested: dict[str, Any] = {
        "status": {"name": [1], "description": {}},
        "error": {"id": 1, "name": True, "description": 1.5, "permanent": "yes"},
    }
    assert one(**nested).extra == nested
    nulls = dict.fromkeys(SAMPLE)
    del nulls["messageId"]
    assert one(**nulls).extra == {"entityId": None, "applicationId": None}


# -- what is no delivery report ------------------------------------------------------------------


def test_a_seen_report_is_read() -> None:
    report = one(to="41793026727", sentAt=SAMPLE["sentAt"], seenAt="2019-11-09T17:00:00.000+0100")
    assert (report.state, report.final) == SEEN_STATE
    assert (report.sent_at, report.done_at, report.provider_status) == (DONE, DONE, None)
    assert report.extra == {"seenAt": "2019-11-09T17:00:00.000+0100"}
    assert account().lists(report)
    assert one(seenAt="string").done_at is None
    assert one(seenAt="x", status=status_of(3)).state is State.DELIVERED


def test_unusable_records_are_set_aside_and_good_ones_go_through() -> None:
    records: list[Any] = [
        {"messageId": "in", "receivedAt": "2019-11-09T16:00:00.000+0000", "text": "STOP"},
        SAMPLE,
        7,
        None,
        [SAMPLE],
        {"to": "4179"},
        {"messageId": ""},
        {"messageId": " "},
        {"messageId": 1.5},
        {"messageId": ["m"]},
    ]
    answer = read({"results": records})
    assert [report.message_id for report in answer.reports] == ["MESSAGE-ID-123-xyz"]
    assert [flaw.position for flaw in answer.flaws] == [
        f"record {n}" for n in (1, 3, 4, 5, 6, 7, 8, 9, 10)
    ]
    assert answer.flaws[0].cause == "an inbound message, not a report"
    assert [json.loads(flaw.raw) for flaw in answer.flaws] == [records[0], *records[2:]]
    assert answer.outcome.verb is Verb.DONE


def test_what_is_set_aside_is_bounded() -> None:
    (flaw,) = read({"results": [{"x": "y" * 2_000_000}]}).flaws
    assert flaw.truncated
    assert len(flaw.raw) == 1 << 20
    deep = b'{"results":[{"x":' + b"[" * 400 + b"]" * 400 + b"}]}"
    assert len(read(deep).flaws) == 1


def test_records_around_a_broken_one_are_taken() -> None:
    body = b'{"results":[{"messageId":"a"},{"messageId":"b",},{"messageId":"c"}]}'
    answer = read(body)
    assert [report.message_id for report in answer.reports] == ["a", "c"]
    assert len(answer.flaws) == 1
