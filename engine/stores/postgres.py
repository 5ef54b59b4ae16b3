"""The PostgreSQL store: for several workers, on one machine or on many.

Each connection has a thread: one for reading, some for writing, so that the server works for one of
them while another one thinks; an account's rows are written by one transaction at a time.

Who may write an account's rows is not decided here: `fences` holds the numbers of the leases that
this process was given. A transaction that touches an account's rows looks first whether the lease
still carries that number, and keeps it from changing hands until it has ended. What lost its lease
gets LeaseLost, and leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import anyio

from engine.core.errors import StoreError
from engine.core.secret import Secret
from engine.machine.offload import Offload

from .postgres_desk import Desk
from .postgres_session import Session, own_session, prepare
from .transaction import Transaction

T = TypeVar("T")


# Connections that write. Each group of jobs is one's own, and one waits for the server at a time.
WRITERS = 2


class PostgresStore:
    """`Store` on a PostgreSQL database."""

    def __init__(
        self, url: Secret, synchronous: str = "full", *, shown: str = "postgresql://"
    ) -> None:
        """`shown`: what errors call it."""
        self.url = url
        # Account -> number of the lease that is held; None: there are no leases, all is ours.
        self.fences: dict[str, int] | None = None
        self.session_name = "dlr-engine"  # of its connections, for whoever has to end them
        self._synchronous = synchronous
        self._shown = shown
        self._writers: list[Desk] = []
        self._reader: Desk | None = None

    async def open(self, *, own: bool) -> None:
        """Several workers may own it: which accounts are whose, their leases say."""
        preparing = Offload("dlr-store-opening")
        try:
            await preparing.run(self._prepare)
        finally:
            await preparing.close()
        self._writers = [
            self._desk(f"dlr-store-writer-{number}", writes=True) for number in range(WRITERS)
        ]
        self._reader = self._desk("dlr-store-reader", writes=False)

    def _desk(self, name: str, *, writes: bool) -> Desk:
        return Desk(
            self.url,
            self._shown,
            name,
            writes=writes,
            synchronous=self._synchronous,
            fences=lambda: self.fences,
            session_name=self.session_name,
        )

    def _prepare(self) -> None:
        session, other = Session(self.url, self._shown), Session(self.url, self._shown)
        try:
            session.connect()
            own_session(session, other)
            prepare(session)
        except StoreError as error:
            raise StoreError(f"cannot open {error}") from None
        finally:
            session.close()
            other.close()

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        if not self._writers:
            raise StoreError(f"the store {self._shown} is closed")
        desk = min(self._writers, key=lambda desk: desk.waiting)
        return await desk.run(job, lazy=lazy)

    async def sync(self) -> None:
        lazy = {desk: desk.lazy for desk in self._writers}
        if any(desk.synced < count for desk, count in lazy.items()):
            # Its commit takes what was committed before it to the disk, on any connection.
            mark = os.urandom(8)
            await self.write(lambda tx: tx.put_note("", "synced", mark))
            for desk, count in lazy.items():
                desk.synced = max(desk.synced, count)

    async def read(self, job: Callable[[Transaction], T]) -> T:
        if self._reader is None:
            raise StoreError(f"the store {self._shown} is closed")
        return await self._reader.run(job)

    async def close(self) -> None:
        desks = [*self._writers, *([self._reader] if self._reader is not None else [])]
        self._reader, self._writers = None, []
        async with anyio.create_task_group() as group:
            for desk in desks:
                group.start_soon(desk.close)
