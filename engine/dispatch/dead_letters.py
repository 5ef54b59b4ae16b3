"""The dead letters of one sink: keeping what it refuses for good, and offering it once more.

A letter goes only once the sink has taken its record: whatever interrupts a retry loses nothing,
and what was taken just before comes again under the same `event_id`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio
import msgspec

from engine.config.model import SinkConfig
from engine.config.values import printable
from engine.core.clock import Clock
from engine.core.contracts import Batch, Sink
from engine.core.errors import PartialWrite, SinkError, StoreError
from engine.core.mask import Mask
from engine.core.secret import secrets_in
from engine.core.units import spell_duration
from engine.stores.burying import CAUSE_MAX, Buried, bury
from engine.stores.burying import letter as new_letter
from engine.stores.transaction import DeadLetter, Place, Store, Transaction
from engine.telemetry import Telemetry

# What a sink may take to close; then it is left.
CLOSE_S = 5.0

# What a sink makes of these lines: by index those that it can never take, and why.
Offer = Callable[[Sequence[bytes]], Awaitable[dict[int, str]]]


class Retried(msgspec.Struct, kw_only=True):
    """What became of a sink's dead letters when they were offered again."""

    sink: str
    accepted: int = 0
    refused: int = 0  # once more
    left: int = 0  # not offered, because of `cause`
    cause: str | None = None


class Refused(msgspec.Struct):
    """A record that the sink will not take, its account, and where that account's log has it."""

    account: str
    place: Place
    record: bytes
    cause: str


class DeadLetters:
    """Those of one sink."""

    def __init__(
        self, config: SinkConfig, store: Store, *, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._sink = config.name
        self._batch = config.batch
        self._mask = Mask(secrets_in(config.sink))
        self._store = store
        self._telemetry = telemetry
        self._clock = clock

    async def keep(self, refused: Sequence[Refused]) -> None:
        """They can never be accepted; what was around them has been taken."""
        now_ms = self._clock.now_ms()
        letters = [
            new_letter(self._sink, one.account, one.place, one.record, one.cause, now_ms)
            for one in refused
        ]
        done = await self._store.write(lambda tx: bury(tx, self._sink, letters))
        told = "1 record was refused for good and is a dead letter"
        if len(letters) > 1:
            told = f"{len(letters)} records were refused for good and are dead letters"
        self._tell(done, told)

    def _tell(self, done: Buried, text: str) -> None:
        self._telemetry.count("dead_letters", self._sink, done.new)
        look = "`dlr-engine dead-letter list` shows why"
        self._telemetry.event(logging.ERROR, f"sink {self._sink}", f"{text}; {look}")
        if done.dropped:
            self._telemetry.count("dead_dropped", self._sink, done.dropped)
            text = f"there are too many dead letters: the oldest {done.dropped} are LOST to it"
            self._telemetry.event(logging.ERROR, f"sink {self._sink}", text)

    async def retry(self, offer: Offer, *, stopped: Callable[[], bool]) -> Retried:
        """Offer all that there are now, once, in batches of the sink's size, the oldest first.

        Ends early where the sink fails, or when it is told to stop.
        """
        name, done = self._sink, Retried(sink=self._sink)
        counts = await self._store.read(lambda tx: tx.count_dead_letters())
        last_id = counts[name].last_id if name in counts else 0
        after_id = 0
        while after_id < last_id:
            if stopped():
                done.cause = "the worker is ending"
                break
            letters = await self._store.read(
                lambda tx, after_id=after_id: tx.dead_letters(  # type: ignore[misc]
                    name, after_id, self._batch.records, bytes_max=self._batch.bytes
                )
            )
            letters = [one for one in letters if one.id <= last_id]
            if not letters:
                break
            try:
                rejected = await offer([one.record for one in letters])
            except StoreError:
                raise
            except Exception as error:
                done.cause = self.cause(error)
                break
            await self._settle(letters, rejected)
            done.accepted += len(letters) - len(rejected)
            done.refused += len(rejected)
            after_id = letters[-1].id
        if done.cause is not None:
            done.left = await self._store.read(lambda tx: _count(tx, name)) - done.refused
        text = f"dead letters offered again: {done.accepted} taken, {done.refused} refused again"
        self._telemetry.event(logging.INFO, f"sink {name}", text)
        return done

    async def _settle(self, letters: Sequence[DeadLetter], rejected: dict[int, str]) -> None:
        taken = [one.id for index, one in enumerate(letters) if index not in rejected]
        now_ms = self._clock.now_ms()
        refused = [
            new_letter(self._sink, one.account, one.place, one.record, rejected[index], now_ms)
            for index, one in enumerate(letters)
            if index in rejected
        ]

        def settle(tx: Transaction) -> None:
            tx.drop_dead_letters(taken)
            if refused:
                tx.put_dead_letters(refused)

        await self._store.write(settle)
        self._telemetry.count("written", self._sink, len(taken))

    def cause(self, error: Exception) -> str:
        """Why a call failed, in its own words where these are meant for people."""
        if isinstance(error, (SinkError, StoreError)):
            return self._told(str(error))
        if isinstance(error, OSError):
            return self._told(error.strerror or type(error).__name__)
        return f"a fault in the sink, {type(error).__name__}"

    def refusals(self, rejected: dict[int, str], offered: int) -> dict[int, str]:
        """Which of so many records it refused, and why, without the sink's secrets.

        Raises SinkError where it names others: what it took is not known then.
        """
        if not all(isinstance(one, int) and 0 <= one < offered for one in rejected):
            raise SinkError("a fault in the sink: it refuses records that it was not offered")
        return {index: self._told(str(cause)) for index, cause in rejected.items()}

    def _told(self, text: str) -> str:
        """What a sink says, which may be anybody's: on one line, as it can be kept and shown."""
        return printable(self._mask.text(text), CAUSE_MAX)


async def retry_alone(
    config: SinkConfig, store: Store, *, telemetry: Telemetry, clock: Clock
) -> Retried:
    """Where no worker runs: open the sink, offer it its dead letters, and close it."""
    letters = DeadLetters(config, store, telemetry=telemetry, clock=clock)
    done = Retried(sink=config.name)
    sink: Sink | None = None

    async def in_time(act: Callable[[], Awaitable[None]]) -> None:
        with anyio.move_on_after(config.timeout_s) as scope:
            await act()
        if scope.cancelled_caught:
            raise SinkError(f"has not answered for {spell_duration(config.timeout_s)}")

    async def offer(lines: Sequence[bytes]) -> dict[int, str]:
        assert sink is not None
        try:
            await in_time(partial(sink.write, Batch(lines)))
        except PartialWrite as error:
            return letters.refusals(error.rejected, len(lines))
        return {}

    try:
        sink = config.build()
        await in_time(sink.open)
    except Exception as error:  # a plug-in may raise anything
        done.cause = letters.cause(error)
        done.left = await store.read(lambda tx: _count(tx, config.name))
        return done
    else:
        return await letters.retry(offer, stopped=lambda: False)
    finally:
        if sink is not None:
            with anyio.move_on_after(CLOSE_S, shield=True), suppress(Exception):
                await sink.close()


def _count(tx: Transaction, sink: str) -> int:
    count = tx.count_dead_letters().get(sink)
    return count.letters if count is not None else 0
