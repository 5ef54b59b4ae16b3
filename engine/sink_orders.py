"""What other processes ask of a worker's sinks: to retry dead letters, to go back, to be forgotten.

An order comes through the inbox of an account; one that is of no account, through that of any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engine.core.errors import SinkError
from engine.dead_letters import Retried
from engine.dispatcher import Dispatcher
from engine.stores.burying import Gone, forget
from engine.stores.transaction import InboxItem, Question, Store


class SinkOrder(Question, frozen=True, kw_only=True):
    """What is asked of one sink."""

    sink: str
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


class SinkOrders:
    """Obeys orders, with the sinks of this worker."""

    def __init__(
        self,
        dispatchers: Sequence[Dispatcher],
        store: Store,
        *,
        reads: Callable[[], str | None],
        holds: Callable[[str], bool],
    ) -> None:
        """`reads`: the name under which the program around the engine reads the log, if it does.
        `holds`: whether an account has been leased to this worker."""
        self._dispatchers = dispatchers
        self._store = store
        self._reads = reads
        self._holds = holds

    async def obey(self, item: InboxItem) -> bytes | None:
        """Do it, and say what came of it. None: the account was only just leased, and its log is
        not yet read; to be done later."""
        order = msgspec.json.decode(item.payload, type=SinkOrder)
        try:
            answer = await self._answer(item, order)
        except SinkError as error:
            answer = SinkAnswer(cause=str(error))
        return msgspec.json.encode(answer) if answer is not None else None

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
