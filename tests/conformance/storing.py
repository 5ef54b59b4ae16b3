"""What the suites over every driver of a store share: the drivers, and short ways to say things."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.core.contracts import Kind, Traits
from engine.core.reconcile import Known
from engine.core.report import Report, decode
from engine.core.schedule import Ladder
from engine.core.secret import Secret
from engine.core.state import FINAL, State
from engine.core.work import Committed, LogRow, Page, Settle, Work
from engine.stores import ledger
from engine.stores.memory import MemoryStore
from engine.stores.sqlite import SqliteStore
from engine.stores.tracked import Tracked
from engine.stores.tracked import track as take_tracked
from engine.stores.transaction import (
    STATE_CODES,
    DeadLetter,
    Store,
    Transaction,
)
from tests.services import own_schema

T0 = 1_700_000_000_000
DAY = 86_400_000
BOTH = frozenset({"batch", "message"})
DRAINED = Traits(feed="drained", one_time=True, dated=True, tracks=BOTH)
TIMED = msgspec.structs.replace(DRAINED, sent_at_stays=True)
ASKED = Traits(dated=True, tracks=BOTH, asks=BOTH)
DERIVED = Traits(tracks=frozenset({"batch"}), asks=frozenset({"batch"}), derives_ids=True)
WINDOWED = Traits(feed="windowed", tracks=frozenset({"message"}))
LADDER = Ladder.of((300, 1800))
R1, R2 = "447700900001", "447700900002"


@asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Store]:
    yield MemoryStore()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Store]:
    yield SqliteStore(folder / "state.db")


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[Store]:
    async with own_schema() as url:
        from engine.stores.postgres import PostgresStore

        yield PostgresStore(Secret(url))


DRIVERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "postgres": postgres,
}


def message(message_id: str = "m1", account: str = "a", **fields: Any) -> Known:
    return Known(account=account, message_id=message_id, **fields)


def work(key: str = "k", account: str = "a", kind: Kind = Kind.BATCH, **fields: Any) -> Work:
    return Work(
        **{"account": account, "kind": kind, "key": key, "due_ms": T0, "start_ms": T0, **fields}
    )


def report(message_id: str = "m1", state: State = State.ENROUTE, **fields: Any) -> Report:
    told = {"message_id": message_id, "state": state, "final": state in FINAL}
    return Report(**{**told, "provider_status": state.value, **fields})


async def commit(
    store: Store,
    *reports: Report,
    traits: Traits = DRAINED,
    at: int = T0,
    account: str = "a",
    **more: Any,
) -> Committed:
    page = Page(
        account=account, provider="p", traits=traits, observed_ms=at, reports=list(reports), **more
    )
    return await store.write(lambda tx: ledger.commit(tx, page))


async def track(
    store: Store, *items: Tracked, traits: Traits = DRAINED, account: str = "a", now: int = T0
) -> list[Work]:
    return await store.write(
        lambda tx: take_tracked(tx, account, traits, items, ladder=LADDER, now_ms=now, chance=0.0)
    )


async def settle(
    store: Store, asked: Work, *reports: Report, traits: Traits, after_s: int = 300, **more: Any
) -> Committed:
    now = asked.start_ms + after_s * 1000
    finals = sum(told.final for told in reports)
    step = Settle(work=asked, ladder=LADDER, now_ms=now, rows=len(reports), finals=finals, **more)
    return await commit(store, *reports, traits=traits, at=now, account=asked.account, settle=step)


async def prune(store: Store, now: int, *sinks: tuple[str, frozenset[str] | None]) -> int:
    return await store.write(
        lambda tx: ledger.prune(
            tx, now_ms=now, retention_ms=30 * DAY, log_retention_ms=DAY, sinks=sinks
        )
    )


def tracked(key: str | None, *recipients: str, **fields: Any) -> Tracked:
    return Tracked(**{"batch_id": key, "recipients": list(recipients), "sent_ms": T0, **fields})


def rows_of(tx: Transaction, account: str = "a") -> list[LogRow]:
    return tx.log_rows(account, 0, 10**6, bytes_max=1 << 40)


def lines_of(row: LogRow) -> list[bytes]:
    lines = row.body.split(b"\n")
    assert [STATE_CODES[code] for code in row.states] == [decode(line).state for line in lines]
    return lines


async def records(store: Store, account: str = "a") -> list[Report]:
    rows = await store.read(lambda tx: rows_of(tx, account))
    return [decode(line) for row in rows for line in lines_of(row)]


async def get(store: Store, message_id: str = "m1", account: str = "a") -> Known:
    found = await store.read(lambda tx: tx.messages(account, [(message_id, "mt")]))
    return found[message_id, "mt"]


async def works(store: Store, account: str = "a") -> list[Work]:
    """What is under way."""
    due = await store.read(lambda tx: tx.works_due(account, 1 << 50, 10**6))
    return [work for work in due if work.kind is not Kind.ENDED]


async def tallies(store: Store, account: str = "a") -> dict[str, int]:
    return (await store.read(lambda tx: tx.tallies())).get(account, {})


async def next_seq(store: Store, account: str = "a") -> int:
    return await store.read(lambda tx: tx.next_log_seq(account))


def dead(n: int, sink: str = "s", account: str = "a", **fields: Any) -> DeadLetter:
    told = {
        "place": (1, n), "message_id": f"m{n}", "revision": n, "event_id": f"e{n}",
        "cause": "too ugly", "record": b"{%d}" % n, "first_ms": T0 + n, "last_ms": T0 + n,
    }  # fmt: skip
    return DeadLetter(sink=sink, account=account, **{**told, **fields})


def letters_of(tx: Transaction, sink: str = "s") -> list[DeadLetter]:
    return tx.dead_letters(sink, 0, 10**6, bytes_max=1 << 40)


def picture(tx: Transaction, ids: list[str], accounts: str = "a") -> dict[str, Any]:
    """Whatever can be read of a store, without the driver's own numbers."""
    shot: dict[str, Any] = {"places": tx.places(), "troubles": tx.troubles(None, 99)}
    shot["pieces"] = [
        msgspec.structs.replace(one, id=0) for one in tx.pieces("a", 0, 0, 99, bytes_max=1 << 20)
    ]
    shot["dead"] = [
        msgspec.structs.replace(one, id=0) for sink in "st" for one in letters_of(tx, sink)
    ]
    shot["notes"] = [tx.notes(name) for name in ("limit", "gone")]
    for account in accounts:
        found = tx.messages(account, [(message_id, "mt") for message_id in ids])
        tx.newest(list(found.values()))
        unnumbered = {key: msgspec.structs.replace(one, row=None) for key, one in found.items()}
        due = tx.works_due(account, 1 << 50, 10**6)
        spans = tx.open_in_span(account, 0, 1 << 50, pending=False, limit=999)
        shot[account] = {
            "messages": unnumbered,
            "open": sorted(known.message_id for known in spans),
            "batches": {b: tx.batch_counts(account, b) for b in ("b1", "b2", "b9")},
            "works": sorted(str(msgspec.structs.replace(one, id=None)) for one in due),
            "bounds": tx.log_bounds().get(account, (1, 1)),
            "log": [(row.seq, row.at_ms, sorted(lines_of(row))) for row in rows_of(tx, account)],
            "tallies": {name: n for name, n in tx.tallies().get(account, {}).items() if n},
        }
    return shot
