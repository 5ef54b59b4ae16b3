"""The parts of one account, each against a scripted provider and a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from engine.books.tracking import take_tracked
from engine.core.contracts import Kind, Poll, Verb
from engine.core.errors import StoreTrouble
from engine.core.report import Report
from engine.core.schedule import Ladder
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Page, Work
from engine.polling.asking import BARREN_MAX, Reply
from engine.polling.feeds import Feed
from engine.polling.poller import AccountPoller
from engine.polling.windowed import Visit, WindowReader
from engine.stores import ledger
from engine.stores.tracked import Tracked
from tests.unit.parts import EMPTY, REPORT, T0, HandClock, Parts, Said, feed_work


async def test_the_place_of_an_answer_that_is_not_stored_is_not_freed_by_another_task() -> None:
    """A one-time provider is asked again only when its last answer is durable, whatever else of the
    account comes to its end meanwhile."""
    async with Parts("infobip", (200, REPORT)) as parts:
        asker = parts.asker
        reply = await asker.ask(parts.poll())
        async with anyio.create_task_group() as others:
            others.start_soon(asker.commit, asker.page())
        assert parts.limiter.try_slot() is None
        await asker.commit(reply.page)
        slot = parts.limiter.try_slot()
        assert slot is not None
        slot.unused()


async def test_answers_without_a_report_wait_for_each_other_and_not_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or each account that is sent garbage without end would take as much of the processor."""
    piece, pieces = b"x" * (64 << 10), 20  # 16 of them are read at full speed
    asleep = most = slept = 0

    async def chunks(said: Said) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    async def sleep(clock: HandClock, seconds: float) -> None:
        nonlocal asleep, most, slept
        asleep += 1
        most, slept = max(most, asleep), slept + 1
        await anyio.sleep(0.001)
        asleep -= 1

    monkeypatch.setattr(Said, "chunks", chunks)
    monkeypatch.setattr(HandClock, "sleep", sleep)
    unhurried = anyio.Lock()
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        for _ in range(3):
            parts = Parts("bulksms", (200, b"x"), unhurried=unhurried)
            await stack.enter_async_context(parts)
            group.start_soon(parts.asker.ask, Poll(kind=Kind.BATCH, now_ms=T0, batch_id="1"))
    assert (most, slept) == (1, 3 * (pieces - BARREN_MAX // len(piece)))


async def test_what_was_given_once_is_stored_when_it_is_cancelled_in_a_trouble() -> None:
    async with Parts("infobip", (200, REPORT)) as parts:
        reply = await parts.asker.ask(parts.poll())
        run, troubled = parts.tables._run, anyio.Event()

        def full(job: Any, *, writes: bool) -> Any:
            parts.tables._run = run  # type: ignore[method-assign]
            troubled.set()
            raise StoreTrouble("the disk is full")

        parts.tables._run = full  # type: ignore[method-assign, assignment]
        async with anyio.create_task_group() as group:
            group.start_soon(parts.asker.commit, reply.page)
            await troubled.wait()
            group.cancel_scope.cancel()
        assert await parts.states() == [("m1", "delivered", None)]


async def test_one_refused_login_counts_for_all_who_waited_for_it() -> None:
    async with Parts("messangi", (401, {}), limits={"concurrency": 3}) as parts:
        verbs: list[Verb] = []

        async def ask(page: int) -> None:
            poll = parts.poll(from_ms=T0 - 1000, to_ms=T0, page=page)
            verbs.append((await parts.asker.ask(poll)).outcome.verb)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for page in (1, 2, 3):
                    group.start_soon(ask, page)
        assert verbs == [Verb.PAUSE] * 3
        assert len(parts.network.asked) == 1


@pytest.mark.parametrize("answer", [(429, b""), (500, b""), (200, b"23|invalid credentials|")])
async def test_what_has_no_connection_yet_does_not_go_out_once_the_account_waits(
    answer: tuple[int, bytes],
) -> None:
    """Be it for a hold, a backoff or a pause; and it is no failure of the account's."""
    async with Parts("bulksms", answer, limits={"concurrency": 2}) as parts:
        health = AccountPoller(parts.asker).health
        connected = anyio.Event()
        parts.network.unconnected.append(connected)
        replies: list[Reply] = []

        async def ask() -> None:
            poll = Poll(kind=Kind.BATCH, now_ms=T0, batch_id="1")
            replies.append(await parts.asker.ask(poll))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await ask()
            connected.set()
        assert [reply.withheld for reply in replies] == [False, True]
        assert len(parts.network.asked) == 1
        assert health.failures + health.pauses == 1
        assert parts.asker.telemetry.of("failures", "a") == 1


async def test_a_rung_that_was_withheld_is_not_given_up() -> None:
    async with Parts("bulksms", (200, b""), schedule={"ladder": ["1s"], "give_up": "1s"}) as parts:
        parts.asker.may_send = lambda: False
        work = Work(account="a", kind=Kind.BATCH, key="1", due_ms=T0 + 1000, start_ms=T0)
        work = await parts.put(work)
        parts.clock.ms += 60_000
        await AccountPoller(parts.asker)._rung(work, None)
        (stored,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.BATCH, ["1"]))
        assert stored.due_ms == T0 + 1000


async def test_a_login_that_fails_holds_the_account_before_its_place_is_free() -> None:
    limits = {"requests": 10, "per": "1s", "concurrency": 1}
    async with Parts("messangi", (429, b""), limits=limits) as parts:
        AccountPoller(parts.asker)
        waiting, connected = anyio.CancelScope(), anyio.Event()
        parts.network.unconnected.append(connected)

        async def wait() -> None:
            with waiting:
                await parts.limiter.slot()
                pytest.fail("it got a place while the account is held")

        async def come_second() -> None:
            await anyio.wait_all_tasks_blocked()
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            connected.set()

        async with anyio.create_task_group() as group:
            group.start_soon(come_second)
            reply = await parts.asker.ask(parts.poll(from_ms=T0 - 1000, to_ms=T0))
            assert reply.failed
            await anyio.wait_all_tasks_blocked()
            assert (parts.limiter.hold_s() > 0, parts.limiter.waiting()) == (True, 1)
            waiting.cancel()
        assert len(parts.network.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "verb"),
    [
        (200, {}, Verb.PAUSE), (400, {}, Verb.PAUSE), (403, b"<html>", Verb.PAUSE),
        (200, b"<html>Sign in</html>", Verb.RETRY), (302, {}, Verb.RETRY), (503, {}, Verb.RETRY),
    ],
)  # fmt: skip
async def test_only_the_provider_itself_can_refuse_a_login(
    status: int, body: object, verb: Verb
) -> None:
    """A proxy's page or redirect pauses no account."""
    async with Parts("messangi", (status, body)) as parts:
        reply = await parts.asker.ask(parts.poll(from_ms=T0 - 1000, to_ms=T0))
        assert reply.outcome.verb is verb


async def test_the_lookback_counts_from_the_first_try() -> None:
    """Or what lies behind would slip away while the provider is down."""
    async with Parts("avaamo", (503, {}), (200, EMPTY)) as parts:
        reader = WindowReader(parts.asker)
        feed = Feed(parts.asker, reader, Ladder.of(()))
        work = await parts.put(feed_work(parts.clock))
        assert (await feed.advance(work, None)).failed is not None
        parts.clock.ms += 50_000
        assert (await feed.advance(work, None)).failed is None
        begins = [dict(request.params)["from_timetoken"] for request in parts.network.asked]
        assert [float(one) * 1000 for one in begins] == [T0 - 60_000] * 2


@pytest.mark.parametrize("one_time", [True, False])
async def test_what_a_test_of_a_total_brings_is_kept(one_time: bool) -> None:
    """Nobody may give it again; and elsewhere it may have come up since the window was read."""
    row = {"uuid": "m1", "created_at": T0 / 1000 - 1, "to_phone": "+447700900001",
           "sms_status": "sent"}  # fmt: skip
    test = {"current_page": 1, "total_entries": 1, "total_pages": 1, "entries": [row]}
    short = {**test, "total_entries": 3, "entries": []}
    limits = {"requests": 100, "per": "1s", "concurrency": 1}
    async with Parts("avaamo", (200, short), (200, test), (200, EMPTY), limits=limits) as parts:
        parts.asker.traits = replace(parts.asker.traits, one_time=one_time)
        feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))
        await feed.advance(await parts.put(feed_work(parts.clock)), None)
        assert await parts.states() == [("m1", "enroute", None)]


@pytest.mark.parametrize("answered", [True, False])
async def test_a_visit_that_asked_nothing_does_not_clear_a_pause(answered: bool) -> None:
    async with Parts("avaamo", (200, EMPTY)) as parts:
        poller = AccountPoller(parts.asker)
        health = poller.health
        health.paused, health.paused_until_ms, health.pauses = "refused", T0, 1
        work = await parts.put(feed_work(parts.clock))
        poller._after_visit([work], Visit(answered=answered))
        assert (health.paused, health.pauses) == ((None, 0) if answered else ("refused", 1))


@pytest.mark.parametrize(
    ("began_s", "failing", "verdict"),
    [(None, None, None), (9, None, None), (11, "down", None), (11, None, "never_reported")],
)
async def test_a_drained_feed_gives_no_verdict_beside_an_unread_answer(
    began_s: int | None, failing: str | None, verdict: str | None
) -> None:
    """It waits until the feed was read to its end since the ladder's (10 s), and is well."""
    async with Parts("infobip", (200, REPORT), schedule={"ladder": ["10s"]}) as parts:
        item = Tracked(message_id="m1", recipients=["447700900001"], sent_ms=T0)
        (work,) = await parts.store.write(
            lambda tx: take_tracked(tx, parts.account, [item], redactor=None, now_ms=T0, chance=0.0)
        )
        parts.clock.ms = T0 + 12_000
        poller = AccountPoller(parts.asker)
        poller.feed_began_ms = None if began_s is None else T0 + began_s * 1000
        poller.health.failing = failing
        await poller._end(work)
        assert await parts.states() == [("m1", "unknown", verdict)]


async def test_a_verdict_that_waits_for_its_feed_is_not_committed_again_and_again() -> None:
    """It stays due in the store, and is looked at when the feed has been read to its end."""
    async with Parts("infobip", (500, {}), (200, {"results": []}),
                     schedule={"ladder": ["10s"]}) as parts:  # fmt: skip
        item = Tracked(message_id="m1", sent_ms=T0)
        (work,) = await parts.store.write(
            lambda tx: take_tracked(tx, parts.account, [item], redactor=None, now_ms=T0, chance=0.0)
        )
        feed = await parts.put(feed_work(parts.clock))
        parts.clock.ms = T0 + 12_000
        poller = AccountPoller(parts.asker)
        await poller._visit_feed(feed, None)
        due_ms = work.due_ms
        await poller._end(work)
        (stored,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.MESSAGE, ["m1"]))
        assert stored.due_ms == due_ms == T0 + 10_000
        assert {work.id: due for due, work in poller._near}[work.id] == T0 + 12_000 + 60_000
        parts.clock.ms += 5000
        await poller._visit_feed(feed, None)
        assert {work.id: due for due, work in poller._near}[work.id] == due_ms
        await poller._end(work)
        assert await parts.states() == [("m1", "unknown", "never_reported")]


async def test_a_tracked_message_waits_for_its_window_by_the_providers_clock() -> None:
    """The provider's clock is 5 s ahead: there the message lies in a window that by the sender's
    time does not hold it."""
    async with Parts("avaamo", (200, EMPTY)) as parts:
        item = Tracked(message_id="m1", recipients=["447700900001"], sent_ms=T0)
        (work,) = await parts.store.write(
            lambda tx: take_tracked(tx, parts.account, [item], redactor=None, now_ms=T0, chance=0.0)
        )
        feed = feed_work(parts.clock, data={"cursor": T0 + 60_000})
        window = Work(
            account="a", kind=Kind.WINDOW, key="w", due_ms=T0 + 90_000, start_ms=T0,
            data={"from": T0 + 4000, "to": T0 + 6000},
        )  # fmt: skip
        page = Page(
            account="a", provider="avaamo", traits=parts.account.provider.traits, observed_ms=T0,
            span=(T0, T0 + 60_000), put=[feed, window],
            reports=[
                Report(message_id="m1", state=State.ENROUTE, final=False, provider_status="sent",
                       sent_at=iso(T0 + 5000))
            ],
        )  # fmt: skip
        await parts.store.write(lambda tx: ledger.commit(tx, page))
        parts.clock.ms = T0 + 80_000
        poller = AccountPoller(parts.asker)
        await poller._end(work)
        assert await parts.states() == [("m1", "enroute", None)]
        (later,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.MESSAGE, ["m1"]))
        assert later.due_ms > T0 + 90_000


async def test_what_a_probe_shows_is_never_stored() -> None:
    """Not even where there is a piece in it that cannot be read: the feed has yet to find it."""
    good = {"uuid": "m1", "created_at": T0 / 1000, "to_phone": "1", "sms_status": "sent"}
    entries = [good, {"uuid": None}, *[good] * 2000]
    answer = {**EMPTY, "total_entries": len(entries), "entries": entries}
    async with Parts("avaamo", (200, answer)) as parts:
        assert (await AccountPoller(parts.asker).probe("n"))[0]
        assert await parts.states() == []
        assert await parts.store.read(lambda tx: tx.troubles("a", 10)) == []
