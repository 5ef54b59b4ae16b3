"""BulkSMS: the request, every column of a row, every way to fail, and no password anywhere."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Verb
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.providers.bulksms import OPTIONAL_FIELDS, BulkSMS, BulkSMSOptions
from engine.testing.provider_case import Read
from tests.unit.answers import WHOLE, read_answer

PATH = "/status_reports/get_report/2/2.0"
PASSWORD = "p&ss%word é"
SENT_MS = 1_700_000_000_000
SENT_AT = "2023-11-14T22:13:20.000Z"
BATCH = Poll(kind=Kind.BATCH, now_ms=SENT_MS, batch_id="123456")

STATES = {
    State.ACCEPTED: "0",
    State.ENROUTE: "10 12 40 60 61 62 63 64",
    State.DELIVERED: "11",
    State.REJECTED: "22 23 24 25 26 27 28 31 32 33",
    State.DELETED: "29",
    State.UNDELIVERABLE: "50 51 52 54 55 56 57",
    State.EXPIRED: "53",
    State.UNKNOWN: "70",
}
CODES = [(code, state) for state, codes in STATES.items() for code in codes.split()]


def account(context: Context | None = None, **options: Any) -> BulkSMS:
    options = {"username": "john", "password": Secret(PASSWORD)} | options
    return BulkSMS(BulkSMSOptions(**options), context or Context(account="a"))


def read(
    body: str | bytes,
    *,
    provider: BulkSMS | None = None,
    poll: Poll = BATCH,
    status: int = 200,
    cut: bool = False,
    step: int = WHOLE,
) -> Read:
    raw = body.encode() if isinstance(body, str) else body
    return read_answer(provider or account(), poll, raw, status, cut=cut, step=step)


# -- options and traits --------------------------------------------------------------------------


def test_traits() -> None:
    traits = account().traits
    assert traits.feed is None
    assert traits.tracks == traits.asks == {"batch"}
    assert traits.derives_ids
    assert not traits.dated
    assert not traits.one_time
    assert traits.concurrency == 1
    assert traits.ladder_s == (300, 1800, 7200, 18000, 86400, 172800, 432000)


def test_all_faults_come_at_once_and_name_the_nearest() -> None:
    with pytest.raises(ValueError) as caught:
        account(username="", password=Secret(""), optional_fields=("bdy", "credits", "credits"))
    lines = str(caught.value).split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "username", "password", "optional_fields", "optional_fields",
    ]  # fmt: skip
    assert "'body'" in lines[2]
    assert "twice" in lines[3]


def test_unknown_keys_and_methods_are_refused() -> None:
    for wrong in ({"user": "x"}, {"method": "PUT"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"username": "u", "password": Secret("p")} | wrong, BulkSMSOptions)


def test_it_has_no_login() -> None:
    assert account().login() is None
    assert account().token(Head(200, {}), b"") is None


# -- the request ---------------------------------------------------------------------------------


def test_get() -> None:
    request = account().request(BATCH)
    assert (request.method, request.path) == ("GET", PATH)
    assert request.params == (
        ("username", "john"),
        ("password", PASSWORD),
        ("batch_id", "123456"),
    )
    assert request.form == ()
    assert PASSWORD not in repr(request)


def test_body_is_asked_for_last_and_one_recipient_by_msisdn() -> None:
    provider = account(optional_fields=("source_id", "body", "completed_time"))
    poll = msgspec.structs.replace(BATCH, recipient="447700900001")
    assert provider.request(poll).params[3:] == (
        ("msisdn", "447700900001"),
        ("optional_fields", "source_id,completed_time,body"),
    )


def test_post_sends_the_same_as_a_form_and_nothing_in_the_url() -> None:
    got, posted = account().request(BATCH), account(method="POST").request(BATCH)
    assert posted.method == "POST"
    assert posted.path == PATH
    assert posted.params == ()
    assert posted.form == got.params


def test_a_probe_asks_for_a_batch_that_never_is() -> None:
    request = account().request(Poll(kind=Kind.PROBE, now_ms=0, nonce="n"))
    assert ("batch_id", "0") in request.params


def test_a_poll_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError):
        account().request(Poll(kind=Kind.FEED, now_ms=0))


# -- rows ----------------------------------------------------------------------------------------


def test_every_field_of_a_plain_row() -> None:
    poll = msgspec.structs.replace(BATCH, sent_ms=SENT_MS, reference="order-17")
    answer = read("0|Returns to follow\n\n447700900001|11\n", poll=poll)
    assert answer.reports == [
        Report(
            provider="bulksms",
            message_id="123456:447700900001",
            reference="order-17",
            batch_id="123456",
            recipient="447700900001",
            msisdn="447700900001",
            state=State.DELIVERED,
            final=True,
            provider_status="11",
            provider_status_text="Delivered to mobile",
            sent_at=SENT_AT,
        )
    ]
    assert answer.outcome == Outcome(verb=Verb.DONE)
    assert answer.flaws == []


def test_every_field_of_a_full_row() -> None:
    provider = account(Context(account="a", content=True), optional_fields=OPTIONAL_FIELDS)
    row = "447700900001|53|24-01-31 13:45:00|2024-01-30 12:00:00|1.50|Acme|id-9|a|b\nc"
    answer = read(f"0|Results to follow\n\n{row}\n", provider=provider)
    assert answer.reports == [
        Report(
            provider="bulksms",
            message_id="123456:447700900001",
            reference="id-9",
            batch_id="123456",
            sender="Acme",
            recipient="447700900001",
            msisdn="447700900001",
            state=State.EXPIRED,
            final=True,
            provider_status="53",
            provider_status_text="Message expired",
            reason="expired",
            sent_at="2024-01-30T12:00:00.000Z",
            done_at="2024-01-31T13:45:00.000Z",
            content="a|b\nc",
            extra={"credits": "1.50"},
        )
    ]


def test_fields_are_read_in_the_order_they_were_asked_for() -> None:
    provider = account(optional_fields=("origin_address", "credits"))
    (report,) = read("0|x\n4477|11|Acme|2\n", provider=provider).reports
    assert (report.sender, report.extra) == ("Acme", {"credits": "2"})


def test_empty_fields_are_null() -> None:
    provider = account(Context(account="a", content=True), optional_fields=OPTIONAL_FIELDS)
    poll = msgspec.structs.replace(BATCH, sent_ms=SENT_MS)
    (report,) = read("0|x\n447700900001|0||||||\n", provider=provider, poll=poll).reports
    assert report.reference is report.sender is report.content is report.done_at is None
    assert report.sent_at == SENT_AT
    assert report.extra == {"credits": None}
    assert (report.state, report.final) == (State.ACCEPTED, False)


def test_the_text_stays_out_unless_the_account_says_so() -> None:
    provider = account(optional_fields=("body",))
    (report,) = read("0|x\n4477|11|private\n", provider=provider).reports
    assert b"private" not in msgspec.json.encode(report)


def test_a_source_id_beside_a_reference_of_ours_is_kept() -> None:
    provider = account(optional_fields=("source_id",))
    poll = msgspec.structs.replace(BATCH, reference="ours")
    (report,) = read("0|x\n4477|11|theirs\n", provider=provider, poll=poll).reports
    assert (report.reference, report.extra) == ("ours", {"source_id": "theirs"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24-07-01 12:00:00", "2024-07-01T10:00:00.000Z"),
        ("2024-07-01 12:00:00", "2024-07-01T10:00:00.000Z"),
        ("2024-07-01T12:00:00", "2024-07-01T10:00:00.000Z"),
        ("2024-07-01T12:00:00+0000", "2024-07-01T12:00:00.000Z"),
        ("2024-07-01T12:00:00.250-03:00", "2024-07-01T15:00:00.250Z"),
        ("2024-07-01T12:00:00Z", "2024-07-01T12:00:00.000Z"),
    ],
)
def test_times_without_an_offset_are_in_the_accounts_zone(text: str, expected: str) -> None:
    context = Context(account="a", timezone=ZoneInfo("Europe/Madrid"))
    provider = account(context, optional_fields=("completed_time",))
    (report,) = read(f"0|x\n4477|11|{text}\n", provider=provider).reports
    assert (report.done_at, report.extra) == (expected, {})


@pytest.mark.parametrize("text", ["soon", "24-13-01 00:00:00", "0000-00-00 00:00:00", "99"])
def test_an_unreadable_time_is_null_and_kept(text: str) -> None:
    provider = account(optional_fields=("completed_time", "created_time"))
    (report,) = read(f"0|x\n4477|11|{text}|{text}\n", provider=provider).reports
    assert report.done_at is report.sent_at is None
    assert report.extra == {"completed_time": text, "created_time": text}


@pytest.mark.parametrize(("code", "state"), CODES)
def test_states(code: str, state: State) -> None:
    (report,) = read(f"0|x\n4477|{code}\n").reports
    assert report.state is state
    failed = state in {State.REJECTED, State.DELETED, State.UNDELIVERABLE, State.EXPIRED}
    assert report.final == (failed or state is State.DELIVERED)
    assert (report.reason is not None) == failed
    assert report.provider_status == code
    assert report.provider_status_text
    assert report.error_code is None
    assert account().lists(report)


@pytest.mark.parametrize("code", ["30", "99", "1", "9" * 5000])
def test_an_unlisted_code_is_unknown_and_open(code: str) -> None:
    (report,) = read(f"0|x\n4477|{code}\n").reports
    assert (report.state, report.final) == (State.UNKNOWN, False)
    assert (report.provider_status, report.provider_status_text) == (code, None)
    assert not account().lists(report)


def test_codes_are_compared_as_numbers() -> None:
    answer = read("0|x\n4477|011\n4478|00\n")
    assert [r.provider_status for r in answer.reports] == ["11", "0"]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_number_that_stands_there_again_is_another_message(step: int) -> None:
    answer = read("0|x\n4477|11\n4478|11\n4477|53\n4477|0\n", step=step)
    ids = [report.message_id for report in answer.reports]
    assert ids == ["123456:4477", "123456:4478", "123456:4477#2", "123456:4477#3"]
    assert read("0|x\n4477|11\n").reports[0].message_id == "123456:4477"


def test_bad_rows_are_set_aside_and_good_ones_go_through() -> None:
    answer = read("0|x\n4477|11\nnonsense\n|11\n4478|11|surplus\n4479|53\n")
    assert [report.recipient for report in answer.reports] == ["4477", "4479"]
    assert [flaw.position for flaw in answer.flaws] == ["line 3", "line 4", "line 5"]
    assert answer.outcome.verb is Verb.DONE


# -- outcomes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "verb", "code", "cause"),
    [
        ("23|invalid credentials (username was: john)|", Verb.PAUSE, "23",
         "invalid credentials (username was: john)"),
        ("24|Data validation failed", Verb.ABSENT, "24", "Data validation failed"),
        ("24|", Verb.ABSENT, "24", "Data validation failed"),
        ("1001|message not found", Verb.ABSENT, "1001", "message not found"),
        ("22|Internal error", Verb.RETRY, "22", "Internal error"),
        ("26|no credits", Verb.RETRY, "26", "no credits"),
        ("28|quota", Verb.RETRY, "28", "quota"),
        ("40|later", Verb.RETRY, "40", "later"),
        ("777|", Verb.RETRY, "777", "request status 777"),
    ],
)  # fmt: skip
def test_the_first_line_of_a_failure(line: str, verb: Verb, code: str, cause: str) -> None:
    answer = read(line)
    assert answer.outcome == Outcome(verb=verb, cause=cause, code=code)
    assert answer.reports == []


@pytest.mark.parametrize("header", ["0|Returns to follow", "0|Results to follow", "0|", "1000|ok"])
def test_success_without_rows(header: str) -> None:
    answer = read(f"{header}\n\n\n")
    assert (answer.reports, answer.flaws) == ([], [])
    assert answer.outcome == Outcome(verb=Verb.DONE)


@pytest.mark.parametrize("status", [201, 204, 302, 400, 401, 403, 404, 429, 500, 503])
def test_any_other_http_status_is_transient(status: int) -> None:
    answer = read("<html>Service Unavailable</html>", status=status)
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.hold == (status in (429, 503))
    assert str(status) in answer.outcome.cause
    assert (answer.reports, answer.flaws) == ([], [])


def test_another_status_with_the_providers_words() -> None:
    answer = read("23|no\n4477|11\n", status=500)
    assert answer.outcome == Outcome(verb=Verb.RETRY, cause="HTTP 500: no")
    assert answer.reports == []


@pytest.mark.parametrize("body", ["", "\n\n", "<html><body>Log in</body></html>", "nonsense"])
def test_what_is_no_report_is_asked_again(body: str) -> None:
    answer = read(body)
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause
    assert answer.reports == []


def test_a_cut_answer_is_asked_again_after_its_whole_rows_were_taken() -> None:
    answer = read("0|x\n4477|11\n4478|1", cut=True)
    assert [report.recipient for report in answer.reports] == ["4477"]
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause
    assert len(answer.flaws) == 1


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [PASSWORD, "p%26ss%25word%20%C3%A9", "p%26ss%25word+%C3%A9"])
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    "body", ["23|wrong: {}", "0|x\n4477|{}\n{}\n", "<html>?password={}</html>", "{}", "99|{}|"]
)
def test_the_password_never_comes_out_again(body: str, status: int, spelling: str) -> None:
    """Not in words; what is set aside is looked through where it is kept."""
    assert spelling not in repr(read(body.replace("{}", spelling), status=status).outcome)


def test_words_become_one_short_line() -> None:
    cause = read("23|a\x1b[31m\tb" + "x" * 5000).outcome.cause
    assert cause.isprintable()
    assert len(cause) == 200


@given(st.binary(max_size=200), st.booleans(), st.sampled_from([(), ("body",), OPTIONAL_FIELDS]))
def test_no_body_raises(body: bytes, cut: bool, fields: tuple[str, ...]) -> None:
    provider = account(optional_fields=fields)
    for prefix in (b"", b"0|x\n", b"0|x\n4477|11|"):
        answer = read(prefix + body, provider=provider, cut=cut, step=13)
        for report in answer.reports:
            assert msgspec.json.encode(report)
        assert answer.outcome.verb in Verb


@given(st.lists(st.tuples(st.integers(100, 999), st.sampled_from([c for c, _ in CODES]))))
def test_every_row_is_a_report_with_an_id_of_its_own(rows: list[tuple[int, str]]) -> None:
    body = "0|x\n" + "".join(f"{number}|{code}\n" for number, code in rows)
    reports = read(body, step=17).reports
    assert [(int(r.recipient or 0), r.provider_status) for r in reports] == rows
    assert len({r.message_id for r in reports}) == len(rows)
