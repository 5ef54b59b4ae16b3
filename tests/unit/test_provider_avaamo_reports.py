"""Avaamo: the page's own sample, every trap of its fields, and any JSON as an entry."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Head, Outcome, Verb
from engine.core.report import Report, encode
from engine.core.state import State
from engine.providers.avaamo import epoch_ms, reason_of, timetoken
from tests.unit.answers import JSON
from tests.unit.avaamo_answers import ENTRY, REFUSED, SAMPLE, one, provider, read, window


def test_sample_every_field() -> None:
    answer = read(SAMPLE)
    same = {
        "sender": "+11231231234",
        "recipient": "+1(123) 456-xxxx",
        "msisdn": None,
    }
    assert answer.reports == [
        Report(
            message_id="xxxxxx36-bbff-4b13-963f-40c733xxxxxx",
            state=State.ENROUTE,
            final=False,
            provider_status="sent",
            sent_at="2022-12-13T09:22:38.000Z",
            **same,
        ),
        Report(
            message_id="xxxxxx06-7cbd-4a1f-9798-594a01xxxxxx",
            state=State.REJECTED,
            final=True,
            provider_status="failed",
            reason="invalid_recipient",
            error_text=REFUSED,
            sent_at="2022-12-13T09:23:17.000Z",
            **same,
        ),
    ]
    assert answer.outcome == Outcome(total=2, page=1, pages=1, server_ms=1670940238493)
    assert answer.flaws == []


def test_content_only_where_asked_for() -> None:
    entry = {**ENTRY, "message": "hello"}
    assert one(entry).content is None
    assert one(entry).extra == {}
    assert one(entry, Context(account="bot", content=True)).content == "hello"
    assert entry["message"] == "hello"  # the record itself stays whole


@pytest.mark.parametrize(
    ("status", "state", "final", "reason"),
    [
        ("sent", State.ENROUTE, False, None),
        ("delivered", State.DELIVERED, True, None),
        ("failed", State.REJECTED, True, "other"),
        ("undelivered", State.UNDELIVERABLE, True, "other"),
        (" Delivered ", State.DELIVERED, True, None),
        ("FAILED", State.REJECTED, True, "other"),
        ("queued", State.UNKNOWN, False, None),
    ],
)
def test_states(status: str, state: State, final: bool, reason: str | None) -> None:
    report = one({**ENTRY, "sms_status": status})
    assert (report.state, report.final, report.reason) == (state, final, reason)
    assert report.provider_status == status
    assert provider().lists(report) is (state is not State.UNKNOWN)


def test_no_status() -> None:
    report = one({"uuid": "u"})
    assert (report.state, report.final, report.provider_status) == (State.UNKNOWN, False, None)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("SMS send rate limit exceeded", "quota"),
        (
            "Permission to send an SMS has not been enabled for the region indicated by the "
            "'To' number",
            "routing",
        ),
        ("Attempt to send to unsubscribed recipient", "unsubscribed"),
        ("Attempt to send to an unsubscribed recipient", "unsubscribed"),
        ("This 'From' number has exceeded the maximum number of queued messages", "quota"),
        ("'To' number is not a valid mobile number", "invalid_recipient"),
        ("Queue overflow", "quota"),
        ("Account suspended", "provider"),
        ("Unreachable destination handset", "unreachable"),
        ("Message blocked", "blocked"),
        ("Message Delivery - Unknown destination handset", "invalid_recipient"),
        ("Landline or unreachable carrier", "invalid_recipient"),
        ("Message filtered", "content"),
        ("Message Delivery - Unknown error", "other"),
        ("Carrier network congestion", "provider"),
        ("Content size exceeds carrier limit", "too_long"),
        ("Invalid message recipient", "invalid_recipient"),
        ("Channels message cannot have same From and To", "sender"),
        # The same in the carrier's words.
        (REFUSED, "invalid_recipient"),
        ("The \u2018To\u2019 number +1 is NOT A VALID phone number.", "invalid_recipient"),
        ("The 'From' number +1 is not a valid phone number, shortcode, or sender", "sender"),
        ("The 'From' phone number provided (1) is not a valid message-capable number", "sender"),
        ("'To' and 'From' number cannot be the same: +1", "sender"),
        ("The message From/To pair violates a blacklist rule.", "unsubscribed"),
        ("The concatenated message body exceeds the 1600 character limit", "too_long"),
        ("something else", "other"),
        (None, "other"),
    ],
)
def test_reasons(said: str | None, reason: str) -> None:
    assert reason_of(said) == reason
    failed = one({**ENTRY, "sms_status": "undelivered", "sms_status_response": said})
    assert (failed.reason, failed.error_text, failed.error_code) == (reason, said, None)
    assert one({**ENTRY, "sms_status_response": said}).reason is None


@pytest.mark.parametrize(
    ("value", "sent_at", "extra"),
    [
        (1670940238.4926484, "2022-12-13T14:03:58.492Z", {}),
        (1670923358, "2022-12-13T09:22:38.000Z", {}),
        (1670923358.001, "2022-12-13T09:22:38.001Z", {}),
        ("1670923358.5", "2022-12-13T09:22:38.500Z", {}),
        ("2022-12-13T09:22:38", "2022-12-13T08:22:38.000Z", {}),
        ("2022-12-13T09:22:38Z", "2022-12-13T09:22:38.000Z", {}),
        (None, None, {}),
        (True, None, {"created_at": True}),
        ("soon", None, {"created_at": "soon"}),
        (1670923358000, None, {"created_at": 1670923358000}),
        (10**40, None, {"created_at": 10**40}),
        ([1], None, {"created_at": [1]}),
    ],
)
def test_created_at(value: Any, sent_at: str | None, extra: dict[str, Any]) -> None:
    context = Context(account="bot", timezone=ZoneInfo("Europe/Madrid"))
    report = one({**ENTRY, "created_at": value}, context)
    assert (report.sent_at, report.extra, report.done_at) == (sent_at, extra, None)
    told = one({**ENTRY, "created_at": value}, context, sent_ms=1500)
    assert told.sent_at == (sent_at or "1970-01-01T00:00:01.500Z")


@given(st.integers(0, 4_000_000_000_000))
def test_milliseconds_survive_the_float(ms: int) -> None:
    assert epoch_ms(ms / 1000) == ms
    assert epoch_ms(timetoken(ms)) == ms


def test_odd_types_and_new_fields() -> None:
    report = one(
        {
            "uuid": 33640241674303572142,
            "from_phone": 58412,
            "to_phone": "+1 (123) 456-7890",
            "created_at": 1,
            "sms_status": 5,
            "sms_status_response": {"code": 1},
            "segments": [1, {"n": 2}],
            "updated_at": None,
        },
        reference="order-17",
    )
    assert report == Report(
        message_id="33640241674303572142",
        reference="order-17",
        sender="58412",
        recipient="+1 (123) 456-7890",
        msisdn="11234567890",
        state=State.UNKNOWN,
        final=False,
        provider_status="5",
        error_text='{"code":1}',
        sent_at="1970-01-01T00:00:01.000Z",
        extra={"segments": [1, {"n": 2}], "updated_at": None},
    )


def test_unusable_entries_are_set_aside() -> None:
    body = {**SAMPLE, "entries": [5, SAMPLE["entries"][0], {"to_phone": "1"}, {"uuid": ""}, None]}
    answer = read(body)
    assert len(answer.reports) == 1
    assert answer.outcome.verb is Verb.DONE
    assert [(f.cause, f.position, f.raw) for f in answer.flaws] == [
        ("not an object", "record 1", b"5"),
        ("no uuid", "record 3", b'{"to_phone":"1"}'),
        ("no uuid", "record 4", b'{"uuid":""}'),
        ("not an object", "record 5", b"null"),
    ]


def test_a_flaw_is_bounded() -> None:
    reader = provider().reader(window(), Head(200, {}))
    reader.reports(["x" * 2_000_000])
    (flaw,) = reader.take_flaws()
    assert (len(flaw.raw), flaw.truncated) == (1 << 20, True)


KEYS = ("uuid", "from_phone", "to_phone", "message", "created_at", "sms_status",
        "sms_status_response", "new")  # fmt: skip


@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_json_is_a_report_or_a_flaw(record: Any) -> None:
    for content in (False, True):
        made = provider(Context(account="bot", content=content))
        reader = made.reader(window(), Head(200, {}))
        reports = reader.reports([record])
        assert len(reports) + len(reader.take_flaws()) == 1
        for report in reports:
            encode(report)
            assert set(report.extra) <= set(record)
            assert made.lists(report) is (report.state is not State.UNKNOWN)


@given(JSON | st.dictionaries(st.sampled_from((*SAMPLE, "error", "message")), JSON))
def test_any_json_is_an_answer(body: Any) -> None:
    for status in (200, 422, 401):
        reader = provider().reader(window(), Head(status, {}))
        reader.reports(reader.parser.feed(msgspec.json.encode(body)))
        reader.reports(reader.parser.close())
        assert reader.outcome().verb in set(Verb)
