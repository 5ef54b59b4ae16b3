"""A reading that fails in the middle goes on where it stood, and is proven complete as ever."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from engine.core.contracts import Kind
from engine.core.reading import ROWS_MAX, Progress, Reading, Span
from engine.core.schedule import Ladder
from engine.core.work import Page, Work
from engine.polling.feeds import Feed
from engine.polling.health import ONCE_FAILURES_MAX
from engine.polling.poller import AccountPoller
from engine.polling.rescans import Rescans
from engine.polling.windowed import STAND_MAX_MS, Stand, WindowReader
from tests.unit.parts import EMPTY, T0, Parts, feed_work

DOWN = (500, {})
SENT_S = T0 / 1000 - 30


def avaamo(page: int, *ids: str, total: int = 3) -> tuple[int, dict[str, Any]]:
    entries = [
        {"uuid": one, "created_at": SENT_S, "to_phone": "+447700900001", "sms_status": "sent"}
        for one in ids
    ]
    return 200, {
        "current_page": page, "per_page": 1, "total_entries": total, "total_pages": total,
        "entries": entries,
    }  # fmt: skip


def asked(parts: Parts) -> list[tuple[str, str]]:
    """Page and end of the window of each question."""
    questions = [dict(request.params) for request in parts.network.asked]
    return [(one["page"], one["to_timetoken"]) for one in questions]


def pages(parts: Parts) -> list[int]:
    return [int(page) for page, _ in asked(parts)]


async def advance(parts: Parts, *, visits: int, pause_ms: int = 1000) -> list[bool]:
    """Visit the feed so many times; whether each came to the end."""
    feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
    work = await parts.put(feed_work(parts.clock))
    ends = []
    for _ in range(visits):
        visit = await feed.advance(work, None)
        ends.append(visit.failed is None)
        parts.clock.ms += pause_ms
    return ends


def one_page(*answers: tuple[int, Any], **keys: Any) -> Parts:
    """One question at a time, so that the script says what is answered to which."""
    return Parts("avaamo", *answers, per_page=1, limits={**LIMITS, "concurrency": 1}, **keys)


LIMITS = {"requests": 100, "per": "1s"}


async def test_a_page_that_fails_is_asked_for_again_where_it_stands() -> None:
    script = [avaamo(1, "a"), DOWN, avaamo(2, "b"), DOWN, DOWN, avaamo(3, "c"), (200, EMPTY)]
    async with one_page(*script) as parts:
        assert await advance(parts, visits=4) == [False, False, False, True]
        assert pages(parts) == [1, 2, 2, 3, 3, 3]
        assert len({end for _, end in asked(parts)}) == 1, "it is one and the same window"


def test_a_reading_of_more_rows_than_are_told_apart_goes_on_where_it_stands() -> None:
    """The page that reaches the bound goes beyond it. Of thousands of pages one fails soon, and a
    reading that began anew each time would never get to the last."""
    stand = Stand(
        reading=Reading(spans=[Span(from_ms=0, to_ms=1)]),
        answered_ms=T0,
        progress=Progress(page=502, seen=set(range(ROWS_MAX + 50))),
    )
    assert stand.holds(T0 + 1000)


async def test_what_was_read_too_long_ago_is_read_again() -> None:
    script = [avaamo(1, "a"), DOWN, avaamo(1, "a"), avaamo(2, "b"), avaamo(3, "c")]
    async with one_page(*script) as parts:
        assert await advance(parts, visits=2, pause_ms=STAND_MAX_MS + 1) == [False, True]
        assert pages(parts) == [1, 2, 1, 2, 3]


async def test_a_visit_that_was_told_nothing_begins_with_what_is_new_by_now() -> None:
    async with one_page(DOWN, avaamo(1, "a", total=1)) as parts:
        assert await advance(parts, visits=2) == [False, True]
        first, second = asked(parts)
        assert float(second[1]) - float(first[1]) == 1.0


async def test_rows_that_went_during_a_failure_lead_to_every_page_again() -> None:
    """`b` has moved up to a page that was read already."""
    script = [
        avaamo(1, "a"), DOWN, avaamo(2, "c", total=2), avaamo(1, "b", total=2),
        avaamo(2, "c", total=2), (200, EMPTY),
    ]  # fmt: skip
    async with one_page(*script) as parts:
        assert await advance(parts, visits=2) == [False, True]
        assert pages(parts) == [1, 2, 2, 1, 2]
        assert (await parts.store.read(lambda tx: tx.tallies()))["a"]["known"] == 3


async def test_a_fault_forgets_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been counted without being committed."""
    script = [avaamo(1, "a"), avaamo(2, "b"), avaamo(1, "a"), avaamo(2, "b"), avaamo(3, "c")]
    async with one_page(*script) as parts:
        feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
        work = await parts.put(feed_work(parts.clock))
        commit = parts.asker.commit

        async def fails(page: Page) -> Any:
            if len(parts.network.asked) <= 3 and page.reports[0].message_id == "b":
                raise RuntimeError("a fault")
            return await commit(page)

        monkeypatch.setattr(parts.asker, "commit", fails)
        with pytest.raises(RuntimeError):
            await feed.advance(work, None)
        assert (await feed.advance(work, None)).failed is None
        assert pages(parts) == [1, 2, 3, 1, 2, 3], "the third was asked for behind the fault"


async def test_failures_that_something_came_between_are_no_row() -> None:
    """Or a feed of many pages would soon wait a minute after each failure."""
    async with one_page(avaamo(1, "a"), DOWN, avaamo(2, "b"), DOWN) as parts:
        poller = AccountPoller(parts.asker)
        work = await parts.put(feed_work(parts.clock))
        for _ in range(2):
            visit = await poller._feed.advance(work, None)
            poller._after_visit([work], visit)
            parts.clock.ms += 1000
            assert poller.health.failures == 1
            assert poller._watch._tries == {work.id: 1}


async def test_a_slice_that_goes_on_is_no_proof_that_all_is_read() -> None:
    """What came between its plan and its end is in the next one."""
    async with one_page(avaamo(1, "a", total=2), DOWN, avaamo(2, "b", total=2),
                        avaamo(1, "c", total=1)) as parts:  # fmt: skip
        poller = AccountPoller(parts.asker)
        work = await parts.put(feed_work(parts.clock))
        read = []
        for _ in range(3):
            await poller._visit_feed(work, None)
            read.append(poller.feed_began_ms)
            parts.clock.ms += 1000
        assert pages(parts) == [1, 2, 2, 1]
        assert read == [None, None, parts.clock.ms - 1000]


@pytest.mark.parametrize(("away_ms", "more"), [(1000, False), (61_000, True)])
async def test_behind_a_slice_from_before_the_interval_the_next_is_due_at_once(
    away_ms: int, more: bool
) -> None:
    async with one_page(avaamo(1, "a", total=2), DOWN, avaamo(2, "b", total=2),
                        schedule={"interval": "60s"}) as parts:  # fmt: skip
        feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
        work = await parts.put(feed_work(parts.clock))
        assert (await feed.advance(work, None)).failed is not None
        parts.clock.ms += away_ms
        assert (await feed.advance(work, None)).more is more
        assert work.due_ms == parts.clock.ms + (0 if more else 60_000)


async def test_a_clock_that_was_put_right_does_not_silence_the_feed() -> None:
    """It was 30 min ahead, as the provider had told: by that the cursor now lies in the future."""
    async with one_page((200, {**EMPTY, "time_token": T0 / 1000})) as parts:
        feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
        data = {"cursor": T0 - 1000, "start": T0 - 60_000, "skew": -1_800_000}
        work = await parts.put(feed_work(parts.clock, data=data))
        visit = await feed.advance(work, None)
        assert (visit.more, work.data["skew"]) == (True, 0)
        parts.clock.ms += 1
        await feed.advance(work, None)
        assert [end for _, end in asked(parts)] == [
            f"{(T0 - 999) / 1000:.3f}", f"{(T0 + 1) / 1000:.3f}"
        ]  # fmt: skip


async def test_a_clock_ahead_that_nobody_knew_of_is_read_up_to_at_once() -> None:
    """Less than a second: a run that ends with this reading would leave what was sent in it."""
    script = [(200, {**EMPTY, "time_token": (T0 + 800 + ms) / 1000}) for ms in (0, 0, 60_500)]
    async with one_page(*script) as parts:
        feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
        work = await parts.put(feed_work(parts.clock))
        assert (await feed.advance(work, None)).more
        assert work.due_ms == T0
        assert not (await feed.advance(work, None)).more
        parts.clock.ms += 60_000
        assert not (await feed.advance(work, None)).more  # it drifts: that is read the next time
        ends = [round(float(end) * 1000) - T0 for _, end in asked(parts)]
        assert ends == [0, 800, 60_800]


@pytest.mark.parametrize("once", [True, False])
async def test_a_failed_visit_waits_for_no_question_that_has_no_place_yet(once: bool) -> None:
    """Three requests may go out: the fourth page waits while the third is refused for a minute."""
    refused = (429, {})
    async with Parts("avaamo", avaamo(1, "a", total=5), avaamo(2, "b", total=5), refused,
                     per_page=1, limits={"requests": 3, "per": "60s", "concurrency": 3}
                     ) as parts:  # fmt: skip
        poller = AccountPoller(parts.asker, once=once)
        work = await parts.put(feed_work(parts.clock))
        with anyio.fail_after(5):
            visit = await poller._feed.advance(work, None)
        assert visit.failed is not None
        assert pages(parts) == [1, 2, 3]


async def test_once_does_not_ask_on_where_the_account_fails_again_and_again() -> None:
    """The run ends; the next one goes on."""
    async with one_page(avaamo(1, "a")) as parts:
        poller = AccountPoller(parts.asker, once=True)
        work = await parts.put(feed_work(parts.clock))
        poller.health.failing, poller.health.failures = "down", ONCE_FAILURES_MAX
        with anyio.fail_after(5):
            visit = await poller._feed.advance(work, None)
        assert (visit.failed, visit.more, visit.answered) == (None, True, False)
        assert pages(parts) == []
        poller._after_visit([work], visit)
        assert poller.health.failing == "down"


def messangi(*, shows_ms: int = T0) -> tuple[int, dict[str, Any]]:
    return 200, {"meta": {"timestamp": shows_ms}, "pagination": {"total": 0}, "items": []}


async def test_another_process_knows_when_the_first_channel_was_read() -> None:
    """The provider's clock is behind: what it took in after that answer has been read by nobody."""
    behind_ms = T0 - 700
    script = [messangi(shows_ms=behind_ms), DOWN, messangi(shows_ms=behind_ms + 9000)]
    keys = {"headers": {"Authorization": "Bearer t"}, "channels": ["S", "E"]}
    limits = {**LIMITS, "concurrency": 1}
    async with Parts("messangi", *script, login_url=None, username=None, password=None,
                     limits=limits, **keys) as parts:  # fmt: skip
        await parts.put(feed_work(parts.clock))
        for failed in (True, False):
            feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
            (work,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.FEED, None))
            visit = await feed.advance(work, None)
            assert (visit.failed is not None, visit.resumed) == (failed, not failed)
            parts.clock.ms += 9000
        questions = [dict(request.params)["channel"] for request in parts.network.asked]
        assert questions == ["S", "E", "E"]
        assert (work.data["cursor"], work.data["skew"]) == (behind_ms, -700)


def window(parts: Parts, from_ms: int, to_ms: int) -> Work:
    return Work(
        account="a", kind=Kind.WINDOW, key=f"{from_ms}-{to_ms}", due_ms=T0, start_ms=T0 - 10_000,
        data={"from": from_ms, "to": to_ms},
    )  # fmt: skip


async def test_windows_that_are_read_again_go_on_with_the_channel_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the same group; a window that has come due meanwhile is read after it."""
    script = [messangi(), DOWN, messangi(), messangi()]
    keys = {"headers": {"Authorization": "Bearer t"}, "channels": ["S", "E"]}
    limits = {**LIMITS, "concurrency": 1}
    async with Parts("messangi", *script, login_url=None, username=None, password=None,
                     limits=limits, **keys) as parts:  # fmt: skip
        ladder = Ladder.of((10.0, 20.0))
        rescans = Rescans(parts.asker, WindowReader(parts.asker), ladder)
        works = [window(parts, T0 - 5000, T0 - 4000), window(parts, T0 - 4000, T0 - 3000)]
        works = [await parts.put(work) for work in works]

        async def all_loud(works: list[Work]) -> list[Work]:
            return works

        monkeypatch.setattr(rescans, "_loud", all_loud)
        assert (await rescans.visit(works)).failed is not None
        parts.clock.ms += 11_000  # the next rung has come: it was not answered by what came before
        works.append(await parts.put(window(parts, T0 - 3000, T0 - 2000)))
        assert (await rescans.visit(works)).failed is None
        questions = [dict(request.params) for request in parts.network.asked]
        spans = [(one["channel"], one["from"], one["to"]) for one in questions]
        assert [span[0] for span in spans] == ["S", "E", "E", "S", "E"]
        assert len({span[1:] for span in spans[:3]}) == 1
        assert spans[3][1:] == spans[4][1:] != spans[0][1:]
        left = await parts.store.read(lambda tx: tx.find_works("a", Kind.WINDOW, None))
        answered = {work.data["from"]: work.answered_ms for work in left}
        assert answered == {T0 - 5000: 10_000, T0 - 4000: 10_000}
