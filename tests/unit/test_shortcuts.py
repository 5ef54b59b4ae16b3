"""Reading records by the many gives what reading them one by one gives, whatever they hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Provider, Shortcuts
from engine.core.report import Report, msisdn, msisdns
from engine.core.secret import Secret
from engine.core.units import utc_texts
from engine.parsing import json_items
from engine.providers.avaamo import Avaamo, AvaamoOptions
from engine.providers.infobip import Infobip, InfobipOptions
from engine.providers.messangi import LETTERS, Messangi, MessangiOptions
from tests.fuzz.documents import BROKEN, NUMBERS, STRINGS
from tests.fuzz.target_readers import AVAAMO, INFOBIP, MESSANGI

Record = dict[str, bytes]
Read = tuple[list[Report], list[Any], Outcome, int]

HEAD = Head(200, {})
LETTER_OF = {name: letter for letter, name in LETTERS.items()}
DOCUMENTS = 120
RECORDS = 60


def infobip(n: int) -> Record:
    return {
        "bulkId": b'"b%d"' % (n % 3), "messageId": b'"m%d"' % n, "to": b'"4179%07d"' % n,
        "sentAt": b'"2026-11-09T17:00:%02d.000+0000"' % (n % 60),
        "doneAt": b'"2026-11-09T17:01:00.%03d+0000"' % n, "smsCount": b"1",
        "price": b'{"pricePerMessage":0.0%d,"currency":"EUR"}' % (1 + n % 3),
        "status": b'{"groupId":3,"groupName":"DELIVERED","id":5,"name":"DELIVERED_TO_HANDSET"}',
        "error": b'{"groupId":0,"groupName":"Ok","id":0,"name":"NO_ERROR","permanent":false}',
        "entityId": b'"e"', "new": b"%d" % n,
    }  # fmt: skip


def infobip_v3(n: int) -> Record:
    record = infobip(n)
    del record["to"], record["smsCount"]
    return {
        **record, "destination": b'"4179%07d"' % n, "sender": b'"SHOP"', "messageCount": b"2",
        "platform": b'{"entityId":"e","applicationId":"a"}', "channel": b'"SMS"',
    }  # fmt: skip


def avaamo(n: int) -> Record:
    return {
        "uuid": b'"u%d"' % n, "from_phone": b'"+15005550006"', "to_phone": b'"+1415%07d"' % n,
        "message": b'"Hello"', "created_at": b"%d.%03d" % (1670923358 + n, n),
        "sms_status": b'"delivered"',
    }  # fmt: skip


def letters(n: int) -> Record:
    return {
        "a": b'"S"', "b": b'"SHOP"', "c": b'"+52550%06d"' % n,
        "d": b'"2026-07-28T13:46:51.%03dZ"' % n, "e": b"null", "f": b'"+52550%06d"' % n,
        "g": b'"dev"', "i": b'"11111"', "j": b'"SENT"', "k": b'"2026-07-28T13:46:52.000Z"',
        "l": b'"Hello"', "r": b"null", "s": b"null", "t": b'"O"', "u": b"%d" % n,
    }  # fmt: skip


def pretty(n: int) -> Record:
    return {LETTERS[letter]: value for letter, value in letters(n).items()}


def an_infobip(context: Context) -> Provider:
    return Infobip(InfobipOptions(api_key=Secret("key-of-the-account")), context)


def an_avaamo(context: Context) -> Provider:
    return Avaamo(AvaamoOptions(agent_id=1, access_token=Secret("token")), context)


def a_messangi(context: Context) -> Provider:
    return Messangi(MessangiOptions(), context)


Case = tuple[str, Callable[[int], Record], Callable[[Context], Provider], Any]
CASES: Sequence[Case] = (
    ("results", infobip, an_infobip, INFOBIP),
    ("results", infobip_v3, an_infobip, INFOBIP),
    ("entries", avaamo, an_avaamo, AVAAMO),
    ("items", letters, a_messangi, MESSANGI),
    ("items", pretty, a_messangi, MESSANGI),
)
cases = pytest.mark.parametrize(
    ("key", "make", "provide", "odd"), CASES, ids=[case[1].__name__ for case in CASES]
)


def body(key: str, records: Sequence[Record]) -> bytes:
    rows = (
        b"{" + b",".join(b'"%b":%b' % (name.encode(), value) for name, value in row.items()) + b"}"
        for row in records
    )
    return b'{"%b":[%b],"total":1}' % (key.encode(), b",".join(rows))


def read(
    provider: Provider, body: bytes, *, shortcut: bool, sent_ms: int | None = None, step: int = 997
) -> Read:
    poll = Poll(kind=Kind.FEED, now_ms=0, from_ms=0, to_ms=1, sent_ms=sent_ms)
    reader = provider.reader(poll, HEAD)
    assert isinstance(reader.parser, Shortcuts)
    reader.parser.take_shortcuts(shortcut)
    reports: list[Report] = []
    for start in range(0, len(body), step):
        reports += reader.reports(reader.parser.feed(body[start : start + step]))
    reports += reader.reports(reader.parser.close())
    return reports, reader.take_flaws(), reader.outcome(), reader.parser.rows


def context(zone: tzinfo = UTC, *, content: bool = False) -> Context:
    return Context(account="acct", content=content, timezone=zone)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows in a small body, some with an odd record in them and some without."""
    monkeypatch.setattr(json_items, "WINDOW", 3000)


def exact(found: Read) -> str:
    """To the type of each value; the order of fields in `extra` says nothing."""
    reports, flaws, outcome, rows = found
    tables = [
        {**msgspec.structs.asdict(report), "extra": sorted(report.extra.items())}
        for report in reports
    ]
    return repr((tables, flaws, outcome, rows))


def spoil(rng: random.Random, record: Record, odd: Any) -> Record:
    """Some fields with a value that is odd, missing, or of a name that nobody knows."""
    record = dict(record)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        way = rng.random()
        name = rng.choice(list(record))
        if way < 0.15:
            del record[name]
        elif way < 0.5:
            record[name] = rng.choice((*STRINGS, *NUMBERS, b"null", b"true", b"[]", b'{"a":[1]}'))
        elif way < 0.6:
            record[rng.choice(("zz", "items.Status", "Date", 'q\\"', "channel"))] = b'"x"'
        elif way < 0.65:
            record[name] = rng.choice(BROKEN)
        elif way < 0.7:
            record[name] += b',"%b":%b' % (name.encode(), rng.choice((*STRINGS, *NUMBERS)))
        else:
            key, values = rng.choice(odd)
            record[key.decode().strip('"')] = rng.choice(values)
        if not record:
            break
    return record


@cases
def test_many_at_once_as_one_by_one(
    key: str, make: Callable[[int], Record], provide: Callable[[Context], Provider], odd: Any
) -> None:
    rng = random.Random(key)
    for n in range(DOCUMENTS):
        share = rng.choice((0.0, 0.02, 0.1, 0.5))
        records = [
            spoil(rng, make(i), odd) if rng.random() < share else make(i) for i in range(RECORDS)
        ]
        zone = rng.choice((UTC, ZoneInfo("Europe/Madrid")))
        provider = provide(context(zone, content=n % 2 == 0))
        sent_ms = rng.choice((None, 0))
        document = body(key, records)
        want = read(provider, document, shortcut=False, sent_ms=sent_ms)
        for step in (997, 10_000):
            found = read(provider, document, shortcut=True, sent_ms=sent_ms, step=step)
            assert exact(found) == exact(want)


@cases
def test_usual_records_take_the_shortcut(
    key: str,
    make: Callable[[int], Record],
    provide: Callable[[Context], Provider],
    odd: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    provider = provide(context())
    document = body(key, [make(n) for n in range(RECORDS)])
    read(provider, document, shortcut=True)  # from which it learns which fields there are
    reader = provider.reader(Poll(kind=Kind.FEED, now_ms=0), HEAD)
    assert isinstance(reader.parser, Shortcuts)
    reader.parser.take_shortcuts(True)
    kinds = [type(record) for record in reader.parser.feed(document)]
    # Where the array ends there is no boundary between two records: the last is read by itself.
    assert kinds == [Report] * (RECORDS - 1) + [dict]


@cases
def test_a_field_that_is_new_tomorrow(
    key: str, make: Callable[[int], Record], provide: Callable[[Context], Provider], odd: Any
) -> None:
    provider = provide(context())
    read(provider, body(key, [make(n) for n in range(RECORDS)]), shortcut=True)
    document = body(key, [{**make(n), "tomorrow": b"[%d]" % n} for n in range(RECORDS)])
    reports = read(provider, document, shortcut=True)[0]
    assert [report.extra["tomorrow"] for report in reports] == [[n] for n in range(RECORDS)]
    document = body(key, [{**make(n), "soon": b"%d" % n} for n in range(RECORDS)])
    for _ in range(2):
        reports = read(provider, document, shortcut=True)[0]
        assert [report.extra["soon"] for report in reports] == list(range(RECORDS))


def test_reports_do_not_share_what_differs() -> None:
    provider = an_infobip(context())
    document = body("results", [infobip(n) for n in range(RECORDS)])
    for _ in range(2):
        reports = read(provider, document, shortcut=True)[0]
        assert [report.extra["new"] for report in reports] == list(range(RECORDS))


NUMBERS_OF_PEOPLE = (
    ["447700900001", "447700900002"],
    ["+447700900001", "447700900002"],
    ["447700900001", None],
    ["447700900001", ""],
    ["++447700900001", "+"],
    ["4477009\n00001", "1"],
    ["1\n2", "\n"],
    ["٠١", "1"],
    ["1" * 21, "1"],
    ["1" * 20, "+" + "2" * 20],
    ["tel_" + "0" * 24, "a@b"],
    ["+1(123) 456-7890", "12"],
    [],
)


@pytest.mark.parametrize("recipients", NUMBERS_OF_PEOPLE)
def test_numbers_of_many(recipients: list[str | None]) -> None:
    assert list(msisdns(recipients)) == [msisdn(recipient) for recipient in recipients]


def test_times_of_many() -> None:
    usual = ["2026-11-09T17:00:05.003+0000", "2024-02-29T00:00:00.999+0000"]
    written = ["2026-11-09T17:00:05.003Z", "2024-02-29T00:00:00.999Z"]
    assert utc_texts(usual, "+0000") == written
    assert utc_texts(written, "Z") == written


@pytest.mark.parametrize(
    "odd",
    [
        "2026-11-09T24:00:00.000Z", "2026-02-29T00:00:00.000Z", "2026-11-09 17:00:05.003Z",
        "2026-11-09T17:00:60.000Z", "0000-01-01T00:00:00.000Z", "2026-11-09T17:00:05.003+0000",
        "2026-11-09T17:00:05.0031", "", "2026-11-09T17:00:05.003Z\n2026-11-09T17:00:05.003Z", None,
        "2026-11-09T17:00:0٥.003Z",
    ],
)  # fmt: skip
def test_a_time_that_is_not_spelled_so(odd: str | None) -> None:
    usual = "2026-11-09T17:00:05.003Z"
    assert utc_texts([usual, odd], "Z") is None
    assert utc_texts([odd, usual], "Z") is None
