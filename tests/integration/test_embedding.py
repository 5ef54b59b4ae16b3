"""Inside somebody else's program: no threads, tasks or handlers are left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import engine
from engine.core.state import State
from engine.stores import sqlite
from engine.stores.memory import MemoryStore
from engine.worker import Engine
from tests.integration.harness import (
    PATIENCE_S,
    STORES,
    Hasty,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    until,
)
from tests.integration.standin import Raw, Standin, json_of

HEAD = "0|Returns to follow\n\n"
NUMBER = "447900000000"
EMPTY = b'{"results":[]}'


def report(n: int) -> dict[str, Any]:
    status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
    return {"messageId": f"m{n}", "to": NUMBER, "status": status}


def reports(count: int) -> bytes:
    return json_of({"results": [report(n) for n in range(count)]})


def ours() -> set[threading.Thread]:
    """Threads, those of anyio's pool aside: the loop keeps them for whoever comes next."""
    return {t for t in threading.enumerate() if "AnyIO worker" not in t.name}


def tasks() -> set[asyncio.Task[Any]]:
    """Tasks, those of the stand-in's own connections aside."""
    return {
        task
        for task in asyncio.all_tasks()
        if not getattr(task.get_coro(), "__qualname__", "").startswith("RequestHandler")
    }


class Around:
    """What the engine must leave as it found it."""

    def __init__(self) -> None:
        self.threads = ours()
        self.tasks = tasks()
        self.handlers = list(logging.getLogger().handlers)
        self.level = logging.getLogger("dlr_engine").level
        self.signals = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    async def same(self) -> None:
        with suppress(AssertionError):  # it is told below what there is too much
            await until(lambda: ours() <= self.threads and tasks() == self.tasks)
        assert ours() <= self.threads  # one that another test left behind may end meanwhile
        assert tasks() == self.tasks
        assert logging.getLogger().handlers == self.handlers
        assert logging.getLogger("dlr_engine").level == self.level
        assert logging.getLogger("dlr_engine").handlers == []
        now = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
        assert now == self.signals
        gc.collect()  # an unclosed connection or file would warn, and warnings are errors


@pytest.mark.parametrize("store", STORES)
async def test_nothing_is_left(tmp_path: Path, standin: Standin, store: str) -> None:
    around = Around()
    url = standin.answer("info", [reports(3), EMPTY])
    async with engine.open(configured(tmp_path, infobip(url), store=store)):
        await until(lambda: len(lines(tmp_path)) == 3)
    await around.same()


@pytest.mark.parametrize("store", STORES)
async def test_cancelled(tmp_path: Path, standin: Standin, store: str) -> None:
    """While a request is under way, another waits for its place and a sink is failing.

    None of them is waited for: each would take longer than the test's patience.
    """
    around = Around()
    slow = standin.answer("bulk", lambda _: Raw(HEAD, wait_s=2 * PATIENCE_S))
    sinks = [{"name": "bad", "type": "jsonl", "path": "/proc/none/r.jsonl"}]
    config = configured(
        tmp_path, bulksms(slow, request={"timeout": "10m"}),
        infobip(standin.answer("info", [reports(3), EMPTY])),
        store=store, sinks=sinks, shutdown_grace="1h",
    )  # fmt: skip

    async def work() -> None:
        async with engine.open(config) as poller:
            for n in range(3):
                await poller.track("bulk", batch_id=str(n))
            await anyio.sleep_forever()

    task = asyncio.create_task(work())
    await until(lambda: standin.asked["bulk"] and len(standin.asked["info"]) > 1)
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE_S)
    assert task.cancelled()
    await around.same()


async def test_an_error_of_the_caller_comes_out_as_it_is(tmp_path: Path, standin: Standin) -> None:
    around = Around()
    config = configured(tmp_path, infobip(standin.answer("info", [EMPTY])))
    with pytest.raises(ZeroDivisionError):
        async with engine.open(config):
            await until(lambda: standin.asked["info"])
            raise ZeroDivisionError
    await around.same()


class Breaking(MemoryStore):
    """Breaks in a way that nobody foresaw."""

    broken = False

    async def write(self, job: Any, *, lazy: bool = False) -> Any:
        if self.broken:
            raise RuntimeError("the store is no more")
        return await super().write(job, lazy=lazy)

    async def read(self, job: Any) -> Any:
        if self.broken:
            raise RuntimeError("the store is no more")
        return await super().read(job)


async def test_a_fatal_error_cancels_the_block(tmp_path: Path, standin: Standin) -> None:
    around = Around()
    store = Breaking()
    config = configured(tmp_path, infobip(standin.answer("info", [EMPTY])))
    woken = False
    with anyio.fail_after(2 * PATIENCE_S), pytest.raises(RuntimeError, match="no more"):
        async with Engine(config, rand=Hasty(), store=store):
            await until(lambda: standin.asked["info"])
            store.broken = True
            await anyio.sleep(PATIENCE_S)
            woken = True
    assert not woken
    await around.same()


async def test_two_engines_in_one_loop(tmp_path: Path, standin: Standin) -> None:
    around = Around()
    configs = []
    for name in ("one", "two"):
        url = standin.answer(name, [reports(3), EMPTY])
        configs.append(configured(tmp_path / name, infobip(url)))
    async with engine.open(configs[0]) as one:
        async with engine.open(configs[1]) as two:
            await until(lambda: len(lines(tmp_path / "one")) == len(lines(tmp_path / "two")) == 3)
            assert one.telemetry is not two.telemetry
        asked = len(standin.asked["one"])
        await until(lambda: len(standin.asked["one"]) > asked + 2)
        stopped = len(standin.asked["two"])
    assert len(standin.asked["two"]) == stopped
    await around.same()


def locks(folder: Path) -> int:
    """How often this process has opened the lock of the folder's store."""
    path, count = str(folder.resolve() / "state.db.lock"), 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # what the list itself was read from
            count += os.readlink(f"/proc/self/fd/{number}") == path
    return count


async def test_cancelled_while_it_is_opened(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store belongs to nobody then."""
    around = Around()
    config = configured(tmp_path, infobip(standin.answer("info", [EMPTY])))
    began, prepare = threading.Event(), sqlite.prepare

    def slowly(path: Path) -> None:
        began.set()
        time.sleep(0.1)
        prepare(path)

    monkeypatch.setattr(sqlite, "prepare", slowly)
    monkeypatch.setattr(sqlite, "LOCK_PATIENCE_S", PATIENCE_S)

    async def work() -> None:
        async with engine.open(config):
            await anyio.sleep_forever()

    opening = asyncio.create_task(work())
    await until(began.is_set)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    monkeypatch.setattr(sqlite, "prepare", prepare)
    async with engine.open(config):
        waiting = asyncio.create_task(work())  # for the store, which has an owner
        await until(lambda: locks(tmp_path) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert locks(tmp_path) == 1
    await around.same()


async def test_reports_end_with_the_block(tmp_path: Path, standin: Standin) -> None:
    """Also for a task of the caller's that waits for the next one meanwhile."""
    config = configured(tmp_path, infobip(standin.answer("info", [reports(2), EMPTY])))
    got: list[str] = []

    async def read(poller: Engine) -> None:
        async for one in poller.reports():
            got.append(one.message_id)
            assert not one.verdict

    async with hasty(config) as poller:
        reading = asyncio.create_task(read(poller))
        await until(lambda: len(got) == 2)
        await anyio.sleep(0.05)  # it waits for the third
    with anyio.fail_after(PATIENCE_S):
        await reading
    standin.answer("info", lambda _: reports(3))
    async with hasty(config) as poller:
        reading = asyncio.create_task(read(poller))
        await until(lambda: "m2" in got)
    await reading
    assert got == ["m0", "m1", "m2"]


async def test_reports_are_acknowledged_when_the_next_is_asked_for(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("info", [reports(10), EMPTY])
    config = configured(tmp_path, infobip(url), sinks=[])

    async def take(last: str) -> list[str]:
        got: list[str] = []
        async with hasty(config) as poller:
            with anyio.fail_after(PATIENCE_S):
                async for one in poller.reports():
                    got.append(one.message_id)
                    if one.message_id == last:
                        break
        return got

    # The one in hand when the loop was left was never acknowledged: it comes again.
    assert await take("m3") == ["m0", "m1", "m2", "m3"]
    assert await take("m5") == ["m3", "m4", "m5"]
    standin.answer("info", lambda _: reports(11))
    assert await take("m10") == ["m5", "m6", "m7", "m8", "m9", "m10"]


async def test_reports_of_some_accounts(tmp_path: Path, standin: Standin) -> None:
    accounts = [infobip(standin.answer(n, [reports(2), EMPTY]), name=n) for n in ("a", "b")]
    got: list[tuple[str, str, str]] = []
    async with hasty(configured(tmp_path, *accounts)) as poller:
        with anyio.fail_after(PATIENCE_S):
            async for one in poller.reports(accounts=["b"]):
                got.append((one.account, one.message_id, one.event_id))
                assert isinstance(one, engine.Report)
                assert one.state is engine.State.DELIVERED
                if len(got) == 2:
                    break
    assert [one[:2] for one in got] == [("b", "m0"), ("b", "m1")]
    written = {one["event_id"] for one in lines(tmp_path)}
    assert {one[2] for one in got} <= written


async def test_a_second_consumer_takes_over(tmp_path: Path, standin: Standin) -> None:
    """The first one ends; each record was given, and none was acknowledged unseen."""
    url = standin.answer("info", [reports(6), EMPTY])
    first: list[str] = []
    second: list[str] = []
    ended, taken_over = False, anyio.Event()

    async def take(poller: Engine) -> None:
        nonlocal ended
        async for one in poller.reports():
            first.append(one.message_id)
            if len(first) == 2:
                await taken_over.wait()
        ended = True

    async with hasty(configured(tmp_path, infobip(url))) as poller:
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as both:
                both.start_soon(take, poller)
                await until(lambda: len(first) == 2)
                async for one in poller.reports():
                    taken_over.set()
                    second.append(one.message_id)
                    if one.message_id == "m5":
                        break
            assert ended
    assert first == ["m0", "m1"]
    assert second == ["m1", "m2", "m3", "m4", "m5"]


async def test_what_cannot_be_tracked(tmp_path: Path, standin: Standin) -> None:
    accounts = [
        bulksms(standin.answer("bulk", [HEAD])),
        messangi(standin.answer("omni", [b'{"pagination":{"total":0},"items":[]}']),
                 lookback="10s"),
    ]  # fmt: skip
    async with hasty(configured(tmp_path, *accounts)) as poller:
        for name, item in (
            ("nobody", {"batch_id": "1"}),
            ("bulk", {"message_id": "1"}),
            ("bulk", {}),
            ("omni", {"message_id": "1"}),
        ):
            with pytest.raises(engine.ConfigError):
                await poller.track(name, **item)  # type: ignore[arg-type]
        naive = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
        for fault, more in (
            ("sent_at: expected .* with an offset", {"sent_at": "2026-01-01T00:00:00"}),
            ("sent_at: expected .* with an offset", {"sent_at": naive}),
            ("sent_at: expected", {"sent_at": float("nan")}),
            ("recipients: expected several texts", {"recipients": "447700900001"}),
            ("recipients: expected several texts", {"recipients": 447700900001}),
            ("recipients: expected texts", {"recipients": ["447700900001", None]}),
            ("recipients: expected a text", {"recipient": ""}),
            ("reference: expected a text", {"reference": b"r"}),
            ("expected a batch_id or a message_id, not both", {"message_id": "m"}),
            ("a message has one recipient",
             {"batch_id": "", "message_id": "m", "recipients": ["1", "2"]}),
            ("batch_id: expected a text", {"batch_id": " "}),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=fault):
                await poller.track("bulk", **{"batch_id": "1", **more})  # type: ignore[arg-type]
        with pytest.raises(engine.ConfigError, match="no account 'nobody'"):
            poller.reports(accounts=["bulk", "nobody"])
        assert (await poller.store.read(lambda tx: tx.tallies())).get("bulk", {}) == {}
    assert standin.asked["bulk"] == []


async def test_ids_may_be_numbers(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [HEAD + "447700900001|11\n"])
    async with hasty(configured(tmp_path, bulksms(url))) as poller:
        numbers: Any = (447700900001,)
        await poller.track("bulk", batch_id=4711, recipients=numbers)  # type: ignore[arg-type]
        with anyio.fail_after(20):
            async for one in poller.reports():
                assert (one.message_id, one.state) == ("4711:447700900001", State.DELIVERED)
                break


async def test_an_engine_runs_once(tmp_path: Path, standin: Standin) -> None:
    config = configured(tmp_path, bulksms(standin.answer("bulk", [HEAD])))
    one, other = engine.open(config), engine.open(config)
    async with one:
        with pytest.raises(engine.StoreError):  # belongs to the other one
            await other.__aenter__()
    with pytest.raises(RuntimeError, match="runs once"):
        await one.__aenter__()
    async with other:  # never ran
        pass
