"""What was sent, told over HTTP: who may, what is taken, what is shown of it, what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.cli import main
from engine.core.contracts import Kind
from engine.core.units import iso
from tests.integration.harness import bulksms, infobip, lines, messangi, tallies, until
from tests.integration.standin import Standin
from tests.integration.webbing import BEARER, LATER, NOWHERE, ROWS, TOKEN, served


async def test_who_may_ask(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (poller, web):
        row = {"batch_id": "1", "recipients": ["447700900001"]}
        wrong: list[dict[str, str]] = [
            {}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "Bearer "}, {"Authorization": "Bearer \xff"},
        ]  # fmt: skip
        for headers in wrong:
            status, _, back = await web.ask("/v1/track", "POST", json=row, headers=headers)
            assert (status, back["WWW-Authenticate"]) == (401, "Bearer"), headers
            assert (await web.ask("/v1/messages/bulk/1:447700900001", headers=headers))[0] == 401
            assert (await web.ask("/v1/else", headers=headers))[0] == 401
        assert (await tallies(poller)).get("bulk", {}).get("known", 0) == 0
        assert (await web.track(row, headers={"Authorization": f"bearer {TOKEN}"}))[0] == 202
        assert (await web.ask("/v1/track", headers=BEARER))[0] == 405


async def test_without_a_token_nobody_may(tmp_path: Path) -> None:
    listen = {"listen": "127.0.0.1:0"}
    async with served(tmp_path, bulksms(NOWHERE), http=listen) as (_, web):
        for headers in ({}, BEARER, {"Authorization": "Bearer None"}):
            status, said, _ = await web.ask("/v1/track", "POST", json={}, headers=headers)
            assert status == 403
            assert "http.token is not configured" in said["errors"][0]


async def test_what_was_sent_is_taken_and_shown(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [f"{ROWS}447700900001|11\n447700900002|11\n"])
    async with served(tmp_path, bulksms(url), infobip(NOWHERE)) as (_, web):
        batch = {
            "account": "bulk", "batch_id": "4711", "recipients": ["447700900001", "447700900002"],
            "reference": "order-17",
        }  # fmt: skip
        message = {"account": "info", "message_id": "a/b c", "recipient": "447700900003"}
        assert await web.track([batch, message]) == (
            202,
            {
                "batches": 1, "messages": 1, "new": 2, "handed_over": [],
                "items": [
                    {"account": "bulk", "batch_id": "4711"},
                    {"account": "info", "message_id": "a/b c"},
                ],
            },
        )  # fmt: skip
        status, said = await web.track(message)
        assert (status, said["new"], said["messages"]) == (202, 0, 1)
        await until(lambda: len(lines(tmp_path)) == 2)
        status, shown = await web.message("bulk", "4711:447700900001")
        assert status == 200
        assert (shown["state"], shown["reference"]) == ("delivered", "order-17")
        assert shown["record"]["event_id"] == lines(tmp_path)[0]["event_id"]
        assert [entry["state"] for entry in shown["history"]] == ["delivered"]
        assert (await web.message("info", "a%2Fb%20c"))[1]["message_id"] == "a/b c"
        assert (await web.message("info", "4711:447700900001"))[0] == 404
        assert (await web.message("nobody", "4711:447700900001"))[0] == 404
        assert (await web.message("bulk", "4711:447700900001", "?direction=mo"))[0] == 404


async def test_it_is_shown_as_the_command_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (_, web):
        now = int(time.time())
        await web.track({"batch_id": "1", "recipients": ["447700900001"], "sent_at": now})
        _, shown = await web.message("bulk", "1:447700900001")
        config = (
            '[store]\nurl = "sqlite:///state.db"\n[[accounts]]\nname = "bulk"\n'
            f'provider = "bulksms"\nbase_url = "{NOWHERE}"\nusername = "j"\npassword = "p"\n'
        )
        (tmp_path / "engine.toml").write_text(config)
        show = ["show", "--config", str(tmp_path / "engine.toml"), "1:447700900001", "--json"]
        assert await anyio.to_thread.run_sync(main, show) == 0
        assert json.loads(capsys.readouterr().out) == [shown]
        assert shown["sent_at"] == iso(1000 * now)


async def test_rows_of_a_batch_belong_together_and_one_account_needs_no_name(
    tmp_path: Path,
) -> None:
    accounts = [bulksms(NOWHERE, schedule=LATER), messangi(NOWHERE)]
    async with served(tmp_path, *accounts) as (poller, web):
        rows = [
            {"batch_id": 7, "recipient": "447700900001", "reference": "a"},
            {"batch_id": "7", "recipient": "447700900002", "reference": "b"},
        ]
        status, said = await web.track(rows)
        assert (status, said["batches"], said["new"]) == (202, 1, 1)
        assert (await web.message("bulk", "7:447700900002"))[1]["reference"] == "b"
        works = await poller.store.read(lambda tx: tx.find_works("bulk", Kind.BATCH, None))
        assert [work.key for work in works] == ["7"]


BAD: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "the body is not JSON"),
    "nothing": (b"", "expected a JSON object, or an array of them"),
    "no rows": (b"[]", "expected a JSON object, or an array of them"),
    "a number": (b"7", "expected a JSON object, or an array of them"),
    "too deep": (b"[" * 100_000, "the body is not JSON"),
    "not UTF-8": (b'{"batch_id": "\xff"}', "the body is not JSON"),
}


async def test_what_cannot_be_taken_is_named_and_nothing_is(tmp_path: Path) -> None:
    accounts = [bulksms(NOWHERE, schedule=LATER), infobip(NOWHERE), messangi(NOWHERE)]
    async with served(tmp_path, *accounts) as (poller, web):
        rows = [
            {"account": "bulk", "batch_id": "1", "recipients": ["447700900001"]},
            {"account": "bulk", "message_id": "m"},
            {"account": "balk", "batch_id": "1"},
            {"account": ["bulk"], "batch_id": "1"},
            {"account": "omni", "message_id": "m"},
            {"batch_id": "1"},
            {"account": "bulk", "btch_id": "1"},
            {"account": "bulk", "batch_id": "1", "sent_at": "2026-11-30T12:00:00"},
            {"account": "bulk", "batch_id": "1", "reference": "\ud800"},
            {"account": "info", "message_id": "m", "batch_id": "b"},
            {"account": "bulk", "batch_id": {"a": 1}},
            "x",
            {"account": "info", "message_id": "m"},
        ]
        raw = json.dumps(rows)
        status, said, _ = await web.ask("/v1/track", "POST", data=raw, headers=BEARER)
        assert status == 400
        assert [fault.partition(":")[0] for fault in said["errors"]] == [
            *(f"row {n}" for n in range(2, 13)), "nothing was tracked",
        ]  # fmt: skip
        faults = dict(fault.split(": ", 1) for fault in said["errors"][:-1])
        assert faults["row 2"] == "bulk: bulksms takes batch ids, not a message id"
        assert faults["row 3"] == "account: there is none of that name; there are bulk, info, omni"
        assert faults["row 6"] == "account: missing; there are bulk, info, omni"
        assert 'did you mean "batch_id"' in faults["row 7"]
        assert faults["row 12"] == "expected a JSON object"
        for body, cause in BAD.values():
            status, said, _ = await web.ask("/v1/track", "POST", data=body, headers=BEARER)
            assert (status, said["errors"][0]) == (400, cause)
        many = json.dumps(["x"] * 1000)
        _, said, _ = await web.ask("/v1/track", "POST", data=many, headers=BEARER)
        assert said["errors"][-2:] == ["and 900 more rows with a fault", "nothing was tracked"]
        rows = [{"account": "bulk", "batch_id": str(n)} for n in range(10_001)]
        status, said = await web.track(rows)
        assert (status, said["errors"][0]) == (413, "more than 10,000 rows: send them in parts")
        assert await tallies(poller) == {}
        assert await poller.store.read(lambda tx: tx.find_works("bulk", Kind.BATCH, None)) == []
        assert (await web.track({"batch_id": "1"}, "?account=bulk"))[0] == 202
