"""Records into a NATS JetStream stream, a message each; once within its duplicate window.

Every message carries its `event_id` as `Nats-Msg-Id`, so that a batch which is offered again within
the window leaves nothing twice. A batch is taken when JetStream has acknowledged each message as
one of this stream's. Whatever fails or is cancelled drops the connection, and the next batch opens
another.
"""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import ClassVar
from urllib.parse import urlsplit

import msgspec
from nats.js.api import StorageType, StreamConfig

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite
from ..core.messages import Naming, content_type, messages
from ..core.secret import Secret
from ..targets import jetstream
from ..targets.jetstream import Post, Stream
from ..targets.line import Line

DUPLICATE_WINDOW_S = 300.0  # of a stream that is made here: longer than any backoff of ours


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`url` may name several servers with commas between them."""

    url: Secret
    subject: str
    stream: str
    envelope: Envelope | None = None


class NatsSink:
    """Publishes over one connection, many messages in flight."""

    name: ClassVar[str] = "nats"
    Options: ClassVar[type[msgspec.Struct]] = NatsOptions

    def __init__(self, options: NatsOptions) -> None:
        self._servers = [each.strip() for each in options.url.reveal().split(",")]
        for server in self._servers:
            if urlsplit(server).scheme not in ("nats", "tls", "ws", "wss"):
                raise ValueError("url: expected nats://, tls://, ws:// or wss://")
        if not re.fullmatch(r"[^\s.*>/\\]+", options.stream):
            raise ValueError("stream: expected a name without blanks and . * > / \\")
        # A dot would make two tokens of an account's name; all else in one may stand in a token.
        self._subject = Naming("subject", options.subject, lambda name: name.replace(".", "_"))
        if not re.fullmatch(r"[^\s.*>]+(\.[^\s.*>]+)*", options.subject):
            raise ValueError("subject: expected tokens with dots between them, without * and >")
        self._wanted = StreamConfig(
            name=options.stream,
            subjects=[self._subject.filled("*", "*")],
            storage=StorageType.FILE,
            duplicate_window=DUPLICATE_WINDOW_S,
        )
        self._envelope = options.envelope
        self._line = Line(
            "cannot write to NATS",
            self._connect,
            jetstream.FAILURES,
            jetstream.cause,
            lambda stream: stream.alive,
        )

    async def open(self) -> None:
        await self._line.use(Stream.publish, [])

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        posts = [
            Post(
                each.index,
                each.about.whose,
                self._subject.of(each.about),
                each.about.event_id,
                each.body,
            )
            for each in found
        ]
        if posts:
            rejected |= await self._line.use(Stream.publish, posts)
        if rejected:
            await self._line.drop()  # what it takes is told anew: a retry follows a change of that
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._line.drop()

    async def _connect(self, closing: AsyncExitStack) -> Stream:
        kind = content_type(self._envelope)
        return await jetstream.connect(closing, self._servers, self._wanted, kind)
