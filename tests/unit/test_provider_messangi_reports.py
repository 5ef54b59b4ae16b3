"""Messangi: the page's own samples in both spellings, odd records, and any JSON."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.contracts import Context, Head, Outcome, Verb
from engine.core.report import encode
from engine.core.state import State
from engine.core.units import iso_ms
from engine.providers.messangi import CHANNELS, LETTERS, time_of
from tests.unit.answers import JSON
from tests.unit.messangi_answers import (
    ANSWER,
    LETTERED,
    PRETTY,
    digest,
    expected,
    one,
    provider,
    read,
    window,
)

LONG_EXTRA = {"recipient_email", "recipient_phone", "owner", "user", "user_id", "reply_to",
              "connector_id", "agent_id", "platform", "subscriberid", "template_id",
              "template_params"}  # fmt: skip


@pytest.mark.parametrize("content", [False, True])
def test_sample_every_field(content: bool) -> None:
    made = provider(Context(account="omni", content=content))
    answer = read(ANSWER, of=made)
    assert answer.reports == expected(content)
    assert answer.outcome == Outcome(total=2230, server_ms=1692668448063)
    assert answer.flaws == []


def test_letters_every_field() -> None:
    made = provider(Context(account="omni", content=True), pretty=False)
    reports = read({**ANSWER, "items": LETTERED}, of=made).reports
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
    answer = read({"pagination": {"total": 7}, "items": items})
    assert len(answer.reports) == 1
    assert (answer.outcome.verb, answer.outcome.total) == (Verb.DONE, 7)
    assert [(flaw.cause, flaw.position) for flaw in answer.flaws] == [
        ("not an object", "record 1"),
        ("no channel", "record 2"),
        ("unknown channel 'X12'", "record 4"),
        ("neither recipient nor date", "record 5"),
        ("unknown channel '5'", "record 6"),
        ("not an object", "record 7"),
    ]
    refused = [orjson.loads(flaw.raw) for flaw in answer.flaws]
    assert refused == [items[n] for n in (0, 1, 3, 4, 5, 6)]


def test_a_flaw_is_bounded() -> None:
    reader = provider().reader(window(), Head(200, {}))
    reader.reports(["x" * 2_000_000])
    (flaw,) = reader.take_flaws()
    assert (len(flaw.raw), flaw.truncated) == (1 << 20, True)


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
