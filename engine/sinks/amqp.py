"""Records to a RabbitMQ exchange, a persistent message each; at least once.

A batch is taken when the broker has confirmed each message, which it does once the queues have
it, durable ones on disk. All are `mandatory`: one that no queue takes comes back, and is a mistake
in the set-up that no record should be lost over. So it is an error that is told and tried again,
while the others of the batch, confirmed already, are not sent a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import aio_pika
import msgspec
from aio_pika.abc import AbstractConnection, AbstractExchange

from engine.network.failures import VERIFIED

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.messages import Message, Naming, content_type, in_order, messages
from ..core.secret import Secret
from ..targets.line import Line
from ..targets.rabbitmq import FAILURES, refusal, size_max

CONNECT_S = 10.0
ANSWER_S = 30.0  # for a confirmation
IN_FLIGHT_MAX = 1000  # messages that the broker has not confirmed
KEY_MAX = 255  # bytes of a routing key: the protocol's


class AmqpOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The exchange "" takes the name of a queue for its routing key."""

    url: Secret
    routing_key: str
    exchange: str = ""
    envelope: Envelope | None = None


class AmqpSink:
    """Publishes over one channel, many messages in flight."""

    name: ClassVar[str] = "amqp"
    Options: ClassVar[type[msgspec.Struct]] = AmqpOptions

    def __init__(self, options: AmqpOptions) -> None:
        url = urlsplit(options.url.reveal())
        if url.scheme not in ("amqp", "amqps"):
            raise ValueError("url: expected amqp:// or amqps://")
        if "no_verify_ssl" in parse_qs(url.query, keep_blank_values=True):
            raise ValueError(f"url: {VERIFIED}; cafile names the authority to trust")
        self._key = Naming("routing_key", options.routing_key)
        self._options = options
        self._connection: AbstractConnection | None = None
        self._line = Line(
            "cannot write to RabbitMQ", self._connect, FAILURES, self._cause, self._is_open
        )
        self._size_max: int | None = None  # known once the broker has refused a larger one
        self._confirmed: set[str] = set()  # event ids of a batch that was not taken as a whole

    async def open(self) -> None:
        await self._line.use(self._publish, [])

    async def write(self, batch: Batch) -> None:
        if self._line.held is None or not self._is_open(self._line.held):
            self._size_max = None  # a broker that was away may take more by now
        known = self._size_max
        try:
            await self._offer(batch)
        except SinkError:
            if self._size_max == known:
                raise
            await self._offer(batch)  # without what is larger than the broker has just said

    async def _offer(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._options.envelope)
        self._confirmed &= {message.about.event_id for message in found}
        fitting = []
        for message in found:
            if (cause := self._refuses(message)) is not None:
                rejected[message.index] = cause
            elif message.about.event_id not in self._confirmed:
                fitting.append(message)
        if fitting:
            await self._line.use(self._publish, fitting)
        self._confirmed.clear()
        if rejected:
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._line.drop()

    def _is_open(self, _: AbstractExchange) -> bool:
        return self._connection is not None and not self._connection.is_closed

    def _refuses(self, message: Message) -> str | None:
        if self._size_max is not None and len(message.body) > self._size_max:
            return f"too large: {len(message.body)} bytes, max_message_size is {self._size_max}"
        if len(self._key.of(message.about).encode()) > KEY_MAX:
            return f"its routing key would be longer than {KEY_MAX} bytes"
        return None

    async def _publish(self, exchange: AbstractExchange, found: Sequence[Message]) -> None:
        for some in in_order(found, lambda message: message.about.whose, IN_FLIGHT_MAX):
            # One deadline for all: of its own, one that is given up lets the next overtake it.
            async with asyncio.timeout(ANSWER_S):
                outcomes = await asyncio.gather(
                    *(self._publish_one(exchange, message) for message in some),
                    return_exceptions=True,
                )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _publish_one(self, exchange: AbstractExchange, message: Message) -> None:
        body = aio_pika.Message(
            message.body,
            content_type=content_type(self._options.envelope),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message.about.event_id,
        )
        await exchange.publish(body, self._key.of(message.about), mandatory=True)
        self._confirmed.add(message.about.event_id)

    async def _connect(self, closing: AsyncExitStack) -> AbstractExchange:
        url = self._options.url.reveal()
        self._connection = connection = await aio_pika.connect(url, timeout=CONNECT_S)
        closing.push_async_callback(connection.close)
        channel = await connection.channel(on_return_raises=True)
        name = self._options.exchange
        return await channel.get_exchange(name) if name else channel.default_exchange

    def _cause(self, error: BaseException) -> str:
        self._size_max = size_max(error) or self._size_max
        return refusal(error)
