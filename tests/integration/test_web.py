"""The HTTP surface of a worker, over real sockets: health, metrics, where it listens, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.core.errors import EngineError
from tests.integration.harness import bulksms, configured, hasty, infobip, until
from tests.integration.standin import Raw, Standin
from tests.integration.webbing import BEARER, NOWHERE, ROWS, address, asking, served
from tests.unit.test_web_metrics import read


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
