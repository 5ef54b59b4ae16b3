"""The places of the message sinks: a Redis stream, a NATS stream, a RabbitMQ queue, a Kafka topic.

Each is read past the sink's line, by the server's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
from collections.abc import AsyncIterator
from pathlib import Path
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
async def redis_stream() -> AsyncIterator[Place]:
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
async def nats_stream() -> AsyncIterator[Place]:
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

    def __init__(self, line: Line, options: dict[str, Any], channel: Any, queue: Any) -> None:
        super().__init__(line, options)
        self.channel = channel
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
async def amqp_queue() -> AsyncIterator[Place]:
    require_package("aio_pika", "amqp")
    import aio_pika

    host, port = require("amqp")
    name = fresh()
    async with (
        await aio_pika.connect(f"amqp://guest:guest@{host}:{port}/") as connection,
        Line(host, port) as line,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(f"{name}.a", durable=True)
        url = secret(f"amqp://guest:guest@{HOST}:{line.port}/")
        try:
            options = {"url": url, "routing_key": f"{name}.{{account}}"}
            yield AmqpQueue(line, options, channel, queue)
        finally:
            await queue.delete(if_unused=False, if_empty=False)


PRODUCE = 0  # Kafka's number of that request
TRANSPORT = -195  # librdkafka's code for a connection that ended
BROKER = 1
FOR_EVER_MS = 3_600_000


class MockCluster:
    """librdkafka's own mock cluster, of one broker: it speaks the real protocol, on a real port.

    The library that confluent-kafka brings exports it, and Python does not: hence ctypes.
    """

    def __init__(self) -> None:
        import confluent_kafka

        (library,) = Path(f"{Path(confluent_kafka.__file__).parent}.libs").glob("librdkafka-*")
        self.lib = lib = ctypes.CDLL(str(library))
        for name in ("rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(lib, name).restype = ctypes.c_void_p
        lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p(lib.rd_kafka_new(0, None, None, ctypes.c_size_t(0)))
        self._cluster = ctypes.c_void_p(lib.rd_kafka_mock_cluster_new(self._handle, 1))
        self.servers = lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create(self, topic: str) -> None:
        """A topic of one partition, so that it has one order."""
        self.lib.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1)

    def down(self) -> None:
        self.lib.rd_kafka_mock_broker_set_down(self._cluster, BROKER)

    def up(self) -> None:
        self.slow(0)
        self.lib.rd_kafka_mock_broker_set_up(self._cluster, BROKER)

    def slow(self, ms: int) -> None:
        self.lib.rd_kafka_mock_broker_set_rtt(self._cluster, BROKER, ms)

    def fail(self, *codes: int) -> None:
        """How the next produce requests end."""
        self.lib.rd_kafka_mock_push_request_errors(
            self._cluster, PRODUCE, ctypes.c_size_t(len(codes)), *codes
        )

    def close(self) -> None:
        self.lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self.lib.rd_kafka_destroy(self._handle)


class KafkaTopic:
    """A topic of a cluster of its own, which keeps the newest 5 MB: reading goes on from before."""

    def __init__(self, cluster: MockCluster, options: dict[str, Any]) -> None:
        self.cluster = cluster
        self.options = options
        self._at = 0

    async def cut(self) -> None:
        self.cluster.down()

    async def mend(self) -> None:
        self.cluster.up()

    async def cut_soon(self) -> None:
        self.cluster.fail(TRANSPORT)

    async def hang(self) -> None:
        self.cluster.slow(FOR_EVER_MS)

    async def read(self) -> list[Record]:
        return await asyncio.to_thread(self._read)

    def _read(self) -> list[Record]:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.cluster.servers, "group.id": "reader"})
        try:
            place = TopicPartition(self.options["topic"], 0, self._at)
            oldest, end = consumer.get_watermark_offsets(place, timeout=30)
            assert oldest <= self._at
            consumer.assign([place])
            found: list[Record] = []
            while self._at < end:
                for message in consumer.consume(min(1000, end - self._at), timeout=10):
                    assert message.error() is None
                    each = json.loads(message.value())
                    assert message.key().decode() == each.get("data", each)["message_id"]
                    found.append(each)
                    self._at = message.offset() + 1
            return found
        finally:
            consumer.close()


@contextlib.asynccontextmanager
async def kafka_topic() -> AsyncIterator[Place]:
    require_package("confluent_kafka", "kafka")
    cluster = MockCluster()
    name = fresh()
    cluster.create(name)
    try:
        # As large as the mock's answer to a consumer may get; a record of 3 MB has to fit.
        more = {"message.max.bytes": secret("4000000")}
        options = {"bootstrap_servers": cluster.servers, "topic": name, "options": more}
        yield KafkaTopic(cluster, options)
    finally:
        await asyncio.to_thread(cluster.close)


MESSAGES = [
    Case(
        "engine.sinks.kafka:KafkaSink", kafka_topic, "kafka", envelope=True,
        refuses=lambda n: record(n, content="x" * 4_000_000), keeps=4000, resends=True,
        patience="engine.targets.kafka_producer.ANSWER_S",
    ),
    Case(
        "engine.sinks.redis:RedisSink", redis_stream, "redis", envelope=True,
        refuses=lambda n: b"no record, the %dth" % n, patience="engine.sinks.redis.ANSWER_S",
    ),
    Case(
        "engine.sinks.nats:NatsSink", nats_stream, "nats", once=True, envelope=True,
        refuses=lambda n: record(n, content="x" * (1 << 20)), long=900_000,
        patience="engine.targets.jetstream.ANSWER_S",
    ),
    Case(
        "engine.sinks.amqp:AmqpSink", amqp_queue, "amqp", envelope=True,
        refuses=lambda n: record(n, account="x" * 300), patience="engine.sinks.amqp.ANSWER_S",
    ),
]  # fmt: skip
