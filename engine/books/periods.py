"""A past period that an account is asked for again: ordered, stopped, and what came of it.

The work in the schedule is the whole truth of one that is under way: how far it is read, and what
is left of the slice in hand. One that was stopped, and what came of one that is over, stand in a
note, so that nothing takes it up again by itself and whoever ordered it can look.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config.model import AccountConfig
from engine.core.contracts import Kind
from engine.core.work import Committed, Work
from engine.stores.transaction import InboxItem, Transaction

KIND = "backfill"  # of the inbox's rows, and the name of the note

# Periods of one account that are noted as stopped or done; the oldest are forgotten.
NOTED_MAX = 32


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """An order. The same period is the same work, whoever orders it."""

    id: str
    from_ms: int
    to_ms: int
    stop: bool = False

    @property
    def key(self) -> str:
        return f"{self.from_ms}-{self.to_ms}"


class Progress(msgspec.Struct, kw_only=True):
    """How far a period is read. `data` is the work's: what it takes to go on."""

    from_ms: int
    to_ms: int
    state: str = "under way"  # or "stopped", "done"
    order: str = ""  # which one has led to it
    data: dict[str, Any] = {}
    ended_ms: int | None = None

    @property
    def reached_ms(self) -> int:
        """What is before that is read."""
        spans = self.data.get("spans") or [{"from_ms": self.data.get("cursor", self.from_ms)}]
        cursor = int(self.data.get("cursor", self.from_ms))
        return self.to_ms if self.state == "done" else max(cursor, int(spans[0]["from_ms"]))

    @property
    def records(self) -> int:
        return int(self.data.get("records", 0))

    @property
    def incidents(self) -> int:
        """Gaps that could not be closed."""
        return int(self.data.get("incidents", 0))


def period_item(account: str, period: Period, now_ms: int) -> InboxItem:
    """What is handed over."""
    payload = msgspec.json.encode(period)
    return InboxItem(account=account, kind=KIND, payload=payload, at_ms=now_ms)


def check(item: InboxItem) -> None:
    """Raises ValueError where it is no order."""
    period = msgspec.json.decode(item.payload, type=Period)
    if period.from_ms >= period.to_ms:
        raise ValueError("a period that ends before it begins")


def take_period(tx: Transaction, account: AccountConfig, period: Period, now_ms: int) -> Committed:
    """Put it into the schedule, where it goes on from where it was stopped; or stop it."""
    name, key = account.name, period.key
    noted = _noted(tx, name)
    works = tx.find_works(name, Kind.BACKFILL, [key])
    if period.stop:
        for work in works:
            _note(tx, work, "stopped", now_ms)
        return Committed(ended=[work.id for work in works if work.id is not None])
    before = noted.get(key)
    if works or (before is not None and before.order == period.id):  # taken, by whatever way
        return Committed()
    data: dict[str, Any] = {"from": period.from_ms, "to": period.to_ms, "cursor": period.from_ms}
    if before is not None and before.state == "stopped":
        data = before.data
    data["order"] = period.id
    work = Work(
        account=name, kind=Kind.BACKFILL, key=key, due_ms=now_ms, start_ms=now_ms, data=data
    )
    if noted.pop(key, None) is not None:
        _put(tx, name, noted)
    return Committed(put=tx.put_works([work]))


def end_period(tx: Transaction, work: Work, now_ms: int) -> None:
    """It is read to its end."""
    if work.id is not None and tx.work(work.id) is not None:
        _note(tx, work, "done", now_ms)


def progress_of(tx: Transaction, account: str) -> dict[str, Progress]:
    """By key: those under way, and those that are noted."""
    found = _noted(tx, account)
    for work in tx.find_works(account, Kind.BACKFILL, None):
        found[work.key] = _progress(work)
    return found


def _progress(work: Work) -> Progress:
    data = work.data
    return Progress(
        from_ms=int(data["from"]), to_ms=int(data["to"]), order=data.get("order", ""), data=data
    )


def _noted(tx: Transaction, account: str) -> dict[str, Progress]:
    note = tx.notes(KIND).get(account)
    return {} if note is None else msgspec.json.decode(note, type=dict[str, Progress])


def _note(tx: Transaction, work: Work, state: str, now_ms: int) -> None:
    assert work.id is not None
    noted = _noted(tx, work.account)
    noted.pop(work.key, None)
    noted[work.key] = msgspec.structs.replace(_progress(work), state=state, ended_ms=now_ms)
    _put(tx, work.account, dict(list(noted.items())[-NOTED_MAX:]))
    tx.drop_works([work.id])


def _put(tx: Transaction, account: str, noted: dict[str, Progress]) -> None:
    tx.put_note(account, KIND, msgspec.json.encode(noted))
