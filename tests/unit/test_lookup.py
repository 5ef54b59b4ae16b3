"""What `show` tells of a message: its history in order, and when its verdict is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.books.lookup import find, message_table
from engine.books.tracking import take_tracked
from engine.config.model import Config, StoreConfig
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.units import iso
from engine.stores.tracked import Tracked
from tests.unit.parts import T0, Parts

SECOND = 1000


async def report(parts: Parts, at_ms: int, message_id: str, state: State, **keys: Any) -> None:
    parts.clock.ms = at_ms
    page = parts.asker.page()
    final = state is not State.ENROUTE
    page.reports = [
        Report(message_id=message_id, state=state, final=final, provider_status=state.value, **keys)
    ]
    await parts.asker.commit(page)


async def shown(parts: Parts, message_id: str) -> dict[str, Any]:
    name = parts.account.name
    found = await parts.store.read(lambda tx: find(tx, [name], "message_id", message_id, []))
    [known] = found.messages
    config = Config(
        source="engine.toml",
        base=Path(),
        store=StoreConfig(url=Secret("memory://"), scheme="memory"),
        accounts=(parts.account,),
    )
    return message_table(config, known, found)


async def test_a_report_that_lost_stands_where_it_came() -> None:
    async with Parts("infobip") as parts:
        for n, state in enumerate((State.ENROUTE, State.DELIVERED, State.EXPIRED)):
            await report(parts, T0 + n * SECOND, "m", state)
        history = (await shown(parts, "m"))["history"]
    assert [(e["state"], e["superseded"]) for e in history] == [
        ("enroute", False),
        ("delivered", False),
        ("expired", True),
    ]
    assert [e["observed_at"] for e in history] == sorted(e["observed_at"] for e in history)


async def test_the_verdict_on_a_message_of_a_batch_that_is_over_is_told() -> None:
    async with Parts("infobip", schedule={"ladder": ["1d", "3d"]}) as parts:
        item = Tracked(sent_ms=T0, batch_id="b")
        await parts.store.write(
            lambda tx: take_tracked(tx, parts.account, [item], redactor=None, now_ms=T0, chance=0.0)
        )
        await report(parts, T0, "m", State.DELIVERED, batch_id="b")
        await report(parts, T0, "late", State.ENROUTE, batch_id="b")
        assert (await shown(parts, "m"))["verdict_at"] is None
        assert (await shown(parts, "late"))["verdict_at"] == iso(T0 + 3 * 86_400_000)


async def test_a_batch_of_which_nothing_was_heard_is_found_by_its_reference() -> None:
    async with Parts("bulksms") as parts:
        name = parts.account.name
        items = [Tracked(sent_ms=T0, batch_id=batch_id, reference="order") for batch_id in "12"]
        await parts.store.write(
            lambda tx: take_tracked(tx, parts.account, items, redactor=None, now_ms=T0, chance=0.0)
        )
        await report(parts, T0, "2:44", State.DELIVERED, batch_id="2")
        found = await parts.store.read(lambda tx: find(tx, [name], "reference", "order", []))
    assert [work.key for work in found.batches] == ["1"]
    assert [known.message_id for known in found.messages] == ["2:44"]
