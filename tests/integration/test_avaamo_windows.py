"""Avaamo end to end: windows by creation time, their overlap, rescans, and what was tracked."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from engine.books.committing import Committer
from engine.core.work import Committed, Page
from engine.idle import until_idle
from tests.integration.avaamo_agent import BEGIN, HOUR, Report, each_once, entry, hourly, read_once
from tests.integration.harness import (
    PATIENCE_S,
    STORES,
    Leaping,
    avaamo,
    balanced,
    configured,
    hasty,
    lines,
    tallies,
    until,
)
from tests.integration.standin import Standin

PATH = "/api/v1/agents/5157/sms/report.json"


async def test_a_fault_in_a_commit_moves_nothing_on(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window whose commit fails is read again, not the one after it."""
    commit, failures = Committer.commit, iter(range(2))

    async def failing(self: Committer, page: Page) -> Committed:
        if page.put and next(failures, None) is not None:
            raise RuntimeError("a fault on purpose")
        return await commit(self, page)

    monkeypatch.setattr(Committer, "commit", failing)
    monkeypatch.setattr("engine.polling.health.FAULT_DELAY_MIN_MS", 10)
    records, _ = await read_once(tmp_path, standin, Report(*hourly(9)))
    each_once(records, 9)
    assert next(failures, None) is None


async def test_both_ends_are_always_sent(tmp_path: Path, standin: Standin) -> None:
    await read_once(tmp_path, standin, Report(*hourly(3)), filters={"to_phone": "+1415"})
    (asked,) = standin.asked["bot"]
    assert (asked.method, asked.path) == ("GET", PATH)
    assert asked.pairs == [
        ("from_timetoken", str(BEGIN)),
        ("to_timetoken", str(BEGIN + 3600)),
        ("page", "1"),
        ("per_page", "100"),
        ("to_phone", "+1415"),
    ]
    assert "to_phone=%2B1415" in asked.query_string
    assert asked.headers["access-token"] == "t0ken-canary"


async def test_an_overlap_longer_than_a_window(tmp_path: Path, standin: Standin) -> None:
    report = Report()
    url = standin.answer("bot", report)
    async with hasty(configured(tmp_path, avaamo(url, lookback="7d", overlap="7d"))):
        await until(lambda: len(standin.asked["bot"]) >= 1)
        await anyio.sleep(0.2)
        report.entries.append(entry("new", time.time()))
        await until(lambda: lines(tmp_path))
    spans = [
        float(one.query["to_timetoken"]) - float(one.query["from_timetoken"])
        for one in standin.asked["bot"]
    ]
    assert max(spans) <= 7 * 86_400


@pytest.mark.parametrize("store", STORES)
async def test_windows_are_at_most_seven_days(tmp_path: Path, standin: Standin, store: str) -> None:
    far = [entry(f"u{n:03d}", BEGIN + 5 + n * 86_400) for n in range(30)]
    url = standin.answer("bot", Report(*far))
    account = avaamo(url, start="2024-06-01T00:00:00Z", end="2024-07-01T00:00:00Z")
    async with hasty(configured(tmp_path, account, store=store)) as poller:
        assert await until_idle(poller, 5) == []
        asked = len(standin.asked["bot"])
        await anyio.sleep(0.2)
        assert len(standin.asked["bot"]) == asked  # `end` stops the feed
    each_once(lines(tmp_path), 30)
    spans = [
        (float(one.query["from_timetoken"]), float(one.query["to_timetoken"]))
        for one in standin.asked["bot"]
    ]
    assert all(to - begin <= 7 * 86_400 for begin, to in spans)
    assert (spans[0][0], spans[-1][1]) == (BEGIN, BEGIN + 30 * 86_400)
    for (_, to), (begin, _) in pairwise(spans):
        assert begin <= to


async def test_late_entries_are_in_the_overlap(tmp_path: Path, standin: Standin) -> None:
    """An entry shows up behind what was read already."""
    report = Report()
    url = standin.answer("bot", report)
    account = avaamo(url, lookback="10s", overlap="5s")
    async with hasty(configured(tmp_path, account)):
        await until(lambda: len(standin.asked["bot"]) >= 4)
        report.entries.append(entry("late", time.time() - 2))
        await until(lambda: lines(tmp_path))
        await anyio.sleep(0.2)
    assert [record["message_id"] for record in lines(tmp_path)] == ["late"]
    last = standin.asked["bot"][-1].query
    assert float(last["to_timetoken"]) - float(last["from_timetoken"]) >= 5


async def test_a_stop_waits_for_no_place_in_the_limits(tmp_path: Path, standin: Standin) -> None:
    """A reading whose next page has to wait for its place is gone on with by the next process."""
    url = standin.answer("bot", Report(*hourly(250)))
    account = avaamo(url, **HOUR, limits={"requests": 1, "per": "1h"})
    with anyio.fail_after(PATIENCE_S):
        async with hasty(configured(tmp_path, account, shutdown_grace="1h")):
            await until(lambda: len(standin.asked["bot"]) == 1)
    assert len(lines(tmp_path)) == 100


@pytest.mark.parametrize("store", STORES)
async def test_rescans_while_something_is_open(
    tmp_path: Path, standin: Standin, store: str
) -> None:
    """sent, then delivered: seen by a rescan; what stays open gets its verdict after the last."""
    one, two = entry("u000", BEGIN + 10, "sent"), entry("u001", BEGIN + 20, "sent")
    url = standin.answer("bot", Report(one, two))
    schedule = {"interval": "50ms", "rescan": ["1h", "2h", "3h"]}
    config = configured(tmp_path, avaamo(url, **HOUR, schedule=schedule), store=store)
    clock = Leaping()
    async with hasty(config, clock) as poller:
        await until(lambda: len(lines(tmp_path)) == 2)
        one["sms_status"] = "delivered"
        for rung in range(1, 4):
            clock.leap(59 * 60_000)
            poller.pollers["bot"].wake()
            await anyio.sleep(0.1)
            assert len(standin.asked["bot"]) == rung
            clock.leap(60_000)
            poller.pollers["bot"].wake()
            await until(lambda rung=rung: len(standin.asked["bot"]) == rung + 1)
        assert await until_idle(poller, 5) == []
        await balanced(poller)
    found = [(r["message_id"], r["state"], r["verdict"], r["revision"]) for r in lines(tmp_path)]
    assert found[2:] == [("u000", "delivered", None, 2), ("u001", "enroute", "last_known", 2)]
    assert len(standin.asked["bot"]) == 4  # the feed, and three rescans


async def test_a_window_with_nothing_open_is_not_read_again(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("bot", Report(*hourly(5)))
    schedule = {"interval": "50ms", "rescan": ["100ms", "200ms"]}
    async with hasty(configured(tmp_path, avaamo(url, **HOUR, schedule=schedule))):
        await until(lambda: len(lines(tmp_path)) == 5)
        await anyio.sleep(0.4)
    assert len(standin.asked["bot"]) == 1


async def test_no_rescans_no_verdicts(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bot", Report(entry("u000", BEGIN + 10, "sent")))
    async with hasty(configured(tmp_path, avaamo(url, **HOUR))) as poller:
        await until(lambda: lines(tmp_path))
        await anyio.sleep(0.3)
        assert (await tallies(poller))["bot"]["pending"] == 1
    assert len(standin.asked["bot"]) == 1
    assert [record["verdict"] for record in lines(tmp_path)] == [None]


async def test_tracked_messages_and_a_late_correction(tmp_path: Path, standin: Standin) -> None:
    """Found in the feed they get their reference; never found, their verdict."""
    now = time.time()
    report = Report(entry("found", now - 1, "sent"))
    url = standin.answer("bot", report)
    schedule = {"interval": "50ms", "idle_interval": "50ms", "rescan": ["200ms", "400ms"]}
    async with hasty(
        configured(tmp_path, avaamo(url, lookback="10s", schedule=schedule))
    ) as poller:
        await poller.track("bot", message_id="found", reference="r1", sent_at=now - 1)
        await poller.track("bot", message_id="lost", reference="r2", sent_at=now - 1)
        await until(lambda: len(lines(tmp_path)) == 3, 8)
        report.entries[0] = entry("found", now - 1)
        await until(lambda: len(lines(tmp_path)) == 4)
        await balanced(poller)
    found = [(r["message_id"], r["reference"], r["state"], r["verdict"]) for r in lines(tmp_path)]
    assert found[0] == ("found", "r1", "enroute", None)
    assert sorted(found[1:3]) == [("found", "r1", "enroute", "last_known"),
                                  ("lost", "r2", "unknown", "never_reported")]  # fmt: skip
    assert found[3] == ("found", "r1", "delivered", None)
    revisions = [r["revision"] for r in lines(tmp_path) if r["message_id"] == "found"]
    assert revisions == [1, 2, 3]
