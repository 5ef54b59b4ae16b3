"""Opening the PostgreSQL store: its schema, what stands in the way, and what stays behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from engine.core.errors import EngineError, StoreError, StoreTrouble
from engine.core.secret import Secret
from engine.stores import ledger, postgres_session
from engine.stores.opening import make_store
from engine.stores.postgres import PostgresStore
from tests.conformance.places import PASSWORD
from tests.services import HOST
from tests.unit.postgres_parts import Database, database, page, store, tally, url

__all__ = ["database", "store", "url"]


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
        (("search_path=", "search_path=not_"), "none of the schemas is there"),
        (("search_path=", "search_path=not%20"), "a setting of the url cannot be used"),
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
