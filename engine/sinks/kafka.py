"""Records into a Kafka topic, a message each, keyed by `message_id`; at least once.

The producer is idempotent and waits for all replicas in sync, so what librdkafka itself sends again
leaves nothing twice, and the records of one message stay in order in one partition. A batch that
failed or was cancelled takes its producer with it; offered again it comes from a new one, to which
it is new. librdkafka has threads of its own, which end with the producer; all calls that may
wait are made on a thread of ours.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import msgspec
from confluent_kafka import KafkaError, KafkaException, Producer

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.messages import Message, content_type, messages
from ..core.secret import Secret
from ..offload import Offload

CONNECT_S = 10.0
ANSWER_S = 30.0  # librdkafka's message.timeout.ms, unless `options` has another
GRACE_S = 10.0  # for it to say so
STEP_S = 0.1  # how soon a cancellation is noticed
IN_FLIGHT_MAX = 100_000  # librdkafka's own bound, beside its 1 GiB: a full queue is waited for

_OURS = frozenset(
    {
        "acks", "bootstrap.servers", "enable.idempotence", "metadata.broker.list",
        "request.required.acks", "transactional.id",
    }
)  # fmt: skip
_TIMEOUTS = ("message.timeout.ms", "delivery.timeout.ms")  # two names of one setting
_WORDS = {
    "_ALL_BROKERS_DOWN": "no broker can be reached",
    "_TRANSPORT": "no broker can be reached",
    "_RESOLVE": "no broker can be reached: a name is not known",
    "_SSL": "TLS failed; see ssl.ca.location",
    "_AUTHENTICATION": "the credentials are wrong",
    "SASL_AUTHENTICATION_FAILED": "the credentials are wrong",
    "TOPIC_AUTHORIZATION_FAILED": "these credentials may not write the topic",
    "CLUSTER_AUTHORIZATION_FAILED": "these credentials may not write idempotently",
    "UNKNOWN_TOPIC_OR_PART": "there is no such topic; make it",
    "_UNKNOWN_TOPIC": "there is no such topic; make it",
    "_UNKNOWN_PARTITION": "there is no such topic; make it",
    "NOT_ENOUGH_REPLICAS": "too few replicas are in sync",
    "_MSG_TIMED_OUT": "the brokers do not answer",
    "_TIMED_OUT": "the brokers do not answer",
}
_UNHEARD = frozenset({"_MSG_TIMED_OUT", "_TIMED_OUT", "_TRANSPORT"})


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
        self._settings = {
            "linger.ms": "5",
            "queue.buffering.max.messages": str(IN_FLIGHT_MAX),
            "log_level": "0",  # standard error is not the sink's
            **{name: value.reveal() for name, value in options.options.items()},
            "enable.idempotence": "true",
            "acks": "all",
        }
        self._check()
        self._servers = options.bootstrap_servers
        self._topic = options.topic
        self._headers: dict[str, str | bytes | None] | None = (
            {"content-type": content_type(options.envelope).encode()} if options.envelope else None
        )
        self._envelope = options.envelope
        self._offload = Offload("dlr-kafka")
        self._producer: Producer | None = None
        self._trouble: str | None = None  # what librdkafka said last of brokers as a whole

    async def open(self) -> None:
        await self._run(self._look)

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        if found:
            rejected |= await self._run(self._send, found)
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    async def close(self) -> None:
        await self._offload.run(self._drop)
        await self._offload.close()

    def _check(self) -> None:
        """Have librdkafka read the settings; without a server it goes nowhere."""
        try:
            Producer(self._settings).close()
        except (KafkaException, TypeError, ValueError) as exc:
            # Its words hold the value: only what they call a property, or one of ours, is told.
            named = re.findall(r'property:? "([^"]+)"', str(exc))
            named += [name for name in self._settings if name in str(exc)]
            what = named[0] if named else "them"
            raise ValueError(f"options: librdkafka does not take {what}") from None

    async def _run(self, work: Any, *args: Any) -> Any:
        try:
            return await self._offload.run(self._guarded, work, *args)
        except (KafkaException, TimeoutError) as exc:
            name = "_TIMED_OUT" if isinstance(exc, TimeoutError) else exc.args[0].name()
            if name in _UNHEARD and self._trouble is not None:
                name = self._trouble
            words = _WORDS.get(name) or f"librdkafka says {name}"  # its own may hold an address
            raise SinkError(f"cannot write to Kafka: {words}") from None

    # All below runs in a worker thread, under the guard.

    def _guarded(self, work: Any, *args: Any) -> Any:
        try:
            return work(*args)
        except BaseException:
            self._drop()
            raise

    def _look(self) -> None:
        topic = self._connected().list_topics(self._topic, CONNECT_S).topics[self._topic]
        if topic.error is not None:
            raise KafkaException(topic.error)

    def _send(self, found: Sequence[Message]) -> dict[int, str]:
        producer = self._connected()
        failed = self._produce(producer, found)
        rejected: dict[int, str] = {}
        for message in found:
            error = failed.get(message.index)
            if error is not None and _is_size(error) and len(found) > 1:
                # A broker refuses a whole request for its size; alone it shows who is too large.
                error = self._produce(producer, [message]).get(message.index)
            if error is not None and not _is_size(error):
                raise KafkaException(error)
            if error is not None:
                size = len(message.body)
                rejected[message.index] = f"too large: {size} bytes; see message.max.bytes"
        return rejected

    def _produce(self, producer: Producer, some: Sequence[Message]) -> dict[int, KafkaError]:
        """Send them and wait for each; what failed, by index."""
        failed: dict[int, KafkaError] = {}
        told: list[None] = []

        def tell(index: int, error: KafkaError | None, _message: object) -> None:
            told.append(None)
            if error is not None:
                failed[index] = error

        for message in some:
            while True:
                try:
                    producer.produce(
                        self._topic,
                        message.body,
                        message.about.message_id.encode(),
                        on_delivery=partial(tell, message.index),
                        headers=self._headers,
                    )
                except BufferError:
                    producer.poll(STEP_S)
                    self._offload.check()
                    continue
                except KafkaException as exc:
                    tell(message.index, exc.args[0], None)
                break
        until = time.monotonic() + self._patience_s() + GRACE_S
        while len(told) < len(some):
            producer.flush(STEP_S)  # nothing more is to come: what waits for company goes now
            self._offload.check()
            if time.monotonic() > until:
                raise TimeoutError
        return failed

    def _patience_s(self) -> float:
        """How long librdkafka tries; to it 0 is for ever."""
        given = (self._settings.get(name) for name in _TIMEOUTS)
        return next((float(ms) / 1000 or math.inf for ms in given if ms is not None), ANSWER_S)

    def _connected(self) -> Producer:
        if self._producer is None:

            def note(error: KafkaError) -> None:
                self._trouble = error.name()

            self._trouble = None
            timeout = {"message.timeout.ms": str(int(ANSWER_S * 1000))}
            servers = {"bootstrap.servers": self._servers, "error_cb": note}
            self._producer = Producer({**timeout, **self._settings, **servers})
        return self._producer

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.close()


def _is_size(error: KafkaError) -> bool:
    return bool(error.code() == KafkaError.MSG_SIZE_TOO_LARGE)
