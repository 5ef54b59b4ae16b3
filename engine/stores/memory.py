"""The store on plain dicts: the reference for the other drivers, and `memory://` for trials.

It keeps the promises of a store except the one of outliving its process: a job happens whole or
not at all, and no two jobs overlap. Every change goes through `Tables`, which notes its inverse
first, so that undoing costs what the job did and not what the store holds.
It must never hand out, or keep, an object that somebody else may change, nor wait inside a job.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import copy
from heapq import nsmallest
from typing import TypeVar

import msgspec

from engine.core.errors import StoreBusy, StoreError

from .memory_dead import MemoryDeadLetters
from .memory_log import MemoryLog
from .memory_messages import MemoryMessages
from .memory_tables import Tables, nested
from .memory_troubles import MemoryTroubles
from .memory_works import MemoryWorks
from .transaction import InboxItem, Transaction

T = TypeVar("T")


class MemoryTransaction(MemoryMessages, MemoryWorks, MemoryLog, MemoryTroubles, MemoryDeadLetters):
    """The primitives, over the tables. See `Transaction` for what each of them does."""

    wants_records = True

    def reusable_bytes(self) -> int:
        return 0

    def add_tallies(self, account: str, changes: dict[str, int]) -> None:
        tallies = self._tables.tallies
        for name, by in changes.items():
            if by:
                self._tables.set(tallies, (account, name), tallies.get((account, name), 0) + by)

    def tallies(self) -> dict[str, dict[str, int]]:
        return nested(self._tables.tallies)

    def put_inbox(self, item: InboxItem) -> int:
        kept = msgspec.structs.replace(item, id=next(self._tables.numbers))
        self._tables.set(self._tables.inbox, kept.id, kept)
        return kept.id

    def inbox_waits(self, besides: Collection[int] = ()) -> bool:
        return bool(self._tables.inbox.keys() - besides)

    def inbox(self, limit: int, besides: Collection[int] = ()) -> list[InboxItem]:
        oldest = nsmallest(limit, self._tables.inbox.keys() - besides)
        return [copy(self._tables.inbox[item_id]) for item_id in oldest]

    def drop_inbox(self, ids: Collection[int]) -> None:
        for item_id in self._tables.inbox.keys() & ids:
            self._tables.drop(self._tables.inbox, item_id)

    def put_note(self, account: str, name: str, value: bytes) -> None:
        self._tables.set(self._tables.notes, (name, account), bytes(value))

    def put_notes(self, notes: Mapping[tuple[str, str], bytes]) -> None:
        for (account, name), value in notes.items():
            self.put_note(account, name, value)

    def notes(self, name: str) -> dict[str, bytes]:
        return nested(self._tables.notes).get(name, {})

    def drop_note(self, account: str, name: str) -> None:
        if (name, account) in self._tables.notes:
            self._tables.drop(self._tables.notes, (name, account))


class MemoryStore:
    """A store for one process. What it holds stays while the object lives, closed or not."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._opened = self._owned = False

    async def open(self, *, own: bool) -> None:
        if own and self._owned:
            raise StoreBusy("this memory store has a worker already")
        self._opened, self._owned = True, self._owned or own

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        return self._run(job, writes=True)

    async def sync(self) -> None:
        """There is no disk."""

    async def read(self, job: Callable[[Transaction], T]) -> T:
        return self._run(job, writes=False)

    async def close(self) -> None:
        self._opened = self._owned = False

    def _run(self, job: Callable[[Transaction], T], *, writes: bool) -> T:
        if not self._opened:
            raise StoreError("the memory store is closed")
        tables = self._tables
        try:
            result = job(MemoryTransaction(tables))
            if tables.undo and not writes:
                raise StoreError("a job that was only to read has written")
            tables.undo.clear()
        finally:
            tables.roll_back()
        return result
