"""Messangi's exported file: its rows are the log's records, and a bad one costs only itself."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec
import orjson
import pytest

from engine.core.contracts import Context, Form, Head, Kind, Outcome, Poll, Verb
from engine.core.redact import Redactor
from engine.providers.messangi import Messangi, MessangiOptions
from engine.providers.messangi_export import columns
from engine.testing import ProviderCase
from engine.testing.provider_case import Read
from tests.unit.answers import WHOLE, read_answer
from tests.unit.messangi_answers import LETTERED, PRETTY, one

NOW = 1_700_000_000_000
FILE = Poll(kind=Kind.FILE, now_ms=NOW)
HEADER = (
    "Channel", "Sender", "Recipient", "Date", "Campaignid", "Status", "StatusDate", "Content",
    "Platform", "items.Subject", "Direction", "Subscriberid", "items.StatusDescription",
)  # fmt: skip
KEYS = [word.lower().removeprefix("items.") for word in HEADER]


def exported(*items: dict[str, Any], **keys: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **keys)
    writer.writerow(HEADER)
    for item in items:
        writer.writerow(["" if item.get(key) is None else item[key] for key in KEYS])
    return text.getvalue().encode()


def read(body: bytes, *, content: bool = False, size: int = WHOLE) -> Read:
    made = Messangi(MessangiOptions(), Context(account="omni", content=content))
    return read_answer(made, FILE, body, step=size)


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("keys", [{}, {"delimiter": ";", "quoting": csv.QUOTE_ALL}])
def test_every_field_as_the_log_has_it(content: bool, keys: dict[str, Any]) -> None:
    answer = read(exported(*PRETTY, **keys), content=content)
    context = Context(account="omni", content=content)
    of_log = Messangi(MessangiOptions(), context).reader(
        Poll(kind=Kind.FEED, now_ms=NOW), Head(200, {})
    )
    items = [{**item, "campaignid": str(item["campaignid"])} for item in PRETTY]
    assert answer.reports == of_log.reports(items)
    assert answer.outcome == Outcome()
    assert answer.flaws == []


def test_one_message_has_one_id_in_all_three_spellings() -> None:
    reports = read(exported(*PRETTY)).reports
    for report, pretty, letters in zip(reports, PRETTY, LETTERED, strict=True):
        assert report.message_id == one(pretty).message_id == one(letters).message_id


def test_times_without_an_offset_and_other_spellings_give_the_same_message() -> None:
    dates = "2023-07-28T13:46:51.144Z", "2023-07-28 13:46:51.144", "2023-07-28T09:46:51.144-0400"
    reports = read(exported(*({**PRETTY[0], "date": date} for date in dates))).reports
    assert len({report.message_id for report in reports}) == 1
    assert {report.sent_at for report in reports} == {dates[0]}


@pytest.mark.parametrize("size", [1 << 20, 7])
def test_a_row_that_cannot_be_read_is_told_by_line_and_byte(size: int) -> None:
    """What the provider's code refuses is kept decoded, what is no row as it stood."""
    rows = exported(PRETTY[0], {**PRETTY[1], "channel": "X"}, PRETTY[2]).splitlines(keepends=True)
    body = b"".join([*rows[:2], b"a,b\r\n", *rows[2:]])
    answer = read(body, size=size)
    assert [report.channel for report in answer.reports] == ["sms", "push"]
    row, refused = sorted(answer.flaws, key=lambda flaw: flaw.form)
    assert (row.cause, row.form) == ("2 cells where the header has 13", Form.RECORD)
    assert row.position == f"line 3, byte {len(rows[0] + rows[1])}"
    assert row.raw == rows[0].strip() + b"\n" + b"a,b\r"
    assert (refused.cause, refused.form) == ("unknown channel 'X'", Form.VALUE)
    assert refused.position == f"line 4, byte {len(rows[0] + rows[1]) + 5}"
    assert orjson.loads(refused.raw)["recipient"] == PRETTY[1]["recipient"]
    assert len(answer.records) == 3  # also the one that was refused


def test_every_cut_and_every_odd_value() -> None:
    """What the suite asks of an answer, as far as it goes for a file."""
    case = ProviderCase(Messangi, {"headers": {}}, [])
    body = exported(*PRETTY)
    wanted = read_answer(case.make(), FILE, body).reports
    assert len(wanted) == len(PRETTY)
    for end in range(0, len(body), 7):
        done = read_answer(case.make(), FILE, body[:end], cut=True)
        assert done.reports == wanted[: len(done.reports)]
        assert done.outcome.verb is Verb.RETRY
        assert done.outcome.cause
    for key in KEYS:
        for odd in ("x" * 300, "\x00", "-1", '"', "\u2028", "NaN"):
            answer = read(exported({**PRETTY[0], key: odd}))
            assert len(answer.reports) + len(answer.flaws) == 1


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (HEADER, KEYS),
        (("channel", "date"), ["channel", "date"]),
        (("a", "c"), ["channel", "recipient"]),
        (("Channel", "Date", "", "New", "New"),
         ["channel", "date", "column 3", "New", "New (5)"]),
        (("Channel", "Status"), None),
        (("S", "STRESS1", "+525500000000"), None),
        (("Channel", "channel", "Date"), None),
        (("batch_id", "message_id", "recipient"), None),
        ((), None),
    ],
)  # fmt: skip
def test_columns(words: tuple[str, ...], known: list[str] | None) -> None:
    from engine.providers.messangi import long_names

    found = columns(words, long_names)
    assert found is None if known is None else list(found or ()) == known


def test_what_was_set_aside_of_a_redacted_account_names_nobody() -> None:
    """In which cell the person stands of a row that could not be read, nobody knows."""
    fields = Messangi(MessangiOptions(), Context(account="omni")).traits
    redactor = Redactor(b"k" * 32, recipient_fields=fields.recipient_fields)
    mail = exported({**PRETTY[1], "recipient": "ann@example.com"}).splitlines()
    raw = mail[0] + b"\n" + mail[1] + b",one cell more"
    kept = redactor.raw(raw)
    head, rest = kept.split(b"\n", 1)
    assert head == mail[0]
    assert rest.startswith(b"adr_")
    assert len(rest) == 28
    assert redactor.raw(kept) == kept
    assert redactor.raw(raw + b"!") != kept
    assert (
        msgspec.json.decode(redactor.raw(b'{"recipient": "ann@example.com"}'))["recipient"][:4]
        == "adr_"
    )
