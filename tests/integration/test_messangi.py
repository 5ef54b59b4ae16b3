"""Messangi end to end: windows without pages, split until they are complete; logging in."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.idle import until_idle
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    configured,
    hasty,
    lines,
    messangi,
    read_to_end,
    until,
)
from tests.integration.standin import Answer, Asked, Raw, Standin, json_of

DAY_MS = 86_400_000
BEGIN = 1_717_200_000_000  # 2024-06-01T00:00:00Z
HOUR = {"start": "2024-06-01T00:00:00Z", "end": "2024-06-01T01:00:00Z"}
LOGIN = {"username": "john", "password": "pa55-canary"}


def iso(at: int) -> str:
    return f"{datetime.fromtimestamp(at // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def item(n: int, at: int, channel: str = "S", status: str = "DELIVRD") -> dict[str, Any]:
    return {
        "channel": channel, "sender": "SIM", "recipient": f"+52550000{n:04d}", "date": iso(at),
        "campaignid": "1", "status": status, "statusdate": iso(at + 500), "content": "secret",
        "platform": None, "subject": None, "direction": "O", "subscriberid": None,
    }  # fmt: skip


def log_of(items: list[dict[str, Any]], total: int | None = None) -> bytes:
    return json_of({
        "meta": {"timestamp": 1717300000000},
        "pagination": {"total": len(items) if total is None else total},
        "items": items,
    })  # fmt: skip


def refusal(words: str) -> bytes:
    return json_of({"meta": {"timestamp": 1717300000000, "explain": words}})


class Log:
    """The log, that shows at most `cap` items of a window and refuses more than `most`."""

    def __init__(self, items: list[dict[str, Any]], cap: int = 10**9, most: int = 10**9) -> None:
        self.items = items
        self.cap = cap
        self.most = most

    def __call__(self, asked: Asked) -> Answer:
        begin, end = ms(asked.query["from"]), ms(asked.query["to"])
        if end - begin > 92 * DAY_MS:
            return refusal("The date range exceeds the allowed limit: 92")
        found = [
            one
            for one in self.items
            if begin <= ms(one["date"]) <= end
            and one["channel"] == asked.query.get("channel", one["channel"])
        ]
        if len(found) > self.most:
            return refusal("The size of the report is too big. Please contact support")
        return log_of(found[: self.cap], len(found))


async def read_once(
    folder: Path, standin: Standin, log: Any, **keys: Any
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    return await read_to_end(folder, messangi(standin.answer("omni", log), **{**HOUR, **keys}))


def each_once(records: list[dict[str, Any]], count: int) -> None:
    found = sorted(record["recipient"] for record in records)
    assert found == [f"+52550000{n:04d}" for n in range(count)]
    assert len({record["message_id"] for record in records}) == count


def spread(count: int) -> list[dict[str, Any]]:
    return [item(n, BEGIN + 1000 + n * 3_500_000 // count) for n in range(count)]


async def test_the_query_is_as_documented(tmp_path: Path, standin: Standin) -> None:
    await read_once(tmp_path, standin, Log(spread(3)), filters={"campaignID": "1"})
    (asked,) = standin.asked["omni"]
    assert (asked.method, asked.path) == ("GET", "/v3/mlog")
    assert asked.pairs == [
        ("from", "2024-06-01T00:00:00.000Z"),
        ("to", "2024-06-01T01:00:00.000Z"),
        ("pretty", "true"),
        ("campaignID", "1"),
    ]
    assert asked.headers["authorization"] == "Bearer h3ader-canary"


async def test_a_report_that_is_too_big_is_halved(tmp_path: Path, standin: Standin) -> None:
    records, troubles = await read_once(tmp_path, standin, Log(spread(60), most=10))
    each_once(records, 60)
    assert troubles == []
    spans = [(ms(a.query["from"]), ms(a.query["to"])) for a in standin.asked["omni"]]
    assert spans[1] == (BEGIN, BEGIN + 1_800_000)


async def test_fewer_items_than_the_total(tmp_path: Path, standin: Standin) -> None:
    records, troubles = await read_once(tmp_path, standin, Log(spread(60), cap=10))
    each_once(records, 60)
    assert troubles == []


async def test_split_to_a_millisecond_and_by_channel(tmp_path: Path, standin: Standin) -> None:
    """Six messages in one millisecond, one answer shows three: only the channels are left."""
    at = BEGIN + 1_234_567
    items = [item(n, at, "SEWSEW"[n]) for n in range(6)]
    records, troubles = await read_once(tmp_path, standin, Log(items, cap=3))
    each_once(records, 6)
    assert troubles == []
    by_channel = [a.query["channel"] for a in standin.asked["omni"] if "channel" in a.query]
    assert set(by_channel) == set("SEPWR")
    narrow = [ms(a.query["to"]) - ms(a.query["from"]) for a in standin.asked["omni"]]
    assert min(narrow) == 1


async def test_what_cannot_be_split_is_an_incident(tmp_path: Path, standin: Standin) -> None:
    items = [item(n, BEGIN + 1_234_567) for n in range(4)]
    records, troubles = await read_once(tmp_path, standin, Log(items, cap=3))
    each_once(records, 3)
    assert {kind for kind, _ in troubles} == {"short_window"}


async def test_ranges_are_never_too_long(tmp_path: Path, standin: Standin) -> None:
    days = [item(n, BEGIN - (400 - n) * DAY_MS) for n in range(400)]
    account = messangi(standin.answer("omni", Log(days)), start="2023-04-01T00:00:00Z",
                       end="2024-06-01T00:00:00Z")  # fmt: skip
    async with hasty(configured(tmp_path, account)) as poller:
        assert await until_idle(poller, 5) == []
    each_once(lines(tmp_path), 400)
    spans = [(ms(a.query["from"]), ms(a.query["to"])) for a in standin.asked["omni"]]
    assert len(spans) == 5
    assert all(end - begin <= 91 * DAY_MS for begin, end in spans)
    assert all(begin <= end for (_, end), (begin, _) in pairwise(spans))
    assert spans[-1][1] == BEGIN


async def test_channels_are_read_on_their_own(tmp_path: Path, standin: Standin) -> None:
    items = [item(n, BEGIN + n * 1000, "SEPWR"[n % 5]) for n in range(10)]
    records, _ = await read_once(tmp_path, standin, Log(items), channels=["S", "W"])
    assert {record["channel"] for record in records} == {"sms", "whatsapp"}
    assert len(records) == 4
    assert [a.query["channel"] for a in standin.asked["omni"]] == ["S", "W"]


async def test_read_follows_delivered_on_channels_with_receipts(
    tmp_path: Path, standin: Standin
) -> None:
    """A delivered WhatsApp message stays open to rescans; a delivered SMS does not."""
    chat, text = item(0, BEGIN + 10, "W", "DELIVERED"), item(1, BEGIN + 2_000_000)
    log = Log([chat, text])
    url = standin.answer("omni", log)
    schedule = {"interval": "50ms", "rescan": ["200ms", "400ms"]}
    async with hasty(configured(tmp_path, messangi(url, **HOUR, schedule=schedule))) as poller:
        await until(lambda: len(lines(tmp_path)) == 2)
        chat.update(status="READ", statusdate=iso(BEGIN + 9000))
        await until(lambda: len(lines(tmp_path)) == 3)
        assert await until_idle(poller, 5) == []
    assert [(r["state"], r["revision"]) for r in lines(tmp_path)] == [
        ("delivered", 1),
        ("delivered", 1),
        ("read", 2),
    ]
    assert len(standin.asked["omni"]) == 2


@pytest.mark.parametrize("store", STORES)
async def test_one_login_for_all(tmp_path: Path, standin: Standin, store: str) -> None:
    """Tokens run out while several requests are under way: one login, then all go on."""
    logins: list[Asked] = []
    valid = {"Bearer token-1"}

    def log_in(asked: Asked) -> Answer:
        logins.append(asked)
        return Raw(b"", headers={"authorization": f"Bearer token-{len(logins)}"}, wait_s=0.05)

    def answer(asked: Asked) -> Answer:
        if asked.headers.get("authorization") not in valid:
            return Raw(json_of({"message": "expired"}), 401)
        return log_of([])

    login_url = standin.answer("login", log_in) + "/kingslanding/login"
    account = messangi(
        standin.answer("omni", answer), headers={}, login_url=login_url, lookback="10s",
        limits={"requests": 1000, "per": "1s", "concurrency": 4}, **LOGIN,
    )  # fmt: skip
    async with hasty(configured(tmp_path, account, store=store)) as poller:
        await until(lambda: len(standin.asked["omni"]) >= 3)
        assert len(logins) == 1  # the token is kept
        valid.clear()
        valid.add("Bearer token-2")
        asked = len(standin.asked["omni"])
        async with anyio.create_task_group() as probes:
            for n in range(4):
                probes.start_soon(poller.pollers["omni"].probe, str(n))
        await until(lambda: len(standin.asked["omni"]) >= asked + 8)
        assert len(logins) == 2
        assert poller.pollers["omni"].health.failing is None
        assert poller.pollers["omni"].health.paused is None
    assert logins[0].method == "POST"
    assert logins[0].path == "/kingslanding/login"
    assert logins[0].body == json_of(LOGIN)
    assert standin.asked["omni"][-1].headers["authorization"] == "Bearer token-2"


async def test_a_fresh_token_that_is_refused_pauses(tmp_path: Path, standin: Standin) -> None:
    login = standin.answer("login", [Raw(b"", headers={"authorization": "Bearer t"})])
    url = standin.answer("omni", [Raw(b"{}", 401)])
    account = messangi(url, headers={}, login_url=login + "/in", lookback="10s", **LOGIN)
    async with hasty(configured(tmp_path, account)) as poller:
        await until(lambda: poller.pollers["omni"].health.paused)
        await anyio.sleep(0.2)
    assert len(standin.asked["omni"]) == 2
    assert len(standin.asked["login"]) == 2


async def test_a_login_that_is_refused_pauses(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    login = standin.answer("login", [Raw(json_of({"message": "bad pa55-canary"}), 403)])
    url = standin.answer("omni", [log_of([])])
    account = messangi(url, headers={}, login_url=login + "/in", lookback="10s", **LOGIN)
    async with hasty(configured(tmp_path, account)) as poller:
        await until(lambda: poller.pollers["omni"].health.paused)
        await anyio.sleep(0.2)
    assert (len(standin.asked["omni"]), len(standin.asked["login"])) == (0, 1)
    assert "pa55-canary" not in caplog.text


async def test_a_refusal_in_words_under_200(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("omni", [refusal("Invalid credentials"), log_of([item(0, BEGIN + 5)])])
    other = standin.answer("bot", lambda _: json_of({"total_entries": 0, "entries": []}))
    accounts = messangi(url, **HOUR), avaamo(other, lookback="5s")
    async with hasty(configured(tmp_path, *accounts)) as poller:
        await until(lambda: poller.pollers["omni"].health.paused == "Invalid credentials")
        before = len(standin.asked["bot"])
        await until(lambda: len(standin.asked["bot"]) >= before + 3)
        assert poller.pollers["bot"].health.paused is None
    assert len(standin.asked["omni"]) == 1


@pytest.mark.parametrize("store", STORES)
async def test_letters_and_pretty_are_the_same_facts(
    tmp_path: Path, standin: Standin, store: str
) -> None:
    """Read one way, then the other, with one store: nothing is recorded again."""
    letters = {"channel": "a", "sender": "b", "recipient": "c", "date": "d", "campaignid": "i",
               "status": "j", "statusdate": "k", "content": "l", "platform": "r", "subject": "s",
               "direction": "t", "subscriberid": "u"}  # fmt: skip
    now = round(time.time() * 1000)
    items = [item(n, now - 20_000 + n * 1000, "SEPWR"[n % 5]) for n in range(10)]

    def answer(asked: Asked) -> Answer:
        if asked.query["pretty"] == "true":
            return log_of(items)
        short = [{letters[name]: value for name, value in one.items()} for one in items]
        return log_of([one | {"c": one["c"].removeprefix("+")} for one in short])

    url = standin.answer("omni", answer)
    for pretty in (True, False):
        account = messangi(url, lookback="1h", overlap="1h", pretty=pretty)
        folder = tmp_path / str(pretty) if store == "memory://" else tmp_path
        async with hasty(configured(folder, account, store=store)) as poller:
            assert await until_idle(poller, 5) == []
            await balanced(poller)
        assert len(lines(folder)) == 10
    assert {asked.query["pretty"] for asked in standin.asked["omni"]} == {"true", "false"}
    if store == "memory://":
        ids = [{r["event_id"] for r in lines(tmp_path / name)} for name in ("True", "False")]
        assert ids[0] == ids[1]


async def test_a_login_that_fails_is_one_failure_for_all_who_wait(
    tmp_path: Path, standin: Standin
) -> None:
    login = standin.answer("login", [Raw(b"", 500, wait_s=0.2)])
    limits = {"requests": 1000, "per": "1s", "concurrency": 6}
    account = messangi(
        standin.answer("omni", [log_of([])]), headers={}, login_url=login + "/in", limits=limits,
        channels=["S", "E", "P", "W", "R"], **LOGIN,
    )  # fmt: skip
    async with hasty(configured(tmp_path, account)) as poller:
        health = poller.pollers["omni"].health
        await until(lambda: health.failing)
        assert (health.failing, health.failures) == ("the login answered HTTP 500", 1)
    assert not standin.asked["omni"]
