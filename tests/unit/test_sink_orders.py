"""What a worker of a fleet that ends does with an order: another one obeys it."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.core.errors import SinkError
from engine.dispatch.dead_letters import Retried
from engine.dispatch.sink_orders import SinkAnswer, SinkOrder, SinkOrders
from engine.stores.memory import MemoryStore
from engine.stores.transaction import InboxItem

ENDING = "the worker is ending"


class Sink:
    """Does of a retry what it is told to."""

    name = "crm"

    def __init__(self, *done: Retried | SinkError) -> None:
        self._done = list(done)

    async def retry(self) -> Retried:
        done = self._done.pop(0)
        if isinstance(done, SinkError):
            raise done
        return done


class Case:
    def __init__(self, *done: Retried | SinkError) -> None:
        self.store = MemoryStore()
        self.leaves = True
        sinks: Any = [Sink(*done)]
        self._orders = SinkOrders(
            sinks,
            self.store,
            reads=lambda: None,
            holds=lambda account: True,
            leaves=lambda: self.leaves,
        )

    async def order(self) -> None:
        payload = msgspec.json.encode(SinkOrder(sink="crm", id="q", until_ms=9))
        item = InboxItem(account="a", kind="retry", payload=payload, at_ms=1)
        await self.store.open(own=True)
        await self.store.write(lambda tx: tx.put_inbox(item))

    async def waiting(self) -> list[InboxItem]:
        return await self.store.read(lambda tx: tx.inbox(10))

    async def obey(self) -> SinkAnswer | None:
        [item] = await self.waiting()
        answer = await self._orders.obey(item)
        return msgspec.json.decode(answer, type=SinkAnswer) if answer is not None else None


async def test_what_an_ending_worker_has_not_ended_stays_with_what_it_has_done() -> None:
    case = Case(
        SinkError(ENDING),
        Retried(sink="crm", accepted=3, refused=1, left=2, cause=ENDING),
        Retried(sink="crm", accepted=2, left=1, cause=ENDING),
        Retried(sink="crm", accepted=1, refused=1),
    )
    await case.order()
    before = await case.waiting()
    assert await case.obey() is None
    assert await case.waiting() == before
    for _ in range(2):
        assert await case.obey() is None
    [item] = await case.waiting()
    order = msgspec.json.decode(item.payload, type=SinkOrder)
    assert (order.id, order.until_ms, order.accepted) == ("q", 9, 5)
    answer = await case.obey()
    assert answer is not None
    assert answer.retried == Retried(sink="crm", accepted=6, refused=1)


async def test_what_is_ended_in_time_is_answered() -> None:
    case = Case(Retried(sink="crm", accepted=1))
    await case.order()
    answer = await case.obey()
    assert answer is not None
    assert answer.retried == Retried(sink="crm", accepted=1)


async def test_where_nobody_else_is_there_it_is_said() -> None:
    case = Case(SinkError(ENDING), Retried(sink="crm", left=2, cause="it is down"))
    case.leaves = False
    await case.order()
    answer = await case.obey()
    assert answer is not None
    assert answer.cause == ENDING
    answer = await case.obey()
    assert answer is not None
    assert answer.retried is not None
    assert answer.retried.cause == "it is down"
