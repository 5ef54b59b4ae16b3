"""Messangi: the page's own samples in both spellings, every status on every channel, any JSON."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Reader, Request, Verb
from engine.core.report import Report, encode
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.units import iso_ms
from engine.providers.messangi import CHANNELS, LETTERS, Messangi, MessangiOptions, time_of
from engine.providers.messangi_states import meaning

NOW = 1_700_000_000_000
NULLS = {"platform": None, "subject": None, "direction": "O", "subscriberid": None}
PRETTY: list[dict[str, Any]] = [
    {
        "channel": "S",
        "sender": "STRESS1",
        "recipient": "+525500000000",
        "date": "2023-07-28T13:46:51.144Z",
        "campaignid": "11111",
        "status": "SENT",
        "statusdate": "2023-07-28T13:46:51.170Z",
        "content": "Welcome to EliPackage!",
        **NULLS,
    },
    {
        "channel": "E",
        "sender": "[email protected]",
        "recipient": "[email protected]",
        "date": "2023-07-28T16:20:30.241Z",
        "campaignid": "14145",
        "status": "OPEN",
        "statusdate": "2023-07-28T21:56:21.620Z",
        "content": None,
        **NULLS,
        "subject": "New Promo!",
    },
    {
        "channel": "P",
        "sender": "DemoApp",
        "recipient": "fv8aC_Emw0fRuN",
        "date": "2023-07-03T06:51:39.521Z",
        "campaignid": "15158",
        "status": "SENT",
        "statusdate": "2023-07-03T06:51:39.754Z",
        "content": None,
        **NULLS,
        "platform": "A",
    },
    {
        "channel": "W",
        "sender": "58412",
        "recipient": "5800000000",
        "date": "2023-07-31T23:59:15.765Z",
        "campaignid": 12151,
        "status": "READ",
        "statusdate": "2023-07-31T23:59:15.783Z",
        "content": "This is a new product!",
        **NULLS,
        "direction": "I",
    },
    {
        "channel": "R",
        "sender": "61e9bb8f4a01ea",
        "recipient": "+525500000001",
        "date": "2023-07-21T17:06:57.372Z",
        "campaignid": "14320",
        "status": "SENT",
        "statusdate": "2023-07-21T17:06:57.969Z",
        "content": "Hi! Welcome to the new Coffee Shop!",
        **NULLS,
    },
]
META = {"timestamp": 1692668448063, "transactionId": "ebea1509-2be3-4d53-8ff1-937db33ade79"}
ANSWER = {"meta": META, "pagination": {"total": 2230}, "items": PRETTY}

CONNECTORS = ("0cb04d8c095d4b33bf77777b6", "0cb04d8c095101033bf00", "0cb04d8c095d4b399898",
              "0cb04d8c095d4b33bf121212", "0cb04d8c095d4b33bf72727272")  # fmt: skip


def lettered(n: int) -> dict[str, Any]:
    """The n-th message of the sample as `pretty=false` gives it."""
    pretty = PRETTY[n]
    back = {name: letter for letter, name in LETTERS.items()}
    phone = pretty["channel"] in "SWR"
    raw = {letter: None for letter in LETTERS if letter != "sd"}
    raw |= {back[name]: value for name, value in pretty.items()}
    raw |= {"g": "dev", "h": "[email protected]", "o": CONNECTORS[n]}
    if pretty["channel"] == "W":
        raw["c"], raw["i"] = "+5800000000", "12151"
    if pretty["channel"] == "E":
        raw |= {"l": "This is a new promotion!", "s": "New Promotion!", "e": raw["c"]}
    if pretty["channel"] == "P":
        raw["p"] = "DemoApp"
    return raw | ({"f": raw["c"]} if phone else {})


LETTERED = [lettered(n) for n in range(5)]
LONG_EXTRA = {"recipient_email", "recipient_phone", "owner", "user", "user_id", "reply_to",
              "connector_id", "agent_id", "platform", "subscriberid", "template_id",
              "template_params"}  # fmt: skip


def provider(context: Context | None = None, **options: Any) -> Messangi:
    return Messangi(MessangiOptions(**options), context or Context(account="omni"))


def logging_in(**options: Any) -> Messangi:
    secret = Secret("pass-word")
    return provider(login_url="https://l.example/login", username="u", password=secret, **options)


def window(**fields: Any) -> Poll:
    span = {"from_ms": NOW - 5000, "to_ms": NOW, **fields}
    return Poll(kind=Kind.FEED, now_ms=NOW, **span)


def read(
    body: Any, status: int = 200, *, cut: bool = False, of: Messangi | None = None
) -> tuple[list[Report], Outcome, Reader]:
    reader = (of or provider()).reader(window(), Head(status, {}))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    reports = reader.reports(reader.parser.feed(raw[: len(raw) // 2]))
    reports += reader.reports(reader.parser.feed(raw[len(raw) // 2 :]))
    reports += reader.reports(reader.parser.close(cut=cut))
    return reports, reader.outcome(), reader


def one(record: dict[str, Any], context: Context | None = None) -> Report:
    reader = provider(context).reader(window(), Head(200, {}))
    (report,) = reader.reports([record])
    assert reader.take_flaws() == []
    return report


def digest(*identity: Any) -> str:
    return blake2b(orjson.dumps(identity), digest_size=16).hexdigest()


def expected(content: bool) -> list[Report]:
    """The sample's reports."""
    extra = {"platform": None, "subscriberid": None}
    mails = "[email protected]"
    return [
        Report(
            channel="sms",
            message_id=digest("S", "STRESS1", "525500000000", 1690552011144, "O"),
            campaign_id="11111",
            sender="STRESS1",
            recipient="+525500000000",
            msisdn="525500000000",
            state=State.ENROUTE,
            final=False,
            provider_status="SENT",
            sent_at="2023-07-28T13:46:51.144Z",
            done_at="2023-07-28T13:46:51.170Z",
            content="Welcome to EliPackage!" if content else None,
            extra=extra,
        ),
        Report(
            channel="email",
            message_id=digest("E", mails, mails, 1690561230241, "O"),
            campaign_id="14145",
            sender=mails,
            recipient=mails,
            state=State.READ,
            final=True,
            provider_status="OPEN",
            sent_at="2023-07-28T16:20:30.241Z",
            done_at="2023-07-28T21:56:21.620Z",
            subject="New Promo!",
            extra=extra,
        ),
        Report(
            channel="push",
            message_id=digest("P", "DemoApp", "fv8aC_Emw0fRuN", 1688367099521, "O"),
            campaign_id="15158",
            sender="DemoApp",
            recipient="fv8aC_Emw0fRuN",
            state=State.ENROUTE,
            final=True,
            provider_status="SENT",
            sent_at="2023-07-03T06:51:39.521Z",
            done_at="2023-07-03T06:51:39.754Z",
            extra={**extra, "platform": "A"},
        ),
        Report(
            channel="whatsapp",
            direction="mo",
            message_id=digest("W", "58412", "5800000000", 1690847955765, "I"),
            campaign_id="12151",
            sender="58412",
            recipient="5800000000",
            msisdn="5800000000",
            state=State.READ,
            final=True,
            provider_status="READ",
            sent_at="2023-07-31T23:59:15.765Z",
            done_at="2023-07-31T23:59:15.783Z",
            content="This is a new product!" if content else None,
            extra=extra,
        ),
        Report(
            channel="rcs",
            message_id=digest("R", "61e9bb8f4a01ea", "525500000001", 1689959217372, "O"),
            campaign_id="14320",
            sender="61e9bb8f4a01ea",
            recipient="+525500000001",
            msisdn="525500000001",
            state=State.ENROUTE,
            final=False,
            provider_status="SENT",
            sent_at="2023-07-21T17:06:57.372Z",
            done_at="2023-07-21T17:06:57.969Z",
            content="Hi! Welcome to the new Coffee Shop!" if content else None,
            extra=extra,
        ),
    ]


# -- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [False, True])
def test_sample_every_field(content: bool) -> None:
    made = provider(Context(account="omni", content=content))
    reports, outcome, reader = read(ANSWER, of=made)
    assert reports == expected(content)
    assert outcome == Outcome(total=2230, server_ms=1692668448063)
    assert reader.take_flaws() == []


def test_letters_every_field() -> None:
    made = provider(Context(account="omni", content=True), pretty=False)
    reports, _, _ = read({**ANSWER, "items": LETTERED}, of=made)
    for n, (report, wanted) in enumerate(zip(reports, expected(True), strict=True)):
        extra = {LETTERS[key]: value for key, value in LETTERED[n].items()}
        extra = {key: value for key, value in extra.items() if key in LONG_EXTRA}
        change: dict[str, Any] = {"extra": extra, "recipient": LETTERED[n]["c"]}
        if n == 1:  # the letters also give an e-mail's text, and the page another subject
            change |= {"content": "This is a new promotion!", "subject": "New Promotion!"}
        assert report == msgspec.structs.replace(wanted, **change)
        assert set(report.extra) == LONG_EXTRA
    assert reports[2].extra["agent_id"] == "DemoApp"


def test_one_message_has_one_id_in_all_three_spellings() -> None:
    header = {"channel": "Channel", "sender": "Sender", "recipient": "Recipient", "date": "Date",
              "campaignid": "Campaignid", "status": "Status", "statusdate": "StatusDate",
              "content": "Content", "platform": "Platform", "subject": "items.Subject",
              "direction": "Direction", "subscriberid": "Subscriberid"}  # fmt: skip
    for pretty, letters in zip(PRETTY, LETTERED, strict=True):
        row = {header[name]: "" if value is None else str(value) for name, value in pretty.items()}
        row["items.StatusDescription"] = "words"
        from_json, from_row = one(pretty), one(row)
        assert from_json.message_id == one(letters).message_id == from_row.message_id
        assert from_row.provider_status_text == "words"
        extra = {key: value or "" for key, value in from_json.extra.items()}
        assert from_row == msgspec.structs.replace(
            from_json, provider_status_text="words", extra=extra
        )
    assert one(PRETTY[3]).recipient != one(LETTERED[3]).recipient


@pytest.mark.parametrize(
    "other",
    [
        {"channel": "W"},
        {"sender": "STRESS2"},
        {"recipient": "+525500000009"},
        {"date": "2023-07-28T13:46:51.145Z"},
        {"direction": "I"},
    ],
)
def test_what_the_id_is_made_of(other: dict[str, Any]) -> None:
    assert one({**PRETTY[0], **other}).message_id != one(PRETTY[0]).message_id


def test_what_the_id_does_not_depend_on() -> None:
    other = {
        "status": "DELIVRD", "statusdate": "2024-01-01T00:00:00.000Z", "campaignid": 1,
        "content": "x", "platform": "I", "direction": "o", "channel": " s ",
        "date": "2023-07-28T15:46:51.144+02:00",
    }  # fmt: skip
    assert one({**PRETTY[0], **other}).message_id == one(PRETTY[0]).message_id


def test_description_and_unknown_fields() -> None:
    report = one(
        {"a": "W", "c": "+58", "d": None, "sd": "policy", "x": 1, "Z": [2], "newField": None}
    )
    assert report.provider_status_text == "policy"
    assert report.extra == {"x": 1, "Z": [2], "newField": None}
    mixed = one({**PRETTY[0], "c": "third", "statusdescription": "words"})
    assert (mixed.recipient, mixed.extra["c"]) == ("+525500000000", "third")
    assert mixed.provider_status_text == "words"
    twice = one({"Channel": "S", "Recipient": "1", "Subject": "a", "items.Subject": "b"})
    assert (twice.subject, twice.extra) == ("a", {"items.Subject": "b"})


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2023-07-28T13:46:51.144Z", "2023-07-28T13:46:51.144Z"),
        ("2023-07-28T13:46:51.144999Z", "2023-07-28T13:46:51.144Z"),
        ("2023-07-28T13:46:51.144", "2023-07-28T11:46:51.144Z"),
        ("2023-07-28 13:46:51", "2023-07-28T11:46:51.000Z"),
        ("2023-07-28-T13:46:51.14Z", "2023-07-28T13:46:51.140Z"),
        (" 2023-07-28T13:46:51-0400 ", "2023-07-28T17:46:51.000Z"),
        ("2023-02-29T13:46:51.144Z", None),
        ("2023-02-28T24:00:00.000Z", None),
        ("2023-07-28T13:46:60.144Z", None),
        ("0001-01-01T00:00:00.000+10:00", None),
        ("\u0662023-07-28T13:46:51.144Z", None),
        ("string", None),
        (1690552011144, None),
        (True, None),
        ({}, None),
    ],
)
def test_times(text: Any, at: str | None) -> None:
    got, ms = time_of(text, ZoneInfo("Europe/Madrid"))
    assert got == at
    assert ms == (None if at is None else iso_ms(at))
    context = Context(account="omni", timezone=ZoneInfo("Europe/Madrid"))
    report = one({**PRETTY[0], "date": text, "statusdate": text}, context)
    assert (report.sent_at, report.done_at) == (at, at)
    kept = {key: report.extra.get(key) for key in ("date", "statusdate")}
    raw = text or None if at is None else None
    assert kept == {"date": raw, "statusdate": raw}


def test_an_unreadable_date_still_makes_an_id() -> None:
    assert one({**PRETTY[0], "date": "soon"}).message_id == digest(
        "S", "STRESS1", "525500000000", "soon", "O"
    )
    assert one({"channel": "S", "date": "soon"}).recipient is None
    assert one({"channel": "S", "recipient": 525500000000}).msisdn == "525500000000"


@pytest.mark.parametrize(
    ("given", "direction", "kept"),
    [("O", "mt", {}), ("i", "mo", {}), (None, "mt", {}), ("X", "mt", {"direction": "X"})],
)
def test_directions(given: Any, direction: str, kept: dict[str, Any]) -> None:
    report = one({"channel": "S", "recipient": "1", "direction": given})
    assert (report.direction, report.extra) == (direction, kept)


def test_unusable_records_are_set_aside() -> None:
    items = [
        7,
        {"sender": "x"},
        PRETTY[0],
        {"channel": "X1234567", "recipient": "1"},
        {"a": "S", "b": "only a sender", "d": ""},
        {"channel": 5, "recipient": "1"},
        [PRETTY[0]],
    ]
    reports, outcome, reader = read({"pagination": {"total": 7}, "items": items})
    assert (len(reports), outcome.verb, outcome.total) == (1, Verb.DONE, 7)
    flaws = reader.take_flaws()
    assert [(flaw.cause, flaw.position) for flaw in flaws] == [
        ("not an object", "record 1"),
        ("no channel", "record 2"),
        ("unknown channel 'X12'", "record 4"),
        ("neither recipient nor date", "record 5"),
        ("unknown channel '5'", "record 6"),
        ("not an object", "record 7"),
    ]
    assert [orjson.loads(flaw.raw) for flaw in flaws] == [items[n] for n in (0, 1, 3, 4, 5, 6)]
    reader.reports(["x" * 2_000_000])
    (flaw,) = reader.take_flaws()
    assert (len(flaw.raw), flaw.truncated) == (1 << 20, True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({*LETTERS, *LETTERS.values(), "Channel", "items.Subject", "x", "q"})
CHANNEL = st.sampled_from([*CHANNELS, "s", "Q"])
PRETTY_JSON = st.dictionaries(st.sampled_from(sorted(LETTERS.values())), JSON)
LETTER_JSON = st.dictionaries(st.sampled_from([*LETTERS, "z", "sender"]), JSON)


@given(
    JSON
    | st.dictionaries(st.sampled_from(NAMES), JSON)
    | st.builds(lambda record, letter: {**record, "channel": letter}, PRETTY_JSON, CHANNEL)
    | st.builds(lambda record, letter: {**record, "a": letter}, LETTER_JSON, CHANNEL)
)
def test_any_json_is_a_report_or_a_flaw(record: Any) -> None:
    for content in (False, True):
        made = provider(Context(account="omni", content=content))
        reader = made.reader(window(), Head(200, {}))
        before = msgspec.json.encode(record)
        reports = reader.reports([record])
        assert msgspec.json.encode(record) == before
        assert len(reports) + len(reader.take_flaws()) == 1
        for report in reports:
            encode(report)
            assert made.lists(report) is (report.state is not State.UNKNOWN)


@given(JSON | st.dictionaries(st.sampled_from(("meta", "pagination", "items", "explain")), JSON))
def test_any_json_is_an_answer(body: Any) -> None:
    for status in (200, 400, 401):
        reader = provider().reader(window(), Head(status, {}))
        reader.reports(reader.parser.feed(msgspec.json.encode(body)))
        reader.reports(reader.parser.close())
        assert reader.outcome().verb in set(Verb)


# -- states ----------------------------------------------------------------------------------

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


# -- requests --------------------------------------------------------------------------------


def test_request() -> None:
    made = provider(pretty=False, filters={"campaignID": "12151", "status": "SENT,EXPIRED"})
    request = made.request(
        window(from_ms=1690552011144, to_ms=1690552012000, channel="W"), "Bearer abc"
    )
    assert request == Request(
        path="/v3/mlog",
        params=(
            ("from", "2023-07-28T13:46:51.144Z"),
            ("to", "2023-07-28T13:46:52.000Z"),
            ("pretty", "false"),
            ("channel", "W"),
            ("campaignID", "12151"),
            ("status", "SENT,EXPIRED"),
        ),
        headers=(("Accept", "application/json"), ("Authorization", "Bearer abc")),
    )
    assert "abc" not in repr(request)
    plain = provider().request(window())
    assert dict(plain.params)["pretty"] == "true"
    assert "channel" not in dict(plain.params)
    assert "Authorization" not in dict(plain.headers)


def test_to_is_after_from() -> None:
    params = dict(provider().request(window(from_ms=NOW, to_ms=NOW)).params)
    assert (params["from"], params["to"]) == (
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.001Z",
    )


def test_probe_is_one_second() -> None:
    params = dict(provider().request(Poll(kind=Kind.PROBE, now_ms=NOW)).params)
    assert (params["from"], params["to"]) == (
        "2023-11-14T22:13:19.000Z",
        "2023-11-14T22:13:20.000Z",
    )


def test_only_windows() -> None:
    with pytest.raises(ValueError, match="windows"):
        provider().request(Poll(kind=Kind.BATCH, now_ms=NOW, batch_id="b"))


def test_login() -> None:
    made = logging_in()
    login = made.login()
    assert login is not None
    assert (login.method, login.url) == ("POST", "https://l.example/login")
    assert orjson.loads(login.json or b"") == {"username": "u", "password": "pass-word"}
    assert made.token(Head(200, {"authorization": "Bearer abc"}), b"") == "Bearer abc"
    assert made.token(Head(200, {"authorization": " abc "}), b"") == "abc"
    assert made.token(Head(200, {}), b"") is None
    assert made.token(Head(200, {"authorization": " "}), b"") is None
    assert made.token(Head(401, {"authorization": "Bearer abc"}), b"") is None
    assert provider().login() is None


def test_traits() -> None:
    traits = provider().traits
    assert (traits.feed, traits.paged, traits.dated) == ("windowed", False, True)
    assert (traits.tracks, traits.asks) == (set(), set())
    assert (traits.window_max_ms, traits.window_min_ms) == (91 * 86_400_000, 1)
    assert traits.channels == ("S", "E", "P", "W", "R")
    assert traits.read_channels == ()
    assert provider(channels=("S", "W", "S")).traits.read_channels == ("S", "W")


def test_faults_are_named_all_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        provider(login_url="ftp://x", channels=("S", "Q"), filters={"campaignid": "1"})
    together = "missing; login_url, username and password go together"
    assert str(caught.value).splitlines() == [
        'filters.campaignid: unknown key; the nearest known one is "campaignID"',
        f"username: {together}",
        f"password: {together}",
        "login_url: expected a URL that begins with https:// or http://",
        'channels[1]: expected one of S, E, P, W, R, got "Q"',
    ]
    with pytest.raises(ValueError, match="at least one"):
        provider(channels=())


# -- outcomes --------------------------------------------------------------------------------

TOO_BIG = "The size of the report is too big. Please contact support"
TOO_LONG = "The date range exceeds the allowed limit: 92"


@pytest.mark.parametrize("words", [TOO_BIG, TOO_LONG, TOO_BIG.upper()])
@pytest.mark.parametrize("status", [200, 400, 403, 413, 500])
@pytest.mark.parametrize("items", [{}, {"items": []}, {"items": PRETTY}, {"items": None}])
def test_too_big_asks_for_halves(words: str, status: int, items: dict[str, Any]) -> None:
    as_json = orjson.dumps({"reason": words}).decode()
    places: list[dict[str, Any]] = [
        {"meta": {**META, "explain": words}},
        {"meta": {**META, "explain": as_json}},
        {"meta": {**META, "explain": {"reason": words}}},
        {"explain": words},
        {"message": words},
    ]
    for place in places:
        reports, outcome, _ = read({**place, **items}, status)
        assert outcome == Outcome(verb=Verb.SPLIT, cause=words)
        assert len(reports) == len(items.get("items") or [])


def test_a_rate_limit_is_not_a_big_report() -> None:
    _, outcome, _ = read({"message": "too big a rate"}, 429)
    assert (outcome.verb, outcome.hold) == (Verb.RETRY, True)


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (400, Verb.RETRY, False),
        (401, Verb.PAUSE, False),
        (402, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_refusals(status: int, verb: Verb, hold: bool) -> None:
    body = {"message": "Your connection is being rate limited"}
    _, outcome, _ = read(body, status)
    cause = f"HTTP {status}: Your connection is being rate limited"
    assert outcome == Outcome(verb=verb, cause=cause, hold=hold)
    _, outcome, _ = read(body, status, of=logging_in())
    assert outcome.verb is (Verb.LOGIN if status == 401 else verb)


@pytest.mark.parametrize(
    ("body", "verb", "words"),
    [
        ({"meta": {"explain": "You request is bein processed."}}, Verb.RETRY, "processed"),
        ({"meta": {"explain": '{"reason":"Try later","n":"0"}'}}, Verb.RETRY, "Try later"),
        ({"meta": {"explain": '{"broken'}}, Verb.RETRY, '{"broken'),
        ({"meta": {"explain": {"n": 1}}}, Verb.RETRY, '{"n":1}'),
        ({"meta": {"explain": "Invalid token"}}, Verb.PAUSE, "Invalid token"),
        ({"message": "Unauthorized"}, Verb.PAUSE, "Unauthorized"),
        ({"meta": META}, Verb.RETRY, "no items in the answer"),
        ({"items": {}}, Verb.RETRY, "'items' is not an array"),
        ({}, Verb.RETRY, "no items in the answer"),
        (b"<html>x</html>", Verb.RETRY, "not JSON"),
        (b"", Verb.RETRY, "empty"),
        ({"pagination": {"total": 0}}, Verb.DONE, ""),
        ({"pagination": {"total": 0}, "items": []}, Verb.DONE, ""),
        ({"meta": {"explain": "none found"}, "items": []}, Verb.DONE, ""),
    ],
)
def test_answers_without_items(body: Any, verb: Verb, words: str) -> None:
    _, outcome, _ = read(body)
    assert outcome.verb is verb
    assert words in outcome.cause
    assert bool(outcome.cause) is bool(words)
    if verb is Verb.PAUSE:
        assert read(body, of=logging_in())[1].verb is Verb.LOGIN


def test_a_cause_is_printable_short_and_without_secrets() -> None:
    key = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN"
    words = f"bad pass-word\r\nBearer abc {key} at https://x.example/?a=b " + "w " * 999
    _, outcome, _ = read({"message": words}, 403, of=logging_in())
    assert outcome.cause.startswith("HTTP 403: bad ***  Bearer *** *** at *** w w")
    assert len(outcome.cause) <= 210
    assert outcome.cause.isprintable()


def test_a_cut_answer_keeps_its_whole_records() -> None:
    raw = orjson.dumps(ANSWER)
    reports, outcome, _ = read(raw[:-30], cut=True)
    assert reports == expected(False)[:4]
    assert outcome.verb is Verb.RETRY
    assert outcome.cause


@pytest.mark.parametrize(
    ("total", "clock", "wanted"),
    [
        ("12", "1692668448063", (12, 1692668448063)),
        (3.0, 1692668448063.0, (3, 1692668448063)),
        (None, None, (None, None)),
        (-1, 12, (None, None)),
        (True, 10**30, (None, None)),
    ],
)
def test_numbers_of_the_envelope(total: Any, clock: Any, wanted: tuple[Any, Any]) -> None:
    body = {"meta": {"timestamp": clock}, "pagination": {"total": total}, "items": []}
    _, outcome, _ = read(body)
    assert (outcome.verb, outcome.total, outcome.server_ms) == (Verb.DONE, *wanted)
    assert read({"meta": [], "pagination": "x", "items": []})[1] == Outcome()
