"""What is in flight together at a broker: never two records of one message."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq import exceptions

from engine.core.contracts import Batch
from engine.core.errors import SinkError
from engine.core.messages import in_order
from engine.core.secret import Secret
from engine.sinks.amqp import AmqpOptions, AmqpSink
from engine.targets.jetstream import Post, Refused, Stream


def test_portions() -> None:
    found = ["a1", "b1", "a2", "c1", "a3", "c2"]
    portions = list(in_order(found, lambda one: one[0], 2))
    assert portions == [["a1", "b1"], ["c1"], ["a2", "c2"], ["a3"]]
    assert list(in_order([], str, 2)) == []


class Nats:
    """Full for the first message that it is given, and not any more for the next."""

    max_payload = 1 << 20
    is_connected, is_closed = True, False

    def __init__(self) -> None:
        self.full = True
        self.kept: dict[str, bytes] = {}
        self.stream = Stream(self, "s", "application/json")  # type: ignore[arg-type]

    def new_inbox(self) -> str:
        return "inbox"

    async def publish(
        self, subject: str, body: bytes, *, reply: str, headers: dict[str, str]
    ) -> None:
        data = b'{"stream":"s"}'
        if self.full:
            self.full, data = False, b'{"error":{"err_code":10077}}'
        else:
            self.kept.setdefault(headers["Nats-Msg-Id"], body)
        answer: Any = SimpleNamespace(subject=reply, data=data)
        self.tasks = [asyncio.ensure_future(self.stream._hear(answer))]


async def test_no_revision_overtakes_one_that_jetstream_refuses_for_now() -> None:
    nats = Nats()
    posts = [Post(n, ("a", "m"), "x", f"e{n}", b"%d" % n) for n in (1, 2)]
    with pytest.raises(Refused):
        await nats.stream.publish(posts)
    await nats.stream.publish(posts)
    assert list(nats.kept.values()) == [b"1", b"2"]


class Rabbit(AmqpSink):
    """Has no queue for the first message that it is given, and then one."""

    def __init__(self) -> None:
        super().__init__(AmqpOptions(url=Secret("amqp://h"), routing_key="q"))
        self.lost = True
        self.kept: list[str] = []
        self._connection = SimpleNamespace(is_closed=False)  # type: ignore[assignment]

    async def _connect(self, closing: object) -> Any:
        return self

    async def publish(self, message: Any, key: str, *, mandatory: bool) -> None:
        if self.lost:
            self.lost = False
            raise exceptions.DeliveryError(None, None)  # type: ignore[arg-type]
        self.kept.append(message.message_id)


async def test_no_revision_overtakes_one_that_rabbitmq_returns() -> None:
    rabbit = Rabbit()
    fields = '"account":"a","message_id":"m","state":"read"'
    lines = [f'{{"event_id":"e{n}",{fields}}}'.encode() for n in (1, 2)]
    with pytest.raises(SinkError):
        await rabbit.write(Batch(lines=lines))
    await rabbit.write(Batch(lines=lines))
    assert rabbit.kept == ["e1", "e2"]
