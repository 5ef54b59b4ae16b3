"""From the log to the sinks: one independent loop and one durable position a sink.

A sink that is slow or dead falls behind alone. It gets every record at least once, in the order of
the log (for any one message in the order of `revision`); its position moves after it has taken a
batch, and with it what it will be given after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
import msgspec

from engine.config.model import SinkConfig
from engine.core.clock import Clock
from engine.core.contracts import Batch, Sink
from engine.core.errors import LeaseLost, PartialWrite, SinkError, StoreTrouble
from engine.core.units import DURATION_MAX_S, iso, spell_duration
from engine.dispatch.dead_letters import CLOSE_S, DeadLetters, Refused, Retried
from engine.dispatch.errands import Errands
from engine.dispatch.log_reader import LogReader, Portion
from engine.limits.limiter import backoff_s
from engine.stores.burying import rewind
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

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
        self._hastened = False
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

    def hasten(self) -> None:
        """Nothing more is to come: a batch that waits for company goes as it is."""
        self._hastened = True

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
        taken = len(portion.lines) - len(portion.rejected)
        self.health.written += taken
        self._telemetry.count("written", self.name, taken)
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
        """The next batch: a full one, or what there is once `wait` has passed or none is to come.

        Small pieces are gathered for a moment, so that a sink is not called once a record; in a
        long moment it is looked a few times whether the batch is full.
        """
        portion = await self.reader.read(self._batch.records, self._batch.bytes)
        step_s, left_s = max(LOOK_S, self._batch.wait_s / LOOKS), self._batch.wait_s
        while left_s > 0 and portion.lines and not portion.full and not self._pressed:
            await self._linger(min(step_s, left_s))
            left_s -= step_s
            portion = await self.reader.read(self._batch.records, self._batch.bytes)
        self._hastened = False
        return portion

    async def _linger(self, seconds: float) -> None:
        """No longer than `LOOK_S` after it was pressed."""
        while seconds > 0 and not self._pressed:
            await self._clock.sleep(min(LOOK_S, seconds))
            seconds -= LOOK_S

    @property
    def _pressed(self) -> bool:
        return self._errands.press or self._hastened

    async def _write(self, portion: Portion) -> None:
        try:
            await self._sink.write(Batch(portion.lines))
        except PartialWrite as error:
            portion.rejected = self._letters.refusals(error.rejected, len(portion.lines))

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
        delay_s = _asked_s(error) or backoff_s(self.health.failures, self._rand)
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


def _asked_s(error: Exception) -> float | None:
    """How long the sink wants to be left alone, where it says so; a plug-in may say anything."""
    asked_s = getattr(error, "retry_after_s", None)
    if isinstance(asked_s, (int, float)) and 0 < asked_s < DURATION_MAX_S:
        return float(asked_s)
    return None
