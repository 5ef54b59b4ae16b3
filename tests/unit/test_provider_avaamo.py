"""Avaamo: the page's own sample, every trap of its fields, and any JSON as an entry."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Provider, Reader, Verb
from engine.core.report import Report, encode
from engine.core.secret import Secret
from engine.core.state import State
from engine.providers.avaamo import Avaamo, AvaamoOptions, epoch_ms, reason_of, timetoken

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
) -> tuple[list[Report], Outcome, Reader]:
    reader = (of or provider()).reader(window(**poll), Head(status, {}))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reports = reader.reports(reader.parser.feed(raw[: len(raw) // 2]))
    reports += reader.reports(reader.parser.feed(raw[len(raw) // 2 :]))
    reports += reader.reports(reader.parser.close(cut=cut))
    return reports, reader.outcome(), reader


def one(entry: dict[str, Any], context: Context | None = None, **poll: Any) -> Report:
    reader = provider(context).reader(window(**poll), Head(200, {}))
    (report,) = reader.reports([entry])
    assert reader.take_flaws() == []
    return report


def test_sample_every_field() -> None:
    reports, outcome, reader = read(SAMPLE)
    same = {
        "sender": "+11231231234",
        "recipient": "+1(123) 456-xxxx",
        "msisdn": None,
    }
    assert reports == [
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
    assert outcome == Outcome(total=2, page=1, pages=1, server_ms=1670940238493)
    assert reader.take_flaws() == []


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
    reports, outcome, reader = read(body)
    assert len(reports) == 1
    assert outcome.verb is Verb.DONE
    assert [(f.cause, f.position, f.raw) for f in reader.take_flaws()] == [
        ("not an object", "record 1", b"5"),
        ("no uuid", "record 3", b'{"to_phone":"1"}'),
        ("no uuid", "record 4", b'{"uuid":""}'),
        ("not an object", "record 5", b"null"),
    ]
    assert reader.take_flaws() == []


def test_a_flaw_is_bounded() -> None:
    reader = provider().reader(window(), Head(200, {}))
    reader.reports(["x" * 2_000_000])
    (flaw,) = reader.take_flaws()
    assert (len(flaw.raw), flaw.truncated) == (1 << 20, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
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


# -- requests --------------------------------------------------------------------------------


def test_request() -> None:
    made = provider(filters={"status": "failed", "to_phone": "+17778889999"}, per_page=50)
    poll = Poll(kind=Kind.FEED, now_ms=NOW, from_ms=1672123097000, to_ms=1670940238492, page=3)
    request = made.request(poll)
    assert (request.method, request.path) == ("GET", "/api/v1/agents/5157/sms/report.json")
    assert request.params == (
        ("from_timetoken", "1672123097"),
        ("to_timetoken", "1670940238.492"),
        ("page", "3"),
        ("per_page", "50"),
        ("status", "failed"),
        ("to_phone", "+17778889999"),
    )
    assert dict(request.headers) == {"access-token": "tok-secret", "Accept": "application/json"}
    assert "tok-secret" not in repr(request)


def test_probe_is_one_second_and_one_entry() -> None:
    request = provider().request(Poll(kind=Kind.PROBE, now_ms=NOW))
    assert request.params == (
        ("from_timetoken", "1699999999"),
        ("to_timetoken", "1700000000"),
        ("page", "1"),
        ("per_page", "1"),
    )


def test_agent_id_cannot_leave_its_place() -> None:
    request = provider(agent_id="a/b?c").request(window())
    assert request.path == "/api/v1/agents/a%2Fb%3Fc/sms/report.json"


def test_only_windows() -> None:
    with pytest.raises(ValueError, match="windows"):
        provider().request(Poll(kind=Kind.MESSAGE, now_ms=NOW, message_id="m"))


def test_traits() -> None:
    traits = provider().traits
    assert (traits.feed, traits.paged, traits.dated) == ("windowed", True, False)
    assert (traits.tracks, traits.asks, traits.channels) == ({"message"}, set(), ())
    assert (traits.window_max_ms, traits.window_min_ms) == (7 * 86_400_000, 1000)
    assert traits.rescan_s == (300, 1800, 7200, 18000, 86400, 172800, 432000)
    assert provider().login() is None
    assert provider().token(Head(200, {"authorization": "x"}), b"") is None


def test_faults_are_named_all_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        provider(
            per_page=101,
            filters={"stats": "x", "phone_to": "y"},
            agent_id="",
            access_token=Secret(""),
        )
    assert str(caught.value).splitlines() == [
        'filters.stats: unknown key; the nearest known one is "status"',
        'filters.phone_to: unknown key; the nearest known one is "to_phone"',
        "per_page: expected 1 to 100, got 101",
        "agent_id: expected the agent's number",
        "access_token: is empty",
    ]


def test_options_know_their_keys() -> None:
    with pytest.raises(msgspec.ValidationError, match="per_pages"):
        msgspec.convert({"agent_id": 1, "access_token": Secret("x"), "per_pages": 1}, AvaamoOptions)


# -- outcomes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (401, Verb.PAUSE, False),
        (402, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (404, Verb.RETRY, False),
        (422, Verb.RETRY, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_refusals(status: int, verb: Verb, hold: bool) -> None:
    _, outcome, _ = read({"error": "To Date cannot be before From Date"}, status)
    cause = f"HTTP {status}: To Date cannot be before From Date"
    assert outcome == Outcome(verb=verb, cause=cause, hold=hold)


def test_a_cause_is_printable_short_and_without_secrets() -> None:
    words = "bad token tok-secret\r\n\x1b[31m see https://x.example/?a=tok-secret " + "w" * 999
    _, outcome, _ = read({"message": words}, 401)
    assert outcome.cause.startswith("HTTP 401: bad token ***   [31m see *** www")
    assert len(outcome.cause) <= 210
    assert outcome.cause.isprintable()


def test_html_under_an_error() -> None:
    _, outcome, _ = read(b"<html>Bad gateway</html>", 502)
    assert (outcome.verb, outcome.cause) == (Verb.RETRY, "HTTP 502")


@pytest.mark.parametrize(
    ("body", "verb", "words"),
    [
        ({"error": "no such agent"}, Verb.RETRY, "no entries in the answer: no such agent"),
        ({"error": "Invalid access token"}, Verb.PAUSE, "Invalid access token"),
        ({"total_entries": 3}, Verb.RETRY, "no entries in the answer"),
        ({}, Verb.RETRY, "no entries in the answer"),
        ({"total_entries": 3, "entries": {}}, Verb.RETRY, "'entries' is not an array"),
        (b"<html>hello</html>", Verb.RETRY, "not JSON"),
        (b"", Verb.RETRY, "empty"),
        ({"total_entries": 0}, Verb.DONE, ""),
        ({"total_entries": 0, "entries": None}, Verb.DONE, ""),
        ({"total_entries": 0, "entries": []}, Verb.DONE, ""),
    ],
)
def test_answers_without_entries(body: Any, verb: Verb, words: str) -> None:
    _, outcome, _ = read(body)
    assert outcome.verb is verb
    assert words in outcome.cause
    assert bool(outcome.cause) is bool(words)


def test_a_cut_answer_keeps_its_whole_entries() -> None:
    raw = orjson.dumps({"total_entries": 2, "entries": SAMPLE["entries"]})
    reports, outcome, _ = read(raw[:-30], cut=True)
    assert [r.provider_status for r in reports] == ["sent"]
    assert outcome.verb is Verb.RETRY
    assert outcome.cause


@pytest.mark.parametrize(
    ("given", "total", "server_ms"),
    [
        ({"total_entries": "12", "time_token": "1670940238.4926484"}, 12, 1670940238493),
        ({"total_entries": None, "time_token": None}, None, None),
        ({"total_entries": 3.0, "time_token": 12}, 3, None),
        ({"total_entries": 2.5, "time_token": 1e300}, None, None),
        ({"total_entries": -1, "time_token": True}, None, None),
        ({"total_entries": True, "time_token": []}, None, None),
    ],
)
def test_numbers_of_the_envelope(given: dict[str, Any], total: Any, server_ms: Any) -> None:
    _, outcome, _ = read({**SAMPLE, **given})
    assert (outcome.verb, outcome.total, outcome.server_ms) == (Verb.DONE, total, server_ms)


def test_pages_are_what_the_provider_says() -> None:
    _, outcome, _ = read({**SAMPLE, "current_page": 1, "total_pages": 8}, page=2)
    assert (outcome.page, outcome.pages) == (1, 8)
