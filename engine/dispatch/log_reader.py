"""The log as one consumer reads it: from its own places on, in portions, accounts in turn."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import accumulate

import anyio
import msgspec

from engine.core.errors import LeaseLost
from engine.core.state import State
from engine.core.work import LogRow
from engine.stores.transaction import STATE_CODES, Place, Store, Transaction

# Log rows read at once for one account, and their bytes: what a sink may hold in memory.
ROWS_MAX = 64
READ_BYTES_MAX = 4 << 20

# Log bytes that one look may go through when a filter passes nearly all of them over.
SCAN_BYTES_MAX = 16 << 20


class Portion(msgspec.Struct):
    """Records for one batch, and where each account will stand once they are taken."""

    lines: list[bytes] = []
    marks: list[tuple[str, int, Sequence[int]]] = []  # where they stand: account, row, indexes
    places: dict[str, Place] = {}
    rejected: dict[int, str] = {}  # by index: what the sink can never take, and why
    size: int = 0  # of the lines, in bytes
    full: bool = False
    more: bool = False  # the log was not looked through to its end

    def take(
        self, account: str, row: LogRow, wanted: Sequence[int], records_max: int, bytes_max: int
    ) -> tuple[bool, int]:
        """Take a row's records with these indexes. Whether it is full, and where to go on."""
        lines = row.body.split(b"\n")
        taken = wanted[: records_max - len(self.lines)]
        if self.size + len(row.body) >= bytes_max:  # else all of them have room
            sizes = accumulate((len(lines[at]) for at in taken), initial=self.size)
            fitting = sum(1 for size in sizes if size < bytes_max)  # the last one goes beyond
            taken = taken[:fitting]
        if taken:
            self.lines += map(lines.__getitem__, taken)
            self.size += sum(map(len, self.lines[-len(taken) :]))
            self.marks.append((account, row.seq, taken))
        self.full = len(self.lines) >= records_max or self.size >= bytes_max
        return self.full, taken[-1] + 1 if self.full else len(lines)

    def record(self, index: int) -> tuple[str, Place, bytes]:
        """Its account, its place there, and itself."""
        left = index
        for account, seq, indexes in self.marks:
            if left < len(indexes):
                return account, (seq, indexes[left]), self.lines[index]
            left -= len(indexes)
        raise IndexError(index)

    def places_after(self, taken: int) -> dict[str, Place]:
        """Where each account stands once only the first `taken` records were taken."""
        places: dict[str, Place] = {}
        for account, seq, indexes in self.marks:
            if taken > 0:
                places[account] = (seq, indexes[:taken][-1] + 1)
            taken -= len(indexes)
        return places


class LogReader:
    """Reads the log for one consumer, from its own places on."""

    def __init__(
        self,
        name: str,
        store: Store,
        accounts: Sequence[str],
        *,
        states: frozenset[State] | None = None,
        start: str = "oldest",
    ) -> None:
        self.name = name
        self._store = store
        self._accounts = tuple(accounts)
        self._states = states
        self._start = start
        self.places: dict[str, Place] = {}
        self._turn = anyio.Lock(fast_acquire=True)  # accounts come and go between two reads

    async def open(self) -> None:
        """Find the places; a new consumer begins with the oldest record kept, or with the next."""
        accounts = self._accounts
        found = await self._store.write(lambda tx: self._find_places(tx, accounts))
        self.places = found | self.places

    async def take(self, accounts: Sequence[str]) -> None:
        """Read these, too, from where the store says that they stand. Raises LeaseLost."""
        found = await self._store.write(lambda tx: self._find_places(tx, accounts))
        async with self._turn:
            self.places.update({account: found[account] for account in accounts})
            self._accounts = tuple(dict.fromkeys((*self._accounts, *accounts)))

    async def drop(self, accounts: Container[str]) -> None:
        """Read nothing of these any more."""
        async with self._turn:
            self._accounts = tuple(one for one in self._accounts if one not in accounts)

    def _find_places(self, tx: Transaction, accounts: Sequence[str]) -> dict[str, Place]:
        places = dict(tx.places().get(self.name, {}))
        bounds = tx.log_bounds()
        new: dict[str, Place] = {}
        for account in accounts:
            if account not in places:
                start, end = bounds.get(account, (1, 1))
                new[account] = (start if self._start == "oldest" else end, 0)
        if new:
            tx.put_places(self.name, new)
        return places | new

    def reads(self, account: str) -> bool:
        return account in self._accounts

    async def read(self, records_max: int, bytes_max: int) -> Portion:
        """The next records, at most so many and about so many bytes, accounts in turn."""
        async with self._turn:
            portion = await self._store.read(lambda tx: self._gather(tx, records_max, bytes_max))
            if portion.lines:
                # A consumer must not know what the store could forget: revisions would be given
                # twice.
                await self._store.sync()
        return portion

    def _gather(self, tx: Transaction, records_max: int, bytes_max: int) -> Portion:
        portion = Portion()
        bounds = tx.log_bounds()
        scanned = 0
        for account in self._accounts:
            seq, index = self.places[account]
            start, end = bounds.get(account, (1, 1))
            if seq < start:
                seq, index = start, 0
            while seq < end and not portion.full:
                if scanned >= SCAN_BYTES_MAX:
                    portion.more = True
                    break
                room = min(READ_BYTES_MAX, max(1, bytes_max - portion.size))
                rows = tx.log_rows(account, seq, ROWS_MAX, bytes_max=room)
                if not rows:
                    break
                for row in rows:
                    if row.seq != seq:  # rows that were pruned unread by a sink that is new
                        seq, index = row.seq, 0
                    scanned += len(row.body)
                    wanted = self._wanted(row.states, index)
                    full, index = portion.take(account, row, wanted, records_max, bytes_max)
                    if index == len(row.states):
                        seq, index = row.seq + 1, 0
                    if full:
                        break
            if (seq, index) != self.places[account]:
                portion.places[account] = (seq, index)
            if portion.full:
                self._accounts = (*self._accounts[1:], self._accounts[0])
                break
        return portion

    def _wanted(self, states: bytes, first: int) -> Sequence[int]:
        """The indexes of a row's records that are wanted, from `first` on."""
        every = range(first, len(states))
        if self._states is None:
            return every
        return [at for at in every if STATE_CODES[states[at]] in self._states]

    async def move(self, places: dict[str, Place]) -> None:
        """What was read has been taken. Of an account that is another worker's by now, its own
        place counts."""
        places = dict(places)
        while places:
            try:
                await self._store.write(lambda tx: tx.put_places(self.name, places), lazy=True)
            except LeaseLost as lost:
                del places[lost.account]
                await self.drop((lost.account,))
            else:
                self.places.update(places)
                return

    async def behind(self) -> bool:
        bounds = await self._store.read(lambda tx: tx.log_bounds())
        return any(
            self.places.get(account, (0, 0))[0] < bounds.get(account, (1, 1))[1]
            for account in self._accounts
        )
