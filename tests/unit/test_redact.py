"""Every spelling of a number becomes one hash, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core.contracts import RECIPIENT_FIELDS, Context, Head, Kind, Poll
from engine.core.redact import Redactor, is_redacted, key_of, spells
from engine.core.report import Report, msisdn, recipient_key
from engine.core.secret import Secret
from engine.core.spelling import Own
from engine.providers.avaamo import AvaamoOptions
from engine.providers.bulksms import BulkSMSOptions
from engine.providers.infobip import InfobipOptions
from engine.providers.messangi import MessangiOptions
from engine.registry import providers

NUMBER = "447700900001"
KEY = key_of("a key that nobody guesses")
REDACTOR = Redactor(
    KEY,
    recipient_fields=RECIPIENT_FIELDS | {"c", "e", "f"},
    sender_fields=frozenset({"sender", "b"}),
)
TOKEN = REDACTOR.token(NUMBER)

SPELLINGS = [
    "447700900001", "+447700900001", "00447700900001", "+44 7700 900001", "+44 (0)7700 900001",
    "0044 7700 900 001", "44-7700-900-001", "44.7700.900.001", "(44) 7700 900001",
    "+44\u00a07700\u00a0900001", "+44/7700/900001", "%2B447700900001", "%2b44%207700%20900001",
    "tel:+447700900001", "sms:447700900001",
    "+44\u20117700\u2013900001", "44\u202f7700\u2009900001", "\\u002b44\\u20117700\\u2011900001",
]  # fmt: skip
NATIONAL = [
    "07700900001",
    "07700 900001",
    "7700900001",
    "7700 900 001",
    "00900001",
    "0 7700-900001",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_have_one_hash(spelling: str) -> None:
    assert REDACTOR.token(spelling) == TOKEN
    assert REDACTOR.text(f"to {spelling}.", Own([NUMBER])).removesuffix(".").endswith(TOKEN)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_that_is_known_in_any_spelling_is_found_in_any_other(spelling: str) -> None:
    own = Own([spelling])
    for other in [*SPELLINGS, *NATIONAL]:
        for text in (other, f"<{other}>", f"x:{other}", f"4711:{other}#2", f"a,{other},b"):
            assert _digits_left(REDACTOR.text(text, own)) == _digits_left(text.replace(other, ""))


def _digits_left(text: str) -> list[str]:
    cleaned = REDACTOR.text(text.replace(TOKEN, "·"), Own())
    return [c for c in cleaned if c.isdigit()]


@pytest.mark.parametrize("form", NATIONAL)
def test_the_national_form_is_the_numbers_own_hash(form: str) -> None:
    assert REDACTOR.text(form, Own([NUMBER])) == TOKEN


def test_a_number_inside_an_id_is_found_and_the_rest_stays() -> None:
    own = Own([NUMBER])
    assert REDACTOR.text(f"4711:{NUMBER}#2", own) == f"4711:{TOKEN}#2"
    assert REDACTOR.text(f"order-{NUMBER}-7", own) == f"order-{TOKEN}-7"
    assert REDACTOR.text(f"99{NUMBER}99", own) == f"99{TOKEN}99"
    assert REDACTOR.text(f"{NUMBER} {NUMBER}", own) == f"{TOKEN} {TOKEN}"
    assert REDACTOR.text("447700900002", own) == "447700900002"
    assert REDACTOR.text("1730090000100", own) == "1730090000100"  # its end by chance, inside


def test_a_hash_is_never_hashed_again() -> None:
    assert REDACTOR.token(TOKEN) == TOKEN
    assert REDACTOR.prose(f"to {TOKEN}") == f"to {TOKEN}"
    assert REDACTOR.raw(json.dumps({"to": TOKEN}).encode()) == json.dumps({"to": TOKEN}).encode()
    assert REDACTOR.raw(f"{TOKEN}|11\n".encode()) == f"{TOKEN}|11\n".encode()
    for n in range(3000):  # whatever digits the hash has
        token = REDACTOR.token(f"4477009{n:05}")
        assert REDACTOR.text(f"{token} 4711:{token}", Own([NUMBER]), bare=True) == (
            f"{token} 4711:{token}"
        )


def test_the_hash_joins_and_is_no_number() -> None:
    assert is_redacted(TOKEN)
    assert msisdn(TOKEN) == TOKEN == recipient_key(TOKEN)
    assert Redactor(KEY).token("+44 7700 900001") == TOKEN
    assert Redactor(key_of("another key, also secret")).token(NUMBER) != TOKEN


def test_addresses_and_device_tokens() -> None:
    token = REDACTOR.token("John.Doe@Example.com")
    assert token.startswith("adr_")
    assert token == REDACTOR.token("john.doe@example.COM")
    assert token != REDACTOR.token("johndoe@example.com")
    assert msisdn(token) is None
    assert recipient_key(token) == token
    own = Own(["John.Doe@example.com"])
    assert REDACTOR.text("mailto:john.doe%40example.com!", own) == f"mailto:{token}!"
    device = "f3a9c1" * 10
    assert REDACTOR.text(f"gone: {device}", Own([device])) == f"gone: {REDACTOR.token(device)}"
    chat = "447700900001@s.whatsapp.net"
    assert REDACTOR.text(f"{chat} +{NUMBER}", Own([chat])) == f"{REDACTOR.token(chat)} {TOKEN}"


def test_a_record_keeps_its_shape() -> None:
    record = {
        "messageId": f"x-{NUMBER}",
        "to": "+44 7700 900001",
        "sentAt": "2018-03-23T14:32:30.987+0000",
        "status": {"name": "EC_0", "description": "07700 900001 is barred", "id": 5},
        "list": [447700900001, 447700900001.0, 12, 0.01, True, None, {f"k{NUMBER}": NUMBER}],
        "uuid": "12db39c3-7822-4e72-a3ec-c87442c0ffc5",
        "created_at": 1732276357.123,
        "epoch": 1732276357123,
    }
    assert REDACTOR.records([record]) == [
        {
            "messageId": f"x-{TOKEN}",
            "to": TOKEN,
            "sentAt": "2018-03-23T14:32:30.987+0000",
            "status": {"name": "EC_0", "description": f"{TOKEN} is barred", "id": 5},
            "list": [TOKEN, TOKEN, 12, 0.01, True, None, {f"k{TOKEN}": TOKEN}],
            "uuid": "12db39c3-7822-4e72-a3ec-c87442c0ffc5",
            "created_at": 1732276357.123,
            "epoch": 1732276357123,
        }
    ]
    assert REDACTOR.records([["0" + NUMBER[2:], "11", "24-01-31 13:45:00", "x"]])[0][1:] == [
        "11", "24-01-31 13:45:00", "x",
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["447700900001", "447700900001.0", "4.47700900001E11"])
def test_a_recipient_that_came_as_a_number(number: str) -> None:
    raw = f'{{"to": {number}, "n": 447700900001.0, "at": 1732276357.125}}'
    wanted = {"to": TOKEN, "n": TOKEN, "at": 1732276357.125}
    assert REDACTOR.records([json.loads(raw)]) == [wanted]
    assert json.loads(REDACTOR.raw(raw.encode())) == wanted


def test_who_writes_an_inbound_message_is_the_person() -> None:
    inbound = {"channel": "S", "sender": NUMBER, "recipient": "12345", "direction": "I"}
    outbound = {"channel": "S", "sender": "447700900009", "recipient": NUMBER, "direction": "O"}
    letters = {"a": "S", "b": NUMBER, "c": "12345", "t": "I"}
    done = REDACTOR.records([inbound, outbound, letters])
    assert done[0]["sender"] == done[1]["recipient"] == done[2]["b"] == TOKEN
    assert done[1]["sender"] == "447700900009"


def test_prose_loses_all_that_looks_like_a_number() -> None:
    assert "447700900002" not in REDACTOR.prose("number 447700900002 is barred")
    assert REDACTOR.prose("HTTP 503; at 2024-11-01T00:00:00Z, batch 4711, code 1001") == (
        "HTTP 503; at 2024-11-01T00:00:00Z, batch 4711, code 1001"
    )


RAW: list[tuple[Any, str]] = [
    (f'{{"to":"{NUMBER}","bulkId":"2033247207850523791","x":"{NUMBER} ?"}}', "json"),
    (f'{{"to": {NUMBER}, "created_at": 1732276357, "m": "07700 900001"}}', "json"),
    (f'{{"destinations": [{{"to": "+{NUMBER}"}}], "list": [{NUMBER}]}}', "json"),
    (f'{{"to": ["{NUMBER}", "+447700900001"], "n": {NUMBER}}}', "json"),
    (f'{{"to": "\\u002b{NUMBER}", "e": "\\u002b44 7700 900001"}}', "json"),
    (f'[{{"c": "{NUMBER}", "b": "12345", "i": 447700900}}]', "json"),
    (f'{{"phone": "{NUMBER}", "text": "call 0044 7700 900001"}}', "json"),
    (f'{{"to":"{NUMBER}","status":', ""),
    (f'{{"to":"{NUMBER}', ""),
    (f'"to":"{NUMBER}", "x": 1}}', ""),
    (f"{NUMBER}|11\n+{NUMBER}|10|a\n", ""),
    (f"{NUMBER};11", ""),
    (f"<html>no such number: +44 7700 900001 ({NUMBER})</html>", ""),
    (f"\xff\xfe{NUMBER}|\x80", ""),
]


@pytest.mark.parametrize(("raw", "kind"), RAW)
def test_bytes_keep_their_framing(raw: str, kind: str) -> None:
    done = REDACTOR.raw(raw.encode("latin-1"))
    assert TOKEN.encode() in done
    for spelling in (NUMBER, *NATIONAL):
        assert spelling.encode() not in done.replace(TOKEN.encode(), b"")
    assert REDACTOR.raw(done) == done
    if kind == "json":
        assert _shape(msgspec.json.decode(done)) == _shape(msgspec.json.decode(raw))
    else:
        assert done.count(b"\n") == raw.count("\n")
        assert done.count(b"|") == raw.count("|")


def _shape(value: Any) -> Any:
    """The value with every number of a person's as a hash, and each hash as one text."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    text = REDACTOR.text(str(value), Own([NUMBER]))
    return text if TOKEN in text else value


def test_a_number_that_is_cut_off_goes() -> None:
    assert REDACTOR.raw(b"oops 4477009", truncated=True) == b"oops "
    assert REDACTOR.raw(f"x {NUMBER}".encode(), truncated=True) == f"x {TOKEN}".encode()


def test_whether_an_id_spells_a_number() -> None:
    assert spells(f"order {NUMBER}", ["+44 7700 900001"])
    assert spells("a@B.de", ["A@b.de"])
    assert not spells("4711", [NUMBER, "a@b.de"])


SAMPLES = Path(__file__).parent.parent / "samples"
OPTIONS: dict[str, Any] = {
    "bulksms": BulkSMSOptions(
        username="u", password=Secret("p"), optional_fields=("completed_time", "source_id")
    ),
    "infobip": InfobipOptions(api_key=Secret("k")),
    "avaamo": AvaamoOptions(agent_id=1, access_token=Secret("t")),
    "messangi": MessangiOptions(),
}


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*/*")), ids=lambda path: path.name)
def test_a_kept_answer_reads_as_it_did(sample: Path) -> None:
    """What is replayed from redacted bytes is what was read live, ids included."""
    name = sample.parent.name
    provider = providers()[name](OPTIONS[name], Context(account="a", content=True))
    traits = provider.traits
    redactor = Redactor(
        KEY, recipient_fields=traits.recipient_fields, sender_fields=traits.sender_fields
    )
    kind = {"drained": Kind.FEED, "windowed": Kind.WINDOW}.get(traits.feed or "", Kind.BATCH)
    poll = Poll(kind=kind, now_ms=0, batch_id="4711" if kind is Kind.BATCH else None)

    def read(raw: bytes) -> list[Report]:
        reader = provider.reader(poll, Head(200, {}))
        records = [*reader.parser.feed(raw), *reader.parser.close()]
        reports = map(redactor.report, reader.reports(redactor.records(records)))
        # Bytes lose each recipient everywhere, a record its own: `extra` may differ by others'.
        return [msgspec.structs.replace(report, extra={}) for report in reports]

    raw = sample.read_bytes()
    kept = redactor.raw(raw)
    assert read(kept) == read(raw)
    assert redactor.raw(kept) == kept
    for report in read(raw):
        assert report.recipient is None or is_redacted(report.recipient)


def test_what_a_liar_sends_is_looked_through_once() -> None:
    """A megabyte that is nearly an address, or nearly a number: looked at from each of its letters
    it would take for ever."""
    addresses = [f"user{n}@example.com" for n in range(20)]
    word, ones = "aB3-" * (1 << 18), "x" + "0" * (1 << 20) + "x"
    text = f"{word} {addresses[7]} {word}"
    assert REDACTOR.text(text, Own(addresses)) == f"{word} {REDACTOR.token(addresses[7])} {word}"
    assert REDACTOR.raw(ones.encode(), truncated=True) == ones.encode()
    assert REDACTOR.raw(f"{ones} +44 7700".encode(), truncated=True) == f"{ones} +".encode()
