"""The four providers' readers, from bytes to records: nothing raises, every row is accounted for.

What comes out of a reader also goes through `fold`, as it does in a commit, so that a report that
cannot be written down is found here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Provider, Shortcuts
from engine.core.reconcile import Known, fold
from engine.core.report import Report, decode
from engine.core.secret import Secret
from engine.core.state import FINAL, State
from engine.core.units import iso, iso_ms
from engine.parsing import json_cursor, json_items
from engine.providers.avaamo import Avaamo, AvaamoOptions
from engine.providers.bulksms import OPTIONAL_FIELDS, BulkSMS, BulkSMSOptions
from engine.providers.infobip import Infobip, InfobipOptions
from engine.providers.messangi import Messangi, MessangiOptions
from tests.fuzz.documents import BLANKS, TOKENS, Writer
from tests.fuzz.draw import Draw, Patched, chunks, damaged

SAMPLES = Path(__file__).parents[1] / "samples"
MARK = "Zq7Secret4"  # the secret of every provider here; it must not come out again in words
NOW_MS = 1_780_000_000_000
STATUSES = (200, 200, 200, 200, 200, 201, 204, 301, 400, 401, 403, 404, 429, 500, 503)
CHANNELS = frozenset({"sms", "email", "push", "whatsapp", "rcs"})
ZONES = (UTC, ZoneInfo("Europe/Madrid"), ZoneInfo("Pacific/Apia"))
CAUSE_MAX = 400

Fields = Sequence[tuple[bytes, Sequence[bytes]]]
TIMES = (
    b'"2019-11-09T16:00:00.000+0000"', b'"2023-07-28T13:46:51.144Z"', b'"2026-01-01 10:00:00"',
    b"1670923358.0", b"1670923358", b'"1670923358123"', b'"2024-02-30T00:00:00.000Z"', b'""',
    b'"0001-01-01T00:00:00.000Z"', b'"9999-12-31T23:59:59.999-1400"', b"1e400", b"-1", b"1e17",
    b'"2023-07-28-T13:46:51.144Z"', b'"24:00"', b'"2026-01-01T24:00:00.000+0000"', b"null",
)  # fmt: skip
PHONES = (
    b'"447700900001"', b'"+44 7700 900001"', b'"+1(123) 456-xxxx"', b"447700900001", b'"a@b"',
    b'""', b"null", b'"\xd9\xa0\xd9\xa1"', b'"\xc2\xb2"',
)  # fmt: skip
TEXTS = (b'"text"', b'"null"', b"null", b'""', b"17", b"1.5", b'"' + MARK.encode() + b'"', b"true")
INFOBIP: Fields = (
    (b'"messageId"', (b'"m1"', b'"m1"', b'"m2"', b'" "', b"12", b"1.5", b"null", b'""')),
    (b'"status"', (
        b'{"groupId":3,"groupName":"DELIVERED","id":5,"name":"DELIVERED_TO_HANDSET"}',
        b'{"groupId":1,"name":"PENDING_ACCEPTED","description":"d"}', b'{"groupId":"4"}',
        b'{"groupName":"rejected","name":["x"],"action":1}', b'{"groupId":9}', b'"OK"', b"null",
    )),
    (b'"error"', (
        b'{"groupId":0,"id":0,"name":"NO_ERROR","permanent":false}', b'{"id":1,"permanent":"x"}',
        b'{"name":"EC_X","description":"d","permanent":true}', b"[]",
    )),
    (b'"doneAt"', TIMES), (b'"sentAt"', TIMES), (b'"to"', PHONES), (b'"from"', TEXTS),
    (b'"destination"', PHONES), (b'"bulkId"', TEXTS), (b'"mccMnc"', TEXTS),
    (b'"callbackData"', TEXTS), (b'"smsCount"', (b"1", b'"2"', b"-1", b"1e30", b'"9999999999"')),
    (b'"price"', (
        b'{"pricePerMessage":0.01,"currency":"EUR"}', b'{"pricePerMessage":1e-05}', b'"x"',
        b'{"pricePerMessage":"1e99"}', b'{"pricePerMessage":-0.0}', b'{"pricePerMessage":"0.010"}',
    )),
    (b'"channel"', (b'"EMAIL"', b'"x"', b"1")), (b'"receivedAt"', (b'"x"', b"null")),
)  # fmt: skip
AVAAMO: Fields = (
    (b'"uuid"', (b'"u1"', b'"u1"', b'"u2"', b"7", b'""', b"null", b"[]")),
    (b'"sms_status"', (b'"sent"', b'" Delivered "', b'"failed"', b'"undelivered"', b'"?"', b"3")),
    (b'"sms_status_response"', (
        b'"The \'To\' number +1 is not a valid phone number."', b'"Message blocked"', b"null",
    )),
    (b'"created_at"', TIMES), (b'"from_phone"', PHONES), (b'"to_phone"', PHONES),
    (b'"message"', TEXTS), (b'"new"', TEXTS),
)  # fmt: skip
MESSANGI: Fields = (
    (b'"channel"', (b'"S"', b'"E"', b'"p"', b'"X"', b'""', b"null", b'"447700900001"')),
    (b'"a"', (b'"S"', b'"W"', b'"R"', b"1")), (b'"recipient"', PHONES), (b'"c"', PHONES),
    (b'"date"', TIMES), (b'"d"', TIMES), (b'"sender"', TEXTS), (b'"b"', TEXTS),
    (b'"status"', (b'"DELIVRD"', b'"SENT"', b'"bad address"', b'"INCOMPLETE"', b'"x"', b"5")),
    (b'"j"', (b'"DELIVRD"', b'"READ"', b'"BOUNCED/PERMANENT"')), (b'"statusdate"', TIMES),
    (b'"k"', TIMES), (b'"direction"', (b'"O"', b'"I"', b'"i "', b'"?"', b"1")),
    (b'"t"', (b'"O"', b'"I"')), (b'"content"', TEXTS), (b'"campaignid"', TEXTS),
    (b'"subject"', TEXTS), (b'"items.Status"', TEXTS), (b'"zz"', TEXTS),
)  # fmt: skip
SAID = (b'"' + MARK.encode() + b' is wrong"', b'"Date range exceeds"', b'"invalid access token"')
ENVELOPES: dict[str, Fields] = {
    "infobip": (
        (b'"requestError"', (
            b'{"serviceException":{"messageId":"UNAUTHORIZED","text":"Invalid login"}}',
            b'{"serviceException":{"validationErrors":{"a":[1,{"b":[]}]}}}', b'"' + b"x" * 500
            + b'"', *SAID,
        )),
        (b'"errorCode"', SAID), (b'"violations"', (b"[]", b'[{"a":1}]', *SAID)),
    ),
    "avaamo": (
        (b'"total_entries"', (b"2", b'"2"', b"0", b"-1", b"1.5")),
        (b'"total_pages"', (b"1", b"1e3", b'"x"')), (b'"current_page"', (b"1", b"null")),
        (b'"time_token"', (b"1670940238.4926484", b"5", b'"1670940238"', b"1e300")),
        (b'"error"', SAID), (b'"message"', SAID), (b'"errors"', SAID),
    ),
    "messangi": (
        (b'"meta"', (
            b'{"timestamp":1692803372871}', b'{"explain":"{\\"reason\\":\\"too big\\"}"}',
            b'{"explain":{"reason":"the report is too big"}}', b'{"explain":"{x"}', b"[]",
            b'{"explain":"Bearer abcdefghijklmnop https://x.example/a?b=c"}',
        )),
        (b'"pagination"', (b'{"total":2}', b'{"total":"2"}', b"null")),
        (b'"message"', SAID), (b'"error"', SAID),
    ),
}  # fmt: skip


class Target:
    """One provider."""

    LENGTH = 240

    def __init__(
        self, name: str, key: str, fields: Fields, make: Callable[[Draw, Context], Provider]
    ) -> None:
        self.name = name
        self.key = key.encode()
        self.fields = fields
        self.make = make
        envelope = ENVELOPES.get(name, ())
        self.envelope = envelope
        self.WORDS = (*TOKENS, self.key, *(word for word, _ in (*fields, *envelope)))

    def seeds(self) -> Iterator[bytes]:
        for path in sorted((SAMPLES / self.name).iterdir()):
            for options in (0, 2):
                yield bytes([0, options, options, 0, 0, 7]) + path.read_bytes()
        for mode in (1, 2, 3):
            yield bytes([mode, 0, 1, 0, 9, 3, *range(150)])
            yield bytes([mode, 2, 1, 1, 3, 1, *range(255, 40, -2)])

    def check(self, data: bytes) -> None:
        draw = Draw(data)
        mode = draw.byte() % 4
        content = draw.flag()
        context = Context(account="acct", content=content, timezone=draw.pick(ZONES))
        provider = self.make(draw, context)
        poll = _poll(draw)
        head = Head(draw.pick(STATUSES) if mode != 1 else 200, {})
        sizes = draw.sizes()
        body = draw.rest() if mode == 0 else self._body(draw, provider, loose=mode == 3)
        if mode == 3:
            body = damaged(draw, body, TOKENS)
        cut = mode > 1 and draw.chance(6)
        parts = chunks(body, sizes)
        with Patched((json_cursor, "STEP_MIN", 1), (json_items, "WINDOW", 90)):
            # Record by record first: from it the provider learns which fields there are.
            again = read(provider, poll, head, [body], cut=cut, shortcut=False)
            reports, flaws, outcome, rows = read(provider, poll, head, parts, cut=cut)
        assert (reports, outcome, rows) == (again[0], again[2], again[3])
        assert _set_aside(flaws, head) == _set_aside(again[1], head)
        assert len(outcome.cause) <= CAUSE_MAX
        if self._has_secret(provider):
            assert MARK not in outcome.cause
        _of_rows(self.name, provider, head, reports, flaws, rows)
        if mode == 1:
            self._all_usable(body, reports, rows)
        for report in reports:
            _well_formed(report, content=content)
        commit(provider, reports)

    def _has_secret(self, provider: Any) -> bool:
        return self.name != "messangi" or provider.options.password is not None

    def _body(self, draw: Draw, provider: Provider, *, loose: bool) -> bytes:
        if self.name == "bulksms":
            return _pipe(draw, provider)
        write = Writer(draw, loose=loose)
        records = []
        for _ in range(draw.below(4)):
            if draw.chance(8):
                records.append(write.value(2))
                continue
            # What tells whose report it is first: without it nothing else counts.
            named = self.fields[: 1 + draw.below(3)]
            others = [draw.pick(self.fields) for _ in range(draw.below(6))]
            records.append(
                write.table([(key, _value(draw, write, some)) for key, some in (*named, *others)])
            )
        members = [
            (key, _value(draw, write, some))
            for key, some in (draw.pick(self.envelope) for _ in range(draw.below(4)))
        ]
        if not draw.chance(8):
            members.insert(draw.below(2), (b'"' + self.key + b'"', write.array(records)))
        return write.table(members) + draw.pick(BLANKS)

    def _all_usable(self, body: bytes, reports: Sequence[Report], rows: int) -> None:
        """Of a whole document every record that has its names became a report."""
        if self.name == "bulksms":
            assert len(reports) == rows or not body.startswith(b"0|")
            return
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        if body.count(b'"' + self.key + b'"') != 1 or _openers(body) > 150 or b"1e4" in body:
            return
        records = document.get(self.key.decode())
        if isinstance(records, list):
            named = [record for record in records if isinstance(record, dict)]
            assert len(reports) == sum(map(USABLE[self.name], named))


def _openers(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _poll(draw: Draw) -> Poll:
    return Poll(
        kind=draw.pick((Kind.FEED, Kind.BATCH, Kind.MESSAGE, Kind.WINDOW, Kind.PROBE)),
        now_ms=NOW_MS,
        batch_id="4711",
        message_id="m1",
        reference=draw.pick((None, "order-17")),
        sent_ms=draw.pick((None, 0, NOW_MS)),
        from_ms=NOW_MS - 1000,
        to_ms=NOW_MS,
    )


def _value(draw: Draw, write: Writer, some: Sequence[bytes]) -> bytes:
    return write.value(3) if draw.chance(6) else draw.pick(some)


def _pipe(draw: Draw, provider: Any) -> bytes:
    columns = len(provider._fields)
    lines = [draw.pick((b"0|ok|", b"0|ok|", b"0|ok|", b"23|" + MARK.encode(), b"24|x", b"40|"))]
    for _ in range(draw.below(8)):
        cells = [str(draw.whole(draw.below(6))).encode(), str(draw.below(75)).encode()]
        cells += [draw.pick(PIPE_CELLS) for _ in range(columns)]
        lines.append(b"|".join(cells))
    return draw.pick((b"\n", b"\r\n")).join(lines) + draw.pick((b"", b"\n"))


PIPE_CELLS = (
    b"", b"text", b"24-01-31 13:45:00", b"2026-01-01T00:00:00Z", b"0.5", b"caf\xe9", b"\xc3\xa9",
    b"9999-12-31 23:59:59", b"0001-01-01", MARK.encode(), b"\x00",
)  # fmt: skip


def read(
    provider: Provider,
    poll: Poll,
    head: Head,
    parts: Sequence[bytes],
    *,
    cut: bool,
    shortcut: bool = True,
) -> tuple[list[Report], list[Any], Outcome, int]:
    reader = provider.reader(poll, head)
    if isinstance(reader.parser, Shortcuts):
        reader.parser.take_shortcuts(shortcut)
    reports: list[Report] = []
    flaws: list[Any] = []
    for part in parts:
        reports += reader.reports(reader.parser.feed(part))
        flaws += reader.take_flaws()
    reports += reader.reports(reader.parser.close(cut=cut))
    flaws += reader.take_flaws()
    return reports, flaws, reader.outcome(), reader.parser.rows


def _set_aside(flaws: Sequence[Any], head: Head) -> list[str]:
    """What can be compared: where the reader sets records aside too, the order follows the chunks;
    of an error's page the records alone count."""
    return sorted(
        repr(flaw)
        for flaw in flaws
        if 200 <= head.status < 300 or flaw.position.startswith("record ")
    )


def _of_rows(
    name: str, provider: Any, head: Head, reports: Any, flaws: Sequence[Any], rows: int
) -> None:
    """Rows are reports and flaws, and nothing else."""
    if name == "bulksms":
        if reports:
            assert rows == len(reports) + len(flaws)
        return
    of_records = sum(flaw.position.startswith("record ") for flaw in flaws)
    assert rows == len(reports) + of_records


def _well_formed(report: Report, *, content: bool) -> None:
    assert report.message_id
    assert report.channel in CHANNELS
    assert report.final or report.state not in FINAL
    assert content or report.content is None
    for time in (report.sent_at, report.done_at):
        assert time is None or iso(iso_ms(time)) == time
    assert report.msisdn is None or re.fullmatch(r"[0-9]{1,20}", report.msisdn)
    assert report.parts is None or report.parts >= 0
    assert report.price is None or re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", report.price)


def commit(provider: Provider, reports: Sequence[Report]) -> None:
    """Every report can be taken into the books, written down and read again."""
    messages: dict[tuple[str, str], Known] = {}
    for report in reports:
        name = report.message_id, report.direction
        listed = report.state is not State.UNKNOWN or provider.lists(report)
        known = messages.setdefault(
            name, Known(account="acct", message_id=name[0], direction=name[1])
        )
        folded = fold(
            known,
            report,
            provider=provider.name,
            traits=provider.traits,
            observed_ms=NOW_MS,
            listed=listed,
            span=(NOW_MS - 1000, NOW_MS),
        )
        if folded.record:
            assert decode(folded.record).revision == known.revision


def _text(value: object) -> bool:
    return value not in (None, "")


USABLE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "infobip": lambda record: (
        isinstance(record.get("messageId"), str | int)
        and not isinstance(record.get("messageId"), bool)
        and bool(str(record["messageId"]).strip())
        and (record.get("status") is not None or record.get("receivedAt") is None)
    ),
    "avaamo": lambda record: _text(record.get("uuid")),
    "messangi": lambda record: _of_messangi(record),
}


def _of_messangi(record: dict[str, Any]) -> bool:
    """By its long names or its letters; a mixture is left to the other checks."""
    long = "channel" in record
    channel, recipient, date = (
        record.get(long_name if long else letter)
        for long_name, letter in (("channel", "a"), ("recipient", "c"), ("date", "d"))
    )
    known = isinstance(channel, str) and channel.strip().upper() in ("S", "E", "P", "W", "R")
    return known and (_text(recipient) or date not in (None, "", 0, False, [], {}))


def _bulksms(draw: Draw, context: Context) -> Provider:
    chosen = draw.byte()
    fields = tuple(name for bit, name in enumerate(OPTIONAL_FIELDS) if chosen >> bit & 1)
    return BulkSMS(
        BulkSMSOptions(username="john", password=Secret(MARK), optional_fields=fields), context
    )


def _infobip(draw: Draw, context: Context) -> Provider:
    return Infobip(InfobipOptions(api_key=Secret(MARK), drain=draw.flag()), context)


def _avaamo(draw: Draw, context: Context) -> Provider:
    return Avaamo(AvaamoOptions(agent_id=1, access_token=Secret(MARK)), context)


def _messangi(draw: Draw, context: Context) -> Provider:
    if draw.flag():
        return Messangi(MessangiOptions(), context)
    options = MessangiOptions(login_url="https://x", username="u", password=Secret(MARK))
    return Messangi(options, context)


bulksms = Target("bulksms", "", (), _bulksms)
infobip = Target("infobip", "results", INFOBIP, _infobip)
avaamo = Target("avaamo", "entries", AVAAMO, _avaamo)
messangi = Target("messangi", "items", MESSANGI, _messangi)
