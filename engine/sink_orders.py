"""What other processes ask of a worker's sinks: to retry dead letters, to go back, to be forgotten.

An order comes through the inbox; its answer is left in a note, named by the order's id and the
sink, of the account that the order is for, if any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engine.core.clock import Clock
from engine.core.errors import SinkError
from engine.dead_letters import Retried
from engine.dispatcher import Dispatcher
from engine.stores.burying import Gone, forget
from engine.stores.transaction import InboxItem, Store


class SinkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of one sink. `id` names the note in which the answer is left."""

    id: str
    sink: str
    until_ms: int  # how long the answer is waited for: it is not begun later
    to_ms: int | None = None  # of a rewind; None: the oldest record kept


class SinkAnswer(msgspec.Struct, kw_only=True):
    """What came of an order: one of these, or why it was not done."""

    cause: str | None = None
    retried: Retried | None = None
    again: int | None = None  # records that a rewind brings again
    gone: Gone | None = None

    def as_retried(self, sink: str, letters: int) -> Retried:
        """What came of a retry of so many letters."""
        return self.retried or Retried(sink=sink, left=letters, cause=self.cause)


def answer_note(kind: str, order_id: str, sink: str) -> str:
    """What the note is called in which the answer is left, under the order's account, if any."""
    return f"{kind}:{order_id}:{sink}"


class SinkOrders:
    """Obeys orders, with the sinks of this worker."""

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        store: Store,
        *,
        clock: Clock,
        reads: Callable[[], str | None],
        holds: Callable[[str], bool],
    ) -> None:
        """`reads`: the name under which the program around the engine reads the log, if it does.
        `holds`: whether an account has been leased to this worker."""
        self._dispatchers = dispatchers
        self._store = store
        self._clock = clock
        self._reads = reads
        self._holds = holds

    async def obey(self, item: InboxItem) -> None:
        """Do it, and leave word of what came of it; unless it is too late for anybody to know."""
        order = msgspec.json.decode(item.payload, type=SinkOrder)
        if self._clock.now_ms() > order.until_ms:
            return
        answer: SinkAnswer | None
        try:
            answer = await self._answer(item, order)
        except SinkError as error:
            answer = SinkAnswer(cause=str(error))
        if answer is None:
            await self._store.write(lambda tx: tx.put_inbox(item))
            return
        note = msgspec.json.encode(answer)
        name = answer_note(item.kind, order.id, order.sink)
        await self._store.write(lambda tx: tx.put_note(item.account, name, note))

    async def _answer(self, item: InboxItem, order: SinkOrder) -> SinkAnswer | None:
        """None: the account was only just leased, and its log is not yet read; to be done later."""
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
