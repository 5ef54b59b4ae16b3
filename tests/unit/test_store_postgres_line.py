"""The PostgreSQL store, its line cut, hanging, or lost in the middle of a commit."""

from __future__ import annotations

import asyncio

import pytest

from engine.core.errors import StoreTrouble
from engine.core.secret import Secret
from engine.stores import postgres_session
from engine.stores.patient import PatientStore
from engine.stores.postgres import PostgresStore
from engine.stores.postgres_session import Session
from engine.stores.transaction import Transaction
from engine.telemetry import Telemetry
from tests.services import HOST, Line, require
from tests.unit.postgres_parts import Quick, tallied, tally, url

__all__ = ["url"]


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
