"""A pooler between a worker and PostgreSQL: one that shares sessions is seen, and named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import asyncpg
import pytest

from engine.core.errors import StoreError
from engine.core.secret import Secret
from engine.network.sqlstate import cause
from engine.stores.postgres_session import Session, own_session
from tests.services import require, require_package


class Pooler:
    """Server processes by number, of which a client gets one that is free; `each` keeps its own."""

    def __init__(self, *, each: bool) -> None:
        self.each = each
        self.free = [1, 2, 3]


class Client:
    """What `own_session` sees of a connection through a pooler."""

    shown = "postgresql://***"
    pooled = True

    def __init__(self, pooler: Pooler) -> None:
        self._pooler = pooler
        self._kept: int | None = None
        self.opened = self.ended = False

    def connect(self) -> None:
        self.opened = True

    def begin(self) -> None:
        self._kept = self._pooler.free.pop(0)

    def roll_back(self) -> None:
        assert self._kept is not None
        self._pooler.free.insert(0, self._kept)
        self.ended = True

    def process(self) -> int:
        if self._kept is None and self._pooler.each:
            self._kept = self._pooler.free.pop(0)
        return self._kept if self._kept is not None else self._pooler.free[0]


def through(pooler: Pooler) -> tuple[Any, Client]:
    return cast("Any", Client(pooler)), Client(pooler)


def test_a_session_that_others_get_is_refused() -> None:
    session, other = through(Pooler(each=False))
    with pytest.raises(StoreError, match="pool_mode = session"):
        own_session(session, cast("Any", other))
    assert other.ended


def test_a_session_of_ones_own_is_not() -> None:
    session, other = through(Pooler(each=True))
    own_session(session, cast("Any", other))
    assert other.opened


@pytest.fixture
def direct() -> Iterator[Session]:
    require_package("asyncpg", "postgres")
    host, port = require("postgres")
    session = Session(Secret(f"postgresql://postgres@{host}:{port}/test"), "the store")
    session.connect()
    yield session
    session.close()


def test_a_server_that_is_spoken_to_directly_is_known_as_such(direct: Session) -> None:
    assert not direct.pooled
    other = Client(Pooler(each=False))
    own_session(direct, cast("Any", other))
    assert not other.opened


@pytest.mark.parametrize("statement", ["EXECUTE x", "PREPARE y AS SELECT 1"])
def test_statements_of_others_in_our_session_tell_of_a_pooler(
    direct: Session, statement: str
) -> None:
    direct.execute("PREPARE y AS SELECT 1")
    with pytest.raises(StoreError, match="pool_mode = session"):
        direct.execute(statement)


def test_a_setting_that_a_pooler_refuses_is_named() -> None:
    """PgBouncer takes no `search_path` with the start of a session."""
    assert "search_path" in cause(asyncpg.ProtocolViolationError("unsupported startup parameter"))
