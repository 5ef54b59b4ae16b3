"""Avaamo end to end: pages and totals that move, repeat, are of something else, or are wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from engine.idle import until_idle
from tests.integration.avaamo_agent import BEGIN, HOUR, Report, each_once, entry, hourly, read_once
from tests.integration.harness import (
    avaamo,
    causes,
    configured,
    hasty,
    lines,
    tallies,
    until,
)
from tests.integration.standin import Answer, Standin, json_of


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
