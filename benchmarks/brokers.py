"""The sinks `kafka`, `nats`, `redis` and `amqp` beside their client libraries.

The bare side is what whoever writes it by hand would write, no more: the same ids, keys and
settings, one batch at a time, and the same acknowledgement of each message. Kafka is librdkafka's
own mock cluster, in a process of its own beside both.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aio_pika
import nats
import orjson
from confluent_kafka import Producer
from redis.asyncio import Redis

from benchmarks.sinks import Pair, Write
from tests.conformance.messages import MockCluster

AMQP = "amqp://guest:guest@127.0.0.1:5672/"
NATS = "nats://127.0.0.1:4222"
REDIS = "redis://127.0.0.1:6379/0"

Gone = Callable[[str], Awaitable[None]]


def _name() -> str:
    return f"dlr_bench_{uuid.uuid4().hex[:12]}"


def _id(line: bytes) -> str:
    return str(orjson.loads(line)["event_id"])


@contextmanager
def _place(name: str, options: dict[str, Any], make: Gone, remove: Gone) -> Iterator[Any]:
    """A name at a server, made before and removed afterwards; None where the server is not."""
    try:
        asyncio.run(make(name))
    except (OSError, nats.errors.Error, aio_pika.exceptions.AMQPError):
        yield None
        return
    try:
        yield options
    finally:
        asyncio.run(remove(name))


# redis


@contextmanager
def stream() -> Iterator[dict[str, Any] | None]:
    async def reach(_name: str) -> None:
        async with Redis.from_url(REDIS) as client:
            await client.execute_command("PING")

    async def remove(name: str) -> None:
        async with Redis.from_url(REDIS) as client:
            await client.delete(name)

    name = _name()
    with _place(name, {"url": REDIS, "stream": name}, reach, remove) as options:
        yield options


@asynccontextmanager
async def bare_redis(options: dict[str, Any]) -> AsyncIterator[Write]:
    async with Redis.from_url(options["url"]) as client:

        async def write(lines: Sequence[bytes]) -> None:
            async with client.pipeline() as pipe:
                for line in lines:
                    pipe.xadd(options["stream"], {"record": line})
                await pipe.execute()

        await client.execute_command("PING")
        yield write


# nats


@contextmanager
def jetstream() -> Iterator[dict[str, Any] | None]:
    async def make(name: str) -> None:
        async with await nats.connect(NATS, allow_reconnect=False) as client:
            await client.jetstream().add_stream(
                name=name, subjects=[f"{name}.*"], duplicate_window=300
            )

    async def remove(name: str) -> None:
        async with await nats.connect(NATS) as client:
            await client.jetstream().delete_stream(name)

    name = _name()
    options = {"url": NATS, "subject": f"{name}.{{account}}", "stream": name}
    with _place(name, options, make, remove) as found:
        yield found


@asynccontextmanager
async def bare_nats(options: dict[str, Any]) -> AsyncIterator[Write]:
    async with await nats.connect(options["url"]) as client:
        publisher = client.jetstream()
        subject = options["subject"].replace("{account}", "infobip-1")

        async def write(lines: Sequence[bytes]) -> None:
            acks = [
                await publisher.publish_async(
                    subject, line, stream=options["stream"], headers={"Nats-Msg-Id": _id(line)}
                )
                for line in lines
            ]
            await asyncio.gather(*acks)

        yield write


# amqp


@contextmanager
def queue() -> Iterator[dict[str, Any] | None]:
    async def make(name: str) -> None:
        async with await aio_pika.connect(AMQP) as connection:
            await (await connection.channel()).declare_queue(name, durable=True)

    async def remove(name: str) -> None:
        async with await aio_pika.connect(AMQP) as connection:
            queue = await (await connection.channel()).get_queue(name)
            await queue.delete(if_unused=False, if_empty=False)

    name = _name()
    with _place(name, {"url": AMQP, "routing_key": name}, make, remove) as options:
        yield options


@asynccontextmanager
async def bare_amqp(options: dict[str, Any]) -> AsyncIterator[Write]:
    async with await aio_pika.connect(options["url"]) as connection:
        channel = await connection.channel(on_return_raises=True)

        def publish(line: bytes) -> Awaitable[object]:
            message = aio_pika.Message(
                line, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, message_id=_id(line)
            )
            exchange = channel.default_exchange
            return exchange.publish(message, options["routing_key"], mandatory=True)

        async def write(lines: Sequence[bytes]) -> None:
            await asyncio.gather(*map(publish, lines))

        yield write


# kafka


@contextmanager
def topic() -> Iterator[dict[str, Any] | None]:
    cluster, name = MockCluster(), _name()
    cluster.create(name)
    try:
        yield {"bootstrap_servers": cluster.servers, "topic": name}
    finally:
        cluster.close()


@asynccontextmanager
async def bare_kafka(options: dict[str, Any]) -> AsyncIterator[Write]:
    settings = {"enable.idempotence": True, "acks": "all", "linger.ms": 5, "log_level": 0}
    producer = Producer({"bootstrap.servers": options["bootstrap_servers"], **settings})
    producer.list_topics(options["topic"], 10)
    failed = []

    def told(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    async def write(lines: Sequence[bytes]) -> None:
        for line in lines:
            key = orjson.loads(line)["message_id"]
            producer.produce(options["topic"], line, key, on_delivery=told)
        producer.flush()
        if failed:
            raise RuntimeError("a message was not acknowledged")

    with contextlib.closing(producer):
        yield write


PAIRS = {
    "amqp": Pair(
        sink="engine.sinks.amqp:AmqpSink", bare="benchmarks.brokers:bare_amqp", place=queue
    ),
    "kafka": Pair(
        sink="engine.sinks.kafka:KafkaSink",
        bare="benchmarks.brokers:bare_kafka",
        place=topic,
    ),
    "nats": Pair(
        sink="engine.sinks.nats:NatsSink", bare="benchmarks.brokers:bare_nats", place=jetstream
    ),
    "redis": Pair(
        sink="engine.sinks.redis:RedisSink", bare="benchmarks.brokers:bare_redis", place=stream
    ),
}
