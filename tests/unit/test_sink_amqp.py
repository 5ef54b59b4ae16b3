"""What RabbitMQ tells only by ending a channel: how large a message may be.

A broker's `max_message_size` is its own, of a node and set before it starts, so one that is small
stands in here for the channel; the words are RabbitMQ's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiormq import exceptions

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite
from engine.core.messages import Message
from engine.core.secret import Secret
from engine.sinks.amqp import AmqpOptions, AmqpSink

SMALL = 150


def record(event: str, pad: int = 0) -> bytes:
    fields = f'"event_id":"{event}","account":"a","message_id":"{event}","state":"read"'
    return f'{{{fields},"extra":{{"pad":"{"x" * pad}"}}}}'.encode()


class Channel:
    is_closed = False


class Broker(AmqpSink):
    """Takes what is small; over what is not it ends the channel, with all that came behind."""

    def __init__(self) -> None:
        super().__init__(AmqpOptions(url=Secret("amqp://h"), routing_key="q"))
        self.size_max = SMALL
        self.taken: list[str] = []
        self.channels = 0

    async def _connect(self, closing: AsyncExitStack) -> Any:
        self.channels += 1
        self._connection = Channel()  # type: ignore[assignment]
        return self._connection

    def restart(self, size_max: int) -> None:
        self.size_max = size_max
        self._connection.is_closed = True  # type: ignore[union-attr, misc]

    def _is_open(self, _: Any) -> bool:
        return self._connection is not None and not self._connection.is_closed

    async def _publish(self, exchange: Any, found: Sequence[Message]) -> None:
        for message in found:
            if len(message.body) > self.size_max:
                raise exceptions.ChannelPreconditionFailed(
                    f"PRECONDITION_FAILED - message size {len(message.body)} is larger than"
                    f" configured max size {self.size_max}"
                )
            self.taken.append(message.about.event_id)
            self._confirmed.add(message.about.event_id)


async def refused(sink: AmqpSink, *lines: bytes) -> dict[int, str]:
    try:
        await sink.write(Batch(list(lines)))
    except PartialWrite as error:
        return error.rejected
    return {}


async def test_one_that_is_too_large_is_told_in_the_same_call() -> None:
    """Else a retry of dead letters, which opens the sink anew, would never get past it."""
    sink = Broker()
    rejected = await refused(sink, record("a"), record("b", SMALL), record("c"))
    assert list(rejected) == [1]
    assert f"max_message_size is {SMALL}" in rejected[1]
    assert sink.taken == ["a", "c"]
    channels = sink.channels
    assert list(await refused(sink, record("d", SMALL), record("e"))) == [0]
    assert sink.channels == channels  # known by now, at no price
    await sink.close()


@pytest.mark.parametrize("size_max", [10 * SMALL, SMALL // 2 + 50])
async def test_a_broker_that_was_away_is_believed_anew(size_max: int) -> None:
    sink = Broker()
    assert list(await refused(sink, record("a", SMALL))) == [0]
    await sink.open()
    sink.restart(size_max)
    assert list(await refused(sink, record("a", SMALL))) == ([] if size_max > SMALL else [0])
    assert sink._size_max == (None if size_max > SMALL else size_max)
    await sink.close()
