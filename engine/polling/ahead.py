"""Questions asked ahead of their turn, so that a slow provider does not halve the allowance.

Pages and channels of a reading are asked side by side, as many as the account's `concurrency`
lets; their answers are judged one after the other, in the order in which they would have come.
"""

from __future__ import annotations

from collections.abc import Iterable

import anyio
import anyio.abc

from engine.core.contracts import Poll
from engine.limits.limiter import Slot
from engine.polling.asking import Asker, Reply

# What makes two questions the same.
Key = tuple[int | None, int | None, str | None, int]


class _Pending:
    __slots__ = ("done", "reply", "waits")

    def __init__(self) -> None:
        self.waits = anyio.CancelScope()  # for its place in the limits
        self.done = anyio.Event()
        self.reply: Reply | None = None


class Ahead:
    """The questions of one reading that are under way before their turn."""

    def __init__(self, asker: Asker, group: anyio.abc.TaskGroup, width: int) -> None:
        self._asker = asker
        self._group = group
        self._width = width
        self._pending: dict[Key, _Pending] = {}

    def ask(self, polls: Iterable[Poll]) -> None:
        """Ask these, in this order, as far as there is room for them."""
        for poll in polls:
            if len(self._pending) >= self._width:
                return
            key = key_of(poll)
            if key not in self._pending:
                pending = self._pending[key] = _Pending()
                self._group.start_soon(self._run, poll, pending)

    async def _run(self, poll: Poll, pending: _Pending) -> None:
        try:
            slot = None
            with pending.waits:
                slot = await self._asker.place()
            if slot is not None:
                pending.reply = await ask_with(self._asker, poll, slot)
        finally:
            pending.done.set()

    async def take(self, poll: Poll) -> Reply | None:
        """The answer to a question that was asked ahead; None: it was not, or got no place."""
        pending = self._pending.get(key_of(poll))
        if pending is None:
            return None
        await pending.done.wait()
        del self._pending[key_of(poll)]
        return pending.reply

    async def settle(self) -> None:
        """What was asked and is not needed: its reports count all the same. What still waits for
        its place is not asked any more."""
        for pending in self._pending.values():
            pending.waits.cancel()
        for pending in self._pending.values():
            await pending.done.wait()
            if pending.reply is not None:
                await self._asker.commit(pending.reply.page)
        self._pending.clear()


def key_of(poll: Poll) -> Key:
    return (poll.from_ms, poll.to_ms, poll.channel, poll.page)


async def ask_with(asker: Asker, poll: Poll, slot: Slot) -> Reply:
    """Ask in a place that was got beforehand, which is not kept if that breaks."""
    try:
        return await asker.ask(poll, slot)
    except BaseException:
        slot.unused()
        slot.release()
        raise
