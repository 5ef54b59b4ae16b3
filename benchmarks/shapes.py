"""Answers as the providers' documentation shapes them, and the records that have to come of them.

A body is put together from pieces that are ready, with what differs from page to page in between:
ten million messages need no memory, and a page costs its server some 100 us. The expected records
are written down here from the contract, not from the engine: they are what every run's output is
compared with.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import orjson

Spec = dict[str, Any]
BLOCK = 1000  # items of a streamed body that are made at once
HOUR_S = 3600
SENT_S = 1_794_182_400  # 2026-11-09T00:00:00Z: when the first of the one-time reports was sent
SPREAD_S = (31, 7, 1, 0)  # a page holds what was sent this long before its own second, in turn
DONE_S = 5

_TOKEN = re.compile(rb"@([A-Z0-9]+)@")
_OBSERVED = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Pieces:
    """A text with `@NAME@` in it, to be filled in many times."""

    def __init__(self, text: str) -> None:
        self._parts = _TOKEN.split(text.encode())
        self._names = [part.decode() for part in self._parts[1::2]]

    def fill(self, values: dict[str, bytes]) -> bytes:
        parts = self._parts.copy()
        parts[1::2] = [values[name] for name in self._names]
        return b"".join(parts)


def second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def ms_of(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _record(**values: Any) -> dict[str, Any]:
    """All fields of the contract but `observed_at`; those not given are as for most providers."""
    record: dict[str, Any] = {
        "channel": "sms", "direction": "mt", "revision": 1, "reference": None, "batch_id": None,
        "campaign_id": None, "state": "delivered", "final": True, "verdict": None,
        "provider_status_text": None, "reason": None, "error_code": None, "error_text": None,
        "error_permanent": None, "done_at": None, "parts": None, "price": None, "currency": None,
        "mcc_mnc": None, "content": None, "subject": None, "extra": {},
    }  # fmt: skip
    t = values.pop("t", 1)
    record |= values
    fact = [record[name] for name in _IDENTITY] + [t]
    record["event_id"] = blake2b(orjson.dumps(fact), digest_size=16).hexdigest()
    return record


_IDENTITY = ("account", "message_id", "direction", "provider_status", "error_code", "verdict")


class Infobip:
    """One-time reports, a second of sending a page. `spec`: accounts, size (of a page), pages."""

    empty = b'{"results":[]}'

    def __init__(self, spec: Spec) -> None:
        self.accounts: Sequence[str] = spec["accounts"]
        self.size, self.pages = int(spec["size"]), int(spec["pages"])
        self.count = self.size * self.pages
        rows = ",".join(self._row(n) for n in range(self.size))
        self._pieces = Pieces(f'{{"results":[{rows}]}}')

    @staticmethod
    def _row(n: int) -> str:
        turn = n % len(SPREAD_S)
        return (
            f'{{"bulkId":"BULK-@PAGE@","messageId":"@ACCOUNT@-7822-4e72-@PAGE@{n:05d}",'
            f'"to":"41@PAGE@{n:05d}","from":"SHOP","sentAt":"@SENT{turn}@.{n % 1000:03d}+0000",'
            f'"doneAt":"@DONE{turn}@.{n % 1000:03d}+0000","smsCount":1,"mccMnc":"22801",'
            '"price":{"pricePerMessage":0.01,"currency":"EUR"},'
            '"status":{"groupId":3,"groupName":"DELIVERED","id":5,"name":"DELIVERED_TO_HANDSET",'
            '"description":"Message delivered to handset"},'
            '"error":{"groupId":0,"groupName":"Ok","id":0,"name":"NO_ERROR",'
            '"description":"No Error","permanent":false},'
            '"entityId":"my-entity-id","applicationId":"my-application-id"}'
        )

    def body(self, account: str, page: int) -> bytes:
        values = {"ACCOUNT": account.encode(), "PAGE": b"%07d" % page}
        for turn, before in enumerate(SPREAD_S):
            at = SENT_S + page - before
            values[f"SENT{turn}"] = second(at).encode()
            values[f"DONE{turn}"] = second(at + DONE_S).encode()
        return self._pieces.fill(values)

    def number(self, record: dict[str, Any]) -> int:
        page, n = divmod(int(record["message_id"][-12:]), 100_000)
        return page * self.size + n

    def expected(self, account: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
        page, n = divmod(number, self.size)
        sent_s = SENT_S + page - SPREAD_S[n % len(SPREAD_S)]
        done_at = f"{second(sent_s + DONE_S)}.{n % 1000:03d}Z"
        return _record(
            account=account,
            provider="infobip",
            message_id=f"{account}-7822-4e72-{page:07d}{n:05d}",
            batch_id=f"BULK-{page:07d}",
            sender="SHOP",
            recipient=f"41{page:07d}{n:05d}",
            msisdn=f"41{page:07d}{n:05d}",
            provider_status="DELIVERED_TO_HANDSET",
            provider_status_text="Message delivered to handset",
            sent_at=f"{second(sent_s)}.{n % 1000:03d}Z",
            done_at=done_at,
            parts=1,
            price="0.01",
            currency="EUR",
            mcc_mnc="22801",
            extra={
                "status": {"groupId": 3, "groupName": "DELIVERED", "id": 5},
                "error": {"groupId": 0, "groupName": "Ok", "id": 0},
                "entityId": "my-entity-id",
                "applicationId": "my-application-id",
            },
            t=ms_of(done_at),
        )


class Avaamo:
    """Entries of the three quarters of an hour before `start_s`. `spec`: as for Infobip."""

    empty = b'{"current_page":1,"per_page":100,"total_entries":0,"total_pages":0,"entries":[]}'

    def __init__(self, spec: Spec) -> None:
        self.accounts: Sequence[str] = spec["accounts"]
        self.size, self.pages = int(spec["size"]), int(spec["pages"])
        self.count = self.size * self.pages
        self._start_s: int = spec["start_s"] - HOUR_S * 3 // 4
        rows = ",".join(self._row(n) for n in range(self.size))
        self._pieces = Pieces(
            f'{{"current_page":@NUMBER@,"per_page":{self.size},"total_entries":{self.count},'
            f'"total_pages":{self.pages},"time_token":@NOW@,"entries":[{rows}]}}'
        )

    @staticmethod
    def _row(n: int) -> str:
        return (
            f'{{"uuid":"@PAGE@-9c27-4cde-a5bc-{n:012d}","from_phone":"+15005550006",'
            f'"to_phone":"+1@PAGE@{n:03d}","message":"Your code is 123456",'
            f'"created_at":@AT@.{n % 1000:03d},"sms_status":"delivered"}}'
        )

    def _at(self, page: int) -> int:
        return self._start_s + page * (HOUR_S * 2 // 3) // self.pages

    def body(self, account: str, page: int) -> bytes:
        return self._pieces.fill({
            "PAGE": b"%08d" % page,
            "NUMBER": b"%d" % (page + 1),
            "AT": b"%d" % self._at(page),
            "NOW": b"%.3f" % time.time(),
        })  # fmt: skip

    def number(self, record: dict[str, Any]) -> int:
        page, *_, n = record["message_id"].split("-")
        return int(page) * self.size + int(n)

    def expected(self, account: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
        page, n = divmod(number, self.size)
        return _record(
            account=account,
            provider="avaamo",
            message_id=f"{page:08d}-9c27-4cde-a5bc-{n:012d}",
            sender="+15005550006",
            recipient=f"+1{page:08d}{n:03d}",
            msisdn=f"1{page:08d}{n:03d}",
            provider_status="delivered",
            sent_at=f"{second(self._at(page))}.{n % 1000:03d}Z",
        )


class BulkSMS:
    """Batches of one recipient, 44 and the batch's number. `spec`: account, first, and `sent_ms`,
    when each was sent."""

    def __init__(self, spec: Spec) -> None:
        self.accounts = [spec["account"]]
        self._first: int = spec["first"]
        self._sent_ms: Sequence[int] = spec.get("sent_ms", ())
        self.count = len(self._sent_ms)

    @staticmethod
    def body(batch: str) -> bytes:
        return b"0|Returns to follow\n\n44%010d|11\n" % int(batch)

    def number(self, record: dict[str, Any]) -> int:
        return int(record["batch_id"]) - self._first

    def expected(self, account: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
        batch, sent_ms = self._first + number, self._sent_ms[number]
        return _record(
            account=account,
            provider="bulksms",
            message_id=f"{batch}:44{batch:010d}",
            batch_id=str(batch),
            sender=None,
            recipient=f"44{batch:010d}",
            msisdn=f"44{batch:010d}",
            provider_status="11",
            provider_status_text="Delivered to mobile",
            sent_at=f"{second(sent_ms // 1000)}.{sent_ms % 1000:03d}Z",
        )


class Messangi:
    """One answer of any length, of the hour before `start_s`. `spec`: accounts, count, start_s."""

    def __init__(self, spec: Spec) -> None:
        self.accounts: Sequence[str] = spec["accounts"]
        self._blocks = max(1, int(spec["count"]) // BLOCK)
        self.count = self._blocks * BLOCK
        self._start_s: int = spec["start_s"] - HOUR_S
        self._pieces = Pieces(",".join(self._row(n) for n in range(BLOCK)))
        self._head = (
            b'{"meta":{"timestamp":%d000,"transactionId":"%s","explain":null},'
            b'"pagination":{"total":%d},"items":['
        )

    @staticmethod
    def _row(n: int) -> str:
        return (
            f'{{"channel":"S","sender":"STRESS1","recipient":"+52@BLOCK@{n:03d}",'
            f'"date":"@AT@.{n:03d}Z","campaignid":{11000 + n % 7},"status":"DELIVRD",'
            f'"statusdate":"@DONE@.{n:03d}Z","content":"Bulk","platform":null,"subject":null,'
            '"direction":"O","subscriberid":null}'
        )

    def _at(self, block: int) -> int:
        return self._start_s + block * (HOUR_S - 60) // self._blocks

    def _block(self, block: int) -> bytes:
        at = self._at(block)
        return self._pieces.fill({
            "BLOCK": b"%07d" % block,
            "AT": second(at).encode(),
            "DONE": second(at + DONE_S).encode(),
        })  # fmt: skip

    def stream(self, *, empty: bool = False) -> tuple[int, Iterator[bytes]]:
        """How many bytes, and the bytes."""
        total = 0 if empty else self.count
        head = self._head % (int(time.time()), b"f" * 32, total)
        if empty:
            return len(head) + 2, iter([head + b"]}"])
        size = len(head) + len(self._block(0)) * self._blocks + self._blocks - 1 + 2

        def pieces() -> Iterator[bytes]:
            yield head
            for block in range(self._blocks):
                yield b"," + self._block(block) if block else self._block(block)
            yield b"]}"

        return size, pieces()

    def number(self, record: dict[str, Any]) -> int:
        return int(record["recipient"][3:])

    def expected(self, account: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
        """The digest that is the message's id is not specified beyond that it is stable."""
        block, n = divmod(number, BLOCK)
        at = self._at(block)
        done_at = f"{second(at + DONE_S)}.{n:03d}Z"
        return _record(
            account=account,
            provider="messangi",
            message_id=given["message_id"],
            campaign_id=str(11000 + n % 7),
            sender="STRESS1",
            recipient=f"+52{number:010d}",
            msisdn=f"52{number:010d}",
            provider_status="DELIVRD",
            sent_at=f"{second(at)}.{n:03d}Z",
            done_at=done_at,
            extra={"platform": None, "subscriberid": None},
            t=ms_of(done_at),
        )


Shape = Infobip | Avaamo | BulkSMS | Messangi
SHAPES: dict[str, Callable[[Spec], Shape]] = {
    "infobip": Infobip,
    "avaamo": Avaamo,
    "bulksms": BulkSMS,
    "messangi": Messangi,
}


def compare(path: Path, shape: Shape, name: str = "records") -> list[str]:
    """What is wrong with the records of a run: each that is expected is to be there once, with all
    the fields of the contract as they have to be."""
    seen = {account: bytearray(shape.count) for account in shape.accounts}
    wrong = twice = 0
    example = ""
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as file:
        for line in file:
            record = decode(line)
            observed = record.pop("observed_at", "")
            try:
                account, number = record["account"], shape.number(record)
                twice += seen[account][number]
                seen[account][number] = 1
                right = record == shape.expected(account, number, record)
            except (KeyError, IndexError, ValueError):
                right = False
            if not right or not _OBSERVED.fullmatch(observed):
                wrong += 1
                example = example or line.decode()[:1000].rstrip()
    missing = sum(account.count(0) for account in seen.values())
    faults = [f"{name}: {missing} are missing"] if missing else []
    if twice:
        faults.append(f"{name}: {twice} are there twice")
    if wrong:
        faults.append(f"{name}: {wrong} are not as expected, the first: {example}")
    return faults
