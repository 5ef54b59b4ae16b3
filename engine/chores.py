"""What a running engine does beside polling: takes in what other processes hand over, leaves word
of its health for `stats`, and forgets what is past its retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import msgspec
import orjson

from engine.books.replaying import Order, Replayer
from engine.books.tracking import digest_inbox, leave_out, waiting
from engine.config.model import AccountConfig
from engine.core.errors import EngineError, LeaseLost, StoreError
from engine.core.work import Committed
from engine.dispatch.reports import REPORTS_NAME
from engine.dispatch.sink_orders import SinkOrder, SinkOrders
from engine.polling.room import Consumer, Disk
from engine.stores.ledger import prune
from engine.stores.transaction import (
    SINK_KINDS,
    InboxItem,
    Question,
    Transaction,
    answer_note,
)

if TYPE_CHECKING:
    from engine.worker import Engine

# How often the worker looks for what other processes handed over; the contract says within 2 s.
INBOX_S = 0.5
STATUS_S = 1.0
ROOM_S = 1.0
PRUNE_S = 60.0
PRUNE_MAX = 5000


# What other processes ask, by the kind of their inbox row; a probe is one harmless request.
QUESTIONS: dict[str, type[Question]] = {
    "probe": Question,
    "replay": Order,
    **dict.fromkeys(SINK_KINDS, SinkOrder),
}


class Chores:
    """The chores of one engine."""

    def __init__(self, engine: Engine, chance: Callable[[], float]) -> None:
        self._engine = engine
        self._chance = chance
        self._group: anyio.abc.TaskGroup | None = None
        self._questions: list[InboxItem] = []  # to be begun
        self._begun: set[int] = set()  # inbox rows of those, and of what is being answered
        self._digesting = anyio.Lock(fast_acquire=True)
        self._sink_orders = SinkOrders(
            engine.dispatchers,
            engine.store,
            reads=engine.read_as,
            holds=lambda account: engine.fleet is not None and account in engine.fleet.fences,
            leaves=lambda: engine.fleet is not None and engine.ending,
        )
        self._statuses: dict[tuple[str, str], bytes] = {}  # by whose and kind
        self._noting = anyio.Lock(fast_acquire=True)
        self._news = anyio.Event()
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            async with anyio.create_task_group() as chores:
                self._group = chores
                chores.start_soon(self._every, INBOX_S, self.digest_inbox)
                chores.start_soon(self._on_news)
                chores.start_soon(self._every, STATUS_S, self.note_status)
                chores.start_soon(self._every, ROOM_S, self.look_for_room)
                chores.start_soon(self._every, PRUNE_S, self._prune)

    def hear_inbox(self) -> None:
        """Something was handed over: it is not to wait for the next look."""
        self._news.set()

    async def _on_news(self) -> None:
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            try:
                await self.digest_inbox()
            except LeaseLost as lost:
                self._engine.lost(lost.account)

    async def _every(self, seconds: float, chore: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await chore()
            except LeaseLost as lost:
                self._engine.lost(lost.account)
            await self._engine.clock.sleep(seconds)

    async def digest_inbox(self) -> None:
        async with self._digesting:
            if await self._engine.store.read(lambda tx: tx.inbox_waits(self._begun)):
                try:
                    await self._take_inbox(apart=False)
                except (StoreError, LeaseLost):
                    raise
                except Exception as fault:  # something of it cannot be recorded
                    self._engine.telemetry.debug(fault)
                    await self._take_singly()
        if self._group is not None:  # what came before it was there has waited for it
            while self._questions:
                self._group.start_soon(self._answer, self._questions.pop())

    async def _answer(self, item: InboxItem) -> None:
        """Whatever ends this worker meanwhile, the question stays in the inbox until its answer is
        there: whoever has the account next answers it."""
        engine = self._engine
        question = msgspec.json.decode(item.payload, type=QUESTIONS[item.kind])
        answers = {"probe": self._probe, "replay": self._replay}
        answer: bytes | None = None

        def in_time() -> bool:
            return engine.clock.now_ms() <= question.until_ms

        def end(tx: Transaction) -> None:
            if answer is not None and in_time():
                tx.put_note(item.account, answer_note(item.kind, question.id), answer)
            tx.drop_inbox([item.id])

        try:
            if in_time():
                answer = await answers.get(item.kind, self._sink_orders.obey)(item)
                if answer is None:
                    return
            await engine.store.write(end)
        except LeaseLost as lost:
            engine.lost(lost.account)
        finally:
            self._begun.discard(item.id)

    async def _take_singly(self) -> None:
        """One by one, so that what cannot be recorded takes no other along. Of reports each is set
        aside; and an item that cannot be taken at all: a worker that ended over it would find it
        again at its start."""
        engine, begun = self._engine, frozenset(self._begun)
        for item in await engine.store.write(lambda tx: waiting(tx, begun)):
            for apart in (False, True):
                try:
                    await self._take_inbox(apart=apart, only=item.id)
                    break
                except (StoreError, LeaseLost):
                    raise
                except Exception as fault:
                    cause = fault
            else:
                await self._leave_out(item, cause)

    async def _leave_out(self, item: InboxItem, fault: Exception) -> None:
        accounts, begun = self._accounts(), frozenset(self._begun)
        said = str(fault) if isinstance(fault, EngineError) else type(fault).__name__
        cause, now_ms = f"cannot be recorded: {said}", self._engine.clock.now_ms()
        await self._engine.store.write(
            lambda tx: leave_out(tx, accounts, begun, item.id, cause, now_ms)
        )

    def _accounts(self) -> dict[str, AccountConfig]:
        return {one.name: one for one in self._engine.config.accounts}

    async def _take_inbox(self, *, apart: bool, only: int | None = None) -> None:
        engine, chance, now_ms = self._engine, self._chance(), self._engine.clock.now_ms()
        accounts, begun = self._accounts(), frozenset(self._begun)
        done: dict[int, Committed] = {}
        redactors = engine.redactors
        taken = await engine.store.write(
            lambda tx: digest_inbox(
                tx, accounts, redactors, now_ms, chance, QUESTIONS, begun, done,
                apart=apart, only=only,
            )
        )  # fmt: skip
        for item in taken:
            if item.kind in QUESTIONS:
                self._questions.append(item)
                self._begun.add(item.id)
            elif poller := engine.pollers.get(item.account):
                poller.took(self._counted(item.account, done.get(item.id, Committed())))
                engine.tell()

    def _counted(self, account: str, done: Committed) -> Committed:
        """What others have handed over counts as what was read here."""
        counts = {"records": done.records, "repeated": done.repeated, "superseded": done.lost}
        for name, count in counts.items():
            if count:
                self._engine.telemetry.count(name, account, count)
        return done

    async def _probe(self, item: InboxItem) -> bytes | None:
        """`check --connect` of another process, made inside this worker's limits. None: the account
        has gone to another worker, or is only just coming."""
        poller = self._engine.pollers.get(item.account)
        if poller is None:
            return None
        nonce = msgspec.json.decode(item.payload, type=Question).id
        passed, cause = await poller.probe(nonce)
        return orjson.dumps({"ok": passed, "cause": cause})

    async def _replay(self, item: InboxItem) -> bytes | None:
        """`dlr-engine replay` of another process: what it brings goes to this worker's sinks."""
        engine, poller = self._engine, self._engine.pollers.get(item.account)
        if poller is None:
            return None
        order = msgspec.json.decode(item.payload, type=Order)
        replayer = Replayer(
            poller.account,
            engine.store,
            telemetry=engine.telemetry,
            clock=engine.clock,
            redactor=engine.redactors.get(item.account),
        )
        lines = await replayer.run(order)
        poller.wake()
        engine.tell()
        return msgspec.json.encode(lines)

    async def note_status(self, account: str | None = None) -> None:
        """Leave for `stats` what only this process knows; or only what has become of an account:
        to look through all at each failure of one would make its trouble everybody's."""
        worker = self._engine.fleet.name if self._engine.fleet is not None else None
        async with self._noting:  # what was looked at first is written first
            statuses: dict[tuple[str, str], bytes] = {}
            for name in list(self._engine.pollers) if account is None else (account,):
                if name in self._engine.pollers:
                    statuses[name, "status"] = orjson.dumps(self._engine.status(name))
            for sink in self._engine.dispatchers if account is None else ():
                sink.look()
                statuses[sink_note(sink.name, worker)] = orjson.dumps({"trouble": sink.dead})
            if account is None and worker is not None and self._engine.config.http is not None:
                counts = self._engine.telemetry.counts.items()
                rows = [[name, subject, count] for (name, subject), count in counts]
                statuses[counts_note(worker)] = orjson.dumps(rows)
            known = self._statuses
            changed = {key: note for key, note in statuses.items() if note != known.get(key)}
            if changed:
                await self._engine.store.write(lambda tx: tx.put_notes(changed), lazy=True)
                known.update(changed)  # only now: what was not written is not left out next time

    async def look_for_room(self) -> None:
        """How much of the log waits for whom, and how much disk is left."""
        engine, path = self._engine, self._engine.config.store.path

        def look(tx: Transaction) -> tuple[dict[str, dict[str, int]], Disk | None]:
            if path is None:
                return tx.backlog(), None
            try:
                total, _, free = engine.disk_usage(path.parent)
            except OSError:  # a file system that does not tell; the store notices what is wrong
                return tx.backlog(), None
            return tx.backlog(), Disk(total, free + tx.reusable_bytes())

        backlog, disk = await engine.store.read(look)
        engine.room.judge(backlog, self._consumers(backlog), disk)
        if engine.room.short:
            await self._prune()

    def _consumers(self, places: Mapping[str, Iterable[str]]) -> list[Consumer]:
        """The configured sinks, and the program around the engine where it has ever read."""
        consumers = [
            Consumer(sink.name, frozenset(sink.accounts) if sink.accounts is not None else None)
            for sink in self._engine.config.sinks
        ]
        if REPORTS_NAME in places:
            consumers.append(Consumer(REPORTS_NAME, frozenset(places[REPORTS_NAME])))
        return consumers

    async def _prune(self) -> None:
        store = self._engine.config.store
        places = await self._engine.store.read(lambda tx: tx.places())
        consumers = self._consumers(places)
        # Below the floor, what all have acknowledged goes at once: its place is needed.
        log_retention_s = 0.0 if self._engine.room.short else store.log_retention_s
        now_ms = self._engine.clock.now_ms()

        def job(tx: Transaction) -> int:
            return prune(
                tx,
                now_ms=now_ms,
                retention_ms=round(store.retention_s * 1000),
                log_retention_ms=round(log_retention_s * 1000),
                sinks=[(who.name, who.accounts) for who in consumers],
                limit=PRUNE_MAX,
            )

        # Until nothing goes: of what is busy something may be left, however little went last.
        while await self._engine.store.write(job, lazy=True):
            await self._engine.clock.sleep(0)


def sink_note(sink: str, worker: str | None) -> tuple[str, str]:
    """Whose note it is how a sink does, and what that is called: in a fleet each worker has its
    own, and none of them is an account's."""
    return (sink, "sink") if worker is None else ("", f"sink {sink} {worker}")


def counts_note(worker: str) -> tuple[str, str]:
    """Likewise of a worker's counters, for whoever answers for all of a fleet."""
    return "", f"counts {worker}"
