"""The four simulated providers, against their documents' shapes, under a clock that is set."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from engine.sim import AccountProfile, Delays, Generate, Mix, Profile, Simulator

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def simulator(clock: Clock, **keys: Any) -> Simulator:
    keys.setdefault("name", keys["provider"])
    return Simulator(Profile([AccountProfile(**keys)]), clock=clock, rand=random.Random(1))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def get(http: aiohttp.ClientSession, url: str, **keys: Any) -> tuple[int, bytes]:
    async with http.get(url, **keys) as answer:
        return answer.status, await answer.read()


# -- bulksms -------------------------------------------------------------------------------

BULK = "/status_reports/get_report/2/2.0"
JOHN = {"username": "john", "password": "abcd"}


async def test_bulksms_rows_follow_the_clock(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="bulksms", **JOHN) as sim:
        url = sim.url("bulksms") + BULK
        sent = sim.send(
            "bulksms", recipients=["447700900001"] * 2, plan=[(0, "0"), (5, "10"), (60, "11")]
        )
        sim.send("bulksms", recipients=["447700900002"], batch=sent.batch_id, plan=[])
        assert sent.batch_id is not None
        assert sent.batch_id.isdigit()
        assert sent.message_ids[1] == f"{sent.batch_id}:447700900001#2"
        ask = {**JOHN, "batch_id": sent.batch_id}
        head = b"0|Returns to follow\n\n"
        assert await get(http, url, params=ask) == (200, head + b"447700900001|0\n" * 2)
        clock.now += 60
        async with http.post(url, data=ask) as answer:
            assert answer.content_type == "text/plain"
            assert await answer.read() == head + b"447700900001|11\n" * 2
        none = {**ask, "msisdn": "447700900002"}
        assert await get(http, url, params=none) == (200, head)
        truth = sim.truth("bulksms")
        assert [(t.state, t.final, t.verdict) for t in truth] == [
            ("delivered", True, None),
            ("delivered", True, None),
            ("unknown", False, "never_reported"),
        ]


async def test_bulksms_optional_fields_in_the_order_asked(
    clock: Clock, http: aiohttp.ClientSession
) -> None:
    async with simulator(clock, provider="bulksms", charset="latin-1", **JOHN) as sim:
        sent = sim.send("bulksms", recipients=["1", "2"], reference="r1", plan=[(1, "11")])
        clock.now += 2
        ask = {
            **JOHN,
            "batch_id": sent.batch_id,
            "optional_fields": "source_id,completed_time,body",
        }
        _, body = await get(http, sim.url("bulksms") + BULK, params=ask)
        rows = body.decode("latin-1").splitlines()[2:]
        # the first message's network does not tell the time; the second's body has a bar
        assert rows == ["1|11|r1||Your code is 4711", "2|11|r1|27-01-15 08:00:01|Hello | world"]


async def test_bulksms_refusals_come_with_200(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="bulksms", faults=["ok", "ok", "error40"], **JOHN) as sim:
        url = sim.url("bulksms") + BULK
        wrong = {**JOHN, "password": "x", "batch_id": "1"}
        assert await get(http, url, params=wrong) == (
            200,
            b"23|invalid credentials (username was: john)|\n",
        )
        ask = {**JOHN, "batch_id": "1"}
        assert (await get(http, url, params=ask))[1].startswith(b"24|")
        assert (await get(http, url, params=ask))[1].startswith(b"40|")
        assert sim.counts("bulksms").unauthorized == 1


# -- infobip -------------------------------------------------------------------------------

APP = {"Authorization": "App key"}
OPERATOR, HANDSET = "DELIVERED_TO_OPERATOR", "DELIVERED_TO_HANDSET"


async def reports(http: aiohttp.ClientSession, url: str, **params: str) -> list[dict[str, Any]]:
    status, body = await get(http, url, params=params, headers=APP)
    assert status == 200, body
    found: list[dict[str, Any]] = orjson.loads(body)["results"]
    return found


async def test_infobip_gives_each_change_once(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="infobip", api_key="key") as sim:
        url = sim.url("infobip") + "/sms/1/reports"
        sent = sim.send("infobip", 1, reference="cb", plan=[(1, OPERATOR), (9, HANDSET)])
        assert await reports(http, url) == []
        clock.now += 2
        (first,) = await reports(http, url)
        assert first["messageId"] == sent.message_ids[0]
        assert first["bulkId"] == sent.batch_id
        assert first["status"]["name"] == OPERATOR
        assert first["status"]["groupId"] == 3
        assert first["error"]["groupName"] == "Ok"
        assert first["doneAt"] == "2027-01-15T08:00:01.000+0000"
        assert first["callbackData"] == "cb"
        assert await reports(http, url) == []
        clock.now += 10
        (second,) = await reports(http, url)
        assert second["status"]["name"] == HANDSET
        given = sim.given("infobip")
        assert [(g.status, g.on_wire, g.whole) for g in given] == [
            (OPERATOR, True, True),
            (HANDSET, True, True),
        ]
        assert [t.state for t in sim.truth("infobip")] == ["delivered"]


async def test_infobip_limits_filters_and_horizon(
    clock: Clock, http: aiohttp.ClientSession
) -> None:
    async with simulator(clock, provider="infobip", api_key="key") as sim:
        url = sim.url("infobip") + "/sms/1/reports"
        bulk = sim.send("infobip", 120, plan=[(1, HANDSET)])
        other = sim.send("infobip", 3, plan=[(1, HANDSET)])
        clock.now += 1
        picked = await reports(http, url, messageId=bulk.message_ids[7])
        assert [r["messageId"] for r in picked] == [bulk.message_ids[7]]
        assert other.batch_id is not None
        assert len(await reports(http, url, bulkId=other.batch_id)) == 3
        page = await reports(http, url)
        assert [r["messageId"] for r in page] == bulk.message_ids[:69:-1]
        assert (await get(http, url, params={"limit": "1001"}, headers=APP))[0] == 400
        assert sim.counts("infobip").waiting == 69
        clock.now += 48 * 3600 + 1
        assert await reports(http, url, limit="1000") == []
        counts = sim.counts("infobip")
        assert (counts.waiting, counts.lapsed, counts.given) == (0, 69, 54)


async def test_infobip_v3_names_and_errors(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="infobip", api_key="key", dates="colon") as sim:
        url = sim.url("infobip")
        sim.send("infobip", 1, plan=[(0, HANDSET)])
        clock.now += 1
        (row,) = await reports(http, url + "/sms/3/reports")
        assert row["sender"] == "SIM"
        assert row["messageCount"] == 1
        assert row["platform"]["entityId"] == "my-entity-id"
        assert row["sentAt"] == "2027-01-15T08:00:00.000+00:00"
        status, body = await get(http, url + "/sms/3/reports")
        assert (status, orjson.loads(body)["errorCode"]) == (401, "E401")
        status, body = await get(http, url + "/sms/1/reports")
        error = orjson.loads(body)["requestError"]["serviceException"]
        assert (status, error["messageId"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    ("keys", "header"),
    [
        ({"ibsso": "t"}, "IBSSO t"),
        ({"bearer": "t"}, "Bearer t"),
        ({"authorization": "Custom x"}, "Custom x"),
        ({"username": "a", "password": "b"}, "Basic YTpi"),
    ],
)
async def test_infobip_ways_in(
    clock: Clock, http: aiohttp.ClientSession, keys: dict[str, str], header: str
) -> None:
    async with simulator(clock, provider="infobip", **keys) as sim:
        url = sim.url("infobip") + "/sms/1/reports"
        assert (await get(http, url, headers={"Authorization": header}))[0] == 200
        assert (await get(http, url, headers={"Authorization": header + "x"}))[0] == 401


# -- avaamo --------------------------------------------------------------------------------

AVAAMO = "/api/v1/agents/5157/sms/report.json"


async def page(http: aiohttp.ClientSession, url: str, **params: str) -> dict[str, Any]:
    status, body = await get(http, url, params=params, headers={"access-token": "t"})
    assert status == 200, body
    found: dict[str, Any] = orjson.loads(body)
    return found


async def test_avaamo_pages_of_a_window(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="avaamo", access_token="t", clock_skew=2.5) as sim:
        url = sim.url("avaamo") + AVAAMO
        ids = [
            sim.send("avaamo", 1, sent_at=NOW - 100 + n, plan=[(0, "sent"), (500, "delivered")])
            for n in range(60)
        ]
        span = {"from_timetoken": str(NOW - 100), "to_timetoken": str(int(NOW - 50))}
        first = await page(http, url, **span)
        assert first["time_token"] == NOW + 2.5
        assert (first["total_entries"], first["total_pages"], first["per_page"]) == (51, 3, 25)
        third = await page(http, url, **span, page="3")
        assert [e["uuid"] for e in third["entries"]] == [ids[0].message_ids[0]]
        assert third["entries"][0]["created_at"] == NOW - 100
        assert third["entries"][0]["sms_status"] == "sent"
        capped = await page(http, url, from_timetoken="0", per_page="500")
        assert capped["per_page"] == 100
        latest = await page(http, url)
        assert [e["uuid"] for e in latest["entries"]] == [s.message_ids[0] for s in ids[:56:-1]]
        clock.now += 1000
        done = await page(http, url, **span, status="delivered")
        assert done["total_entries"] == 51


async def test_avaamo_refusals_and_filters(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="avaamo", access_token="t") as sim:
        url = sim.url("avaamo") + AVAAMO
        sim.send("avaamo", recipients=["+1(777) 888-9999", "+15550001111"], plan=[(0, "failed")])
        back = {"from_timetoken": "10", "to_timetoken": "5"}
        assert await get(http, url, params=back, headers={"access-token": "t"}) == (
            422,
            b'{"error":"To Date cannot be before From Date"}',
        )
        assert (await get(http, url))[0] == 401
        found = await page(http, url, from_timetoken="0", to_phone="+17778889999")
        assert [e["to_phone"] for e in found["entries"]] == ["+1(777) 888-9999"]
        assert found["entries"][0]["sms_status_response"]


async def test_avaamo_rows_turn_up_while_pages_are_read(
    clock: Clock, http: aiohttp.ClientSession
) -> None:
    async with simulator(clock, provider="avaamo", access_token="t", total_moves=2) as sim:
        url = sim.url("avaamo") + AVAAMO
        sim.send("avaamo", 30, sent_at=NOW - 10)
        span = {"from_timetoken": str(NOW - 60), "to_timetoken": str(NOW)}
        one = await page(http, url, **span)
        two = await page(http, url, **span, page="2")
        again = await page(http, url, **span)
        assert [p["total_entries"] for p in (one, two, again)] == [30, 31, 32]
        # the last row of page 1 was pushed to page 2
        assert two["entries"][0]["uuid"] == one["entries"][-1]["uuid"]


async def test_avaamo_lies(clock: Clock, http: aiohttp.ClientSession) -> None:
    keys = {"ignore_page": True, "global_total": True, "delays": Delays(listed=30)}
    async with simulator(clock, provider="avaamo", access_token="t", **keys) as sim:
        url = sim.url("avaamo") + AVAAMO
        sim.send("avaamo", 2)
        early = await page(http, url, from_timetoken="0", page="9")
        assert (early["current_page"], early["total_entries"], early["entries"]) == (1, 2, [])
        clock.now += 30
        assert len((await page(http, url, from_timetoken="0"))["entries"]) == 2


# -- messangi ------------------------------------------------------------------------------

DAY = {"from": "2027-01-15T00:00:00.000Z", "to": "2027-01-16T00:00:00.000Z"}


async def mlog(http: aiohttp.ClientSession, sim: Simulator, **params: str) -> dict[str, Any]:
    auth = {"Authorization": "Token t"}
    status, body = await get(http, sim.url("messangi") + "/v3/mlog", params=params, headers=auth)
    assert status == 200, body
    found: dict[str, Any] = orjson.loads(body)
    return found


async def test_messangi_long_and_short(clock: Clock, http: aiohttp.ClientSession) -> None:
    async with simulator(clock, provider="messangi", authorization="Token t") as sim:
        for channel in "SEPWR":
            sim.send("messangi", 1, channel=channel, sent_at=NOW, plan=[(0.026, "SENT")])
        sim.send("messangi", 1, channel="W", direction="I", sent_at=NOW)
        clock.now += 1
        long = await mlog(http, sim, **DAY, pretty="true")
        assert long["pagination"] == {"total": 6}
        assert isinstance(long["meta"]["timestamp"], int)
        sms = long["items"][-1]
        assert sms["date"] == "2027-01-15T08:00:00.000Z"
        assert sms["statusdate"] == "2027-01-15T08:00:00.026Z"
        assert {type(i["campaignid"]) for i in long["items"]} == {str, int}
        assert long["items"][0]["direction"] == "I"
        short = await mlog(http, sim, **DAY, pretty="false", channel="W")
        assert [i["c"] for i in short["items"]] == [
            "+" + i["recipient"] for i in long["items"] if i["channel"] == "W"
        ]
        assert sorted(short["items"][0]) == sorted("abcdefghijklmnoprstuvw")
        push = [t for t in sim.truth("messangi") if t.channel == "P"]
        assert [(t.state, t.final) for t in push] == [("enroute", True)]
        one = await mlog(http, sim, **DAY, status="SENT,READ", recipient=sms["recipient"])
        assert [i["channel"] for i in one["items"]] == ["S"]


async def test_messangi_mails_an_export(clock: Clock, http: aiohttp.ClientSession) -> None:
    """A row for each item of the long form, in the page's columns."""
    async with simulator(clock, provider="messangi", authorization="Token t") as sim:
        for channel in "SEPWR":
            sim.send("messangi", 2, channel=channel, sent_at=NOW)
        shown = (await mlog(http, sim, **DAY))["items"]
        url, auth = sim.url("messangi") + "/v3/mlog", {"Authorization": "Token t"}
        mailed = sim.base_url + "/_sim/mailed/messangi"
        order = {"emails": ["a@example.com"], "from": "b@example.com", "timezone": "GMT"}
        async with http.post(url, params=DAY, json={}, headers=auth) as refused:
            assert refused.status == 400
        assert (await get(http, mailed))[0] == 404
        async with http.post(url, params=DAY, json=order, headers=auth) as answer:
            assert answer.status == 200
            explain = orjson.loads(orjson.loads(await answer.read())["meta"]["explain"])
        assert explain["timeSecAprox"] == "0"
        rows = list(csv.DictReader(io.StringIO((await get(http, mailed))[1].decode(), newline="")))
    assert len(rows) == len(shown) == 10
    for row, item in zip(reversed(rows), shown, strict=True):
        assert row.pop("items.StatusDescription") == ""
        row["Subject"] = row.pop("items.Subject")
        told = {name.capitalize(): "" if v is None else str(v) for name, v in item.items()}
        assert {name.capitalize(): value for name, value in row.items()} == told


async def test_messangi_windows_too_long_too_big_too_short(
    clock: Clock, http: aiohttp.ClientSession
) -> None:
    keys = {"report_max_items": 4, "page_max_items": 2}
    async with simulator(clock, provider="messangi", authorization="Token t", **keys) as sim:
        wide = {"from": "2026-10-01T00:00:00.000Z", "to": "2027-01-15T00:00:00.000Z"}
        refused = await mlog(http, sim, **wide)
        assert refused["meta"]["explain"] == "The date range exceeds the allowed limit: 92"
        assert "items" not in refused
        sim.send("messangi", 4, sent_at=NOW)
        cut = await mlog(http, sim, **DAY)
        assert (len(cut["items"]), cut["pagination"]["total"]) == (2, 4)
        sim.send("messangi", 1, sent_at=NOW - 1)
        big = await mlog(http, sim, **DAY)
        assert big["meta"]["explain"].startswith("The size of the report is too big")
        edge = {"from": "2027-01-15T07:59:59.000Z", "to": "2027-01-15T07:59:59.999Z"}
        assert len((await mlog(http, sim, **edge))["items"]) == 1
        auth = {"Authorization": "Token t"}
        url = sim.url("messangi") + "/v3/mlog"
        assert (await get(http, url, headers=auth))[0] == 400


async def test_messangi_tokens_expire(clock: Clock, http: aiohttp.ClientSession) -> None:
    keys = {"username": "u", "password": "p", "token_life": 100}
    async with simulator(clock, provider="messangi", **keys) as sim:
        url = sim.url("messangi")
        async with http.post(url + "/login", json={"username": "u", "password": "x"}) as answer:
            assert answer.status == 401
        async with http.post(url + "/login", json={"username": "u", "password": "p"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            token = {"Authorization": answer.headers["authorization"]}
        assert token["Authorization"].startswith("Bearer ")
        clock.now += 99
        assert (await get(http, url + "/v3/mlog", params=DAY, headers=token))[0] == 200
        clock.now += 1
        assert (await get(http, url + "/v3/mlog", params=DAY, headers=token))[0] == 401
        counts = sim.counts("messangi")
        assert (counts.requests, counts.logins, counts.unauthorized) == (4, 1, 2)


async def test_messangi_generates_any_number_of_items(
    clock: Clock, http: aiohttp.ClientSession
) -> None:
    keys = {"authorization": "Token t", "bulk_items": 20_000, "bulk_span": 1000.0}
    async with simulator(clock, provider="messangi", **keys) as sim:
        whole = await mlog(http, sim, **DAY)
        assert whole["pagination"]["total"] == len(whole["items"]) == 20_000
        assert len({i["recipient"] for i in whole["items"]}) == 20_000
        half = {"from": DAY["from"], "to": "2027-01-15T07:51:39.999Z"}
        rest = {"from": "2027-01-15T07:51:40.000Z", "to": DAY["to"], "pretty": "false"}
        low, high = await mlog(http, sim, **half), await mlog(http, sim, **rest)
        assert (len(low["items"]), len(high["items"])) == (10_000, 10_000)
        assert high["items"][0]["d"] == "2027-01-15T07:51:40.000Z"
        assert (await mlog(http, sim, **DAY, channel="E"))["items"] == []


# -- what comes up by itself ---------------------------------------------------------------


async def test_messages_come_up_by_themselves(clock: Clock) -> None:
    mix = Mix(delivered=0.5, undeliverable=0.1, expired=0.1, rejected=0.1, never=0.1, stuck=0.1)
    sim = simulator(
        clock,
        provider="infobip",
        mix=mix,
        time_scale=10.0,
        generate=Generate(count=1000, rate=10.0, since=5.0),
    )
    assert sim.counts("infobip").messages == 60
    clock.now += 1000
    truth = sim.truth("infobip")
    assert len(truth) == 1000
    assert truth[0].sent_at == NOW - 5
    assert {t.state for t in truth} == {
        "delivered",
        "undeliverable",
        "expired",
        "rejected",
        "unknown",
        "enroute",
    }
    assert all(t.final == (t.verdict is None) for t in truth)
    ends = [t.transitions[-1].at - t.sent_at for t in truth if t.state == "delivered"]
    # 20 s, half as much more at most, ten times as fast; the late ones come after
    assert sum(1 <= e <= 3 for e in ends) > 0.9 * len(ends)
    assert max(ends) > 100


async def test_the_same_seed_gives_the_same_life(clock: Clock) -> None:
    profile = Profile([AccountProfile(name="a", provider="messangi", seed=7, channels=["S", "W"])])
    one, two = (Simulator(profile, clock=clock) for _ in range(2))
    assert one.send("a", 50) == two.send("a", 50)
    assert one.truth("a") == two.truth("a")
