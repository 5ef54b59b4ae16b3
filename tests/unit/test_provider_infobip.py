"""Infobip: the request, every field under every name, odd types, error bodies, seen reports."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Flaw, Head, Kind, Outcome, Poll, Verb
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.providers.infobip import Infobip, InfobipOptions

KEY = "key-4711-abcdef"
FEED = Poll(kind=Kind.FEED, now_ms=1_700_000_000_000)
DONE = "2019-11-09T16:00:00.000Z"
SEEN_STATE = (State.READ, True)

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


@dataclass
class Answer:
    """What a reader made of one answer."""

    reports: list[Report] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)


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
    step: int = 1 << 20,
) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reader = (provider or account()).reader(poll, Head(status, {}))
    answer = Answer()
    for start in range(0, len(raw), step):
        answer.reports += reader.reports(reader.parser.feed(raw[start : start + step]))
    answer.reports += reader.reports(reader.parser.close(cut=cut))
    answer.flaws = reader.take_flaws()
    answer.outcome = reader.outcome()
    return answer


def one(provider: Infobip | None = None, poll: Poll = FEED, **fields: Any) -> Report:
    """The report of a record that has these fields and an id."""
    answer = read({"results": [{"messageId": "m"} | fields]}, provider=provider, poll=poll)
    assert answer.flaws == []
    (report,) = answer.reports
    return report


def status_of(group: Any, name: Any = "X", **fields: Any) -> dict[str, Any]:
    return {"groupId": group, "name": name} | fields


# -- options and traits --------------------------------------------------------------------------


def test_traits() -> None:
    traits = account().traits
    assert traits.feed == "drained"
    assert traits.one_time
    assert traits.dated
    assert traits.tracks == {"batch", "message"}
    assert traits.asks == frozenset()
    assert traits.concurrency == 1
    assert traits.ladder_s[0] == 300
    by_id = account(drain=False).traits
    assert by_id.feed is None
    assert by_id.asks == {"batch", "message"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"api_key": None}, ["api_key"]),
        ({"api_key": Secret("k"), "authorization": Secret("Bearer x")}, ["api_key"]),
        ({"api_key": Secret("k"), "username": "u", "password": Secret("p")}, ["api_key"]),
        ({"username": "u"}, ["password"]),
        ({"password": Secret("p")}, ["username"]),
        ({"username": "a:b", "password": Secret("p")}, ["username"]),
        ({"api_key": Secret("a\nX-Other: b")}, ["api_key"]),
        ({"authorization": Secret(" ")}, ["authorization"]),
        ({"limit": 0}, ["limit"]),
        ({"limit": 1001, "path": "sms", "channel": "sns"}, ["limit", "path", "channel"]),
        ({"path": "/sms/1/reports?limit=null"}, ["path"]),
    ],
)
def test_faults(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        account(**options)
    assert [line.partition(":")[0] for line in str(caught.value).split("\n")] == names


def test_the_nearest_channel_is_named() -> None:
    with pytest.raises(ValueError, match="'whatsapp'"):
        account(channel="whatsap")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"api-key": "x"}, InfobipOptions)


# -- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poll", "params"),
    [
        ({"kind": Kind.FEED}, (("limit", "1000"),)),
        ({"kind": Kind.MESSAGE, "message_id": "m"}, (("messageId", "m"), ("limit", "1000"))),
        ({"kind": Kind.BATCH, "batch_id": "b"}, (("bulkId", "b"), ("limit", "1000"))),
        ({"kind": Kind.PROBE, "nonce": "n"}, (("messageId", "n"), ("limit", "1"))),
    ],
)
def test_requests(poll: dict[str, Any], params: tuple[tuple[str, str], ...]) -> None:
    request = account().request(Poll(now_ms=0, **poll))
    assert (request.method, request.path) == ("GET", "/sms/1/reports")
    assert request.params == params
    assert dict(request.headers) == {"Authorization": f"App {KEY}", "Accept": "application/json"}
    assert KEY not in repr(request)


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.BATCH, Kind.WINDOW, Kind.PROBE])
def test_a_poll_without_its_id_would_take_everything(kind: Kind) -> None:
    with pytest.raises(ValueError):
        account().request(Poll(kind=kind, now_ms=0))


def test_other_ways_to_log_in_and_other_paths() -> None:
    basic = account(username="jö", password=Secret("pä"), path="/email/1/reports", limit=7)
    request = basic.request(FEED)
    assert request.path == "/email/1/reports"
    assert request.params == (("limit", "7"),)
    assert request.headers[0] == ("Authorization", "Basic asO2OnDDpA==")
    whole = account(authorization=Secret("IBSSO tok")).request(FEED)
    assert whole.headers[0] == ("Authorization", "IBSSO tok")
    assert account().login() is None
    assert account().token(Head(200, {}), b"") is None


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


# -- outcomes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "limit", "rows", "verb"),
    [
        (Kind.FEED, 1000, 0, Verb.DONE),
        (Kind.FEED, 1000, 49, Verb.DONE),
        (Kind.FEED, 1000, 50, Verb.MORE),
        (Kind.FEED, 1000, 1000, Verb.MORE),
        (Kind.FEED, 2, 1, Verb.DONE),
        (Kind.FEED, 2, 2, Verb.MORE),
        (Kind.BATCH, 1000, 50, Verb.MORE),
        (Kind.BATCH, 1000, 3, Verb.DONE),
        (Kind.MESSAGE, 1000, 50, Verb.DONE),
        (Kind.PROBE, 1, 1, Verb.DONE),
    ],
)
def test_a_full_page_means_more(kind: Kind, limit: int, rows: int, verb: Verb) -> None:
    body = {"results": [SAMPLE] * rows}
    answer = read(body, provider=account(limit=limit), poll=Poll(kind=kind, now_ms=0))
    assert answer.outcome == Outcome(verb=verb)
    assert len(answer.reports) == rows


V1 = {"requestError": {"serviceException": {"messageId": "BAD_REQUEST", "text": "Bad request"}}}
V3 = {
    "errorCode": "E400",
    "description": "Wrong",
    "action": "Mend it",
    "violations": [{"property": "limit", "violation": "too big"}],
    "resources": [],
}


@pytest.mark.parametrize(
    ("body", "code", "cause"),
    [
        (V1, "BAD_REQUEST", "HTTP 400: BAD_REQUEST: Bad request"),
        (V3, "E400", "HTTP 400: E400: Wrong: Mend it: property: limit; violation: too big"),
        ({"requestError": "no"}, None, "HTTP 400: no"),
        ({"requestError": {"text": "t"}}, None, "HTTP 400: t"),
        ([], None, "HTTP 400: bad request"),
        ({}, None, "HTTP 400: bad request"),
    ],
)
def test_both_families_of_error_bodies(body: Any, code: str | None, cause: str) -> None:
    answer = read(body, status=400)
    assert answer.outcome == Outcome(verb=Verb.RETRY, cause=cause, code=code)
    assert (answer.reports, answer.flaws) == ([], [])


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({"limit": ["too big", "odd"]}, "limit: too big, odd"),
        (["too big"], "too big"),
        ("too big", "too big"),
    ],
)
def test_validation_errors_in_every_shape(errors: Any, words: str) -> None:
    said = {"messageId": "BAD_REQUEST", "text": "Bad", "validationErrors": errors}
    answer = read({"requestError": {"serviceException": said}}, status=400)
    assert answer.outcome.cause == f"HTTP 400: BAD_REQUEST: Bad: {words}"


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (400, Verb.RETRY, False),
        (401, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (404, Verb.RETRY, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_http_statuses(status: int, verb: Verb, hold: bool) -> None:
    for body in (V1, V3, b"<html>no</html>", b""):
        answer = read(body, status=status)
        assert (answer.outcome.verb, answer.outcome.hold) == (verb, hold)
        assert answer.flaws == []


@pytest.mark.parametrize("body", [V1, V3, {"requestError": None, "results": []}, {}, [], b"", b"<"])
def test_a_failure_under_200_is_asked_again(body: Any) -> None:
    answer = read(body)
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


@pytest.mark.parametrize("cut", [True, False])
def test_a_cut_answer_is_asked_again_after_its_whole_records_were_taken(cut: bool) -> None:
    whole = json.dumps({"results": [SAMPLE, SAMPLE]}).encode()
    answer = read(whole[:-20], cut=cut)
    assert [report.message_id for report in answer.reports] == ["MESSAGE-ID-123-xyz"]
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


def test_reports_under_a_failing_status_are_not_thrown_away() -> None:
    answer = read({"results": [SAMPLE]}, status=500)
    assert len(answer.reports) == 1
    assert answer.outcome.verb is Verb.RETRY


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "secrets"),
    [
        ({"api_key": Secret(KEY)}, [KEY]),
        ({"username": "u", "password": Secret("pass-word")}, ["pass-word", "dTpwYXNzLXdvcmQ="]),
        ({"authorization": Secret("Bearer tok-en-1")}, ["tok-en-1"]),
    ],
)
def test_secrets_never_come_out_again(options: dict[str, Any], secrets: list[str]) -> None:
    provider = account(**options)
    for secret in secrets:
        bodies: list[Any] = [
            {"requestError": {"serviceException": {"messageId": secret, "text": f"no {secret}"}}},
            {"errorCode": "E", "description": secret},
            {"results": [{"echo": secret}, 1]},
            f"{secret} is wrong".encode(),
        ]
        for body in bodies:
            for status in (200, 401):
                assert secret not in repr(read(body, provider=provider, status=status).outcome)


def test_words_become_one_short_line() -> None:
    cause = read({"errorCode": "E", "description": "a\x1b[0m\nb" + "x" * 9999}).outcome.cause
    assert cause.isprintable()
    assert len(cause) == 300


# -- anything at all -----------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.sampled_from(["null", "", "NO_ERROR", "2019-11-09T16:00:00.000+0000", "DELIVERED"])
)
NAMES = st.sampled_from(
    sorted({*SAMPLE, "from", "sender", "destination", "messageCount", "mmsCount", "mccMnc",
     "callbackData", "seenAt", "receivedAt", "channel", "groupId", "groupName", "id", "name",
     "description", "permanent", "pricePerMessage", "currency", "new"})
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=6),
    max_leaves=20,
)


@given(VALUES | st.dictionaries(NAMES, VALUES, max_size=12))
def test_any_record_is_a_report_or_a_flaw(record: Any) -> None:
    reader = account().reader(FEED, Head(200, {}))
    reports = reader.reports([record])
    flaws = reader.take_flaws()
    assert len(reports) + len(flaws) == 1
    for report in reports:
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report).message_id


@given(st.dictionaries(NAMES, VALUES, max_size=12))
def test_nothing_that_has_no_place_is_dropped(record: dict[str, Any]) -> None:
    reader = account().reader(FEED, Head(200, {}))
    for report in reader.reports([record]):
        for name in record.keys() & {"new", "seenAt", "channel", "entityId", "applicationId"}:
            assert report.extra[name] == record[name]


@given(VALUES, st.sampled_from([200, 400, 401]))
def test_any_error_body_has_an_outcome(said: Any, status: int) -> None:
    for body in ({"requestError": said}, {"requestError": {"serviceException": said}},
                 {"errorCode": said, "description": said, "violations": said}):  # fmt: skip
        outcome = read(body, status=status).outcome
        assert outcome.verb in (Verb.RETRY, Verb.PAUSE)
        assert outcome.cause.isprintable()


@given(st.binary(max_size=300), st.booleans())
def test_no_body_raises(body: bytes, cut: bool) -> None:
    for prefix in (b"", b'{"results":[', b'{"results":[{"messageId":"a"},'):
        assert read(prefix + body, cut=cut, step=11).outcome.verb in Verb
