"""Records into a Kafka topic, a message each, keyed by `message_id`; at least once.

The producer is idempotent and waits for all replicas in sync, so what librdkafka itself sends again
leaves nothing twice, and the records of one message stay in order in one partition. A batch that
failed or was cancelled takes its producer with it; offered again it comes from a new one, to which
it is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
from confluent_kafka import KafkaException

from engine.network.failures import VERIFIED

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite
from ..core.messages import Message, content_type, messages
from ..core.secret import Secret
from ..targets.kafka_producer import KafkaProducer, is_size
from ..targets.own_thread import OwnThread

IN_FLIGHT_MAX = 100_000  # librdkafka's own bound, beside its 1 GiB: a full queue is waited for

_OURS = frozenset(
    {
        "acks", "bootstrap.servers", "enable.idempotence", "metadata.broker.list",
        "request.required.acks", "transactional.id",
    }
)  # fmt: skip
# What checks a server's certificate and name, and the values with which it does.
_CHECKS = {
    "enable.ssl.certificate.verification": ("true",),
    "ssl.endpoint.identification.algorithm": ("https",),
}


class KafkaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`options` are librdkafka's own settings; any may be a secret."""

    bootstrap_servers: Annotated[str, msgspec.Meta(min_length=1)]
    topic: Annotated[str, msgspec.Meta(min_length=1, max_length=249)]
    options: dict[str, Annotated[Secret, msgspec.Meta(extra={"numbers": True})]] = {}
    envelope: Envelope | None = None


class KafkaSink:
    """Produces batches and waits for what became of each message."""

    name: ClassVar[str] = "kafka"
    Options: ClassVar[type[msgspec.Struct]] = KafkaOptions

    def __init__(self, options: KafkaOptions) -> None:
        if given := sorted(_OURS & options.options.keys()):
            raise ValueError(f"options: {given[0]} is set by the sink itself")
        for name, wanted in _CHECKS.items():
            if name in options.options and options.options[name].reveal() not in wanted:
                raise ValueError(f"options: {VERIFIED}; ssl.ca.location names whom to trust")
        settings = {
            "linger.ms": "5",
            "queue.buffering.max.messages": str(IN_FLIGHT_MAX),
            "log_level": "0",  # standard error is not the sink's
            **{name: value.reveal() for name, value in options.options.items()},
            "enable.idempotence": "true",
            "acks": "all",
        }
        self._producer = producer = KafkaProducer(
            options.bootstrap_servers, options.topic, settings
        )
        self._thread = OwnThread(
            "dlr-kafka", "cannot write to Kafka", producer.drop, producer.cause
        )
        self._envelope = options.envelope
        self._headers: dict[str, str | bytes | None] | None = (
            {"content-type": content_type(options.envelope).encode()} if options.envelope else None
        )

    async def open(self) -> None:
        await self._thread.run(self._producer.look)

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        if found:
            rejected |= await self._thread.run(self._send, found)
        if rejected:
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._thread.close()

    def _send(self, found: Sequence[Message]) -> dict[int, str]:
        posts = [(each.about.message_id.encode(), each.body) for each in found]
        failed = self._producer.send(posts, self._headers, self._thread.check)
        rejected: dict[int, str] = {}
        for place, message in enumerate(found):
            error = failed.get(place)
            if error is not None and is_size(error) and len(found) > 1:
                # A broker refuses a whole request for its size; alone it shows who is too large.
                one = posts[place : place + 1]
                error = self._producer.send(one, self._headers, self._thread.check).get(0)
            if error is not None and not is_size(error):
                raise KafkaException(error)
            if error is not None:
                size = len(message.body)
                rejected[message.index] = f"too large: {size} bytes; see message.max.bytes"
        return rejected
