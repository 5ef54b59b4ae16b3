"""Infobip end to end: a queue that each report leaves once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from engine.core.contracts import Kind, Poll
from engine.idle import until_idle
from engine.stores.memory import MemoryStore
from engine.stores.transaction import Transaction
from engine.worker import Engine
from tests.integration.harness import (
    STORES,
    Hasty,
    balanced,
    causes,
    configured,
    hasty,
    identity,
    infobip,
    lines,
    tallies,
    until,
)
from tests.integration.standin import Answer, Asked, Raw, Standin, json_of

T = TypeVar("T")
DONE = "2024-05-31T10:00:{:02d}.000+0000"
EMPTY = b'{"results":[]}'
GROUPS = {"PENDING": 1, "UNDELIVERABLE": 2, "DELIVERED": 3, "EXPIRED": 4, "REJECTED": 5}


def report(
    message_id: str, name: str = "DELIVERED_TO_HANDSET", second: int = 0, **more: Any
) -> Any:
    group = name.split("_")[0]
    return {
        "messageId": message_id,
        "to": "41793026727",
        "sentAt": "2024-05-31T10:00:00.000+0000",
        "doneAt": DONE.format(second),
        "status": {"groupId": GROUPS.get(group, 99), "groupName": group, "name": name},
        **more,
    }


def page(*reports: Any) -> bytes:
    return json_of({"results": list(reports)})


def queue(reports: list[Any], cap: int) -> Callable[[Asked], Answer]:
    """Hands out at most `cap` or `limit` reports at a time, each once."""
    waiting = list(reports)

    def answer(asked: Asked) -> Answer:
        most = min(cap, int(asked.query["limit"]))
        given, waiting[:] = waiting[:most], waiting[most:]
        return page(*given)

    return answer


def slow(**more: Any) -> dict[str, Any]:
    return {"interval": "60s", "idle_interval": "60s", "ladder": ["0s", "400ms"], **more}


@pytest.mark.parametrize("store", STORES)
async def test_a_full_page_is_followed_at_once(
    tmp_path: Path, standin: Standin, store: str
) -> None:
    reports = [report(str(n)) for n in range(125)]
    url = standin.answer("info", queue(reports, cap=1000))
    account = infobip(url, limit=25, schedule=slow())
    async with hasty(configured(tmp_path, account, store=store)) as poller:
        await until(lambda: len(lines(tmp_path)) == 125)
        await anyio.sleep(0.1)
        await balanced(poller)
    asked = standin.asked["info"]
    assert [one.pairs for one in asked] == [[("limit", "25")]] * 6
    assert {one.path for one in asked} == {"/sms/1/reports"}
    assert {one.headers["authorization"] for one in asked} == {"App k3y-canary"}
    assert [record["message_id"] for record in lines(tmp_path)] == [str(n) for n in range(125)]
    assert standin.most["info"] == 1


async def test_one_request_at_a_time_whatever_concurrency_says(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("info", lambda _: Raw(EMPTY, wait_s=0.03))
    account = infobip(
        url, limits={"requests": 1000, "per": "1s", "concurrency": 8}, drain=False,
        schedule={"ladder": ["0s"]},
    )  # fmt: skip
    async with hasty(configured(tmp_path, account)) as poller:
        for n in range(6):
            await poller.track("info", message_id=str(n))
        assert await until_idle(poller, 5) == []
    assert len(standin.asked["info"]) == 6
    assert standin.most["info"] == 1


async def test_the_end_of_another_work_frees_no_place_of_an_answer_that_is_not_durable(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("info", [page(report("1"))])
    async with hasty(configured(tmp_path, infobip(url, drain=False, schedule=slow()))) as poller:
        asker, limiter = poller.pollers["info"]._asker, poller.pollers["info"].limiter
        poll = Poll(kind=Kind.MESSAGE, now_ms=poller.clock.now_ms(), message_id="1")
        reply = await asker.ask(poll)
        async with anyio.create_task_group() as others:

            async def another() -> None:
                asker.release()

            others.start_soon(another)
        assert limiter.try_slot() is None
        await asker.commit(reply.page)
        slot = limiter.try_slot()
        assert slot is not None
        slot.unused()


class SlowStore(MemoryStore):
    """Takes its time to make anything durable, and knows how many records are."""

    durable = 0

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        await anyio.sleep(0.05)
        done = await super().write(job, lazy=lazy)
        counts = await self.read(lambda tx: tx.tallies())
        self.durable = counts.get("info", {}).get("records", 0)
        return done


@pytest.mark.parametrize("drain", [True, False])
async def test_an_answer_is_durable_before_the_next_request(
    tmp_path: Path, standin: Standin, drain: bool
) -> None:
    store = SlowStore()
    durable: list[int] = []

    def answer(asked: Asked) -> Answer:
        durable.append(store.durable)
        return page(report(str(asked.number))) if asked.number <= 4 else EMPTY

    url = standin.answer("info", answer)
    account = infobip(url, limit=1, drain=drain, schedule=slow())
    async with Engine(configured(tmp_path, account), rand=Hasty(), store=store) as poller:
        for n in range(1, 5):
            if not drain:
                await poller.track("info", message_id=str(n))
        await until(lambda: len(lines(tmp_path)) == 4)
    assert durable[:4] == [0, 1, 2, 3]


async def test_a_page_that_repeats_is_not_asked_for_ever(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("info", [page(*(report(str(n)) for n in range(10)))])
    account = infobip(url, limit=10, schedule=slow())
    async with hasty(configured(tmp_path, account)):
        await until(lambda: len(lines(tmp_path)) == 10)
        await anyio.sleep(0.3)
    assert len(standin.asked["info"]) <= 6
    assert len(lines(tmp_path)) == 10


async def test_a_short_secret_takes_nothing_out_of_a_report(
    tmp_path: Path, standin: Standin
) -> None:
    """What is the same as a secret may be a word, or a part of a number."""
    row = report("1234-key", callbackData="en-key-ok", to="411234026727", entityId="monkey")
    url = standin.answer("infobip", [page(row, {"messageId": "", "x": "key 1234"}), EMPTY])
    account = infobip(url, api_key="key", headers={"X-Pin": "1234", "Accept-Language": "en"})
    async with hasty(configured(tmp_path, account)) as poller:
        assert await until_idle(poller, 5) == []
        (flaw,) = await poller.store.read(lambda tx: tx.troubles("info", 10))
    (record,) = lines(tmp_path)
    assert record["message_id"] == "1234-key"
    assert (record["recipient"], record["reference"]) == ("411234026727", "en-key-ok")
    assert record["extra"]["entityId"] == "monkey"
    assert b"key 1234" in flaw.raw


@pytest.mark.parametrize("store", STORES)
async def test_a_cut_body_keeps_its_whole_records(
    tmp_path: Path, standin: Standin, store: str
) -> None:
    body = page(*(report(str(n)) for n in range(20)))
    third = body.index(b'{"messageId":"3"')
    answers = [Raw(body, cut=third + 5), page(report("20")), EMPTY]
    url = standin.answer("info", answers)
    async with hasty(configured(tmp_path, infobip(url), store=store)) as poller:
        await until(lambda: len(lines(tmp_path)) == 4)
        assert len(await causes(poller)) <= 1
    assert [record["message_id"] for record in lines(tmp_path)] == ["0", "1", "2", "20"]


async def test_by_id_where_nothing_is_drained(tmp_path: Path, standin: Standin) -> None:
    def answer(asked: Asked) -> Answer:
        if "bulkId" in asked.query:
            return page(report("b1", bulkId="B"), report("b2", bulkId="B")) if asked.number else b""
        return page(report("m1")) if asked.query["messageId"] == "m1" else EMPTY

    url = standin.answer("info", answer)
    config = configured(tmp_path, infobip(url, drain=False))
    async with hasty(config) as poller:
        await anyio.sleep(0.15)
        assert standin.asked["info"] == []  # there is no feed
        await poller.track("info", message_id="m1", reference="one")
        await poller.track("info", message_id="m2", recipient="+41 79 302 67 28", reference="two")
        await poller.track("info", batch_id="B", reference="bulk")
        assert await until_idle(poller, 5) == []
        await balanced(poller)
    queries = [asked.query for asked in standin.asked["info"]]
    assert queries.count({"messageId": "m1", "limit": "1000"}) == 1
    assert queries.count({"messageId": "m2", "limit": "1000"}) == 2  # both rungs
    assert queries.count({"bulkId": "B", "limit": "1000"}) == 1
    found = {record["message_id"]: record for record in lines(tmp_path)}
    assert {name: (one["state"], one["reference"]) for name, one in found.items()} == {
        "m1": ("delivered", "one"),
        "m2": ("unknown", "two"),
        "b1": ("delivered", "bulk"),
        "b2": ("delivered", "bulk"),
    }
    assert found["m2"]["verdict"] == "never_reported"
    assert found["m2"]["msisdn"] == "41793026728"


async def test_a_bulk_with_recipients_waits_for_each(tmp_path: Path, standin: Standin) -> None:
    one = report("b1", bulkId="B", to="41790000001")
    two = report("b2", bulkId="B", to="41790000002")
    url = standin.answer("info", [page(one), page(two), EMPTY])
    ladder = [f"{n * 100}ms" for n in range(20)]
    account = infobip(url, drain=False, schedule={"ladder": ladder})
    async with hasty(configured(tmp_path, account)) as poller:
        await poller.track("info", batch_id="B", recipients=["41790000001", "+41790000002"])
        assert await until_idle(poller, 5) == []
    assert len(standin.asked["info"]) == 2
    assert [record["message_id"] for record in lines(tmp_path)] == ["b1", "b2"]


@pytest.mark.parametrize("store", STORES)
async def test_tracked_on_a_drained_account(tmp_path: Path, standin: Standin, store: str) -> None:
    """The feed brings it, `track` gives it the reference; the ladder's end gives the verdict."""
    pending = report("m2", "PENDING_ENROUTE")
    ready: list[Any] = []
    url = standin.answer("info", lambda _: page(*(ready.pop() for _ in range(len(ready)))))
    account = infobip(url)
    async with hasty(configured(tmp_path, account, store=store)) as poller:
        for name in ("m1", "m2", "m3"):
            await poller.track("info", message_id=name, reference=f"order-{name}")
        ready.extend([report("m1"), pending])
        assert await until_idle(poller, 5) == []
        ready.append(report("m3", second=9))  # a correction after the verdict
        await until(lambda: len(lines(tmp_path)) == 5)
        await balanced(poller)
        counts = (await tallies(poller))["info"]
        assert (counts["known"], counts["final"]) == (3, 3)
    found = [(r["message_id"], r["state"], r["verdict"], r["revision"]) for r in lines(tmp_path)]
    assert sorted(found, key=str) == [
        ("m1", "delivered", None, 1),
        ("m2", "enroute", "last_known", 2),
        ("m2", "enroute", None, 1),
        ("m3", "delivered", None, 2),
        ("m3", "unknown", "never_reported", 1),
    ]
    assert all(r["reference"] == f"order-{r['message_id']}" for r in lines(tmp_path))
    assert all(asked.pairs == [("limit", "1000")] for asked in standin.asked["info"])


async def test_operator_then_handset(tmp_path: Path, standin: Standin) -> None:
    answers = [
        page(report("m", "DELIVERED_TO_OPERATOR", 1)),
        page(report("m", "DELIVERED_TO_HANDSET", 2)),
        page(report("m", "DELIVERED_TO_OPERATOR", 1), report("m", "DELIVERED_TO_HANDSET", 2)),
        EMPTY,
    ]
    url = standin.answer("info", answers)
    async with hasty(configured(tmp_path, infobip(url))):
        await until(lambda: len(standin.asked["info"]) >= 4)
        await until(lambda: len(lines(tmp_path)) == 2)
    records = lines(tmp_path)
    assert [(r["state"], r["final"], r["revision"]) for r in records] == [
        ("enroute", False, 1),
        ("delivered", True, 2),
    ]
    assert records[0]["event_id"] == identity(records[0], 1717149601000)
    assert records[1]["event_id"] == identity(records[1], 1717149602000)


async def test_what_is_older_loses(tmp_path: Path, standin: Standin) -> None:
    """The later status time wins, in whatever order reports come; a loser writes no record."""
    answers = [
        page(report("m", "UNDELIVERABLE_NOT_DELIVERED", 5), report("m", "DELIVERED_TO_HANDSET", 3)),
        page(report("m", "PENDING_ENROUTE", 9)),
        page(report("m", "DELIVERED_TO_HANDSET", 7)),
        EMPTY,
    ]
    url = standin.answer("info", answers)
    async with hasty(configured(tmp_path, infobip(url))) as poller:
        await until(lambda: len(lines(tmp_path)) == 2)
        await anyio.sleep(0.1)
        assert (await tallies(poller))["info"]["superseded"] == 2
    states = [(record["state"], record["done_at"]) for record in lines(tmp_path)]
    assert states == [("undeliverable", "2024-05-31T10:00:05.000Z"),
                      ("delivered", "2024-05-31T10:00:07.000Z")]  # fmt: skip


async def test_version_3_names(tmp_path: Path, standin: Standin) -> None:
    one = {
        "bulkId": "", "messageId": "33640241674303572142", "destination": "41793026727",
        "sender": "ACME", "sentAt": "2024-05-31T12:00:00.000+02:00", "messageCount": 2,
        "doneAt": "2024-05-31T10:00:01Z", "mccMnc": "null", "callbackData": "order-1",
        "price": {"pricePerMessage": 1e-05, "currency": "EUR"},
        "platform": {"entityId": "e"}, "new": {"tomorrow": [1]},
        "status": {"groupName": "EXPIRED", "name": "EXPIRED_EXPIRED"},
        "error": {"id": 27, "name": "EC_ABSENT_SUBSCRIBER", "permanent": False},
    }  # fmt: skip
    url = standin.answer("info", [page(one), EMPTY])
    async with hasty(configured(tmp_path, infobip(url, path="/sms/3/reports"))):
        await until(lambda: lines(tmp_path))
    (record,) = lines(tmp_path)
    assert standin.asked["info"][0].path == "/sms/3/reports"
    expected = {
        "message_id": "33640241674303572142", "batch_id": None, "recipient": "41793026727",
        "sender": "ACME", "sent_at": "2024-05-31T10:00:00.000Z", "parts": 2, "mcc_mnc": None,
        "done_at": "2024-05-31T10:00:01.000Z", "reference": "order-1", "price": "0.00001",
        "state": "expired", "error_code": "EC_ABSENT_SUBSCRIBER", "error_permanent": False,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["extra"]["platform"] == {"entityId": "e"}
    assert record["extra"]["new"] == {"tomorrow": [1]}
