"""What the tests of Messangi share: the page's own samples in both spellings, and answers read."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from engine.core.contracts import Context, Head, Kind, Poll
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.providers.messangi import LETTERS, Messangi, MessangiOptions
from engine.testing.provider_case import Read
from tests.unit.answers import half, json_of, read_answer

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


def read(body: Any, status: int = 200, *, cut: bool = False, of: Messangi | None = None) -> Read:
    raw = json_of(body)
    return read_answer(of or provider(), window(), raw, status, cut=cut, step=half(raw))


def one(record: dict[str, Any], context: Context | None = None) -> Report:
    reader = provider(context).reader(window(), Head(200, {}))
    (report,) = reader.reports([record])
    assert reader.take_flaws() == []
    return report


def digest(*identity: Any) -> str:
    return blake2b(orjson.dumps(identity), digest_size=16).hexdigest()


def _expected(n: int, channel: str, sent_ms: int, *, final: bool, **fields: Any) -> Report:
    """The n-th report of the sample: what stands in it as it is, and `fields` for what does not.

    Its id is made of the recipient without its plus, and of when it was sent.
    """
    entry = PRETTY[n]
    sender, recipient = entry["sender"], entry["recipient"]
    to = recipient.removeprefix("+")
    return Report(
        channel=channel,
        message_id=digest(entry["channel"], sender, to, sent_ms, entry["direction"]),
        campaign_id=str(entry["campaignid"]),
        sender=sender,
        recipient=recipient,
        final=final,
        provider_status=entry["status"],
        sent_at=entry["date"],
        done_at=entry["statusdate"],
        subject=entry["subject"],
        extra={"platform": entry["platform"], "subscriberid": None},
        **fields,
    )


def expected(content: bool) -> list[Report]:
    """The sample's reports."""
    texts = [entry["content"] if content else None for entry in PRETTY]
    return [
        _expected(
            0, "sms", 1690552011144, final=False,
            state=State.ENROUTE, msisdn="525500000000", content=texts[0],
        ),
        _expected(1, "email", 1690561230241, final=True, state=State.READ),
        _expected(2, "push", 1688367099521, final=True, state=State.ENROUTE),
        _expected(
            3, "whatsapp", 1690847955765, final=True,
            state=State.READ, msisdn="5800000000", content=texts[3], direction="mo",
        ),
        _expected(
            4, "rcs", 1689959217372, final=False,
            state=State.ENROUTE, msisdn="525500000001", content=texts[4],
        ),
    ]  # fmt: skip
