"""The live page: counts and conditions for whoever can reach the port, and nothing besides."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.core.contracts import Kind
from engine.web import live
from engine.web.host import Look
from tests.integration.canary import MARK, leaks
from tests.integration.harness import bulksms, configured, infobip, until
from tests.integration.standin import Raw, Standin
from tests.integration.test_infobip import page, report
from tests.integration.webbing import served

NOWHERE = "http://127.0.0.1:9"
ONE = "447700900001"
ROWS = "0|Returns to follow\n\n"


class Links(HTMLParser):
    """What a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            (tag, name, value or "")
            for name, value in attrs
            if name in ("src", "href", "action", "style", "srcset") or name.startswith("on")
        ]


async def test_the_page_stands_alone_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE)) as (_, web):
        status, text, headers = await web.ask("/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert (await web.ask("/", "POST"))[0] == 405
    links = Links()
    links.feed(text)
    assert links.found == [("link", "href", "data:,"), ("a", "href", "metrics")]
    assert "http" not in text.replace("<!doctype html>", "").replace("html", "")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for name in ("script", "style"):
        (inner,) = re.findall(rf"(?s)<{name}>(.*?)</{name}>", text)
        digest = b64encode(sha256(inner.encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert way not in text  # text goes in as text


async def test_what_the_page_is_told_of_a_worker_at_work(tmp_path: Path, standin: Standin) -> None:
    urls = [
        standin.answer("bulk", [f"{ROWS}{ONE}|11\n447700900002|10\n"]),
        standin.answer("info", [Raw(b'{"requestError": {}}', 401)]),
    ]
    accounts = [bulksms(urls[0], schedule={"ladder": ["0s", "1h"]}), infobip(urls[1])]
    async with served(tmp_path, *accounts) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE, "447700900002"])
        await until(lambda: poller.telemetry.of("written", "lines") == 2)
        await until(lambda: poller.pollers["info"].health.paused is not None)
        status, said, headers = await web.ask("/live.json")
        assert (status, headers["Cache-Control"], said["trouble"]) == (200, "no-store", None)
        bulk, info = said["accounts"]
        assert bulk.items() >= {
            "name": "bulk", "provider": "bulksms", "state": "ok", "known": 2, "final": 1,
            "pending": 1, "records": 2, "due": 0, "incidents": 0, "set_aside": 0,
        }.items()  # fmt: skip
        assert 3_500_000 < bulk["next_ms"] - said["at_ms"] <= 3_600_000
        assert bulk["limits"][0].keys() == {"requests", "per_s", "used"}
        assert (info["state"], info["detail"]) == ("paused", "the provider refuses its credentials")
        assert info["next_ms"] > said["at_ms"] + 30_000  # the pause, not the feed
        assert {sink["name"] for sink in said["sinks"]} == {"lines", "db"}
        assert said["sinks"][0].items() >= {"type": "jsonl", "state": "ok"}.items()


async def test_nothing_that_a_provider_or_a_sink_says_is_shown(
    tmp_path: Path, standin: Standin
) -> None:
    """No recipient, no id, no reference, no cause: they could be anybody's number."""
    url = standin.answer("info", [
        page(report(f"id-{MARK}", to=ONE, callbackData=f"ref-{MARK}"), {"to": MARK}),
        Raw(f'{{"requestError": {{"serviceException": {{"text": "{MARK}"}}}}}}', 500),
    ])  # fmt: skip
    sink = {
        "name": "crm",
        "type": "webhook",
        "url": f"{NOWHERE}/{MARK}",
        "secret": f"whsec_{'a' * 32}",
    }
    async with served(tmp_path, infobip(url), sinks=[sink]) as (poller, web):
        await until(lambda: poller.pollers["info"].health.failing is not None)
        await until(lambda: poller.telemetry.of("sink_failures", "crm") > 0)
        said = await web.ask("/live.json")
        (account,) = said[1]["accounts"]
        assert account["state"] == "failing"
        assert account["set_aside"] == 1
        assert said[1]["sinks"][0]["state"] == "failing"
        assert said[1]["sinks"][0]["behind_rows"] == 1
        metrics = await web.ask("/metrics")
        for shown in (said, metrics, await web.ask("/"), await web.ask("/healthz")):
            assert not leaks(json.dumps(shown[1:]).encode(), {})
            assert ONE not in json.dumps(shown[1:])


async def test_a_store_in_trouble_is_told_to_the_page(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        moved = tmp_path / "moved.db"
        (tmp_path / "state.db").rename(moved)
        await until(lambda: poller.store.trouble is not None)
        status, said, _ = await web.ask("/live.json")
        assert status == 503
        assert "moved away" in said["errors"][0]
        moved.rename(tmp_path / "state.db")
        await until(lambda: poller.store.trouble is None)
        with anyio.fail_after(5):
            while (await web.ask("/live.json"))[0] != 200:  # noqa: ASYNC110 - kept a second
                await anyio.sleep(0.05)


CONDITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "nobody has it": ({}, "new"),
    "asked": ({"answered_ms": 1}, "ok"),
    "refused": ({"paused": "words", "failing": "words"}, "paused"),
    "no room": ({"waits": "the log is full", "failing": "words"}, "waits"),
    "failing": ({"failing": "words", "failures": 3, "hold_s": 4}, "failing"),
    "held": ({"hold_s": 4, "hold_why": "words"}, "held"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_conditions_in_our_own_words(tmp_path: Path, case: str) -> None:
    status, state = CONDITIONS[case]
    config = configured(tmp_path, bulksms(NOWHERE))
    look = Look(
        at_ms=1_000_000, accounts=("bulk",), statuses={"bulk": status},
        works={"bulk": {Kind.BATCH: (1, 1, 999_000)}}, tallies={"bulk": {"incident:x": 2}},
    )  # fmt: skip
    (account,) = live.table(config, look, None)["accounts"]
    assert account["state"] == state
    assert "words" not in account["detail"]
    assert account["incidents"] == 2
    assert account["next_ms"] == 1_000_000 + 1000 * status.get("hold_s", 0)
