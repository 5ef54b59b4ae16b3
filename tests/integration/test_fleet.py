"""Workers that share a PostgreSQL store: accounts come, go and are lost, and nothing with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from engine.core.secret import Secret
from engine.idle import until_idle
from engine.stores.postgres_leases import FREE, LeaseBook
from engine.worker import Engine
from tests.integration.harness import bulksms, configured, hasty, infobip, until
from tests.integration.standin import Asked, Raw, Standin
from tests.integration.test_infobip import page, queue, report
from tests.services import own_schema

LINES = [{"name": "lines", "type": "jsonl", "path": "{worker}.jsonl", "batch": {"wait": "10ms"}}]
EMPTY = b'{"results":[]}'


@pytest.fixture
async def database() -> AsyncIterator[str]:
    async with own_schema() as url:
        yield url


def fleet(folder: Path, url: str, *accounts: dict[str, Any]) -> Engine:
    return hasty(configured(folder, *accounts, store=url, sinks=LINES))


async def held(url: str) -> dict[str, tuple[str | None, int]]:
    """Who holds what, and the fence."""
    db = await asyncpg.connect(url)
    try:
        return {
            r[0]: (r[1], r[2]) for r in await db.fetch("SELECT account, worker, fence FROM lease")
        }
    finally:
        await db.close()


def records(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


@asynccontextmanager
async def thief(url: str, names: list[str]) -> AsyncIterator[LeaseBook]:
    """A worker that does nothing but hold."""
    book = LeaseBook(Secret(url), "thief", names, ttl_s=60.0)
    try:
        yield book
    finally:
        await book.close()


async def bury(url: str, worker: str) -> None:
    """As if it had not renewed for long."""
    db = await asyncpg.connect(url)
    await db.execute("DELETE FROM worker WHERE id = $1", worker)
    await db.close()


async def test_two_workers_share_and_a_stopped_one_gives_back_at_once(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    accounts = [
        infobip(
            standin.answer(f"i{n}", queue([report(f"{n}-{m}") for m in range(5)], 50)), name=f"i{n}"
        )
        for n in range(6)
    ]
    async with fleet(tmp_path, database, *accounts) as one:
        await until(lambda: len(one.pollers) == 6)
        async with fleet(tmp_path, database, *accounts) as two:
            assert two.fleet is not None
            assert one.fleet is not None
            assert one.fleet.name != two.fleet.name
            await until(lambda: (len(one.pollers), len(two.pollers)) == (3, 3), 15)
            assert not one.pollers.keys() & two.pollers.keys()
            second = set(two.pollers)
        await until(lambda: len(one.pollers) == 6, 2)
        asked = {name: len(standin.asked[name]) for name in second}
        await until(lambda: all(len(standin.asked[name]) > asked[name] for name in second))
        await until(lambda: len(records(tmp_path)) >= 30)
    assert len(records(tmp_path)) == 30
    assert len({record["event_id"] for record in records(tmp_path)}) == 30
    assert {who for who, _ in (await held(database)).values()} == {None}


async def test_an_answer_in_hand_when_the_lease_is_lost_is_recorded_by_the_next(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    url = standin.answer(
        "info", [Raw(page(*(report(str(n)) for n in range(40))), wait_s=1.5), EMPTY]
    )
    async with thief(database, ["info"]) as book:
        async with fleet(tmp_path, database, infobip(url)) as one:
            await until(lambda: len(standin.asked["info"]) == 1)
            assert one.fleet is not None
            await book.renew(load=0.0, idle=False, leaving=False)
            await bury(database, one.fleet.id)
            assert await book.claim([["info"]]) == {"info": 2}
            await until(lambda: not one.pollers, 10)
            assert one.telemetry.of("handed_over", "info") == 1
            assert records(tmp_path) == []
            assert len(standin.asked["info"]) == 1
        db = await asyncpg.connect(database)
        assert [row[0] for row in await db.fetch("SELECT kind FROM inbox")] == ["late"]
        await db.close()
        await book.leave()
    async with fleet(tmp_path, database, infobip(url)) as two:
        await until(lambda: len(records(tmp_path)) == 40)
        assert (await two.store.read(lambda tx: tx.tallies()))["info"]["records"] == 40
        assert not await two.store.read(lambda tx: tx.inbox_waits())


async def test_a_lost_lease_refuses_every_write_and_the_other_account_goes_on(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    def answers(asked: Asked) -> Any:
        return page(report(f"{asked.path}-{asked.number}"))

    accounts = [infobip(standin.answer(name, answers), name=name) for name in ("kept", "lost")]
    async with thief(database, ["lost"]) as book, fleet(tmp_path, database, *accounts) as one:
        await until(lambda: all(len(standin.asked[name]) > 2 for name in ("kept", "lost")))
        assert one.fleet is not None
        await book.renew(load=100.0, idle=False, leaving=False)
        db = await asyncpg.connect(database)
        await db.execute(
            "UPDATE lease SET worker = 'thief', fence = fence + 1 WHERE account = 'lost'"
        )
        await until(lambda: list(one.pollers) == ["kept"])
        counted = "SELECT coalesce(sum(log_next), 0) FROM account WHERE name = $1"
        rows = await db.fetchval(counted, "lost")
        asked = len(standin.asked["lost"])
        before = len(standin.asked["kept"])
        await until(lambda: len(standin.asked["kept"]) > before + 3)
        assert await db.fetchval(counted, "lost") == rows
        assert len(standin.asked["lost"]) == asked
        await db.close()


async def test_what_is_tracked_elsewhere_is_taken_up_by_the_holder(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    urls = [
        standin.answer(f"b{n}", [f"0|Returns to follow\n\n44770090000{n}|11\n"]) for n in range(2)
    ]
    accounts = [bulksms(url, name=f"b{n}") for n, url in enumerate(urls)]
    async with (
        fleet(tmp_path, database, *accounts) as one,
        fleet(tmp_path, database, *accounts) as two,
    ):
        await until(lambda: len(one.pollers) == len(two.pollers) == 1, 15)
        for n in range(2):  # one of them is not its own
            await one.track(f"b{n}", batch_id=f"9{n}", recipients=[f"44770090000{n}"])
        await until(lambda: len(records(tmp_path)) == 2, 2)
        stuck: list[list[str]] = []

        async def wait(engine: Engine) -> None:
            stuck.append(await until_idle(engine, 5))

        with anyio.fail_after(15):
            async with anyio.create_task_group() as both:
                both.start_soon(wait, one)
                both.start_soon(wait, two)
        assert stuck == [[], []]
    found = {(record["account"], record["state"]) for record in records(tmp_path)}
    assert found == {("b0", "delivered"), ("b1", "delivered")}


async def test_the_books_of_a_limit_go_with_the_account(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    """A window of ten minutes that the first worker has used up is used up for the second."""
    limits = {"requests": 3, "per": "10m"}
    account = infobip(standin.answer("info", page(report("1"))), limits=limits)
    async with fleet(tmp_path, database, account):
        await until(lambda: len(standin.asked["info"]) == 3)
    async with fleet(tmp_path, database, account) as two:
        await until(lambda: "info" in two.pollers)
        await anyio.sleep(0.5)
        assert two.status("info")["used"] == [{"requests": 3, "per_s": 600.0, "used": 3}]
    assert len(standin.asked["info"]) == 3


async def test_leases_of_one_limit_group_stay_together(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    limits = {"requests": 1000, "per": "1s", "group": "g"}
    accounts = [
        infobip(standin.answer(f"i{n}", EMPTY), name=f"i{n}", limits=limits) for n in range(4)
    ]
    async with (
        fleet(tmp_path, database, *accounts) as one,
        fleet(tmp_path, database, *accounts) as two,
    ):
        await until(lambda: len(one.pollers) + len(two.pollers) == 4)
        await anyio.sleep(4)
        assert sorted((len(one.pollers), len(two.pollers))) == [0, 4]
        assert (await held(database)).keys() == {"i0", "i1", "i2", "i3", "group g"}


async def test_the_book_frees_only_what_is_free(database: str) -> None:
    from engine.stores.postgres import PostgresStore

    store = PostgresStore(Secret(database))
    await store.open(own=True)
    names = ["a", "b", "c"]
    books = [LeaseBook(Secret(database), who, names, ttl_s=1.0) for who in ("x", "y")]
    x, y = books
    news: list[str] = []
    y.on_news = lambda channel, payload: news.append(channel)
    try:
        seen = await x.renew(load=0.0, idle=False, leaving=False)
        assert (seen.free, seen.mine) == (frozenset(names), {})
        assert await x.claim([["a", "b"]]) == {"a": 1, "b": 1}
        await y.renew(load=0.0, idle=False, leaving=False)
        assert await y.claim([["b", "c"], ["c"]]) == {"c": 1}  # a unit is taken whole
        await x.give(["b"])
        await until(lambda: news == [FREE])
        assert await y.claim([["b"]]) == {"b": 2}
        await anyio.sleep(1.1)  # both rows have run out; each is buried by the other alone
        seen = await y.renew(load=0.0, idle=False, leaving=False)
        assert [one.id for one in seen.members] == ["y"]
        assert seen.free == {"a"}
        assert seen.mine == {"b": 2, "c": 1}
        again = await x.renew(load=0.0, idle=False, leaving=False)
        assert again.mine == {"a": 1}  # nobody has taken it: it is still good
        assert await y.claim([["a"]]) == {}
    finally:
        for book in books:
            await book.close()
        await store.close()


async def test_what_is_past_its_retention_goes_also_where_the_account_is_busy(
    tmp_path: Path, database: str, standin: Standin
) -> None:
    once = {"interval": "1h", "idle_interval": "1h"}  # then nothing of theirs is written
    names = ("busy", "quiet")
    accounts = [infobip(standin.answer(n, [EMPTY]), name=n, schedule=once) for n in names]
    db = await asyncpg.connect(database)
    async with fleet(tmp_path, database, *accounts) as one:
        await until(lambda: all(one.telemetry.of("requests", name) for name in names))
        await until(lambda: all(poller.health.answered_ms for poller in one.pollers.values()))
        await db.execute(
            "INSERT INTO message (message_id, account, direction, revision, state, final, open,"
            " tracked, seen_ms, event_id, record, history)"
            " SELECT 'm' || n, account, 'mt', 1, 'delivered', true, false, false, n, 'e', '', ''"
            " FROM unnest(ARRAY['busy', 'quiet']) AS accounts (account), generate_series(1, 3) AS n"
        )
        writing = db.transaction()  # of another connection, which has the account's rows
        await writing.start()
        await db.execute(
            "SELECT pg_advisory_xact_lock(hashtext(current_schema()), hashtext('busy'))"
        )
        async with anyio.create_task_group() as group:
            group.start_soon(one._chores._prune)
            left = "SELECT DISTINCT account FROM message"
            while len(await db.fetch(left)) > 1:  # noqa: ASYNC110 - the engine looks at no event
                await anyio.sleep(0.01)
            await writing.rollback()
        assert await db.fetch(left) == []
    await db.close()
