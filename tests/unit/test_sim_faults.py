"""Faults, limits and what the oracle knows of them afterwards."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson
import pytest

from engine.sim import AccountProfile, Fault, Limits, Profile, Simulator, Window

HANDSET = "DELIVERED_TO_HANDSET"
NOW = 1_800_000_000.0


def infobip(clock: Any = None, **keys: Any) -> Simulator:
    profile = Profile([AccountProfile(name="i", provider="infobip", **keys)])
    return Simulator(profile, clock=clock or (lambda: NOW), rand=random.Random(3))


def loaded(sim: Simulator, n: int = 50) -> str:
    sim.send("i", n, sent_at=NOW - 100, plan=[(1, HANDSET)])
    return sim.url("i") + "/sms/1/reports"


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_statuses_consume_nothing(status: int) -> None:
    async with infobip(faults=[str(status)]) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        async with http.get(url) as answer:
            assert answer.status == status
            assert "requestError" in await answer.json()
        assert sim.counts("i").waiting == 50
        assert sim.counts("i").statuses == {str(status): 1}
        assert sim.requests("i")[0].fault == str(status)


async def test_retry_after_in_both_forms() -> None:
    script = [Fault("503", retry_after=120), Fault("503", retry_after=60, form="date")]
    async with infobip(faults=script) as sim, aiohttp.ClientSession() as http:
        async with http.get(loaded(sim)) as answer:
            assert answer.headers["Retry-After"] == "120"
        async with http.get(sim.url("i") + "/sms/1/reports") as answer:
            until = parsedate_to_datetime(answer.headers["Retry-After"])
            assert until.timestamp() == NOW + 60


@pytest.mark.parametrize(("kind", "left"), [("reset", 50), ("lost", 0)])
async def test_resets_before_and_after_the_queue_was_read(kind: str, left: int) -> None:
    async with infobip(faults=[kind]) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        with pytest.raises(aiohttp.ClientError):
            await http.post(url)  # a POST is not tried again by the client
        assert sim.counts("i").statuses == {kind: 1}
        sim.script("i", [kind])
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[2][:5]))
        writer.write(b"GET /i/sms/1/reports HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()
        assert sim.counts("i").waiting == left
        assert all(not g.on_wire and not g.whole for g in sim.given("i"))
        assert len(sim.given("i")) == 50 - left


async def drain(answer: aiohttp.ClientResponse, into: bytearray) -> None:
    while chunk := await answer.content.read(1000):
        into += chunk


@pytest.mark.parametrize("kind", ["cut", "cut_chunked"])
@pytest.mark.parametrize("gzip", [False, True])
async def test_a_cut_body_is_known_to_the_report(kind: str, gzip: bool) -> None:
    async with infobip(faults=[kind], gzip=gzip) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        got = bytearray()
        async with http.get(url) as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await drain(answer, got)
        await asyncio.sleep(0.01)
        given = sim.given("i")
        assert len(given) == 50
        assert not any(g.whole for g in given)
        on_wire = [g.message_id for g in given if g.on_wire]
        assert 0 < len(on_wire) < 50
        if not gzip:
            end = b'"applicationId":"my-application-id"}'
            assert bytes(got).count(end) == len(on_wire)
        async with http.get(url) as answer:
            assert await answer.json() == {"results": []}


async def test_spoiled_bodies() -> None:
    kinds = ["html", "empty", "truncated", "bad_encoding", "wrong_type"]
    async with infobip(faults=kinds) as sim, aiohttp.ClientSession() as http:
        bodies, types = [], []
        for _ in kinds:
            async with http.get(loaded(sim, 4)) as answer:
                assert answer.status == 200
                bodies.append(await answer.read())
                types.append(answer.content_type)
        html, empty, truncated, wrong, typed = bodies
        assert html.startswith(b"<!DOCTYPE")
        assert types[0] == "text/html"
        assert empty == b""
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(truncated)
        with pytest.raises(UnicodeDecodeError):
            wrong.decode()
        assert len(orjson.loads(wrong.decode("latin-1"))["results"]) == 4
        assert len(orjson.loads(typed)["results"]) == 4
        assert types[4] == "application/octet-stream"
        given = sim.given("i")
        by_answer = {n: [g for g in given if g.answer == n] for n in range(1, 6)}
        # the page in the middle consumed nothing: the next answer had both messages' reports
        assert [len(by_answer[n]) for n in range(1, 6)] == [0, 8, 4, 4, 4]
        assert not any(g.on_wire for g in by_answer[2])
        assert [g.on_wire for g in by_answer[3]].count(True) == 1
        assert not any(g.whole for g in by_answer[3])
        assert all(g.whole and g.on_wire for g in by_answer[4] + by_answer[5])


async def test_redirects_and_where_credentials_go() -> None:
    kinds = ["redirect", "ok", "redirect_away", "redirect_away"]
    async with infobip(faults=kinds, api_key="k") as sim, aiohttp.ClientSession() as http:
        url, auth = loaded(sim), {"Authorization": "App k"}
        async with http.get(url, headers=auth, params={"limit": "2"}) as answer:
            assert len((await answer.json())["results"]) == 2
        async with http.get(url, headers=auth) as answer:
            assert answer.status == 404
        assert (sim.counts("i").strayed, sim.counts("i").leaked) == (1, 0)
        async with http.get(url, headers=auth, allow_redirects=False) as answer:
            place = answer.headers["Location"]
        async with http.get(place, headers=auth):
            pass
        assert (sim.counts("i").strayed, sim.counts("i").leaked) == (2, 1)


async def test_slow_and_endless_bodies() -> None:
    script = [Fault("drip", seconds=0.2), "endless"]
    async with infobip(faults=script) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        begun = asyncio.get_running_loop().time()
        async with http.get(url) as answer:
            assert len((await answer.json())["results"]) == 50
        assert asyncio.get_running_loop().time() - begun >= 0.15
        async with http.get(url) as answer:
            for _ in range(50):
                assert await answer.content.readany()
        for _ in range(100):
            if "endless" in sim.counts("i").statuses:
                break
            await asyncio.sleep(0.02)
        assert sim.counts("i").statuses == {"200": 1, "endless": 1}


async def test_gzip_only_where_it_is_accepted() -> None:
    async with infobip(gzip=True) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim, 100)
        async with http.get(url, headers={"Accept-Encoding": "identity"}) as answer:
            assert "Content-Encoding" not in answer.headers
        async with http.get(url, headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert len((await answer.json())["results"]) == 50
        assert all(g.whole for g in sim.given("i"))


async def test_odds_follow_the_dice() -> None:
    async with infobip(odds={"503": 0.5, "html": 0.2}) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        for _ in range(60):
            async with http.get(url) as answer:
                await answer.read()
        counts = sim.counts("i")
        assert 20 <= counts.faults["503"] <= 40
        assert 4 <= counts.faults["html"] <= 20
        assert counts.requests == 60


async def test_limits_are_enforced_and_recorded() -> None:
    times = [NOW]
    limits = Limits(requests=3, per=1.0, slack=0.0, also=[Window(4, 10.0)])
    async with infobip(lambda: times[0], limits=limits) as sim, aiohttp.ClientSession() as http:
        url = loaded(sim)
        seen = []
        for wait in (0.0, 0.1, 0.1, 0.1, 0.85, 0.5):
            times[0] += wait
            async with http.get(url) as answer:
                seen.append((answer.status, answer.headers.get("Retry-After")))
        # the fourth is too much for the second, the last for the ten seconds
        assert seen == [
            (200, None),
            (200, None),
            (200, None),
            (429, "1"),
            (200, None),
            (429, "9"),
        ]
        counts = sim.counts("i")
        assert (counts.worst_window, counts.throttled, counts.max_concurrent) == (4, 2, 1)
        assert [(v.kind, v.seen, v.allowed, v.per) for v in sim.violations("i")] == [
            ("rate", 4, 3, 1.0),
            ("rate", 5, 4, 10.0),
            ("rate", 6, 4, 10.0),
        ]


async def test_concurrency_is_enforced_and_recorded() -> None:
    limits = Limits(concurrency=2, retry_after="none")
    sim = infobip(limits=limits, latency=0.1)
    async with sim, aiohttp.ClientSession() as http:
        url = loaded(sim)

        async def one() -> int:
            async with http.get(url) as answer:
                await answer.read()
                assert "Retry-After" not in answer.headers
                return answer.status

        assert sorted(await asyncio.gather(*(one() for _ in range(3)))) == [200, 200, 429]
        assert await one() == 200
        counts = sim.counts("i")
        assert (counts.max_concurrent, counts.concurrency_violations) == (3, 1)
        assert (counts.violations, counts.rate_violations) == (1, 0)


async def test_a_generated_answer_needs_little_memory() -> None:
    account = AccountProfile(name="m", provider="messangi", bulk_items=20_000)
    sim = Simulator(Profile([account]), clock=lambda: NOW)
    async with sim, aiohttp.ClientSession() as http:
        ask = {"from": "2027-01-15T00:00:00.000Z", "to": "2027-01-16T00:00:00.000Z"}
        tracemalloc.start()
        try:
            size = 0
            async with http.get(sim.url("m") + "/v3/mlog", params=ask) as answer:
                async for chunk in answer.content.iter_any():
                    size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert size > 4_500_000
        assert peak < 2_500_000
        assert sim.counts("m").given == 20_000
