"""The PostgreSQL store's own matters, against a real server: leases, lost lines, its schema."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from engine.core.contracts import Kind, Traits
from engine.core.errors import EngineError, LeaseLost, StoreError, StoreTrouble
from engine.core.reconcile import Known
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.work import Page, Work
from engine.stores import ledger, postgres_session
from engine.stores.opening import make_store
from engine.stores.patient import PatientStore
from engine.stores.postgres import PostgresStore
from engine.stores.postgres_session import Session
from engine.stores.transaction import InboxItem, Transaction
from engine.telemetry import Telemetry
from tests.conformance.places import PASSWORD
from tests.services import HOST, Line, own_schema, require

Database = asyncpg.Connection
DRAINED = Traits(feed="drained", one_time=True, dated=True, tracks=frozenset({"batch", "message"}))
T0 = 1_700_000_000_000


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with own_schema() as found:
        yield found


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The test's own hand in the schema."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    opened = PostgresStore(Secret(url))
    await opened.open(own=True)
    yield opened
    await opened.close()


class Quick:
    """A clock that hardly waits."""

    def now_ms(self) -> int:
        return T0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


def page(*ids: str, account: str = "a", at: int = T0, state: State = State.ENROUTE) -> Page:
    reports = [
        Report(message_id=one, state=state, final=False, provider_status=state.value) for one in ids
    ]
    return Page(account=account, provider="p", traits=DRAINED, observed_ms=at, reports=reports)


def tally(name: str, by: int = 1, account: str = "a") -> Any:
    return lambda tx: tx.add_tallies(account, {name: by})


async def tallied(store: PostgresStore, name: str, account: str = "a") -> int:
    return (await store.read(lambda tx: tx.tallies())).get(account, {}).get(name, 0)


async def newest(store: PostgresStore, *ids: str) -> list[tuple[int, bytes]]:
    def look(tx: Transaction) -> list[Known]:
        found = list(tx.messages("a", [(one, "mt") for one in ids]).values())
        tx.newest(found)
        return found

    return [(known.revision, known.record) for known in await store.read(look)]


# Leases


async def lease(database: Database, account: str, fence: int) -> None:
    await database.execute(
        "INSERT INTO lease (account, fence) VALUES ($1, $2)"
        " ON CONFLICT (account) DO UPDATE SET fence = excluded.fence",
        account,
        fence,
    )


WRITES: dict[str, Any] = {
    "a page": lambda tx, a: ledger.commit(tx, page(uuid.uuid4().hex, account=a)),
    "messages": lambda tx, a: tx.put_messages([Known(account=a, message_id="m")]),
    "works": lambda tx, a: tx.put_works(
        [Work(account=a, kind=Kind.FEED, key="", due_ms=T0, start_ms=T0)]
    ),
    "a tally": lambda tx, a: tx.add_tallies(a, {"known": 1}),
    "a note": lambda tx, a: tx.put_note(a, "n", b"1"),
    "notes": lambda tx, a: tx.put_notes({("", "n"): b"1", (a, "n"): b"1"}),
    "no note": lambda tx, a: tx.drop_note(a, "n"),
    "places": lambda tx, a: tx.put_places("s", {a: (1, 0)}),
}


@pytest.mark.parametrize("what", WRITES)
async def test_who_has_lost_the_lease_writes_nothing(
    store: PostgresStore, database: Database, what: str
) -> None:
    await lease(database, "a", 7)
    await lease(database, "b", 3)
    store.fences = {"a": 7, "b": 3}
    write = WRITES[what]
    await store.write(lambda tx: write(tx, "a"))
    await lease(database, "a", 8)
    results = await asyncio.gather(
        *(store.write(lambda tx, a=a: write(tx, a)) for a in "baxb"), return_exceptions=True
    )
    lost = [result for result in results if isinstance(result, BaseException)]
    assert [type(one) for one in lost] == [LeaseLost, LeaseLost]
    assert [getattr(one, "account", "") for one in lost] == ["a", "x"]
    kept = await database.fetch(
        "SELECT account FROM message UNION ALL SELECT account FROM work UNION ALL"
        " SELECT account FROM tally UNION ALL SELECT account FROM note UNION ALL"
        " SELECT account FROM place"
    )
    assert "x" not in {row[0] for row in kept}


async def test_works_and_pieces_are_ended_by_the_leases_holder_alone(
    store: PostgresStore, database: Database
) -> None:
    [kept] = await store.write(lambda tx: WRITES["works"](tx, "a"))
    await lease(database, "a", 2)
    store.fences = {"a": 1}
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.drop_works([kept.id or 0]))
    assert await store.read(lambda tx: tx.work(kept.id or 0)) == kept
    store.fences = {"a": 2}
    await store.write(lambda tx: tx.drop_works([kept.id or 0]))
    assert await store.read(lambda tx: tx.work(kept.id or 0)) is None


async def test_a_lease_does_not_change_hands_under_a_write(
    store: PostgresStore, database: Database
) -> None:
    await lease(database, "a", 1)
    store.fences = {"a": 1}
    inside, go_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        tx.add_tallies("a", {"known": 1})
        inside.set()
        go_on.wait(10)

    writing = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(inside.wait, 10)
    taking = asyncio.create_task(lease(database, "a", 2))
    await asyncio.sleep(0.2)
    assert not taking.done()
    go_on.set()
    await writing
    await taking
    assert await tallied(store, "known") == 1
    with pytest.raises(LeaseLost):
        await store.write(tally("known"))


async def test_the_inbox_takes_from_anybody_and_gives_to_the_holder(
    store: PostgresStore, database: Database
) -> None:
    await lease(database, "a", 1)
    store.fences = {"a": 1}
    for account in "ba":
        item = InboxItem(account=account, kind="track", payload=b"1", at_ms=T0)
        await store.write(lambda tx, item=item: tx.put_inbox(item))
    assert await store.read(lambda tx: tx.inbox_waits())
    (item,) = await store.write(lambda tx: tx.inbox(9))
    assert item.account == "a"
    await store.write(lambda tx: tx.drop_inbox([item.id]))
    assert not await store.read(lambda tx: tx.inbox_waits())
    store.fences = None
    assert [item.account for item in await store.write(lambda tx: tx.inbox(9))] == ["b"]


async def test_what_is_pruned_is_the_holders(store: PostgresStore, database: Database) -> None:
    ended = [Known(account=a, message_id="m", final=True, seen_ms=1) for a in "ab"]
    await store.write(lambda tx: tx.put_messages(ended))
    await lease(database, "a", 1)
    store.fences = {"a": 1, "b": 1}
    gone = await store.write(lambda tx: tx.drop_ended(T0, 9))
    assert [known.account for known in gone] == ["a"]
    assert await store.write(lambda tx: tx.drop_log("b", 9, T0, 9)) == 0


# Workers that know nothing of each other


async def test_two_that_write_one_account_lose_nothing(url: str) -> None:
    stores = [PostgresStore(Secret(url)) for _ in range(2)]
    await asyncio.gather(*(one.open(own=True) for one in stores))
    try:
        works = [page(f"m{n}", "both", at=T0 + n) for n in range(80)]
        await asyncio.gather(
            *(
                stores[n % 2].write(lambda tx, work=work: ledger.commit(tx, work))
                for n, work in enumerate(works)
            )
        )
        assert await tallied(stores[0], "known") == 81
        rows = await stores[0].read(lambda tx: tx.log_rows("a", 0, 999, bytes_max=1 << 30))
        assert [row.seq for row in rows] == list(range(1, 81))
        assert sum(len(row.states) for row in rows) == 81
    finally:
        for one in stores:
            await one.close()


async def test_jobs_over_many_accounts_do_not_lock_each_other_out(url: str) -> None:
    """Each of them over two accounts in one order or the other, from two processes at once."""
    stores = [PostgresStore(Secret(url)) for _ in range(2)]
    await asyncio.gather(*(one.open(own=True) for one in stores))

    def both(tx: Transaction, first: str, second: str, n: int) -> None:
        for account in (first, second):
            ledger.commit(tx, page(f"m{n}", account=account))

    try:
        patient = [PatientStore(one, Telemetry(), Quick()) for one in stores]
        await asyncio.gather(
            *(
                patient[n % 2].write(lambda tx, n=n: both(tx, *("ab" if n % 3 else "ba"), n))
                for n in range(60)
            )
        )
        assert [await tallied(stores[0], "known", a) for a in "ab"] == [60, 60]
    finally:
        for one in stores:
            await one.close()


# Values


async def test_a_value_that_cannot_be_kept_is_its_own_jobs_trouble(store: PostgresStore) -> None:
    many = [f"{n}" for n in range(100)]
    endless = "".join(f"{n:x}" for n in range(4000))  # longer than an index takes
    works = [page("m1"), page(*many, endless), page("m2"), page("\ud800"), page("m3")]
    results = await asyncio.gather(
        *(store.write(lambda tx, work=work: ledger.commit(tx, work)) for work in works),
        return_exceptions=True,
    )
    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(failed) == 2
    assert not any(isinstance(fault, StoreError) for fault in failed)  # they would end the worker
    assert endless not in str(failed[0])
    assert await tallied(store, "known") == 3


async def test_new_messages_that_are_there_already_are_put_over_them(store: PostgresStore) -> None:
    """By COPY, which knows no such thing, and then once more with care."""
    for revision in (1, 2):
        many = [
            Known(account="a", message_id=f"m{n}", revision=revision, record=b"r" * revision)
            for n in range(200)
        ]
        await store.write(lambda tx, many=many: tx.put_messages(many))
    assert await newest(store, "m7") == [(2, b"rr")]


async def test_a_record_that_is_left_out_stays(store: PostgresStore) -> None:
    for count in (1, 100):
        ids = [f"{count}-{n}" for n in range(count)]
        many = [Known(account="a", message_id=one, record=b"r") for one in ids]
        await store.write(lambda tx, many=many: tx.put_messages(many))
        found = await store.write(lambda tx, ids=ids: tx.messages("a", [(i, "mt") for i in ids]))
        for known in found.values():
            known.revision = 2
        await store.write(lambda tx, found=found: tx.put_messages(list(found.values())))
        assert set(await newest(store, *ids)) == {(2, b"r")}


# The line


async def test_a_line_that_was_cut_is_trouble_and_then_goes_on(url: str) -> None:
    async with Line(HOST, require("postgres")[1]) as line:
        store = PostgresStore(Secret(url.replace(":5432", f":{line.port}")))
        await store.open(own=True)
        try:
            await store.write(tally("known"))
            await line.cut()
            for act in (store.write(tally("known")), store.read(lambda tx: tx.tallies())):
                with pytest.raises(StoreTrouble) as caught:
                    await act
                assert HOST not in str(caught.value)
                assert caught.value.__cause__ is None
            await line.mend()
            await store.write(tally("known"))
            assert await tallied(store, "known") == 2
        finally:
            await store.close()


async def test_a_server_that_hangs_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "CONNECT_S", 1.0)
    monkeypatch.setattr(postgres_session, "COMMAND_S", 1.0)
    async with Line(HOST, require("postgres")[1]) as line:
        store = PostgresStore(Secret(url.replace(":5432", f":{line.port}")))
        await store.open(own=True)
        try:
            await store.write(tally("known"))
            line.hang()
            with pytest.raises(StoreTrouble, match="does not answer"):
                await store.write(tally("known"))
            # asyncio leaves a connection behind that comes in the very moment a listener closes.
            await asyncio.sleep(0.2)
            await line.cut()
            await line.mend()
            await store.write(tally("known"))
            assert await tallied(store, "known") == 2
        finally:
            await store.close()


async def test_cuts_under_load_lose_nothing_and_count_nothing_twice(url: str) -> None:
    """A tally that is added to is no idempotent write: each is there exactly once."""
    async with Line(HOST, require("postgres")[1]) as line:
        bare = PostgresStore(Secret(url.replace(":5432", f":{line.port}")))
        store = PatientStore(bare, Telemetry(), Quick())
        await store.open(own=True)
        done = 0

        async def count(name: str) -> None:
            nonlocal done
            for _ in range(200):
                await store.write(tally(name))
                done += 1

        try:
            async with asyncio.TaskGroup() as group:
                for n in range(8):
                    group.create_task(count(f"t{n}"))
                cut = 0
                while done < 1600:
                    line.cut_after(9000 + 997 * cut % 9000)  # connections are made with less
                    cut += 1
                    await asyncio.sleep(0.1)
        finally:
            await store.close()
    assert cut > 2
    fresh = PostgresStore(Secret(url))
    await fresh.open(own=False)
    try:
        assert [await tallied(fresh, f"t{n}") for n in range(8)] == [200] * 8
    finally:
        await fresh.close()


@pytest.mark.parametrize("reached", [True, False])
async def test_a_commit_without_an_answer_is_looked_up(
    url: str, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """And only what the server did not make is done again."""
    monkeypatch.setattr("engine.stores.postgres.WRITERS", 1)
    runs: list[str] = []

    def job(tx: Transaction, name: str) -> str:
        runs.append(name)
        tx.add_tallies("a", {name: 1})
        return name

    real = Session.commit

    def breaks(self: Session) -> None:
        monkeypatch.setattr(Session, "commit", real)
        if reached:
            real(self)
        self.drop()
        raise StoreTrouble("the line broke")

    bare = PostgresStore(Secret(url))
    await bare.open(own=True)
    try:
        await bare.write(lambda tx: job(tx, "before"))
        monkeypatch.setattr(Session, "commit", breaks)
        with pytest.raises(StoreTrouble, match="looked up") as caught:
            await bare.write(lambda tx: job(tx, "in doubt"))
        await bare.write(lambda tx: job(tx, "after"))
        assert caught.value.again is not None
        assert await caught.value.again() == "in doubt"
        monkeypatch.setattr(Session, "commit", breaks)
        store = PatientStore(bare, Telemetry(), Quick())
        assert await store.write(lambda tx: job(tx, "patiently")) == "patiently"
        counts = (await bare.read(lambda tx: tx.tallies()))["a"]
    finally:
        await bare.close()
    assert counts == {"before": 1, "in doubt": 1, "after": 1, "patiently": 1}
    assert len(runs) == (4 if reached else 6)


# Opening


async def test_many_open_a_new_store_at_once(url: str, database: Database) -> None:
    stores = [PostgresStore(Secret(url)) for _ in range(6)]
    await asyncio.gather(*(one.open(own=True) for one in stores))
    for one in stores:
        await one.close()
    versions = await database.fetch("SELECT version FROM dlr_schema ORDER BY version")
    assert [row[0] for row in versions] == list(range(1, postgres_session.SCHEMA_VERSION + 1))


async def test_a_store_of_a_newer_release_is_refused(
    url: str, store: PostgresStore, database: Database
) -> None:
    await database.execute("INSERT INTO dlr_schema VALUES (99, now())")
    with pytest.raises(StoreError, match=r"newer release \(schema 99, .*\): update dlr-engine"):
        await PostgresStore(Secret(url)).open(own=True)


async def test_a_table_of_another_program_is_left_alone(url: str, database: Database) -> None:
    await database.execute("CREATE TABLE work (hours int)")
    with pytest.raises(StoreError, match="a schema of its own") as caught:
        await PostgresStore(Secret(url)).open(own=True)
    assert not isinstance(caught.value, StoreTrouble)
    assert await database.fetchval("SELECT to_regclass('message') IS NULL")


async def test_who_may_not_make_tables_is_told_what_to_grant(url: str, database: Database) -> None:
    role = await database.fetchval("SELECT current_schema()")
    await database.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {role} TO {role}")
    try:
        theirs = url.replace("postgres@", f"{role}:{PASSWORD}@")
        with pytest.raises(StoreError, match="rights are missing; grant") as caught:
            await PostgresStore(Secret(theirs)).open(own=True)
        assert PASSWORD not in str(caught.value)
        # With tables made beforehand the rights on these are enough.
        mine = PostgresStore(Secret(url))
        await mine.open(own=True)
        await mine.close()
        await database.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {role} TO {role}"
        )
        poor = PostgresStore(Secret(theirs))
        await poor.open(own=True)
        await poor.write(lambda tx: ledger.commit(tx, page(*(f"m{n}" for n in range(100)))))
        await poor.close()
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("/test", "/not-there"), "there is no such database"),
        (("search_path=", "search_path=not_"), "the url's search_path names is not there"),
        ((":5432", ":1"), "refused"),
        (("?", "?sslmode=require&"), "TLS"),
        (("?", "?sslmode=nothing&"), "the url cannot be used"),
    ],
)
async def test_what_stands_in_the_way_of_opening_is_said(
    url: str, change: tuple[str, str], says: str
) -> None:
    secret = url.replace("postgres@", f"postgres:{PASSWORD}@").replace(*change)
    with pytest.raises(StoreError) as caught:
        await PostgresStore(Secret(secret)).open(own=True)
    assert says in str(caught.value)
    told = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert PASSWORD not in told
    assert HOST not in told


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.stores.opening.find_spec", lambda name: None)
    with pytest.raises(StoreError, match=r"pip install dlr-engine\[postgres\]"):
        make_store("postgresql", None, "postgresql://***", url=Secret("postgresql://h/d"))


async def test_no_thread_stays_behind(url: str) -> None:
    before = threading.active_count()
    store = PostgresStore(Secret(url.replace(HOST, "localhost")))
    await store.open(own=True)
    await store.write(tally("known"))
    assert threading.active_count() > before
    await store.close()
    assert threading.active_count() == before
    with pytest.raises(EngineError, match="closed"):
        await store.write(tally("known"))


async def test_each_look_up_of_a_page_has_an_index(
    store: PostgresStore, database: Database
) -> None:
    """Also where nothing has been analysed and all is small: plans are kept."""
    await store.write(lambda tx: ledger.commit(tx, page(*(f"m{n}" for n in range(100)))))
    await database.execute("SET enable_seqscan = off")
    for statement in (
        "SELECT * FROM message WHERE message_id = ANY('{a,b}') AND account = 'a'",
        "SELECT * FROM message WHERE batch_id = 'b' AND account = 'a'",
        "SELECT * FROM message WHERE reference = 'b'",
        "SELECT * FROM message WHERE recipient_key = 'b'",
        "SELECT * FROM message WHERE account = 'a' AND final AND seen_ms < 5 ORDER BY seen_ms",
        "SELECT * FROM message WHERE account = 'a' AND open AND placed_ms IS NOT NULL"
        " AND placed_ms BETWEEN 1 AND 5",
        "SELECT * FROM work WHERE account = 'a' AND due_ms <= 5 ORDER BY due_ms, id",
        "SELECT * FROM log WHERE account = 'a' AND seq >= 5 ORDER BY seq LIMIT 5",
    ):
        plan = "\n".join(row[0] for row in await database.fetch(f"EXPLAIN {statement}"))
        assert "Index" in plan
        assert "Seq Scan" not in plan
