"""Avaamo end to end: windows by creation time, pages, totals, rescans."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.committing import Committer
from engine.core.work import Committed, Page
from engine.idle import until_idle
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    causes,
    configured,
    hasty,
    lines,
    tallies,
    until,
)
from tests.integration.standin import Answer, Asked, Standin, json_of

PATH = "/api/v1/agents/5157/sms/report.json"
BEGIN = 1_717_200_000  # 2024-06-01T00:00:00Z
HOUR = {"start": "2024-06-01T00:00:00Z", "end": "2024-06-01T01:00:00Z"}


def entry(uuid: str, created: float, status: str = "delivered", **more: Any) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "from_phone": "+15005550006",
        "to_phone": "+1(415) 555-2671",
        "message": "secret words",
        "created_at": created,
        "sms_status": status,
        **more,
    }


class Report:
    """An agent's messages, read as the page says; subclasses lie in one way each."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries)

    def __call__(self, asked: Asked) -> Answer:
        begin, end = (float(asked.query[f"{which}_timetoken"]) for which in ("from", "to"))
        size, page = int(asked.query["per_page"]), int(asked.query["page"])
        found = sorted(
            (one for one in self.entries if begin <= one["created_at"] <= end),
            key=lambda one: -one["created_at"],
        )
        return self.give(found, page, size)

    def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
        return self.page(found[(page - 1) * size : page * size], page, size, len(found))

    def page(self, rows: list[dict[str, Any]], page: int, size: int, total: int) -> Answer:
        return json_of({
            "current_page": page, "per_page": size, "total_entries": total,
            "total_pages": -(-total // size), "time_token": time.time(), "entries": rows,
        })  # fmt: skip


def hourly(count: int) -> list[dict[str, Any]]:
    return [entry(f"u{n:03d}", BEGIN + 1 + n * 3500 / count) for n in range(count)]


async def read_once(
    folder: Path, standin: Standin, answer: Callable[[Asked], Answer], **keys: Any
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read the hour to its end; the records, and the troubles."""
    account = avaamo(standin.answer("bot", answer), **{**HOUR, **keys})
    async with hasty(configured(folder, account)) as poller:
        with anyio.fail_after(20):
            assert await until_idle(poller, 10) == []
        await balanced(poller)
        troubles = await causes(poller, "bot")
    return lines(folder), troubles


def each_once(records: list[dict[str, Any]], count: int) -> None:
    assert sorted(record["message_id"] for record in records) == [f"u{n:03d}" for n in range(count)]


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
    monkeypatch.setattr("engine.health.FAULT_DELAY_MIN_MS", 10)
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


async def test_pages_are_followed(tmp_path: Path, standin: Standin) -> None:
    records, troubles = await read_once(tmp_path, standin, Report(*hourly(95)), per_page=10)
    each_once(records, 95)
    assert [asked.query["page"] for asked in standin.asked["bot"]] == [str(n) for n in range(1, 11)]
    assert troubles == []


async def test_a_total_that_moves_between_pages(tmp_path: Path, standin: Standin) -> None:
    """Entries turn up at the front while pages are read, and push the others back."""

    class Moving(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            answer = super().give(found, page, size)
            if len(self.entries) < 45:
                n = len(self.entries)
                self.entries.append(entry(f"u{n:03d}", BEGIN + 3550 + n / 10))
            return answer

    records, troubles = await read_once(tmp_path, standin, Moving(*hourly(40)), per_page=10)
    each_once(records, 45)
    assert troubles == []


async def test_rows_that_go_between_pages(tmp_path: Path, standin: Standin) -> None:
    """One entry leaves the front: all others move up by one, over the page's edge."""

    class Shrinking(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            answer = super().give(found, page, size)
            if page == 1 and len(self.entries) == 30:
                self.entries.pop()  # the newest
            return answer

    records, _ = await read_once(tmp_path, standin, Shrinking(*hourly(30)), per_page=10)
    each_once(records, 30)  # the one that went was read before


async def test_a_page_that_is_ignored(tmp_path: Path, standin: Standin) -> None:
    class Ignoring(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            return super().give(found, 1, size)

    records, troubles = await read_once(tmp_path, standin, Ignoring(*hourly(40)), per_page=10)
    each_once(records, 40)
    assert troubles == []
    assert len(standin.asked["bot"]) < 40


async def test_a_page_that_repeats(tmp_path: Path, standin: Standin) -> None:
    """The page's number follows, its content does not."""

    class Repeating(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            return self.page(found[:size], page, size, len(found))

    records, troubles = await read_once(tmp_path, standin, Repeating(*hourly(40)), per_page=10)
    each_once(records, 40)
    assert troubles == []
    assert len(standin.asked["bot"]) < 60


async def test_a_total_below_the_pages_that_there_are(tmp_path: Path, standin: Standin) -> None:
    """Half of what there is, as the pages tell: rows that come are rows."""

    class Low(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            return json_of({
                "current_page": page, "per_page": size, "total_entries": len(found) // 2,
                "total_pages": -(-len(found) // size), "time_token": time.time(),
                "entries": found[(page - 1) * size : page * size],
            })  # fmt: skip

    records, troubles = await read_once(tmp_path, standin, Low(*hourly(45)), per_page=10)
    each_once(records, 45)
    assert troubles == []
    assert len(standin.asked["bot"]) == 5


@pytest.mark.parametrize("total", [10**18, 2**64, 10**30])
async def test_a_total_that_no_table_holds_is_none(
    tmp_path: Path, standin: Standin, total: int
) -> None:
    class Vast(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            rows = json_of(found[(page - 1) * size : page * size]).decode()
            said = f'"current_page":{page},"total_entries":{total},"total_pages":{total}'
            return f'{{{said},"entries":{rows}}}'

    records, troubles = await read_once(tmp_path, standin, Vast(*hourly(25)), per_page=10)
    each_once(records, 25)
    assert troubles == []
    assert len(standin.asked["bot"]) < 10


async def test_a_window_that_stays_short_is_an_incident(tmp_path: Path, standin: Standin) -> None:
    """One row of a second is held back: split down to that second, then said."""
    shy = BEGIN + 1000.5

    class Hiding(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            shown = [one for one in found if one["created_at"] != shy]
            return self.page(shown[(page - 1) * size : page * size], page, size, len(found))

    records, troubles = await read_once(
        tmp_path, standin, Hiding(*hourly(20), entry("hidden", shy))
    )
    each_once(records, 20)
    assert [kind for kind, _ in troubles] == ["short_window"]
    widths = [
        float(asked.query["to_timetoken"]) - float(asked.query["from_timetoken"])
        for asked in standin.asked["bot"]
    ]
    assert min(widths) == 1.0
    assert len(widths) < 60


async def test_a_burst_on_a_boundary(tmp_path: Path, standin: Standin) -> None:
    """All of it in the very second where the window is halved: both halves hold all of it.

    That says nothing of the total, and what was not shown is an incident.
    """

    class Ignoring(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            return super().give(found, 1, size)

    burst = [entry(f"u{n:03d}", BEGIN + 1800.0) for n in range(12)]
    _, troubles = await read_once(tmp_path, standin, Ignoring(*burst), per_page=10)
    assert {kind for kind, _ in troubles} == {"short_window"}


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


class Global(Report):
    """Its totals are of all messages of the agent."""

    def __init__(self, *entries: dict[str, Any], all_ever: int, growth: int = 0) -> None:
        super().__init__(*entries)
        self.all_ever, self.growth = all_ever, growth

    def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
        self.all_ever += self.growth
        return self.page(found[(page - 1) * size : page * size], page, size, self.all_ever)


@pytest.mark.parametrize(("all_ever", "growth"), [(5000, 0), (60_000, 0), (60_000, 3)])
async def test_a_global_total_is_said_once_and_ignored(
    tmp_path: Path, standin: Standin, all_ever: int, growth: int
) -> None:
    """Of all messages of the agent, also of more than a window may hold, also as it grows."""
    rows = [*hourly(40), entry("open", BEGIN + 1, "sent")]
    answer = standin.answer("bot", Global(*rows, all_ever=all_ever, growth=growth))
    account = avaamo(
        answer,
        start="2024-06-01T00:00:00Z",
        end="2024-06-20T00:00:00Z",
        schedule={"interval": "50ms", "rescan": ["200ms", "400ms", "600ms"]},
    )
    async with hasty(configured(tmp_path, account)) as poller:
        assert await until_idle(poller, 10) == []
        assert [kind for kind, _ in await causes(poller)] == ["total_ignored"]
        assert (await tallies(poller))["bot"]["incident:total_ignored"] == 1
    records = lines(tmp_path)
    still_open = [one for one in records if one["message_id"] == "open"]
    assert [one["verdict"] for one in still_open] == [None, "last_known"]
    each_once([one for one in records if one not in still_open], 40)
    assert len(standin.asked["bot"]) < 20


@pytest.mark.parametrize(("all_ever", "growth"), [(1, 0), (5000, 0), (5000, 3), (60_000, 3)])
async def test_a_global_total_is_found_out_where_no_window_can_be_split(
    tmp_path: Path, standin: Standin, all_ever: int, growth: int
) -> None:
    """Each is of a second at most, and nothing was ever sent in or before the first one."""
    answer = standin.answer("bot", Global(all_ever=all_ever, growth=growth))
    account = avaamo(answer, lookback="200ms", overlap="0s")
    async with hasty(configured(tmp_path, account)) as poller:
        await until(lambda: len(standin.asked["bot"]) >= 12)
        assert [kind for kind, _ in await causes(poller)] == ["total_ignored"]
        assert poller.telemetry.of("incidents", "bot") == 1


@pytest.mark.parametrize("beside", [[], [entry("before", BEGIN - 2)]])
async def test_a_true_total_of_a_second_stays_an_incident(
    tmp_path: Path, standin: Standin, beside: list[dict[str, Any]]
) -> None:
    """A row is never given."""

    class Hiding(Report):
        def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
            rows = [one for one in found if one["uuid"] != "hidden"]
            return self.page(rows, page, size, len(found))

    answer = Hiding(entry("u000", BEGIN), entry("hidden", BEGIN + 1), *beside)
    records, troubles = await read_once(
        tmp_path, standin, answer, start="2024-06-01T00:00:00Z", end="2024-06-01T00:00:01Z"
    )
    assert sorted(one["message_id"] for one in records) == sorted(
        ["u000", *(one["uuid"] for one in beside)]  # what a test of the total has brought is kept
    )
    ((kind, cause),) = troubles
    assert (kind, cause.partition(": ")[2]) == (
        "short_window",
        "1 of 2 rows came, and the window can be split no further",
    )
    pages = 2  # of the second itself; then it again, before it, and where a row is there, over both
    assert len(standin.asked["bot"]) == pages + 2 + len(beside)


async def test_a_global_total_that_a_rescan_found_is_known_after_a_restart(
    tmp_path: Path, standin: Standin
) -> None:
    """The feed is at its end, and finds out nothing any more."""
    report = Report(entry("open", BEGIN + 10, "sent"))
    url = standin.answer("bot", report)
    schedule = {"interval": "50ms", "rescan": ["100ms", "1s", "2s"]}
    config = configured(tmp_path, avaamo(url, **HOUR, schedule=schedule))
    async with hasty(config) as poller:
        await until(lambda: lines(tmp_path))
        standin.answer("bot", Global(*report.entries, all_ever=5000))
        await until(lambda: poller.telemetry.of("incidents", "bot"))
    asked = len(standin.asked["bot"])
    async with hasty(config) as poller:
        assert await until_idle(poller, 10) == []
        assert poller.telemetry.of("incidents", "bot") == 0
        assert [kind for kind, _ in await causes(poller)] == ["total_ignored"]
    after = standin.asked["bot"][asked:]
    assert {one.query["to_timetoken"] for one in after} == {str(BEGIN + 3600)}  # nothing is split


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


@pytest.mark.parametrize("store", STORES)
async def test_rescans_while_something_is_open(
    tmp_path: Path, standin: Standin, store: str
) -> None:
    """sent, then delivered: seen by a rescan; what stays open gets its verdict after the last."""
    one, two = entry("u000", BEGIN + 10, "sent"), entry("u001", BEGIN + 20, "sent")
    url = standin.answer("bot", Report(one, two))
    schedule = {"interval": "50ms", "rescan": ["200ms", "500ms", "900ms"]}
    async with hasty(
        configured(tmp_path, avaamo(url, **HOUR, schedule=schedule), store=store)
    ) as poller:
        await until(lambda: len(lines(tmp_path)) == 2)
        one["sms_status"] = "delivered"
        await until(lambda: len(lines(tmp_path)) == 3)
        assert await until_idle(poller, 5) == []
        await balanced(poller)
    found = [(r["message_id"], r["state"], r["verdict"], r["revision"]) for r in lines(tmp_path)]
    assert found[2:] == [("u000", "delivered", None, 2), ("u001", "enroute", "last_known", 2)]
    times = standin.times("bot")
    assert len(times) == 4  # the feed, and three rescans
    for at, rung in zip(times[1:], (0.2, 0.5, 0.9), strict=True):
        assert rung - 0.01 <= at - times[0] < rung + 0.25


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
