"""From the log to the sinks: one independent loop and one durable position a sink.

A sink that is slow or dead falls behind alone. It gets every record at least once, in the order of
the log (for any one message in the order of `revision`); its position moves after it has taken a
batch, and with it what it will be given after a restart.
"""

# one file: reading the log, giving it to a sink and moving the place are one promise

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Container, Sequence
from itertools import accumulate

import anyio
import msgspec

from engine.config.model import SinkConfig
from engine.core.clock import Clock
from engine.core.contracts import Batch, Sink
from engine.core.errors import LeaseLost, PartialWrite, SinkError, StoreTrouble
from engine.core.state import State
from engine.core.units import iso, spell_duration
from engine.core.work import LogRow
from engine.dead_letters import CLOSE_S, DeadLetters, Refused, Retried
from engine.errands import Errands
from engine.limits import backoff_s
from engine.stores.burying import rewind
from engine.stores.transaction import STATE_CODES, Place, Store, Transaction
from engine.telemetry import Telemetry

# Log rows read at once for one account, and their bytes: what a sink may hold in memory.
ROWS_MAX = 64
READ_BYTES_MAX = 4 << 20

# Log bytes that one look may go through when a filter passes nearly all of them over.
SCAN_BYTES_MAX = 16 << 20

# A sink that takes longer over one batch is taken for dead where it is asked about.
CALL_LONG_S = 30.0

# A call that was told to end does so within this.
OVERDUE_S = 5.0

# Without news a sink looks at the log this often, in case another hand has written to it.
LOOK_S = 1.0

# How often, at most, the log is read again while a batch is waited for.
LOOKS = 20


class SinkHealth(msgspec.Struct, kw_only=True):
    """How a sink does, for people."""

    failing: str | None = None
    failures: int = 0
    written: int = 0
    behind: bool = True  # it has not acknowledged everything yet


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


class Dispatcher:
    """Brings the log to one sink."""

    def __init__(
        self,
        config: SinkConfig,
        sink: Sink,
        *,
        store: Store,
        accounts: Sequence[str],
        telemetry: Telemetry,
        clock: Clock,
        rand: random.Random,
    ) -> None:
        self.name = config.name
        self.health = SinkHealth()
        self._config = config
        self.reader = LogReader(
            config.name, store, self._wanted(accounts), states=config.states, start=config.start
        )
        self._in_hand: frozenset[str] = frozenset()  # whose records the sink is being given
        self._ended = anyio.Event()
        self._step_ended = anyio.Event()
        self._batch = config.batch
        self._timeout_s = config.timeout_s
        self._sink = sink
        self._letters = DeadLetters(config, store, telemetry=telemetry, clock=clock)
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._rand = rand
        self._news = anyio.Event()
        self._stopping = False
        self._errands = Errands(self.tell, stopped=lambda: self._stopping)
        self._again_at = 0.0
        self._calling_since: float | None = None
        self._overdue = False

    @property
    def dead(self) -> str | None:
        """Why nothing can be hoped from the sink for now."""
        since = self._calling_since
        if self.health.failing is None and since is not None:
            waited_s = self._clock.monotonic() - since
            if waited_s > CALL_LONG_S:
                began = iso(self._clock.now_ms() - round(waited_s * 1000))
                return f"has not answered since {began[:-5]}Z"
        return self.health.failing

    def look(self) -> None:
        """Say so where a call goes on past its time, which it was told to end at."""
        since = self._calling_since
        late = since is not None and (self._clock.monotonic() - since > self._timeout_s + OVERDUE_S)
        if late and not self._overdue:
            self._tell_trouble(
                f"has not answered for {spell_duration(self._timeout_s)} and does not let go of the"
                " call: a fault in the sink; its records wait in the log"
            )
        self._overdue = late

    def _wanted(self, accounts: Sequence[str]) -> list[str]:
        return [name for name in accounts if self.wants(name)]

    def wants(self, account: str) -> bool:
        """Whether its records are for this sink."""
        chosen = self._config.accounts
        return chosen is None or account in chosen

    async def take(self, accounts: Sequence[str]) -> None:
        """Bring the sink the records of these, too. Raises LeaseLost."""
        if wanted := self._wanted(accounts):
            await self.reader.take(wanted)
            self.tell()

    async def let_go(self, accounts: Sequence[str]) -> None:
        """Read nothing of these any more, and wait until what is in hand of theirs is written."""
        await self.reader.drop(accounts)
        while not self._ended.is_set() and self._in_hand.intersection(accounts):
            await self._step_ended.wait()

    def tell(self) -> None:
        """There is more in the log."""
        self._news.set()

    def stop(self) -> None:
        """Write what the log holds, then end."""
        self._stopping = True
        self._news.set()

    async def retry(self) -> Retried:
        """Offer the dead letters once more, unless the sink fails at present: SinkError."""

        async def offer(lines: Sequence[bytes]) -> dict[int, str]:
            portion = Portion(list(lines))
            await self._in_time(lambda: self._write(portion))
            return portion.rejected

        async def retry() -> Retried:
            if self.health.failing is not None:
                raise SinkError(f"it fails at present: {self.health.failing}")
            return await self._letters.retry(offer, stopped=lambda: self._stopping)

        return await self._errands.ask(retry)

    async def rewind(self, account: str, to_ms: int | None) -> int:
        """Go back in an account's log; how many records come again. See `burying.rewind`."""

        async def back() -> int:
            place, again = await self._store.write(lambda tx: rewind(tx, self.name, account, to_ms))
            self.reader.places[account] = place
            return again

        return await self._errands.ask(back)

    async def run(self) -> None:
        try:
            await self.reader.open()
            while not (opened := await self._patiently(self._sink.open)) and not self._stopping:
                await self._errands.run()
            while opened and await self._step():
                pass
        except StoreTrouble:
            if not self._stopping:
                raise
        finally:
            with anyio.move_on_after(CLOSE_S, shield=True) as scope:
                try:
                    await self._sink.close()
                except Exception as error:
                    self._tell_trouble(f"closing failed: {self._letters.cause(error)}")
            if scope.cancelled_caught:
                self._tell_trouble(f"did not close within {CLOSE_S:g} s and was left")
            self._errands.end()
            self._ended.set()
            self._step_ended.set()

    async def _step(self) -> bool:
        """One batch, or a wait for news. False: stopped, with nothing left to write."""
        await self._errands.run()
        portion = await self._gather()
        if not portion.lines:
            await self.reader.move(portion.places)
            if portion.more:
                return True
            self.health.behind = False
            if self._stopping:
                return False
            if not self._errands.press:
                with anyio.move_on_after(LOOK_S):
                    await self._news.wait()
            self._news = anyio.Event()
            self.health.behind = True
            return True
        self._in_hand = frozenset({account for account, _, _ in portion.marks})
        try:
            if not await self._patiently(lambda: self._write(portion)):
                return not self._stopping
            if rejected := portion.rejected.items():
                refused = [Refused(*portion.record(index), cause) for index, cause in rejected]
                await self._keep(refused)
            await self.reader.move(portion.places)
        finally:
            self._in_hand = frozenset()
            self._step_ended.set()
            self._step_ended = anyio.Event()
        self.health.written += len(portion.lines)
        self._telemetry.count("written", self.name, len(portion.lines))
        return True

    async def _keep(self, refused: list[Refused]) -> None:
        """As dead letters; of another worker's account, it will be refused there."""
        while refused:
            try:
                await self._letters.keep(refused)
                return
            except LeaseLost as lost:
                refused = [one for one in refused if one.account != lost.account]

    async def _gather(self) -> Portion:
        """The next batch: a full one, or what there is once `wait` has passed or a stop is told.

        Small pieces are gathered for a moment, so that a sink is not called once a record; in a
        long moment it is looked a few times whether the batch is full.
        """
        portion = await self.reader.read(self._batch.records, self._batch.bytes)
        step_s, left_s = max(LOOK_S, self._batch.wait_s / LOOKS), self._batch.wait_s
        while left_s > 0 and portion.lines and not portion.full and not self._errands.press:
            await self._clock.sleep(min(step_s, left_s))
            left_s -= step_s
            portion = await self.reader.read(self._batch.records, self._batch.bytes)
        return portion

    async def _write(self, portion: Portion) -> None:
        try:
            await self._sink.write(Batch(portion.lines))
        except PartialWrite as error:
            portion.rejected = self._letters.masked(error.rejected)

    async def _patiently(self, act: Callable[[], Awaitable[None]]) -> bool:
        """Do it until it works. False: stopped meanwhile, after one more try; or there is an
        errand to be run before the next."""
        while True:
            await self._rest()
            if self._errands and self.health.failing is not None and not self._stopping:
                return False
            last = self._stopping
            try:
                await self._in_time(act)
            except Exception as error:  # also a fault in a plug-in: this sink's own trouble
                self._note_failure(error)
            else:
                if self.health.failing is not None:
                    self._telemetry.event(logging.INFO, f"sink {self.name}", "goes on")
                self.health.failing = None
                self.health.failures = 0
                return True
            if last:
                return False

    async def _in_time(self, act: Callable[[], Awaitable[None]]) -> None:
        self._calling_since = self._clock.monotonic()
        try:
            with anyio.move_on_after(self._timeout_s) as scope:
                await act()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise SinkError("it was cancelled from within") from None
        finally:  # the wait before the next try is none of the call's
            self._calling_since = None
        if scope.cancelled_caught:
            raise SinkError(f"has not answered for {spell_duration(self._timeout_s)}")

    def _note_failure(self, error: Exception) -> None:
        cause = self._letters.cause(error)
        self.health.failures += 1
        delay_s = getattr(error, "retry_after_s", None) or backoff_s(
            self.health.failures, self._rand
        )
        if cause != self.health.failing:
            self._tell_trouble(f"{cause}; tried again, now in {spell_duration(round(delay_s, 1))}")
        self.health.failing = cause
        self._telemetry.count("sink_failures", self.name)
        self._again_at = anyio.current_time() + delay_s

    async def _rest(self) -> None:
        """What is left of the wait after a failure, which neither news nor an errand shortens."""
        while not self._errands.press and (left_s := self._again_at - anyio.current_time()) > 0:
            with anyio.move_on_after(left_s):
                await self._news.wait()
            self._news = anyio.Event()

    def _tell_trouble(self, text: str) -> None:
        self._telemetry.event(logging.ERROR, f"sink {self.name}", text)
