"""librdkafka's producer: messages sent and waited for, each with what became of it.

Every call may wait, so all of them belong on a worker thread. librdkafka has threads of its own,
which end with the producer; a producer that failed is not used again.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer

CONNECT_S = 10.0
ANSWER_S = 30.0  # librdkafka's message.timeout.ms, unless the settings have another
GRACE_S = 10.0  # for it to say so
STEP_S = 0.1  # how soon a cancellation is noticed

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

Post = tuple[bytes, bytes]  # key and value


class KafkaProducer:
    """A producer for one topic, made when it is needed."""

    def __init__(self, servers: str, topic: str, settings: Mapping[str, str]) -> None:
        """Raises ValueError where librdkafka does not take the settings; it goes nowhere yet."""
        try:
            Producer(dict(settings)).close()
        except (KafkaException, TypeError, ValueError) as exc:
            # Its words hold the value: only what they call a property, or one of ours, is told.
            named = re.findall(r'property:? "([^"]+)"', str(exc))
            named += [name for name in settings if name in str(exc)]
            what = named[0] if named else "them"
            raise ValueError(f"options: librdkafka does not take {what}") from None
        self._servers = servers
        self._topic = topic
        self._settings = settings
        self._producer: Producer | None = None
        self._trouble: str | None = None  # what librdkafka said last of brokers as a whole

    def look(self) -> None:
        """Ask the brokers for the topic. Raises KafkaException."""
        topic = self._connected().list_topics(self._topic, CONNECT_S).topics[self._topic]
        if topic.error is not None:
            raise KafkaException(topic.error)

    def send(
        self,
        posts: Sequence[Post],
        headers: dict[str, str | bytes | None] | None,
        check: Callable[[], None],
    ) -> dict[int, KafkaError]:
        """What failed, by the place in `posts`; the rest has arrived.

        `check` is called every `STEP_S` while something is waited for, and may raise.
        """
        producer = self._connected()
        failed: dict[int, KafkaError] = {}
        told: list[None] = []

        def tell(place: int, error: KafkaError | None, _message: object) -> None:
            told.append(None)
            if error is not None:
                failed[place] = error

        for place, (key, value) in enumerate(posts):
            while True:
                try:
                    producer.produce(
                        self._topic,
                        value,
                        key,
                        on_delivery=partial(tell, place),
                        headers=headers,
                    )
                except BufferError:
                    producer.poll(STEP_S)
                    check()
                    continue
                except KafkaException as exc:
                    tell(place, exc.args[0], None)
                break
        until = time.monotonic() + self._patience_s() + GRACE_S
        while len(told) < len(posts):
            producer.flush(STEP_S)  # nothing more is to come: what waits for company goes now
            check()
            if time.monotonic() > until:
                raise TimeoutError
        return failed

    def drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.close()

    def cause(self, error: Exception) -> str | None:
        """For people: never the error's own words, which may hold an address. None: not ours."""
        match error:
            case KafkaException():
                name = error.args[0].name()
            case TimeoutError():
                name = "_TIMED_OUT"
            case _:
                return None
        if name in _UNHEARD and self._trouble is not None:
            name = self._trouble
        return _WORDS.get(name) or f"librdkafka says {name}"

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


def is_size(error: KafkaError) -> bool:
    """Whether it is about how large a message, or a request of several, is."""
    return bool(error.code() == KafkaError.MSG_SIZE_TOO_LARGE)
