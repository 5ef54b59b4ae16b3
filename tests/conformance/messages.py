"""The places of the message sinks: a Redis stream, a NATS stream, a RabbitMQ queue, a Kafka topic.

Each is read past the sink's line, by the server's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from tests.conformance.places import Case, Place, Record, fresh, record, secret
from tests.services import HOST, Line, require, require_package

CUT_AFTER = 100_000  # bytes: in the middle of a batch of 1,000


class Lined:
    """A place behind a TCP line."""

    def __init__(self, line: Line, options: dict[str, Any]) -> None:
        self.line = line
        self.options = options

    async def cut(self) -> None:
        await self.line.cut()

    async def mend(self) -> None:
        await self.line.mend()

    async def cut_soon(self) -> None:
        self.line.cut_after(CUT_AFTER)

    async def hang(self) -> None:
        self.line.hang()


class RedisStream(Lined):
    """A stream of the shared server."""

    def __init__(self, line: Line, options: dict[str, Any], client: Any) -> None:
        super().__init__(line, options)
        self.client = client

    async def read(self) -> list[Record]:
        entries = await self.client.xrange(self.options["stream"])
        assert all(set(fields) == {b"record"} for _, fields in entries)
        return [json.loads(fields[b"record"]) for _, fields in entries]


@contextlib.asynccontextmanager
async def redis_stream(_id: str) -> AsyncIterator[Place]:
    require_package("redis", "redis")
    from redis.asyncio import Redis

    host, port = require("redis")
    name = fresh()
    async with Line(host, port) as line, Redis(host=host, port=port) as client:
        url = secret(f"redis://{HOST}:{line.port}/0")
        try:
            yield RedisStream(line, {"url": url, "stream": name}, client)
        finally:
            await client.delete(name)


class NatsStream(Lined):
    """A stream of the shared server, which the sink makes."""

    def __init__(self, line: Line, options: dict[str, Any], client: Any) -> None:
        super().__init__(line, options)
        self.client = client

    async def read(self) -> list[Record]:
        stream = self.client.jetstream()
        reader = await stream.subscribe("", stream=self.options["stream"], ordered_consumer=True)
        count = (await stream.stream_info(self.options["stream"])).state.messages
        found = [json.loads((await reader.next_msg(10)).data) for _ in range(count)]
        await reader.unsubscribe()
        return found


@contextlib.asynccontextmanager
async def nats_stream(_id: str) -> AsyncIterator[Place]:
    require_package("nats", "nats")
    import nats
    from nats.js.errors import NotFoundError

    host, port = require("nats")
    name = fresh()
    client = await nats.connect(f"nats://{host}:{port}")
    async with Line(host, port) as line:
        url = secret(f"nats://{HOST}:{line.port}")
        subject = f"{name}.{{account}}.{{state}}"
        try:
            yield NatsStream(line, {"url": url, "subject": subject, "stream": name}, client)
        finally:
            with contextlib.suppress(NotFoundError):
                await client.jetstream().delete_stream(name)
            await client.close()


class AmqpQueue(Lined):
    """A durable queue of the shared broker. Reading leaves the messages where they are."""

    def __init__(self, line: Line, options: dict[str, Any], queue: Any) -> None:
        super().__init__(line, options)
        self.queue = queue

    async def read(self) -> list[Record]:
        found: list[Record] = []
        count = (await self.queue.declare()).message_count
        done = asyncio.Event()

        async def take(message: Any) -> None:
            assert message.delivery_mode == 2
            found.append(json.loads(message.body))
            if len(found) == count:
                done.set()

        tag = await self.queue.consume(take)
        if count:
            await asyncio.wait_for(done.wait(), 60)
        await self.queue.cancel(tag)
        return found


@contextlib.asynccontextmanager
async def amqp_queue(_id: str) -> AsyncIterator[Place]:
    require_package("aio_pika", "amqp")
    import aio_pika

    host, port = require("amqp")
    name = fresh()
    async with (
        await aio_pika.connect(f"amqp://guest:guest@{host}:{port}/") as connection,
        Line(host, port) as line,
    ):
        queue = await (await connection.channel()).declare_queue(f"{name}.a", durable=True)
        url = secret(f"amqp://guest:guest@{HOST}:{line.port}/")
        try:
            yield AmqpQueue(line, {"url": url, "routing_key": f"{name}.{{account}}"}, queue)
        finally:
            await queue.delete(if_unused=False, if_empty=False)


MESSAGES = [
    Case(
        "redis", "engine.sinks.redis:RedisSink", redis_stream, envelope=True,
        patience="redis.ANSWER_S",
    ),
    Case(
        "nats", "engine.sinks.nats:NatsSink", nats_stream, once=True, envelope=True,
        refuses=lambda n: record(n, content="x" * (1 << 20)), long=900_000,
        patience="nats.ANSWER_S",
    ),
    Case(
        "amqp", "engine.sinks.amqp:AmqpSink", amqp_queue, envelope=True,
        refuses=lambda n: record(n, account="x" * 300), patience="amqp.ANSWER_S",
    ),
]  # fmt: skip
