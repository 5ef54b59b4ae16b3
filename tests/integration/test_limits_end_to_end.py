"""Limits by the provider's own clock: never more than allowed, and nearly all of what is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import engine
from tests.integration.harness import (
    avaamo,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    until,
)
from tests.integration.standin import Answer, Asked, Raw, Standin, json_of

pytestmark = pytest.mark.alone

ROW = "0|Returns to follow\n\n447900000000|11\n"
ONE = {"ladder": ["0s"], "give_up": "10s"}


def most_in_a_window(times: list[float], per: float) -> int:
    """The most arrivals in any window of that length, as the contract's slack allows."""
    span = per - max(0.005, 0.005 * per)
    ordered = sorted(times)
    return max(sum(1 for other in ordered if start <= other < start + span) for start in ordered)


BUSY = 3  # how many times slower than an idle one a machine may be that runs these tests


async def backlog(poller: engine.Engine, count: int, name: str = "bulk") -> None:
    for n in range(count):
        await poller.track(name, batch_id=str(n + 1), recipients=["447900000000"])


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_never_more_and_nearly_all(
    tmp_path: Path, standin: Standin, concurrency: int
) -> None:
    url = standin.answer("bulk", lambda _: Raw(ROW, wait_s=0.01))
    limits = {"requests": 5, "per": "500ms", "concurrency": concurrency}
    config = configured(tmp_path, bulksms(url, limits=limits, schedule=ONE))
    async with engine.open(config) as poller:
        await backlog(poller, 25)
        await until(lambda: len(standin.asked["bulk"]) >= 25, 10)
    times = standin.times("bulk")
    assert most_in_a_window(times, 0.5) <= 5
    # The fifth five begin four windows after the first; how exactly, virtual time tells in
    # test_limits.py and in the simulation: here other programs run on the machine, too.
    assert times[20] - times[0] <= BUSY * 4 * 0.5
    assert standin.most["bulk"] <= concurrency


async def test_several_windows_hold_at_once(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [ROW])
    limits = {"requests": 4, "per": "200ms", "also": [{"requests": 8, "per": "1s"}]}
    config = configured(tmp_path, bulksms(url, limits=limits, schedule=ONE))
    async with engine.open(config) as poller:
        await backlog(poller, 16)
        await until(lambda: len(standin.asked["bulk"]) == 16, 10)
    times = standin.times("bulk")
    assert most_in_a_window(times, 0.2) <= 4
    assert most_in_a_window(times, 1.0) <= 8
    assert times[15] - times[0] <= BUSY * 1.4


async def test_a_group_shares_one_limit(tmp_path: Path, standin: Standin) -> None:
    limits = {"requests": 5, "per": "300ms", "group": "eapi"}
    accounts = [
        bulksms(standin.answer(name, [ROW]), name=name, limits=limits, schedule=ONE)
        for name in ("a", "b")
    ]
    async with engine.open(configured(tmp_path, *accounts)) as poller:
        await backlog(poller, 10, "a")
        await backlog(poller, 10, "b")
        await until(lambda: sum(map(len, standin.asked.values())) == 20, 10)
    both = standin.times("a") + standin.times("b")
    assert most_in_a_window(both, 0.3) <= 5
    # None of them starves while the other has work.
    assert standin.times("b")[0] < standin.times("a")[9]


async def test_failures_and_redirects_count(tmp_path: Path, standin: Standin) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path != "/again" and asked.number % 3 == 1:
            return Raw(b"", 302, {"Location": f"/bulk/again?{asked.query_string}"})
        if asked.number % 3 == 2 and asked.number < 12:
            return Raw(b"", 500)
        return ROW

    limits = {"requests": 5, "per": "300ms"}
    config = configured(
        tmp_path, bulksms(standin.answer("bulk", answer), limits=limits, schedule=ONE)
    )
    async with hasty(config) as poller:
        await backlog(poller, 15)
        await until(lambda: len(lines(tmp_path)) == 15, 12)
    times = standin.times("bulk")
    assert len(times) >= 20
    assert most_in_a_window(times, 0.3) <= 5
    assert standin.most["bulk"] == 1


async def test_logins_count(tmp_path: Path, standin: Standin) -> None:
    """A token that runs out with each request: a login for each, in the same limit."""
    number = 0

    def answer(asked: Asked) -> Answer:
        nonlocal number
        if asked.path == "/login":
            number += 1
            return Raw(b"", headers={"authorization": f"Bearer {number}"})
        if asked.number % 4 == 0:
            return Raw(b"{}", 401)
        return json_of({"pagination": {"total": 0}, "items": []})

    url = standin.answer("omni", answer)
    account = messangi(
        url, headers={}, login_url=url + "/login", username="john", password="x", lookback="10s",
        limits={"requests": 5, "per": "300ms"},
        schedule={"interval": "10ms", "idle_interval": "10ms", "rescan": []},
    )  # fmt: skip
    async with hasty(configured(tmp_path, account)):
        await until(lambda: len(standin.asked["omni"]) >= 25, 8)
    times = standin.times("omni")
    assert number >= 3
    assert most_in_a_window(times, 0.3) <= 5
    assert times[24] - times[0] <= BUSY * 4 * 0.3


async def test_concurrency_is_used_and_never_exceeded(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", lambda _: Raw(ROW, wait_s=0.05))
    limits = {"requests": 1000, "per": "1s", "concurrency": 4}
    config = configured(tmp_path, bulksms(url, limits=limits, schedule=ONE))
    async with engine.open(config) as poller:
        await backlog(poller, 40)
        await until(lambda: len(standin.asked["bulk"]) == 40, 10)
    assert standin.most["bulk"] == 4


@pytest.mark.parametrize("clean", [True, False])
async def test_the_limit_outlives_a_restart(tmp_path: Path, standin: Standin, clean: bool) -> None:
    """By the stand-in's clock no window is exceeded across it; also where nothing was saved."""
    url = standin.answer("bulk", [ROW])
    limits = {"requests": 5, "per": "500ms"}
    config = configured(tmp_path, bulksms(url, limits=limits, schedule=ONE))
    kept = {}
    async with engine.open(config) as poller:
        await backlog(poller, 20)
        await until(lambda: len(standin.asked["bulk"]) >= 4)
        kept = await poller.store.read(lambda tx: tx.notes("limiter"))
    stopped = time.monotonic()
    if not clean:
        # What the store would hold had the process been killed: the note of its start.
        poller = engine.open(config)
        await poller.store.open(own=True)
        assert b'"clean":false' in kept["bulk"]
        await poller.store.write(lambda tx: tx.put_note("bulk", "limiter", kept["bulk"]))
        await poller.store.close()
    async with engine.open(config):
        await until(lambda: len(standin.asked["bulk"]) >= 12, 8)
    times = standin.times("bulk")
    assert most_in_a_window(times, 0.5) <= 5
    if not clean:
        assert min(at for at in times if at > stopped + 0.05) - stopped >= 0.45


@pytest.mark.parametrize("clean", [True, False])
async def test_an_account_that_joins_or_leaves_a_group_brings_along_what_it_has_sent(
    tmp_path: Path, standin: Standin, clean: bool
) -> None:
    """The provider counts on, whatever its limit is called in the configuration."""
    schedule = {"interval": "10ms", "idle_interval": "10ms"}
    limits = {"requests": 4, "per": "1m"}
    empty = json_of({"results": []})
    urls = {name: standin.answer(name, [empty]) for name in ("one", "two")}

    def config(*names: str, **more: Any) -> engine.Config:
        both = {**limits, **more}
        return configured(
            tmp_path,
            *(infobip(urls[n], name=n, limits=both, schedule=schedule) for n in names),
            sinks=[],
        )

    def asked() -> int:
        return len(standin.asked["one"]) + len(standin.asked["two"])

    async def run(config: engine.Config) -> int:
        async with engine.open(config) as poller:
            await until(lambda: asked() >= 4)
            await anyio.sleep(0.2)
            notes = await poller.store.read(lambda tx: tx.notes("limiter"))
        if not clean:  # what the store would hold had the process been killed
            poller = engine.open(config)
            await poller.store.open(own=True)
            await poller.store.write(
                lambda tx: [tx.put_note(name, "limiter", note) for name, note in notes.items()]
            )
            await poller.store.close()
        return asked()

    assert await run(config("one")) == 4
    assert await run(config("one", "two", group="pair")) == 4
    assert await run(config("one")) == 4
    assert await run(config("one", "two", group="other")) == 4
    assert await run(config("two")) == 4


async def test_overdue_polls_use_the_allowance(tmp_path: Path, standin: Standin) -> None:
    """What became due while nobody ran is work that is there: the limits alone hold it back."""
    url = standin.answer("bulk", [ROW])
    limits = {"requests": 5, "per": "300ms"}
    late = {"ladder": ["200ms", "1h"]}
    config = configured(tmp_path, bulksms(url, limits=limits, schedule=late))
    async with engine.open(config) as poller:
        await backlog(poller, 20)
    await anyio.sleep(0.3)
    assert standin.asked["bulk"] == []
    async with engine.open(config):
        await until(lambda: len(standin.asked["bulk"]) == 20, 20)
    times = standin.times("bulk")
    assert most_in_a_window(times, 0.3) <= 5
    assert times[15] - times[0] <= BUSY * 3 * 0.3


async def test_the_feeds_keep_to_their_limits(tmp_path: Path, standin: Standin) -> None:
    limits = {"requests": 3, "per": "300ms"}
    schedule = {"interval": "10ms", "idle_interval": "10ms"}
    empty = {"avaamo": {"total_entries": 0, "entries": []}, "infobip": {"results": []}}
    accounts = [
        infobip(standin.answer("info", [json_of(empty["infobip"])]), limits=limits,
                schedule=schedule),
        avaamo(standin.answer("bot", [json_of(empty["avaamo"])]), limits=limits, lookback="9s",
               schedule={**schedule, "rescan": []}),
    ]  # fmt: skip
    async with engine.open(configured(tmp_path, *accounts)):
        await until(lambda: min(len(standin.asked[n]) for n in ("info", "bot")) >= 12, 8)
    for name in ("info", "bot"):
        assert most_in_a_window(standin.times(name), 0.3) <= 3
