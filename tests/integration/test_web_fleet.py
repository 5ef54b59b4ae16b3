"""The HTTP surface of a fleet: the parent of several workers has the port, and answers for all."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

import engine
from engine.web.push import STORE_S
from engine.worker import Engine
from tests.integration.harness import until
from tests.integration.standin import Standin
from tests.integration.test_infobip import page, report
from tests.integration.test_workers import (
    ENGINE,
    PATIENCE_S,
    records,
    until_workers,
    workers,
    written,
)
from tests.integration.webbing import TOKEN, Asker, asking
from tests.services import HOST, Line, own_schema
from tests.unit.test_web_metrics import read


@pytest.fixture
async def database() -> AsyncIterator[str]:
    async with own_schema() as url:
        yield url


def with_port(config: Path, listen: str = "127.0.0.1:0") -> Path:
    text = config.read_text()
    config.write_text(f'[http]\nlisten = "{listen}"\ntoken = "{TOKEN}"\n\n{text}')
    return config


@asynccontextmanager
async def parent(config: Path, count: int) -> AsyncIterator[tuple[anyio.abc.Process, Asker]]:
    """`run --workers`, and whoever asks its port."""
    command = [*ENGINE, "run", "--config", str(config), "--workers", str(count)]
    process = await anyio.open_process(command, stdout=None)
    assert process.stderr is not None
    try:
        said = b""
        with anyio.fail_after(PATIENCE_S):
            while b"listening on " not in said or b"\n" not in said.partition(b"listening on ")[2]:
                said += await process.stderr.receive()
        place = said.partition(b"listening on ")[2].split()[0].decode()
        async with anyio.create_task_group() as group:
            group.start_soon(drain, process.stderr)
            async with asking(f"http://{place}") as asker:
                yield process, asker
            group.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.fail_after(PATIENCE_S):
                await process.wait()
        await process.stderr.aclose()


async def drain(stream: anyio.abc.ByteReceiveStream) -> None:
    async for piece in stream:
        sys.stderr.write(piece.decode())


async def ready(web: Asker) -> None:
    await status_is(web, "/readyz", 200)


async def test_the_parent_has_the_port(tmp_path: Path, database: str, standin: Standin) -> None:
    urls = [standin.answer(f"i{n}", [page(report(f"m{n}")), b'{"results":[]}']) for n in range(4)]
    config = with_port(written(tmp_path, database, *urls))
    async with parent(config, 2) as (process, web):
        there = await until_workers(database, 2)
        await ready(web)
        assert (await web.ask("/healthz"))[0] == 200
        await until(lambda: len(records(tmp_path)) == 4, PATIENCE_S)
        names = {row["name"] for row in there}
        with anyio.fail_after(PATIENCE_S):
            while True:
                said = read((await web.ask("/metrics"))[1])
                made = {
                    f'dlr_records_total{{worker="{name}",account="i{n}"}}'
                    for name in names
                    for n in range(4)
                }
                if sum(said.get(key, 0) for key in made) == 4:
                    break
                await anyio.sleep(0.2)
        assert [said[f'dlr_messages_known{{account="i{n}"}}'] for n in range(4)] == [1] * 4
        assert said['dlr_limit_requests{account="i0",per="1"}'] == 100
        # What is handed over here is taken by whoever has the account.
        status, taken = await web.track(
            [{"account": f"i{n}", "message_id": f"t{n}"} for n in range(4)]
        )
        assert (status, taken["handed_over"]) == (202, ["i0", "i1", "i2", "i3"])
        with anyio.fail_after(PATIENCE_S):
            for n in range(4):
                while (await web.message(f"i{n}", f"t{n}"))[0] != 200:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
        # One that is killed comes again, and the port has stayed.
        os.kill(there[0]["pid"], signal.SIGKILL)
        assert (await web.ask("/healthz"))[0] == 200
        await until_workers(database, 2, without=there[0]["pid"])
        await ready(web)
        process.terminate()
        with anyio.fail_after(PATIENCE_S):
            assert await process.wait() == 0
    assert await workers(database) == []


async def test_a_parent_that_cannot_listen_starts_nobody(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        config = with_port(written(tmp_path, database, "http://127.0.0.1:9/i"), place)
        with anyio.fail_after(PATIENCE_S):
            done = await anyio.run_process(
                [*ENGINE, "run", "--config", str(config), "--workers", "2"], check=False
            )
    assert done.returncode == 1
    assert f"cannot listen on {place}: Address already in use".encode() in done.stderr
    assert await workers(database) == []


async def test_a_worker_of_a_fleet_answers_for_its_own(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    urls = [standin.answer(f"i{n}", b'{"results":[]}') for n in range(2)]
    config = engine.open(with_port(written(tmp_path, database, *urls))).config
    async with Engine(config) as first, Engine(config) as second:
        assert first.surface is not None
        assert second.surface is not None
        ports = [one.surface.port.address[1] for one in (first, second) if one.surface]
        await until(lambda: len(first.pollers) == len(second.pollers) == 1, PATIENCE_S)
        for port, worker in zip(ports, (first, second), strict=True):
            async with asking(f"http://127.0.0.1:{port}") as web:
                await ready(web)
                said = read((await web.ask("/metrics"))[1])
                (own,) = worker.pollers
                shown = {key for key in said if key.startswith("dlr_messages_known")}
                assert shown == {f'dlr_messages_known{{account="{own}"}}'}
                (other,) = {"i0", "i1"} - {own}
                status, taken = await web.track({"account": other, "message_id": f"to {other}"})
                assert (status, taken["handed_over"]) == (202, [other])
                status, taken = await web.track({"account": own, "message_id": f"by {own}"})
                assert (status, taken["new"], taken["handed_over"]) == (202, 1, [])


async def test_what_is_pushed_at_the_parent_is_in_the_inbox_and_ends_the_polls(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    """Nobody may lose it: also where the worker that has the account is killed at that moment."""
    rows = "0|Returns to follow\n\n447700900001|10\n447700900002|10\n"
    url = standin.answer("bulk", [rows])
    config = with_port(written(tmp_path, database, path="{worker}.jsonl"))
    config.write_text(
        f'{config.read_text()}\n[[accounts]]\nname = "bulk"\nprovider = "bulksms"\n'
        f'base_url = "{url}"\nusername = "j"\npassword = "p"\npush_secret = "s3cret"\n'
        'schedule = { ladder = ["0s", "20s"] }\n'
    )
    async with parent(config, 2) as (process, web):
        there = await until_workers(database, 2)
        await ready(web)
        sent = {"batch_id": "1", "recipients": ["447700900001", "447700900002"]}
        assert (await web.track(sent))[0] == 202
        await until(lambda: len(records(tmp_path)) == 2, PATIENCE_S)
        for to in ("447700900001", "447700900002"):
            query = f"msisdn={to}&batch_id=1&status=11"
            assert (await web.ask(f"/push/bulk/s3cret?{query}"))[0] == 200
            if to == "447700900001":
                for worker in there:
                    os.kill(worker["pid"], signal.SIGKILL)
        assert (await web.ask("/push/bulk/s3cre?msisdn=1"))[0] == 404
        await until(lambda: len(delivered(tmp_path)) == 2, PATIENCE_S)
        asked = len(standin.asked["bulk"])
        shown = (await web.message("bulk", "1:447700900001"))[1]
        assert (shown["state"], shown["next_poll_at"], shown["revision"]) == ("delivered", None, 2)
        assert len(standin.asked["bulk"]) == asked
        process.terminate()
        with anyio.fail_after(PATIENCE_S):
            assert await process.wait() == 0


async def test_the_parent_comes_through_the_loss_of_the_store(tmp_path: Path) -> None:
    """Nobody else there tries the store for it: it has to find out by itself."""
    async with own_schema() as url, Line(HOST, 5432) as line:
        through = url.replace(":5432/", f":{line.port}/")
        config = with_port(written(tmp_path, through, "http://127.0.0.1:9/i"))
        secret = '\npush_secret = "s3cret"\nschedule = { interval = "1h" }'
        config.write_text(config.read_text().replace('\nschedule = { interval = "100ms" }', secret))
        body = page(report("m1"))
        async with parent(config, 2) as (_, web):
            await until_workers(url, 2)
            await ready(web)
            await line.cut()
            assert (await web.ask("/push/i0/s3cret", "POST", data=body))[0] == 503
            await status_is(web, "/healthz", 503)
            assert (await web.track({"message_id": "m"}))[0] == 503
            assert (await web.ask("/readyz"))[0] == 503
            assert read((await web.ask("/metrics"))[1])["dlr_store_trouble"] == 1
            await anyio.sleep(STORE_S + 1.0)  # whoever waited for it has given up
            await line.mend()
            await status_is(web, "/readyz", 200)
            assert (await web.ask("/push/i0/s3cret", "POST", data=body))[0] == 200
            await until(lambda: len(records(tmp_path)) == 1, PATIENCE_S)


async def status_is(web: Asker, path: str, status: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        while (await web.ask(path))[0] != status:  # noqa: ASYNC110 - it is another process
            await anyio.sleep(0.1)


def delivered(folder: Path) -> set[str]:
    return {one["event_id"] for one in records(folder) if one["state"] == "delivered"}


async def test_a_push_at_a_worker_goes_where_the_account_is(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    later = '\npush_secret = "s3cret"\nschedule = { interval = "1h" }'
    urls = [standin.answer(f"i{n}", b'{"results":[]}') for n in range(2)]
    file = with_port(written(tmp_path, database, *urls))
    file.write_text(file.read_text().replace('\nschedule = { interval = "100ms" }', later))
    config = engine.open(file).config
    async with Engine(config) as first, Engine(config) as second:
        await until(lambda: len(first.pollers) == len(second.pollers) == 1, PATIENCE_S)
        assert first.surface is not None
        async with asking(f"http://127.0.0.1:{first.surface.port.address[1]}") as web:
            for name in ("i0", "i1"):
                body = page(report(f"m of {name}"))
                assert (await web.ask(f"/push/{name}/s3cret", "POST", data=body))[0] == 200
        (own,) = first.pollers
        assert (first.telemetry.of("pushed", own), first.telemetry.of("records", own)) == (1, 1)
        (other,) = second.pollers
        await until(lambda: second.telemetry.of("records", other) == 1, PATIENCE_S)
