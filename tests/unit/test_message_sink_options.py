"""What the message sinks take for their options, and what they say of others."""

from __future__ import annotations

from typing import Any

import pytest

from engine import configure, registry
from engine.core.cloudevents import heading
from engine.core.errors import ConfigError
from engine.core.messages import Naming, messages
from engine.core.secret import Secret

CANARY = "hunter2"
UNVERIFIED = "a server's certificate and name are always verified"


def made(kind: str, **keys: Any) -> Any:
    account = {
        "name": "a", "provider": "infobip", "base_url": "https://provider.example", "api_key": "k",
    }  # fmt: skip
    sink = {"name": "s", "type": kind, **keys}
    (found,) = configure({"accounts": [account], "sinks": [sink]}).sinks
    return found


@pytest.mark.parametrize(
    ("kind", "keys", "fault"),
    [
        ("redis", {"url": f"http://x:{CANARY}@h", "stream": "s"}, "url: expected redis://"),
        ("redis", {"url": f"redis://h:{CANARY}/0", "stream": "s"}, "url: expected redis://"),
        (
            "redis",
            {"url": f"redis://h/{CANARY}", "stream": "s"},
            "url: expected the number of a da",
        ),
        (
            "redis",
            {"url": "redis://h/1/2", "stream": "s"},
            "url: expected the number of a database",
        ),
        ("redis", {"url": "redis://h", "stream": ""}, "stream: expected at least 1"),
        ("redis", {"url": "redis://h", "stream": "s", "maxlen": 0}, "maxlen: expected at least 1"),
        ("nats", {"url": f"{CANARY}", "subject": "s", "stream": "s"}, "url: expected nats://"),
        ("nats", {"url": "nats://h", "subject": "s.*", "stream": "s"}, "subject: expected tokens"),
        ("nats", {"url": "nats://h", "subject": "a..b", "stream": "s"}, "subject: expected tokens"),
        ("nats", {"url": "nats://h", "subject": "s", "stream": "a.b"}, "stream: expected a name"),
        ("nats", {"url": "nats://h", "subject": "{id}", "stream": "s"}, "subject: {id} is not"),
        ("amqp", {"url": f"http://{CANARY}", "routing_key": "q"}, "url: expected amqp://"),
        ("amqp", {"url": "amqp://h", "routing_key": "{"}, "routing_key: expected a name"),
        ("amqp", {"url": "amqp://h", "routing_key": ""}, "routing_key: expected a name"),
        ("kafka", {"topic": "t", "options": {"acks": 1}}, "options: acks is set by the sink"),
        ("kafka", {"topic": "t", "options": {"lingr.ms": 5}}, "does not take lingr.ms"),
        ("kafka", {"topic": "t", "options": {"linger.ms": CANARY}}, "does not take queue.buf"),
        ("kafka", {"topic": "t", "options": {"compression.type": CANARY}}, "does not take compr"),
        ("kafka", {"topic": "t", "envelope": "xml"}, "envelope: expected"),
        ("redis", {"url": "rediss://h?ssl_cert_reqs=none", "stream": "s"}, UNVERIFIED),
        ("redis", {"url": "rediss://h?ssl_check_hostname=no", "stream": "s"}, UNVERIFIED),
        ("amqp", {"url": "amqps://h?no_verify_ssl=1", "routing_key": "q"}, UNVERIFIED),
        (
            "kafka",
            {"topic": "t", "options": {"enable.ssl.certificate.verification": False}},
            UNVERIFIED,
        ),
        (
            "kafka",
            {"topic": "t", "options": {"ssl.endpoint.identification.algorithm": "none"}},
            UNVERIFIED,
        ),
    ],
)
def test_faults_are_named_without_secrets(kind: str, keys: dict[str, Any], fault: str) -> None:
    if kind == "kafka":
        keys = {"bootstrap_servers": "h:9092", **keys}
    with pytest.raises(ConfigError) as caught:
        made(kind, **keys)
    (line,) = caught.value.faults
    assert fault in line
    assert CANARY not in line


def test_settings_of_librdkafka_may_be_numbers_and_secrets(monkeypatch: Any) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", CANARY)
    options = {
        "linger.ms": 7, "socket.keepalive.enable": True,
        "sasl.password": {"env": "KAFKA_PASSWORD"}, "client.id": "x",
    }  # fmt: skip
    found = made("kafka", bootstrap_servers="h:9092", topic="t", options=options).sink.options
    assert all(isinstance(value, Secret) for value in found.values())
    assert [value.reveal() for value in found.values()] == ["7", "true", CANARY, "x"]


@pytest.mark.parametrize("kind", ["kafka", "nats", "redis", "amqp"])
def test_the_four_are_there_by_name(kind: str) -> None:
    assert registry.find_sink(kind).name == kind


def test_a_name_is_filled_from_the_record() -> None:
    about = heading(b'{"event_id":"e","account":"eu.1","message_id":"m","state":"read"}')
    assert Naming("k", "dlr.{account}.{state}").of(about) == "dlr.eu.1.read"
    cleaned = Naming("k", "dlr.{account}", lambda name: name.replace(".", "_"))
    assert cleaned.of(about) == "dlr.eu_1"
    assert Naming("k", "all").of(about) == "all"


def test_what_is_no_record_is_told_by_its_place() -> None:
    good = b'{"event_id":"e","account":"a","message_id":"m","state":"read"}'
    found, rejected = messages([b"{}", good, b"nothing"], None)
    assert [message.index for message in found] == [1]
    assert sorted(rejected) == [0, 2]
    assert all(cause.startswith("not a record: ") for cause in rejected.values())
