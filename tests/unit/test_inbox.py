"""What other processes hand over: what cannot be taken is set aside, and ends nobody."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

import engine
from engine.books.late import late_item
from engine.books.tracking import digest_inbox
from engine.chores import QUESTIONS
from engine.core.contracts import Kind
from engine.core.work import Page, Work
from engine.stores.memory import MemoryStore, MemoryTransaction
from engine.stores.transaction import InboxItem
from engine.worker import Engine
from tests.conformance.storing import DRAINED, report
from tests.unit.parts import ACCOUNTS, T0, Parts

GOOD = [{"message_id": "m1", "sent_ms": T0, "recipients": ["447700900001"]}]
NOT_TAKEN = {
    "no JSON": ("track", b'[{"message_id": "m'),
    "not UTF-8": ("track", b'[{"message_id": "\xff", "sent_ms": 1}]'),
    "another shape": ("track", orjson.dumps({"message_id": "m1"})),
    "no time": ("track", orjson.dumps([{"message_id": "m1"}])),
    "neither id": ("track", orjson.dumps([{"sent_ms": T0}])),
    "a time far out": ("track", orjson.dumps([{**GOOD[0], "sent_ms": 1 << 62}])),
    "columns that differ": ("track", orjson.dumps([{**GOOD[0], "references": ["a", "b"]}])),
    "half of it good": ("track", orjson.dumps([*GOOD, {"message_id": 7}])),
    "no nonce": ("probe", b'{"id": 7}'),
    "no order": ("replay", b'{"since_ms": "soon"}'),
    "no portion": ("ingest", b"\x80"),
    "no period": ("backfill", b'{"id": "x", "from_ms": 5, "to_ms": 5}'),
    "no windowed feed": ("backfill", b'{"id": "x", "from_ms": 5, "to_ms": 6}'),
    "an unknown kind": ("dance", b"{}"),
}


async def digest(parts: Parts, *rows: tuple[str, bytes], account: str = "a") -> list[str]:
    """The kinds of the rows that were taken."""

    def work(tx: object) -> list[str]:
        for kind, payload in rows:
            tx.put_inbox(InboxItem(account=account, kind=kind, payload=payload, at_ms=T0))
        taken = digest_inbox(tx, {"a": parts.account}, {}, T0, 0.0, QUESTIONS)
        assert [item.kind for item in tx.inbox(9)] == [
            item.kind for item in taken if item.kind in QUESTIONS
        ]  # they stay until they are answered
        return [item.kind for item in taken]

    return await parts.store.write(work)


@pytest.mark.parametrize(("kind", "payload"), NOT_TAKEN.values(), ids=NOT_TAKEN)
async def test_a_row_that_cannot_be_taken_is_set_aside(kind: str, payload: bytes) -> None:
    async with Parts("infobip", (200, {})) as parts:
        rows = [(kind, payload), ("track", orjson.dumps(GOOD)), ("probe", b'{"id": "n"}')]
        assert await digest(parts, *rows) == ["track", "probe"]
        (trouble,) = await parts.store.read(lambda tx: tx.troubles("a", 10))
        assert (trouble.kind, trouble.position, trouble.raw) == (
            "set_aside", f"inbox {kind}: inbox", payload
        )  # fmt: skip
        assert trouble.cause
        counts = (await parts.store.read(lambda tx: tx.tallies()))["a"]
        assert (counts["set_aside"], counts["known"]) == (1, 1)
        works = await parts.store.read(lambda tx: tx.find_works("a", Kind.MESSAGE, None))
        assert [work.key for work in works] == ["m1"]


async def test_a_row_of_an_account_that_nobody_has_is_set_aside() -> None:
    async with Parts("infobip", (200, {})) as parts:
        assert await digest(parts, ("track", orjson.dumps(GOOD)), account="b") == []
        (trouble,) = await parts.store.read(lambda tx: tx.troubles("b", 10))
        assert trouble.cause == "no such account in this worker's configuration"


async def test_what_the_store_refuses_is_set_aside_and_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As PostgreSQL does with an id that is too long for an index."""
    put_works = MemoryTransaction.put_works

    def refusing(tx: MemoryTransaction, works: list[Work]) -> Any:
        if any(len(work.key) > 2000 for work in works):
            raise RuntimeError
        return put_works(tx, works)

    monkeypatch.setattr(MemoryTransaction, "put_works", refusing)
    store = MemoryStore()
    await store.open(own=False)
    late = Page(
        account="a", provider="infobip", traits=DRAINED, observed_ms=T0, reports=[report("m2")]
    )
    long = orjson.dumps([{**GOOD[0], "message_id": "m" * 4000}])
    for item in (
        InboxItem(account="a", kind="track", payload=long, at_ms=T0),
        InboxItem(account="a", kind="track", payload=orjson.dumps(GOOD), at_ms=T0),
        late_item(late, T0),
    ):
        await store.write(lambda tx, item=item: tx.put_inbox(item))
    entry = {
        "name": "a",
        "provider": "infobip",
        "base_url": "http://127.0.0.1:9",
        **ACCOUNTS["infobip"],
    }
    config = engine.configure({"accounts": [entry]})
    async with Engine(config, store=store):  # nobody listens there
        assert not await store.read(lambda tx: tx.inbox_waits())
        (trouble,) = await store.read(lambda tx: tx.troubles("a", 10))
        assert trouble.cause == "cannot be recorded: RuntimeError"
        works = await store.read(lambda tx: tx.find_works("a", Kind.MESSAGE, None))
        assert [work.key for work in works] == ["m1"]
        counts = (await store.read(lambda tx: tx.tallies()))["a"]
        assert (counts["set_aside"], counts["known"], counts["records"]) == (1, 2, 1)
