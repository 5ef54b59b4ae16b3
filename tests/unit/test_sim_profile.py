"""Profiles from files, the announced configuration, and the simulator's own paths."""

from __future__ import annotations

import ast
import asyncio
import tomllib
from pathlib import Path

import aiohttp
import pytest

import engine.sim
from engine.sim import AccountProfile, Fault, Profile, Simulator, engine_toml, serve


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sim.toml"
    file.write_text(
        """
        [[accounts]]
        name = "bulk"
        provider = "bulksms"
        username = "john"
        limits = { requests = 10, per = "1s", also = [{ requests = 100, per = "1m" }] }
        faults = ["503", { kind = "429", retry_after = "1.5s" }, "ok"]
        odds = { 503 = 0.1 }
        delays = { final = "2h" }
        """
    )
    (account,) = Profile.load(file).accounts
    assert account.limits.also[0].per == 60.0
    assert account.faults == ["503", Fault("429", retry_after=1.5), "ok"]
    assert account.odds == {"503": 0.1}
    assert account.delays.final == 7200.0


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "sim.toml"
    file.write_text(
        """
        extra = 1
        [[accounts]]
        name = "a b"
        provider = "other"
        usrname = "john"
        limits = { per = "soon", requests = -1 }
        mix = { delivered = 2.0 }
        [[accounts]]
        provider = "avaamo"
        """
    )
    with pytest.raises(ValueError) as caught:
        Profile.load(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    assert all(line.startswith("sim.toml: ") for line in lines)
    assert lines[0] == "sim.toml: extra: unknown key, did you mean 'accounts'?"
    assert "sim.toml: accounts[0].usrname: unknown key, did you mean 'username'?" in lines
    wrong = "sim.toml: accounts[0].limits.per: expected a duration such as \"1s\", got 'soon'"
    assert wrong in lines
    assert "sim.toml: accounts[1].name: is missing" in lines


def test_faults_no_type_can_say(tmp_path: Path) -> None:
    account = AccountProfile(
        name="a", provider="avaamo", faults=["bang"], odds={"500": 0.9, "502": 0.9}, charset="x-no"
    )
    with pytest.raises(ValueError) as caught:
        Profile([account, account])
    text = str(caught.value)
    assert "accounts[1].name: 'a' is there twice" in text
    assert "accounts[0].faults[0]: expected one of" in text
    assert "accounts[0].odds: together more than 1" in text
    assert "accounts[0].charset: 'x-no' is not known" in text
    with pytest.raises(ValueError, match="cannot be read"):
        Profile.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ValueError, match="no TOML"):
        Profile.load(tmp_path / "bad.toml")


def test_the_configuration_fits_the_default_profile() -> None:
    config = tomllib.loads(engine_toml("http://127.0.0.1:1234", Profile.default()))
    accounts = {a["name"]: a for a in config["accounts"]}
    assert list(accounts) == ["bulksms", "infobip", "avaamo", "messangi"]
    assert accounts["bulksms"]["base_url"] == "http://127.0.0.1:1234/bulksms"
    assert accounts["bulksms"]["username"] == "john"
    assert accounts["bulksms"]["limits"] == {"requests": 10, "per": "1s", "concurrency": 1}
    assert accounts["bulksms"]["schedule"]["ladder"][:2] == ["5s", "30s"]
    assert accounts["infobip"]["api_key"] == "sim-key"
    assert accounts["avaamo"]["agent_id"] == 5157
    assert accounts["messangi"]["login_url"] == "http://127.0.0.1:1234/messangi/login"
    assert config["store"]["url"].startswith("sqlite:")


def test_the_configuration_names_one_way_in() -> None:
    profile = Profile(
        [
            AccountProfile(name="a", provider="infobip", bearer='t"1', headers={"X-Y": "1"}),
            AccountProfile(name="b", provider="messangi", authorization="Token t"),
            AccountProfile(name="c", provider="infobip", username="u", password="p"),
        ]
    )
    one, two, three = tomllib.loads(engine_toml("http://h:1", profile))["accounts"]
    assert one["authorization"] == 'Bearer t"1'
    assert one["headers"] == {"X-Y": "1"}
    assert two["headers"] == {"Authorization": "Token t"}
    assert "login_url" not in two
    assert (three["username"], three["password"]) == ("u", "p")


async def test_serve_announces_and_ends_when_cancelled() -> None:
    said: list[str] = []
    ready = asyncio.Event()

    def announce(text: str) -> None:
        said.append(text)
        if text.startswith("look:"):
            ready.set()

    task = asyncio.create_task(serve(0, None, announce))
    await asyncio.wait_for(ready.wait(), 5)
    base = said[0].removeprefix("simulator: ")
    assert tomllib.loads(said[1])["accounts"][0]["base_url"] == f"{base}/bulksms"
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{base}/_sim/counts") as answer:
            assert set(await answer.json()) == {"bulksms", "infobip", "avaamo", "messangi"}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{base}/_sim/counts")


async def test_sending_and_asking_over_http() -> None:
    async with Simulator(Profile.default()) as sim, aiohttp.ClientSession() as http:
        base = sim.base_url
        order = {"account": "bulksms", "recipients": ["447700900001"], "plan": [[0, "11"]]}
        async with http.post(f"{base}/_sim/send", json=order) as answer:
            sent = await answer.json()
        assert sent["recipients"] == ["447700900001"]
        async with http.get(f"{base}/_sim/truth/bulksms") as answer:
            (truth,) = await answer.json()
        assert truth["batch_id"] == sent["batch_id"]
        assert (truth["state"], truth["final"]) == ("delivered", True)
        async with http.get(f"{base}/_sim/given/infobip") as answer:
            assert await answer.json() == []
        for bad in ({"account": "none"}, {"account": "bulksms", "m": 1}, {"n": -1}):
            async with http.post(f"{base}/_sim/send", json=bad) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]
        async with http.get(f"{base}/_sim/truth/none") as answer:
            assert answer.status == 404
        async with http.get(f"{base}/none/x") as answer:
            assert answer.status == 404
        assert sim.counts("bulksms").requests == 0


async def test_failing_otherwise_from_now_on() -> None:
    async with Simulator(Profile.default()) as sim, aiohttp.ClientSession() as http:

        async def fail(odds: dict[str, float]) -> int:
            order = {"account": "bulksms", "odds": odds}
            async with http.post(f"{sim.base_url}/_sim/faults", json=order) as answer:
                return answer.status

        async def asked() -> int:
            async with http.get(f"{sim.url('bulksms')}/x") as answer:
                return answer.status

        assert await asked() == 404
        assert await fail({"503": 1.0}) == 200
        assert await asked() == 503
        for bad in ({"soon": 0.1}, {"503": 1.5}, {"503": 0.6, "500": 0.6}):
            assert await fail(bad) == 400
        assert await asked() == 503
        assert await fail({}) == 200
        assert await asked() == 404
        async with http.post(f"{sim.base_url}/_sim/faults", json={"account": "x", "odds": {}}) as a:
            assert a.status == 400


async def test_the_ledger_says_when_and_what_a_fault_spoiled() -> None:
    account = AccountProfile(name="i", provider="infobip", faults=["bad_encoding"])
    sim = Simulator(Profile([account]), clock=lambda: 1_800_000_000.5)
    async with sim, aiohttp.ClientSession() as http:
        sim.send("i", 3, sent_at=1_799_999_999.0, plan=[(1, "DELIVERED_TO_HANDSET")])
        async with http.get(f"{sim.url('i')}/sms/1/reports") as answer:
            body = await answer.read()
        given = sim.given("i")
        assert [one.at for one in given] == [1_800_000_000.5] * 3
        (hit,) = [one for one in given if one.spoiled]
        before, _, after = body.partition(b"\xe9\xff")
        assert before.rindex(hit.message_id.encode()) == max(
            before.rfind(one.message_id.encode()) for one in given
        )
        assert hit.message_id.encode() not in after


def test_it_imports_nothing_of_the_engine() -> None:
    files = list(Path(engine.sim.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert not name.startswith("engine") or name.startswith("engine.sim"), file
