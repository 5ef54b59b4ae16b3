"""Records to a RabbitMQ exchange, a persistent message each; at least once.

A batch is taken when the broker has confirmed each message, which it does once the queues have
it, durable ones on disk. All are `mandatory`: one that no queue takes comes back, and is a mistake
in the set-up that no record should be lost over. So it is an error that is told and tried again,
while the others of the batch, confirmed already, are not sent a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

import aio_pika
import anyio
import msgspec
from aio_pika.abc import AbstractConnection, AbstractExchange
from aiormq import exceptions
from pamqp.commands import Basic

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.messages import Message, Naming, content_type, messages
from ..core.secret import Secret
from ..failures import os_cause

CONNECT_S = 10.0
ANSWER_S = 30.0  # for a confirmation
CLOSE_S = 2.0
IN_FLIGHT_MAX = 1000  # messages that the broker has not confirmed
KEY_MAX = 255  # bytes of a routing key: the protocol's

_KINDS: dict[type[BaseException], str] = {
    exceptions.ProbableAuthenticationError: "the user name or password is wrong",
    exceptions.AuthenticationError: "the user name or password is wrong",
    exceptions.ChannelAccessRefused: "this user may not write to the exchange",
    exceptions.ChannelNotFoundEntity: "there is no such exchange; declare it",
    exceptions.ConnectionNotAllowed: "this user may not use the virtual host",
    exceptions.ProtocolSyntaxError: "it refuses the connection; is the virtual host there?",
    exceptions.ConnectionClosed: "the broker closed the connection",
    exceptions.ChannelClosed: "the broker closed the channel",
    exceptions.DeliveryError: "the broker did not accept a message; a queue may be full",
    TimeoutError: "it does not answer",
}


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
        if urlsplit(options.url.reveal()).scheme not in ("amqp", "amqps"):
            raise ValueError("url: expected amqp:// or amqps://")
        self._key = Naming("routing_key", options.routing_key)
        self._url = options.url
        self._exchange_name = options.exchange
        self._envelope = options.envelope
        self._connection: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None
        self._size_max: int | None = None  # known once the broker has refused a larger one
        self._confirmed: set[str] = set()  # event ids of a batch that was not taken as a whole

    async def open(self) -> None:
        await self._send([])

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        self._confirmed &= {message.about.event_id for message in found}
        fitting = []
        for message in found:
            if (cause := self._refuses(message)) is not None:
                rejected[message.index] = cause
            elif message.about.event_id not in self._confirmed:
                fitting.append(message)
        if fitting:
            await self._send(fitting)
        self._confirmed.clear()
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    async def close(self) -> None:
        await self._drop()

    def _refuses(self, message: Message) -> str | None:
        if self._size_max is not None and len(message.body) > self._size_max:
            return f"too large: {len(message.body)} bytes, max_message_size is {self._size_max}"
        if len(self._key.of(message.about).encode()) > KEY_MAX:
            return f"its routing key would be longer than {KEY_MAX} bytes"
        return None

    async def _send(self, found: Sequence[Message]) -> None:
        try:
            exchange = await self._connected()
            for start in range(0, len(found), IN_FLIGHT_MAX):
                await self._publish(exchange, found[start : start + IN_FLIGHT_MAX])
        except (exceptions.AMQPError, OSError, RuntimeError) as exc:
            await self._drop()
            raise SinkError(f"cannot write to RabbitMQ: {self._cause(exc)}") from None
        except BaseException:
            await self._drop()
            raise

    async def _publish(self, exchange: AbstractExchange, some: Sequence[Message]) -> None:
        outcomes = await asyncio.gather(
            *(
                exchange.publish(
                    aio_pika.Message(
                        message.body,
                        content_type=content_type(self._envelope),
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                        message_id=message.about.event_id,
                    ),
                    self._key.of(message.about),
                    mandatory=True,
                    timeout=ANSWER_S,
                )
                for message in some
            ),
            return_exceptions=True,
        )
        for message, outcome in zip(some, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                self._confirmed.add(message.about.event_id)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _connected(self) -> AbstractExchange:
        if self._connection is not None and self._connection.is_closed:
            await self._drop()
        if self._exchange is None:
            self._connection = await aio_pika.connect(self._url.reveal(), timeout=CONNECT_S)
            channel = await self._connection.channel(on_return_raises=True)
            self._exchange = (
                await channel.get_exchange(self._exchange_name)
                if self._exchange_name
                else channel.default_exchange
            )
        return self._exchange

    async def _drop(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with anyio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(Exception):
                await connection.close()

    def _cause(self, error: BaseException) -> str:
        """For people: never the error's own words, which may hold an address or a record."""
        if isinstance(error, exceptions.DeliveryError) and isinstance(error.frame, Basic.Return):
            key, exchange = error.frame.routing_key, error.frame.exchange
            return f'no queue takes routing key "{key}" at exchange "{exchange}"; bind one to it'
        precondition = isinstance(error, exceptions.ChannelPreconditionFailed)
        if precondition and (size := re.search(r"max size (\d+)", str(error.args))) is not None:
            self._size_max = int(size[1])
            return f"a record is larger than max_message_size, {self._size_max} bytes"
        for kind, words in _KINDS.items():
            if isinstance(error, kind):
                return words
        return os_cause(error, "the connection failed")
