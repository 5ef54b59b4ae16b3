"""What the tests of the PostgreSQL store share: a schema of their own, the store in it, a page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from engine.core.contracts import Traits
from engine.core.reconcile import Known
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.work import Page
from engine.stores.postgres import PostgresStore
from engine.stores.transaction import Transaction
from tests.services import own_schema

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
