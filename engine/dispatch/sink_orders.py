"""What other processes ask of a worker's sinks: to retry dead letters, to go back, to be forgotten.

An order comes through the inbox of an account; one that is of no account, through that of any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engine.core.errors import SinkError
from engine.dispatch.dead_letters import Retried
from engine.dispatch.dispatcher import Dispatcher
from engine.stores.burying import Gone, forget
from engine.stores.transaction import InboxItem, Question, Store, Transaction


class SinkOrder(Question, frozen=True, kw_only=True):
    """What is asked of one sink."""

    sink: str
    to_ms: int | None = None  # of a rewind; None: the oldest record kept
    accepted: int = 0  # of a retry that a worker before has begun


class SinkAnswer(msgspec.Struct, kw_only=True):
    """What came of an order: one of these, or why it was not done."""

    cause: str | None = None
    retried: Retried | None = None
    again: int | None = None  # records that a rewind brings again
    gone: Gone | None = None

    def as_retried(self, sink: str, letters: int) -> Retried:
        """What came of a retry of so many letters."""
        return self.retried or Retried(sink=sink, left=letters, cause=self.cause)


class SinkOrders:
    """Obeys orders, with the sinks of this worker."""

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        store: Store,
        *,
        reads: Callable[[], str | None],
        holds: Callable[[str], bool],
        leaves: Callable[[], bool],
    ) -> None:
        """`reads`: the name under which the program around the engine reads the log, if it does.
        `holds`: whether an account has been leased to this worker. `leaves`: whether this worker
        ends, and others go on."""
        self._dispatchers = dispatchers
        self._store = store
        self._reads = reads
        self._holds = holds
        self._leaves = leaves

    async def obey(self, item: InboxItem) -> bytes | None:
        """Do it, and say what came of it. None: it is to be done later. The account was only just
        leased, and its log is not yet read; or this worker ends, and the next one does it."""
        order = msgspec.json.decode(item.payload, type=SinkOrder)
        try:
            answer = await self._answer(item, order)
        except SinkError as error:
            answer = SinkAnswer(cause=str(error))
        if answer is None:
            return None
        retried = answer.retried or Retried(sink=order.sink)
        if self._leaves() and (answer.cause or retried.cause):
            if retried.accepted:
                await self._leave(item, order, retried.accepted)
            return None
        retried.accepted += order.accepted
        return msgspec.json.encode(answer)

    async def _leave(self, item: InboxItem, order: SinkOrder, accepted: int) -> None:
        """The same order, with what has been done of it. What was refused is offered once more."""
        rest = msgspec.structs.replace(order, accepted=order.accepted + accepted)
        left = msgspec.structs.replace(item, id=0, payload=msgspec.json.encode(rest))

        def put(tx: Transaction) -> None:
            tx.drop_inbox([item.id])
            tx.put_inbox(left)

        await self._store.write(put)

    async def _answer(self, item: InboxItem, order: SinkOrder) -> SinkAnswer | None:
        dispatcher = next((one for one in self._dispatchers if one.name == order.sink), None)
        if item.kind == "forget":
            if dispatcher is not None or order.sink == self._reads():
                raise SinkError("the running worker still writes to it: restart the worker first")
            gone = await self._store.write(lambda tx: forget(tx, order.sink))
            return SinkAnswer(gone=gone)
        if dispatcher is None:
            raise SinkError("the running worker does not know it yet: restart the worker first")
        if item.kind == "retry":
            return SinkAnswer(retried=await dispatcher.retry())
        if not dispatcher.reader.reads(item.account):
            if self._holds(item.account) and dispatcher.wants(item.account):
                return None
            raise SinkError("the running worker does not give it this account's records")
        return SinkAnswer(again=await dispatcher.rewind(item.account, order.to_ms))
