"""What a record costs on its way from bytes to `Report`: `python -m benchmarks.mapping`.

Each provider's own reader is fed an answer in the pieces that the transport hands over. Processor
time of one thread, the best of several rounds in turns; `parsed` is the parser without the reader.
Where a name is given (`python -m benchmarks.mapping infobip`), only what begins so is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from engine.core.contracts import Context, Head, Kind, Poll, Provider, Shortcuts
from engine.core.report import Report
from engine.core.secret import Secret
from engine.providers.avaamo import Avaamo, AvaamoOptions
from engine.providers.bulksms import BulkSMS, BulkSMSOptions
from engine.providers.infobip import Infobip, InfobipOptions
from engine.providers.messangi import LETTERS, Messangi, MessangiOptions

CHUNK = 64 * 1024
RECORDS = 20_000
ROUNDS = 7

NOW_MS = 1_794_000_000_000
CONTEXT = Context(account="bench")
HEAD = Head(200, {})

Record = dict[str, Any]

# Most messages arrive; the others end in a few ways.
STATUSES: Sequence[tuple[Record, Record]] = (
    *[
        (
            {
                "groupId": 3, "groupName": "DELIVERED", "id": 5, "name": "DELIVERED_TO_HANDSET",
                "description": "Message delivered to handset",
            },
            {
                "groupId": 0, "groupName": "Ok", "id": 0, "name": "NO_ERROR",
                "description": "No Error", "permanent": False,
            },
        )
    ] * 8,
    (
        {
            "groupId": 2, "groupName": "UNDELIVERABLE", "id": 9,
            "name": "UNDELIVERABLE_NOT_DELIVERED", "description": "Message sent not delivered",
        },
        {
            "groupId": 1, "groupName": "HANDSET_ERRORS", "id": 27, "name": "EC_ABSENT_SUBSCRIBER",
            "description": "Absent Subscriber", "permanent": False,
        },
    ),
    (
        {
            "groupId": 4, "groupName": "EXPIRED", "id": 15, "name": "EXPIRED_EXPIRED",
            "description": "Message expired",
        },
        {
            "groupId": 1, "groupName": "HANDSET_ERRORS", "id": 1, "name": "EC_UNKNOWN_SUBSCRIBER",
            "description": "Unknown Subscriber", "permanent": True,
        },
    ),
)  # fmt: skip


def _at(n: int, seconds: int = 0) -> str:
    rest, ms = divmod(n * 37, 1000)
    minute, second = divmod(rest + seconds, 60)
    return f"2026-11-09T17:{minute % 60:02d}:{second:02d}.{ms:03d}"


def _infobip(n: int) -> Record:
    status, error = STATUSES[n % len(STATUSES)]
    return {
        "bulkId": f"BULK-{n // 1000}", "messageId": f"12db39c3-7822-4e72-{n:012d}",
        "to": f"4179{n:07d}", "from": "SHOP", "sentAt": f"{_at(n)}+0000",
        "doneAt": f"{_at(n, 4)}+0000", "smsCount": 1 + (n % 9 == 0), "mccMnc": f"22{n % 7:03d}",
        "price": {"pricePerMessage": (1 + n % 3) / 100, "currency": "EUR"},
        "status": status, "error": error,
    }  # fmt: skip


def _infobip_ids(n: int) -> Record:
    """As the page's example has it: two fields that the record has no place for."""
    record = _infobip(n)
    del record["from"], record["mccMnc"]
    return {**record, "entityId": "my-entity-id", "applicationId": "my-application-id"}


def _avaamo(n: int) -> Record:
    entry = {
        "uuid": f"{n:08x}-9c27-4cde-a5bc-{n:012x}", "from_phone": "+15005550006",
        "to_phone": f"+1415{n:07d}", "message": "Your code is 123456",
        "created_at": round(1_791_560_000 + n * 0.037, 3),
        "sms_status": "delivered" if n % 10 else "failed",
    }  # fmt: skip
    if n % 10 == 0:
        entry["sms_status_response"] = f"The 'To' number +1415{n:07d} is not a valid phone number."
    return entry


def _letters(n: int) -> Record:
    return {
        "a": "S", "b": "STRESS1", "c": f"+5255{n:08d}", "d": f"{_at(n)}Z", "e": None,
        "f": f"+5255{n:08d}", "g": "dev", "h": "dev@example.org", "i": "11111",
        "j": ("DELIVRD", "SENT", "UNDELIV")[n % 3], "k": f"{_at(n, 2)}Z",
        "l": "Welcome to EliPackage!", "m": None, "n": None, "o": "0cb04d8c095d4b33bf77777b6",
        "p": None, "r": None, "s": None, "t": "O", "u": None, "v": None, "w": None,
    }  # fmt: skip


def _pretty(n: int) -> Record:
    """As the page's example has it: fewer fields than with letters."""
    return {LETTERS[letter]: _letters(n)[letter] for letter in "abcdijklrstu"}


def _json(key: str, make: Callable[[int], Record]) -> bytes:
    return msgspec.json.encode({key: [make(n) for n in range(RECORDS)]})


def _rows(fields: str = "") -> bytes:
    codes = ("11", "11", "11", "0", "53")
    rows = "".join(f"4479{n:08d}|{codes[n % 5]}{fields}\n" for n in range(RECORDS))
    return f"0|Returns to follow\n\n{rows}".encode()


def _bulksms(*fields: str) -> Provider:
    options = BulkSMSOptions(username="john", password=Secret("x"), optional_fields=fields)
    return BulkSMS(options, CONTEXT)


def cases() -> dict[str, tuple[Provider, bytes]]:
    infobip = Infobip(InfobipOptions(api_key=Secret("benchmark-key")), CONTEXT)
    messangi = Messangi(MessangiOptions(), CONTEXT)
    avaamo = Avaamo(AvaamoOptions(agent_id=1, access_token=Secret("benchmark-token")), CONTEXT)
    return {
        "infobip": (infobip, _json("results", _infobip)),
        "infobip, more fields": (infobip, _json("results", _infobip_ids)),
        "avaamo": (avaamo, _json("entries", _avaamo)),
        "messangi": (messangi, _json("items", _pretty)),
        "messangi, letters": (messangi, _json("items", _letters)),
        "bulksms": (_bulksms(), _rows()),
        "bulksms, two fields": (
            _bulksms("completed_time", "source_id"),
            _rows("|24-05-31 09:15:02|order-17"),
        ),
    }


def pieces(body: bytes) -> list[bytes]:
    return [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]


def mapped(provider: Provider, body: Sequence[bytes]) -> int:
    """Reports of the answer; each piece's are let go of, as a commit does."""
    reader = provider.reader(_POLL, HEAD)
    if isinstance(reader.parser, Shortcuts):
        reader.parser.take_shortcuts(True)
    found: list[Report] = []
    total = 0
    for piece in body:
        found = reader.reports(reader.parser.feed(piece))
        total += len(found)
    return total + len(reader.reports(reader.parser.close()))


def one_by_one(provider: Provider, body: Sequence[bytes]) -> int:
    """The same by way of dictionaries, as records go that do not fit or are redacted."""
    reader = provider.reader(_POLL, HEAD)
    total = sum(len(reader.reports(reader.parser.feed(piece))) for piece in body)
    return total + len(reader.reports(reader.parser.close()))


def parsed(provider: Provider, body: Sequence[bytes]) -> int:
    """To dictionaries alone."""
    parser = provider.reader(_POLL, HEAD).parser
    total = sum(len(parser.feed(piece)) for piece in body)
    return total + len(parser.close())


_POLL = Poll(kind=Kind.FEED, now_ms=NOW_MS, batch_id="4711", from_ms=0, to_ms=NOW_MS)


def main() -> None:
    """Print one line a shape."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = {name: case for name, case in cases().items() if name.startswith(wanted)}
    best: dict[tuple[str, str], float] = {}
    for name, (provider, body) in chosen.items():
        chunks = pieces(body)
        for _ in range(ROUNDS):
            for way in (parsed, one_by_one, mapped):
                start = time.process_time()
                if way(provider, chunks) != RECORDS:
                    raise SystemExit(f"{name}: records are missing")
                spent = time.process_time() - start
                best[name, way.__name__] = min(best.get((name, way.__name__), 1e9), spent)
    for name, (_, body) in chosen.items():
        ways = ("parsed", "one_by_one", "mapped")
        parse, single, whole = (best[name, way] / RECORDS * 1e6 for way in ways)
        size = len(body) / RECORDS
        print(
            f"{name:24s} {size:5.0f} B  parsed {parse:5.2f}  one by one {single:5.2f}"
            f"  mapped {whole:5.2f} us a record"
        )


if __name__ == "__main__":
    main()
