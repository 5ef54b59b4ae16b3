"""The HTTP surface of a worker, over real sockets: health, metrics, what was sent, messages."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.cli import main
from engine.core.contracts import Kind
from engine.core.errors import EngineError
from engine.core.units import iso
from engine.web import server
from engine.worker import Engine
from tests.integration.harness import (
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    tallies,
    until,
)
from tests.integration.standin import Raw, Standin
from tests.integration.webbing import BEARER, TOKEN, address, asking, served
from tests.unit.test_web_metrics import read

NOWHERE = "http://127.0.0.1:9"
ROWS = "0|Returns to follow\n\n"
LATER = {"ladder": ["1h"]}


async def test_health(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE)) as (_, web):
        for path in ("/healthz", "/readyz"):
            status, said, headers = await web.ask(path)
            assert (status, said) == (200, {"status": "ok"})
            assert headers["Cache-Control"] == "no-store"
            assert headers["Connection"] == "close"
            assert "Python" not in headers["Server"]
            assert (await web.ask(path, "HEAD"))[0] == 200
        status, said, headers = await web.ask("/healthz", "POST")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert (await web.ask("/nothing"))[0] == 404
        assert (await web.ask("/v1/nothing", headers=BEARER))[0] == 404


async def test_health_tells_of_a_store_in_trouble(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        moved = tmp_path / "moved.db"
        (tmp_path / "state.db").rename(moved)
        await until(lambda: poller.store.trouble is not None)
        for path in ("/healthz", "/readyz"):
            status, said, _ = await web.ask(path)
            assert status == 503
            assert "moved away" in said["reason"]
        status, said = await web.track({"batch_id": "1", "recipients": ["447700900001"]})
        assert (status, said["errors"][0][:9]) == (503, "the store")
        status, said = await web.message("bulk", "1:447700900001")
        assert (status, said["errors"][0][:9]) == (503, "the store")
        assert read((await web.ask("/metrics"))[1])["dlr_store_trouble"] == 1
        moved.rename(tmp_path / "state.db")
        await until(lambda: poller.store.trouble is None)
        assert (await web.ask("/healthz"))[0] == 200


async def test_health_tells_that_the_worker_is_ending(tmp_path: Path, standin: Standin) -> None:
    slow = Raw(b'{"results": []}', wait_s=3.0)
    config = configured(
        tmp_path, infobip(standin.answer("info", [slow])), http={"listen": "127.0.0.1:0"}
    )
    leave = anyio.Event()
    ports: list[int] = []

    async def run() -> None:
        async with hasty(config) as poller:
            ports.append(address(poller)[1])
            await until(lambda: bool(standin.asked["info"]))
            await leave.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await until(lambda: bool(ports and standin.asked["info"]))
        async with asking(f"http://127.0.0.1:{ports[0]}") as web:
            assert (await web.ask("/healthz"))[0] == 200
            leave.set()
            await anyio.sleep(0.1)
            status, said, _ = await web.ask("/healthz")
            assert (status, said["reason"]) == (503, "the worker is ending")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


async def test_the_port_speaks_ipv6(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE), http={"listen": "[::1]:0"}) as (_, web):
        assert web.base.startswith("http://[::1]:")
        assert (await web.ask("/healthz"))[0] == 200


async def test_metrics_of_a_worker_at_work(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [f"{ROWS}447700900001|11\n447700900002|99\n"])
    async with served(tmp_path, bulksms(url)) as (poller, web):
        await poller.track("bulk", batch_id="1", recipients=["447700900001", "447700900002"])
        await until(lambda: poller.telemetry.of("written", "lines") >= 2)
        said = read((await web.ask("/metrics"))[1])
        assert said['dlr_requests_total{account="bulk"}'] >= 1
        assert said['dlr_messages{account="bulk",state="delivered"}'] == 1
        assert said['dlr_messages_known{account="bulk"}'] == 2
        assert said['dlr_unlisted_total{account="bulk"}'] >= 1
        assert said['dlr_written_total{sink="lines"}'] >= 2
        assert said['dlr_sink_position{sink="lines",account="bulk"}'] >= 1
        assert said['dlr_limit_requests{account="bulk",per="1"}'] == 1000


async def test_a_look_is_shared_by_all_who_ask(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        reads = 0
        read_before = poller.store.read

        async def counted(job: Any) -> Any:
            nonlocal reads
            reads += "WorkerHost.look" in job.__qualname__
            return await read_before(job)

        poller.store.read = counted  # type: ignore[method-assign]
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(web.ask, "/metrics")
        assert reads == 1


async def test_a_look_that_takes_long_is_kept_for_long(tmp_path: Path) -> None:
    """Who asks for nothing else is not to keep the store busy."""
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        assert poller.surface is not None
        reads = 0
        read_before = poller.store.read

        async def slow(job: Any) -> Any:
            nonlocal reads
            if "WorkerHost.look" in job.__qualname__:
                reads += 1
                await anyio.sleep(0.5)
            return await read_before(job)

        poller.store.read = slow  # type: ignore[method-assign]
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert (await web.ask("/live.json"))[0] == 200
            await anyio.sleep(0.1)
        assert reads == 1


async def test_what_is_to_be_said_of_the_port_is_said_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    http = {"listen": "0.0.0.0:0", "token": "short"}
    async with served(tmp_path, bulksms(NOWHERE), http=http) as (poller, _):
        said = [text for subject, text in poller.telemetry.events if subject == "http"]
    assert "listening on 0.0.0.0:" in said[0]
    assert "nothing is encrypted" in said[1]
    assert "can be guessed" in said[2]
    assert "short" not in caplog.text


# What was sent


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


# Bounds


async def test_bodies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.web import api

    monkeypatch.setattr(api, "TRACK_MAX", 1000)
    async with served(tmp_path, bulksms(NOWHERE)) as (_, web):
        status, said, _ = await web.ask("/v1/track", "POST", data=b" " * 1001, headers=BEARER)
        assert (status, said["errors"]) == (413, ["the body is longer than 1,000 bytes"])

        async def pieces() -> Any:
            for _ in range(100):
                yield b" " * 100

        status, _, _ = await web.ask("/v1/track", "POST", data=pieces(), headers=BEARER)
        assert status == 413
        packed = {**BEARER, "Content-Encoding": "gzip"}
        assert (await web.ask("/v1/track", "POST", data=b"\x1f\x8b", headers=packed))[0] == 415
        monkeypatch.setattr(server, "BODIES_MAX", 10)
        status, _, back = await web.ask("/v1/track", "POST", data=b" " * 11, headers=BEARER)
        assert (status, back["Retry-After"]) == (503, "1")


async def test_a_body_of_unsaid_length_takes_the_room_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODIES_MAX", 1000)
    count, come, rest = 9, 0, anyio.Event()
    said: list[int] = []
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (poller, web):
        assert poller.surface is not None
        port = poller.surface.port

        async def small(n: int) -> Any:
            nonlocal come
            yield b'{"batch_id": '
            come += 1
            await rest.wait()
            yield b'"%d"}' % n

        async def ask(body: Any) -> None:
            said.append((await web.ask("/v1/track", "POST", data=body, headers=BEARER))[0])

        async def large() -> Any:
            for _ in range(11):
                yield b" " * 100

        async with anyio.create_task_group() as asking:
            for n in range(count):
                asking.start_soon(ask, small(n))
            await until(lambda: come == count and port._bodies == count * len('{"batch_id": '))
            await ask(large())
            assert said == [503]
            rest.set()
        assert said == [503] + [202] * count
        await until(lambda: port._bodies == 0)


async def test_expect_continue_is_answered_only_to_who_may(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE, schedule=LATER)) as (poller, _):
        for token, first in ((TOKEN, b"HTTP/1.1 100 Continue"), ("x", b"HTTP/1.1 401")):
            reader, writer = await asyncio.open_connection(*address(poller))
            body = b'{"batch_id": "1"}'
            head = (
                f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
            )
            writer.write(head.encode())
            assert (await reader.readline()).startswith(first)
            if token == TOKEN:
                await reader.readline()
                writer.write(body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 202")
            writer.close()


async def test_a_slow_client_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its head is whole, within its body, and one that does not read its answer."""
    monkeypatch.setattr(server, "CONNECTION_S", 1.0)
    monkeypatch.setattr(server, "LOOK_S", 0.05)
    head = f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n"
    begun = [b"", b"GET /he", f"{head}Content-Length: 100\r\n\r\n{{".encode()]
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        for sent in begun:
            reader, writer = await asyncio.open_connection(*address(poller))
            writer.write(sent)
            with anyio.fail_after(5):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        assert (await web.ask("/healthz"))[0] == 200


def connections(poller: Engine) -> int:
    assert poller.surface is not None
    assert poller.surface.port._server is not None
    return len(poller.surface.port._server.connections)


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 3)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):
        held = [await asyncio.open_connection(*address(poller)) for _ in range(3)]
        await until(lambda: connections(poller) == 3)
        reader, writer = await asyncio.open_connection(*address(poller))
        with anyio.fail_after(5):
            assert await reader.read() == b""
        writer.close()
        for _, other in held:
            other.close()
        await until(lambda: connections(poller) == 0)
        assert (await web.ask("/healthz"))[0] == 200


async def test_a_fault_in_the_program_says_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, web):

        async def broken(items: Any) -> Any:
            raise RuntimeError("c4n4ry")

        poller.track_many = broken  # type: ignore[method-assign]
        status, said = await web.track({"batch_id": "c4n4ry"})
        assert (status, said["errors"]) == (500, ["a fault in the program: please report it"])
        assert poller.telemetry.of("faults", "") == 1
    assert "c4n4ry" not in caplog.text


async def test_what_is_no_http_is_neither_logged_nor_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, _):
        asyncio.get_running_loop().set_debug(True)
        for sent in (
            b"c4n4ry\r\n\r\n", b"GET /push/a/c4n4ry\x01 HTTP/1.1\r\n\r\n",
            b"GET /push/a/c4n4ry HTTP/9.9\r\nHost: h\r\n\r\n", b"\x16\x03\x01c4n4ry\r\n\r\n",
            b"GET /push/a/c4n4ry HTTP/1.1\r\nHost: h\r\nc4n4ry\r\n\r\n",
            b"GET /" + b"c4n4ry" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /push/a/c4n4ry?a=\xe9 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /v1/m HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer c4n4ry\x01\r\n\r\n",
        ):  # fmt: skip
            reader, writer = await asyncio.open_connection(*address(poller))
            writer.write(sent)
            with anyio.fail_after(5):
                answered = await reader.read()
            assert not answered.startswith(b"HTTP/1.1 2")
            assert b"Traceback" not in answered
            assert b"c4n4ry" not in answered
            assert answered == b"" or b"Server: dlr-engine\r\n" in answered
            writer.close()
        asyncio.get_running_loop().set_debug(False)
    assert "c4n4ry" not in caplog.text
    said = capfd.readouterr()
    assert "c4n4ry" not in said.out + said.err


# Beginning and ending


async def test_a_place_that_is_taken_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineError, match=r"cannot listen on .*: Address already in use"):
            async with served(tmp_path, bulksms(NOWHERE), http={"listen": place}):
                pass
    with pytest.raises(EngineError, match=r"cannot listen on no-such-host\.invalid:1: "):
        async with served(tmp_path, bulksms(NOWHERE), http={"listen": "no-such-host.invalid:1"}):
            pass


def test_the_command_says_where_it_listens_and_that_it_cannot(tmp_path: Path) -> None:
    def config(listen: str) -> str:
        path = tmp_path / "engine.toml"
        path.write_text(
            f'[http]\nlisten = "{listen}"\n[[accounts]]\nname = "bulk"\nprovider = "bulksms"\n'
            f'base_url = "{NOWHERE}"\nusername = "j"\npassword = "p"\n'
        )
        return str(path)

    def run(listen: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "engine", "run", "--config", config(listen), *words]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)

    worker = run("127.0.0.1:0")
    assert worker.stderr is not None
    line = next(line for line in worker.stderr if "listening" in line)
    place = line.rpartition("listening on ")[2].strip()
    again = run(place, "--once")
    assert again.communicate(timeout=30)[0] is None
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=30)
    assert (worker.returncode, again.returncode) == (0, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        second = run(busy)
        said = second.communicate(timeout=30)[1]
        assert second.returncode == 1
        assert f"engine.toml: http.listen: cannot listen on {busy}: Address already in use" in said
        assert "Traceback" not in said
        once = run(busy, "--once")  # has no need of it
        said = once.communicate(timeout=30)[1]
        assert (once.returncode, "listen" in said) == (0, False)


ODD = (
    "GET //x HTTP/1.1", "GET http://h:99999/healthz HTTP/1.1", "OPTIONS * HTTP/1.1",
    "CONNECT h:1 HTTP/1.1", "GET /v1/messages HTTP/1.1", "GET /v1/messages/ HTTP/1.1",
    "GET /v1/messages/%ff/%00 HTTP/1.1", "GET /push/%zz/%f HTTP/1.1", "GET /?a=%zz HTTP/1.1",
    "GET /metrics?x[]=1 HTTP/1.0", "POST /v1/track?account=%ff HTTP/1.1",
    "GET /../healthz HTTP/1.1",
    "GET /v1/messages/bulk/a?direction=%ff HTTP/1.1", "BREW /healthz HTTP/1.1",
    "GET /push/bulk HTTP/1.1", "GET http://[::1/x HTTP/1.1", "GET x HTTP/1.1", "GET /é HTTP/1.1",
)  # fmt: skip
ODD_HEADS = (
    "", "Content-Length: 5", "Content-Length: -1", "Transfer-Encoding: chunked", "Expect: x",
    "Authorization: Bearer \xff", "Content-Encoding: x",
    "Upgrade: websocket\r\nConnection: Upgrade",
)  # fmt: skip


async def test_odd_requests_are_no_fault_of_ours(tmp_path: Path) -> None:
    async with served(tmp_path, bulksms(NOWHERE, push_secret="s")) as (poller, web):
        for line in ODD:
            for head in ODD_HEADS:
                reader, writer = await asyncio.open_connection(*address(poller))
                asked = f"{line}\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n{head}".strip()
                writer.write(asked.encode("latin-1") + b"\r\n\r\nhello0\r\n\r\n")
                writer.write_eof()
                with anyio.fail_after(5), suppress(ConnectionError):
                    answered = await reader.read()
                    assert not answered.startswith(b"HTTP/1.1 500"), (line, head)
                writer.close()
        assert poller.telemetry.of("faults", "") == 0
        assert (await web.ask("/healthz"))[0] == 200


async def test_open_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """One that is silent, and one that is in the middle of its body."""
    began = 0.0
    async with served(tmp_path, bulksms(NOWHERE)) as (poller, _):
        silent = await asyncio.open_connection(*address(poller))
        halfway = await asyncio.open_connection(*address(poller))
        head = f"POST /v1/track HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n"
        halfway[1].write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        await anyio.sleep(0.1)
        began = time.monotonic()
    assert time.monotonic() - began < server.CLOSE_S + 3.0
    for _, writer in (silent, halfway):
        writer.close()
