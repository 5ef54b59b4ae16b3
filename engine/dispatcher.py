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

import anyio
import msgspec

from engine.config.model import SinkConfig
from engine.core.clock import Clock
from engine.core.contracts import Batch, Flaw, Sink
from engine.core.errors import LeaseLost, PartialWrite, SinkError, StoreError, StoreTrouble
from engine.core.mask import Mask
from engine.core.secret import secrets_in
from engine.core.state import State
from engine.core.units import iso, spell_duration
from engine.limits import backoff_s
from engine.stores.transaction import STATE_CODES, Place, Store, Transaction
from engine.telemetry import Telemetry

# Log rows read at once for one account, and their bytes: what a sink may hold in memory.
ROWS_MAX = 64
READ_BYTES_MAX = 4 << 20

# Log bytes that one look may go through when a filter passes nearly all of them over.
SCAN_BYTES_MAX = 16 << 20

# A sink that takes longer over one batch is taken for dead where it is asked about.
CALL_LONG_S = 30.0

# A call that was told to end does so within this; closing a sink may take as long as the other.
OVERDUE_S = 5.0
CLOSE_S = 5.0

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
    marks: list[tuple[str, int, int]] = []  # of each line: its account, and the place after it
    places: dict[str, Place] = {}
    rejected: dict[int, str] = {}  # by index: what the sink can never take, and why
    full: bool = False
    more: bool = False  # the log was not looked through to its end

    def owner(self, index: int) -> str:
        return self.marks[index][0]

    def places_after(self, taken: int) -> dict[str, Place]:
        """Where each account stands once only the first `taken` records were taken."""
        return {account: (seq, index) for account, seq, index in self.marks[:taken]}


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
        self._turn = anyio.Lock()  # accounts come and go between two reads

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
        size = scanned = 0
        for account in self._accounts:
            seq, index = self.places[account]
            start, end = bounds.get(account, (1, 1))
            if seq < start:
                seq, index = start, 0
            while seq < end and not portion.full:
                if scanned >= SCAN_BYTES_MAX:
                    portion.more = True
                    break
                wanted = min(READ_BYTES_MAX, max(1, bytes_max - size))
                rows = tx.log_rows(account, seq, ROWS_MAX, bytes_max=wanted)
                if not rows:
                    break
                for row in rows:
                    if row.seq != seq:  # rows that were pruned unread by a sink that is new
                        seq, index = row.seq, 0
                    lines = row.body.split(b"\n")
                    scanned += len(row.body)
                    while index < len(lines) and not portion.full:
                        if self._wants(row.states[index]):
                            portion.lines.append(lines[index])
                            portion.marks.append((account, seq, index + 1))
                            size += len(lines[index])
                            portion.full = len(portion.lines) >= records_max or size >= bytes_max
                        index += 1
                    if index < len(lines):
                        break
                    seq, index = row.seq + 1, 0
                    if portion.full:
                        break
            if (seq, index) != self.places[account]:
                portion.places[account] = (seq, index)
            if portion.full:
                self._accounts = (*self._accounts[1:], self._accounts[0])
                break
        return portion

    def _wants(self, code: int) -> bool:
        return self._states is None or STATE_CODES[code] in self._states

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
        self._step_ended = anyio.Event()
        self._batch = config.batch
        self._timeout_s = config.timeout_s
        self._sink = sink
        self._mask = Mask(secrets_in(config.sink))
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._rand = rand
        self._news = anyio.Event()
        self._stopping = False
        self._calling_since: float | None = None
        self._overdue = False
        self._ended = anyio.Event()

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
        chosen = self._config.accounts
        return [name for name in accounts if chosen is None or name in chosen]

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

    async def run(self) -> None:
        try:
            await self.reader.open()
            if await self._patiently(self._sink.open):
                while await self._step():
                    pass
        except StoreTrouble:
            if not self._stopping:
                raise
        finally:
            with anyio.move_on_after(CLOSE_S, shield=True) as scope:
                try:
                    await self._sink.close()
                except Exception as error:
                    self._tell_trouble(f"closing failed: {self._cause(error)}")
            if scope.cancelled_caught:
                self._tell_trouble(f"did not close within {CLOSE_S:g} s and was left")
            self._ended.set()
            self._step_ended.set()

    async def _step(self) -> bool:
        """One batch, or a wait for news. False: stopped, with nothing left to write."""
        portion = await self._gather()
        if not portion.lines:
            await self.reader.move(portion.places)
            if portion.more:
                return True
            self.health.behind = False
            if self._stopping:
                return False
            with anyio.move_on_after(LOOK_S):
                await self._news.wait()
            self._news = anyio.Event()
            self.health.behind = True
            return True
        self._in_hand = frozenset(account for account, _, _ in portion.marks)
        try:
            if not await self._patiently(lambda: self._write(portion)):
                return not self._stopping
            if portion.rejected:
                await self._bury(portion)
            await self.reader.move(portion.places)
        finally:
            self._in_hand = frozenset()
            self._step_ended.set()
            self._step_ended = anyio.Event()
        self.health.written += len(portion.lines)
        self._telemetry.count("written", self.name, len(portion.lines))
        return True

    async def _gather(self) -> Portion:
        """The next batch: a full one, or what there is once `wait` has passed or a stop is told.

        Small pieces are gathered for a moment, so that a sink is not called once a record; in a
        long moment it is looked a few times whether the batch is full.
        """
        portion = await self.reader.read(self._batch.records, self._batch.bytes)
        step_s, left_s = max(LOOK_S, self._batch.wait_s / LOOKS), self._batch.wait_s
        while left_s > 0 and portion.lines and not portion.full and not self._stopping:
            await self._clock.sleep(min(step_s, left_s))
            left_s -= step_s
            portion = await self.reader.read(self._batch.records, self._batch.bytes)
        return portion

    async def _write(self, portion: Portion) -> None:
        try:
            await self._sink.write(Batch(portion.lines))
        except PartialWrite as error:
            rejected = error.rejected.items()
            portion.rejected = {index: self._mask.text(cause) for index, cause in rejected}

    async def _bury(self, portion: Portion) -> None:
        """Records that can never be accepted are set aside; the others were taken."""
        now_ms, rejected = self._clock.now_ms(), portion.rejected

        def keep(tx: Transaction) -> None:
            for index, cause in ours.items():
                flaw = Flaw(cause, "record", portion.lines[index])
                owner = portion.owner(index)
                if tx.put_flaws(owner, f"sink {self.name}", [flaw], now_ms):
                    tx.add_tallies(owner, {"refused": 1})

        ours = dict(rejected)
        while ours:
            try:
                await self._store.write(keep)
                break
            except LeaseLost as lost:  # whoever has the account now will be refused the same
                ours = {n: why for n, why in ours.items() if portion.owner(n) != lost.account}
        self._tell_trouble(f"{len(rejected)} records were refused for good and set aside")

    async def _patiently(self, act: Callable[[], Awaitable[None]]) -> bool:
        """Do it until it works. False: stopped meanwhile, after one more try."""
        while True:
            last = self._stopping
            try:
                await self._in_time(act)
            except Exception as error:  # also a fault in a plug-in: this sink's own trouble
                await self._after_failure(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                await self._after_failure(SinkError("it was cancelled from within"))
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
        finally:  # the wait before the next try is none of the call's
            self._calling_since = None
        if scope.cancelled_caught:
            raise SinkError(f"has not answered for {spell_duration(self._timeout_s)}")

    async def _after_failure(self, error: Exception) -> None:
        cause = self._cause(error)
        self.health.failures += 1
        delay_s = getattr(error, "retry_after_s", None) or backoff_s(
            self.health.failures, self._rand
        )
        if cause != self.health.failing:
            self._tell_trouble(f"{cause}; tried again, now in {spell_duration(round(delay_s, 1))}")
        self.health.failing = cause
        self._telemetry.count("sink_failures", self.name)
        if not self._stopping:
            with anyio.move_on_after(delay_s):
                while not self._stopping:
                    await self._news.wait()
                    self._news = anyio.Event()

    def _tell_trouble(self, text: str) -> None:
        self._telemetry.event(logging.ERROR, f"sink {self.name}", text)

    def _cause(self, error: Exception) -> str:
        """Why a call failed, in its own words where these are meant for people."""
        if isinstance(error, (SinkError, StoreError)):
            return self._mask.text(str(error))
        if isinstance(error, OSError):
            return self._mask.text(error.strerror or type(error).__name__)
        return f"a fault in the sink, {type(error).__name__}"
