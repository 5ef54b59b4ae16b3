"""Databases and schemas that somebody has set up in an odd way, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from engine.core.errors import StoreError
from engine.core.secret import Secret
from engine.stores.postgres import PostgresStore
from tests.services import require, require_package

ODD = ("Caps", "dlr-engine", "two words", 'a"quote')
WRITES = 20


def server(database: str) -> str:
    require_package("asyncpg", "postgres")
    host, port = require("postgres")
    return f"postgresql://postgres@{host}:{port}/{database}"


@contextlib.asynccontextmanager
async def own_database(how: str = "", settings: str = "") -> AsyncIterator[str]:
    """The URL of a database that is there for one test."""
    connection = await asyncpg.connect(server("test"))
    name = f"dlr_test_{uuid.uuid4().hex[:12]}"
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {how}")
        if settings:
            await connection.execute(f"ALTER DATABASE {name} SET {settings}")
        yield server(name)
    finally:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()


def tally(tx: Any) -> None:
    tx.add_tallies("a", {"known": 1})


async def known(store: PostgresStore) -> int:
    found: int = (await store.read(lambda tx: tx.tallies()))["a"]["known"]
    return found


async def test_an_encoding_that_lacks_characters_is_refused() -> None:
    """Or reports with a name in it that is not of Western Europe would be set aside."""
    how = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    async with own_database(how) as url:
        with pytest.raises(StoreError, match=r"encoding is LATIN1.*ENCODING 'UTF8'"):
            await PostgresStore(Secret(url)).open(own=True)


@pytest.mark.parametrize("schema", ODD)
async def test_a_schema_may_have_any_name(schema: str) -> None:
    quoted = schema.replace('"', '""')
    async with own_database() as url:
        connection = await asyncpg.connect(url)
        await connection.execute(f'CREATE SCHEMA "{quoted}"')
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f'ALTER DATABASE {name} SET search_path = "{quoted}"')
        await connection.close()
        for _ in range(2):  # made, and found again
            store = PostgresStore(Secret(url))
            await store.open(own=True)
            await store.write(tally)
            await store.close()
        again = PostgresStore(Secret(url))
        await again.open(own=True)
        assert await known(again) == 2
        await again.close()


@pytest.mark.parametrize(
    "settings", ["default_transaction_isolation = 'serializable'", "statement_timeout = '1s'"]
)
async def test_the_sessions_have_settings_of_their_own(settings: str) -> None:
    """What a database has as its default does not turn two workers into each other's trouble."""
    async with own_database(settings=settings) as url:
        stores = [PostgresStore(Secret(url)) for _ in range(2)]
        for store in stores:
            await store.open(own=False)
        await asyncio.gather(*(store.write(tally) for store in stores for _ in range(WRITES)))
        assert await known(stores[0]) == 2 * WRITES
        for store in stores:
            await store.close()
