"""The providers' own printed answers, over HTTP: every field of every record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import engine
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    bulksms,
    configured,
    hasty,
    identity,
    infobip,
    lines,
    messangi,
    table,
    until,
)
from tests.integration.standin import Standin, sample

FIELDS = [
    "event_id", "account", "provider", "channel", "direction", "message_id", "revision",
    "reference", "batch_id", "campaign_id", "sender", "recipient", "msisdn", "state", "final",
    "verdict", "provider_status", "provider_status_text", "reason", "error_code", "error_text",
    "error_permanent", "sent_at", "done_at", "observed_at", "parts", "price", "currency",
    "mcc_mnc", "content", "subject", "extra",
]  # fmt: skip
EMPTY: dict[str, Any] = dict.fromkeys(FIELDS) | {
    "channel": "sms", "direction": "mt", "revision": 1, "extra": {},
}  # fmt: skip


def check(found: dict[str, Any], t: int, **expected: Any) -> None:
    """Compare all fields; what the caller does not name is null, or the default."""
    assert list(found) == FIELDS
    seen = datetime.fromisoformat(found["observed_at"])
    assert abs(seen.timestamp() - time.time()) < 30
    assert found["observed_at"].endswith("Z")
    assert len(found["observed_at"]) == len("2024-05-31T09:00:00.000Z")
    assert found["event_id"] == identity(found, t)
    own = {"event_id": found["event_id"], "observed_at": found["observed_at"]}
    assert found == EMPTY | own | expected


def same_in_sqlite(folder: Path, records: list[dict[str, Any]]) -> None:
    rows = {row["event_id"]: row for row in table(folder)}
    assert len(rows) == len(records)
    for record in records:
        row = rows[record["event_id"]]
        assert orjson.loads(row["extra"]) == record["extra"]
        for name in FIELDS:
            if name != "extra":
                assert row[name] == record[name], name
    newest = {row["message_id"]: row["revision"] for row in table(folder, "messages")}
    for record in records:
        assert newest[record["message_id"]] >= record["revision"]


async def run_bulksms(config: engine.Config, standin: Standin, polls: int) -> None:
    async with hasty(config) as poller:
        await poller.track(
            "bulk",
            batch_id="4711",
            recipients=["447900000001", "447900000002", "447900000003"],
            reference="order",
        )
        await until(lambda: len(standin.asked["bulk"]) >= polls)
        await anyio.sleep(0.05)
        await balanced(poller)


@pytest.mark.parametrize("store", STORES)
async def test_bulksms(tmp_path: Path, standin: Standin, store: str) -> None:
    url = standin.answer("bulk", [sample("bulksms/success.txt")])
    schedule = {"ladder": ["0s", "100ms", "60s"]}
    config = configured(tmp_path, bulksms(url, schedule=schedule), store=store)
    await run_bulksms(config, standin, polls=2)
    records = lines(tmp_path)
    assert len(records) == 3  # read twice, recorded once
    sent = records[0]["sent_at"]
    assert abs(datetime.fromisoformat(sent).timestamp() - time.time()) < 30
    common = {"account": "bulk", "provider": "bulksms", "batch_id": "4711", "reference": "order"}
    common["sent_at"] = sent
    check(
        records[0], 1, **common, message_id="4711:447900000001", recipient="447900000001",
        msisdn="447900000001", state="delivered", final=True, provider_status="11",
        provider_status_text="Delivered to mobile",
    )  # fmt: skip
    check(
        records[1], 1, **common, message_id="4711:447900000002", recipient="447900000002",
        msisdn="447900000002", state="accepted", final=False, provider_status="0",
        provider_status_text=(
            "In progress (a normal message submission, with no error encountered so far)."
        ),
    )  # fmt: skip
    check(
        records[2], 1, **common, message_id="4711:447900000003", recipient="447900000003",
        msisdn="447900000003", state="expired", final=True, provider_status="53",
        provider_status_text="Message expired", reason="expired",
    )  # fmt: skip
    same_in_sqlite(tmp_path, records)


@pytest.mark.parametrize("store", STORES)
async def test_bulksms_with_optional_fields(tmp_path: Path, standin: Standin, store: str) -> None:
    url = standin.answer("bulk", [sample("bulksms/with_optional_fields.txt")])
    account = bulksms(
        url,
        optional_fields=["completed_time", "credits", "source_id"],
        schedule={"ladder": ["0s", "100ms", "60s"]},
    )
    config = configured(tmp_path, account, store=store)
    sent = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="4711", sent_at=sent)
        await until(lambda: lines(tmp_path))
        await anyio.sleep(0.05)
        await balanced(poller)
    records = lines(tmp_path)
    assert len(records) == 3
    assert standin.asked["bulk"][0].query["optional_fields"] == "completed_time,credits,source_id"
    common = {"account": "bulk", "provider": "bulksms", "batch_id": "4711", "sent_at": sent}
    check(
        records[0], 1, **common, message_id="4711:447900000001", recipient="447900000001",
        msisdn="447900000001", state="delivered", final=True, provider_status="11",
        provider_status_text="Delivered to mobile", reference="order-17",
        done_at="2024-05-31T09:15:02.000Z", extra={"credits": "1.00"},
    )  # fmt: skip
    check(
        records[1], 1, **common, message_id="4711:447900000002", recipient="447900000002",
        msisdn="447900000002", state="enroute", final=False, provider_status="12",
        provider_status_text="Delivered upstream unacknowledged (assume message is in progress)",
        reference="order-18", extra={"credits": None},
    )  # fmt: skip
    check(
        records[2], 1, **common, message_id="4711:447900000003", recipient="447900000003",
        msisdn="447900000003", state="expired", final=True, provider_status="53",
        provider_status_text="Message expired", reason="expired", extra={"credits": "0.50"},
    )  # fmt: skip
    same_in_sqlite(tmp_path, records)


async def test_bulksms_auth_failure(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [sample("bulksms/auth_failure.txt")])
    async with hasty(configured(tmp_path, bulksms(url))) as poller:
        await poller.track("bulk", batch_id="4711", recipients=["447900000001"])
        await until(lambda: poller.pollers["bulk"].health.paused)
        assert "invalid credentials" in (poller.pollers["bulk"].health.paused or "")
    assert len(standin.asked["bulk"]) == 1
    assert lines(tmp_path) == []


@pytest.mark.parametrize("store", STORES)
async def test_infobip(tmp_path: Path, standin: Standin, store: str) -> None:
    answers = [
        sample("infobip/report_v1.json"),
        sample("infobip/report_v1.json"),
        b'{"results":[]}',
    ]
    url = standin.answer("info", answers)
    async with hasty(configured(tmp_path, infobip(url), store=store)) as poller:
        await until(lambda: len(standin.asked["info"]) >= 4)
        await until(lambda: len(lines(tmp_path)) == 2)
        await balanced(poller)
    records = lines(tmp_path)
    assert len(records) == 2
    common = {
        "account": "info", "provider": "infobip", "batch_id": "BULK-ID-123-xyz",
        "state": "delivered", "final": True, "provider_status": "DELIVERED_TO_HANDSET",
        "provider_status_text": "Message delivered to handset", "parts": 1, "price": "0.01",
        "currency": "EUR",
        "extra": {
            "status": {"groupId": 3, "groupName": "DELIVERED", "id": 5},
            "error": {"groupId": 0, "groupName": "Ok", "id": 0},
            "entityId": "my-entity-id",
            "applicationId": "my-application-id",
        },
    }  # fmt: skip
    check(
        records[0], 1573315200000, **common, message_id="MESSAGE-ID-123-xyz",
        recipient="41793026727", msisdn="41793026727", sent_at="2019-11-09T16:00:00.000Z",
        done_at="2019-11-09T16:00:00.000Z",
    )  # fmt: skip
    check(
        records[1], 1573318800000, **common,
        message_id="12db39c3-7822-4e72-a3ec-c87442c0ffc5", recipient="41793026834",
        msisdn="41793026834", sent_at="2019-11-09T17:00:00.000Z",
        done_at="2019-11-09T17:00:00.000Z",
    )  # fmt: skip
    same_in_sqlite(tmp_path, records)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("content", [False, True])
async def test_avaamo(tmp_path: Path, standin: Standin, store: str, content: bool) -> None:
    url = standin.answer("bot", [sample("avaamo/report.json")])
    account = avaamo(
        url,
        start="2022-12-12T00:00:00Z",
        end="2022-12-14T00:00:00Z",
        content=content,
        schedule={"interval": "50ms", "rescan": ["100ms", "60s"]},
    )
    async with hasty(configured(tmp_path, account, store=store)) as poller:
        await until(lambda: len(standin.asked["bot"]) >= 2)
        await until(lambda: len(lines(tmp_path)) == 2)
        await anyio.sleep(0.05)
        await balanced(poller)
    records = lines(tmp_path)
    assert len(records) == 2
    text = "New Message - Appt Reminder - John Doe has an appointment on 05-12-2022 at 11:30"
    common = {
        "account": "bot", "provider": "avaamo", "sender": "+11231231234",
        "recipient": "+1(123) 456-xxxx", "content": text if content else None,
    }  # fmt: skip
    check(
        records[0], 1, **common, message_id="xxxxxx36-bbff-4b13-963f-40c733xxxxxx",
        state="enroute", final=False, provider_status="sent",
        sent_at="2022-12-13T09:22:38.000Z",
    )  # fmt: skip
    check(
        records[1], 1, **common, message_id="xxxxxx06-7cbd-4a1f-9798-594a01xxxxxx",
        state="rejected", final=True, provider_status="failed", reason="invalid_recipient",
        error_text=(
            "Unable to create record: The 'To' number +11234567890 is not a valid phone number."
        ),
        sent_at="2022-12-13T09:23:17.000Z",
    )  # fmt: skip
    same_in_sqlite(tmp_path, records)


def messangi_account(url: str, **keys: Any) -> dict[str, Any]:
    return messangi(
        url,
        start="2023-07-01T00:00:00Z",
        end="2023-08-01T00:00:00Z",
        schedule={"interval": "50ms", "rescan": ["60s"]},
        **keys,
    )


MESSANGI = [
    {
        "sender": "STRESS1", "recipient": "+525500000000", "msisdn": "525500000000",
        "state": "enroute", "final": False, "provider_status": "SENT", "campaign_id": "11111",
        "sent_at": "2023-07-28T13:46:51.144Z", "done_at": "2023-07-28T13:46:51.170Z",
    },
    {
        "channel": "email", "sender": "[email\xa0protected]",
        "recipient": "[email\xa0protected]", "state": "read", "final": True,
        "provider_status": "OPEN", "campaign_id": "14145",
        "subject": "New Promo!", "sent_at": "2023-07-28T16:20:30.241Z",
        "done_at": "2023-07-28T21:56:21.620Z",
    },
    {
        "channel": "push", "sender": "DemoApp", "recipient": "fv8aC_Emw0fRuN",
        "state": "enroute", "final": True, "provider_status": "SENT", "campaign_id": "15158",
        "sent_at": "2023-07-03T06:51:39.521Z", "done_at": "2023-07-03T06:51:39.754Z",
    },
    {
        "channel": "whatsapp", "direction": "mo", "sender": "58412", "recipient": "5800000000",
        "msisdn": "5800000000", "state": "read", "final": True, "provider_status": "READ",
        "campaign_id": "12151", "sent_at": "2023-07-31T23:59:15.765Z",
        "done_at": "2023-07-31T23:59:15.783Z",
    },
    {
        "channel": "rcs", "sender": "61e9bb8f4a01ea", "recipient": "+525500000001",
        "msisdn": "525500000001", "state": "enroute", "final": False, "provider_status": "SENT",
        "campaign_id": "14320", "sent_at": "2023-07-21T17:06:57.372Z",
        "done_at": "2023-07-21T17:06:57.969Z",
    },
]  # fmt: skip
LONG = {
    "e": "recipient_email", "f": "recipient_phone", "g": "owner", "h": "user", "m": "user_id",
    "n": "reply_to", "o": "connector_id", "p": "agent_id", "r": "platform", "u": "subscriberid",
    "v": "template_id", "w": "template_params",
}  # fmt: skip


@pytest.mark.parametrize("store", STORES)
async def test_messangi(tmp_path: Path, standin: Standin, store: str) -> None:
    """The sample claims 2,230 rows and holds five: a total that follows no window."""
    ids: dict[str, list[str]] = {}
    for name in ("pretty", "letters"):
        folder = tmp_path / name
        url = standin.answer(name, [sample(f"messangi/mlog_{name}.json")])
        account = messangi_account(url, pretty=name == "pretty")
        async with hasty(configured(folder, account, store=store)) as poller:
            await until(lambda folder=folder: len(lines(folder)) >= 5)  # type: ignore[misc]
            await until(lambda: poller.pollers["omni"].feed_ended)
            await balanced(poller)
            totals = await poller.store.read(lambda tx: tx.troubles("omni", 10))
            assert [trouble.kind for trouble in totals] == ["total_ignored"]
        records = sorted(lines(folder), key=lambda record: record["campaign_id"])
        expected = sorted(MESSANGI, key=lambda record: str(record["campaign_id"]))
        assert len(records) == 5
        raw = orjson.loads(sample(f"messangi/mlog_{name}.json"))["items"]
        raw.sort(key=lambda item: str(item.get("campaignid", item.get("i"))))
        for record, fields, item in zip(records, expected, raw, strict=True):
            changed = dict(fields)
            if name == "letters":
                changed["recipient"] = item["c"]
                changed["subject"] = item["s"]
                extra = {long: item[letter] for letter, long in LONG.items()}
            else:
                extra = {"platform": item["platform"], "subscriberid": None}
            done = datetime.fromisoformat(str(fields["done_at"]))
            check(
                record, round(done.timestamp() * 1000), account="omni", provider="messangi",
                message_id=record["message_id"], extra=extra, **changed,
            )  # fmt: skip
        same_in_sqlite(folder, records)
        ids[name] = [record["message_id"] for record in records]
        assert all(asked.query["pretty"] for asked in standin.asked[name])
        assert standin.asked[name][0].query["from"] == "2023-07-01T00:00:00.000Z"
        assert standin.asked[name][0].headers["authorization"] == "Bearer h3ader-canary"
    assert ids["pretty"] == ids["letters"]
    assert len(set(ids["pretty"])) == 5
