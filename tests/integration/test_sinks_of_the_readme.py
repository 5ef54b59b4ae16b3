"""README's sinks of files, tables and endpoints, as they stand there, behind a running engine."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import duckdb
import pytest

from engine.idle import until_idle
from tests.conformance.receivers import DATABASE, REFUSED, SECRET, receiver, tables
from tests.integration.harness import bulksms, causes, configured, hasty, lines
from tests.integration.standin import Standin
from tests.services import require

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
HEAD = "0|Returns to follow\n\n"
ROWS = 30


def block(language: str, head: str) -> str:
    (found,) = re.findall(rf"(?s)```{language}\n({re.escape(head)}.*?)```", README)
    return str(found)


def sink(name: str) -> dict[str, Any]:
    """The sink's table in README; its batches are closed sooner."""
    (found,) = tomllib.loads(block("toml", f'[[sinks]]\nname = "{name}"'))["sinks"]
    return {**found, "batch": {"wait": "50ms"}}


def answer(standin: Standin) -> str:
    rows = "".join(f"4477009000{n:02d}|{(11, 10)[n % 3 == 0]}\n" for n in range(ROWS))
    return standin.answer("bulk", [HEAD + rows])


async def test_all_of_it_at_once(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tables() as schema, receiver() as hook:
        monkeypatch.setenv("WAREHOUSE_URL", schema.options["url"])
        monkeypatch.setenv("CRM_URL", hook.options["url"])
        monkeypatch.setenv("CRM_SECRET", SECRET)
        warehouse = {**sink("warehouse"), "schema": schema.options["schema"]}
        sinks = [warehouse, sink("crm"), sink("lake")]
        account = bulksms(answer(standin), schedule={"ladder": ["0s"]})
        async with hasty(configured(tmp_path, account, sinks=sinks)) as poller:
            await poller.track("bulk", batch_id="1", reference="order-17")
            await poller.track("bulk", batch_id="2", reference=REFUSED)
            assert await until_idle(poller, 20) == []
            found = await poller.store.read(
                lambda tx: tx.dead_letters("crm", 0, 99, bytes_max=9**9)
            )
            assert await causes(poller) == []
        assert {one.cause for one in found} == {"the receiver answers 422 Unprocessable Entity"}
        there = await schema.read()
        posted = await hook.read()
        query = block("sql", "SELECT account").replace("dlr.", f"{schema.options['schema']}.")
        database = await asyncpg.connect(DATABASE.format(*require("postgres")))
        by_state = dict([row[1:] for row in await database.fetch(query)])
        await database.close()
    first = [one for one in there if one["batch_id"] == "1"]
    by_event = sorted(posted, key=lambda one: str(one["event_id"]))
    assert by_event == sorted(first, key=lambda one: str(one["event_id"]))
    newest = {one["message_id"]: one for one in sorted(there, key=lambda one: one["revision"])}
    assert len(newest) == 2 * ROWS
    assert sum(by_state.values()) == 2 * ROWS
    monkeypatch.chdir(tmp_path)
    rows = duckdb.sql(block("sql", "SELECT day")).fetchall()
    assert sum(row[2] for row in rows) == len(there)


async def test_the_three_that_need_nothing(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks = tomllib.loads(block("toml", '[[sinks]]\nname = "lines"'))["sinks"]
    sinks = [{**one, "batch": {"wait": "50ms"}} for one in sinks]
    rows = "".join(f"4477009000{n:02d}|{(11, 53)[n % 3 == 0]}\n" for n in range(ROWS))
    account = bulksms(standin.answer("bulk", [HEAD + rows]), schedule={"ladder": ["0s"]})
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("engine.sinks.stdout.sys", SimpleNamespace(stdout=out))
        async with hasty(configured(tmp_path, account, sinks=sinks)) as poller:
            await poller.track("bulk", batch_id="1")
            assert await until_idle(poller, 20) == []
    found = lines(tmp_path, "lines.jsonl")
    assert len(found) == ROWS
    (query,) = re.findall(r"sqlite3 tables.db '(.*)'", README)
    with contextlib.closing(sqlite3.connect(tmp_path / "tables.db")) as db:
        assert dict(db.execute(query)) == {"delivered": 20, "expired": 10}
    assert lines(tmp_path, "out") == [one for one in found if one["state"] == "expired"]
