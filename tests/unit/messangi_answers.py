"""What the tests of Messangi share: the page's own samples in both spellings, and answers read."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import orjson

from engine.core.contracts import Context, Head, Kind, Outcome, Poll, Reader
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.providers.messangi import LETTERS, Messangi, MessangiOptions

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
