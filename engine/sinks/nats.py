"""Records into a NATS JetStream stream, a message each; once within its duplicate window.

Every message carries its `event_id` as `Nats-Msg-Id`, so that a batch which is offered again within
the window leaves nothing twice. A batch is taken when JetStream has acknowledged each message as
one of this stream's. The connection does not reconnect by itself: whatever fails or is cancelled
drops it, and the next batch opens another.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

import anyio
import msgspec
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js import errors as js_errors
from nats.js.api import Header, StorageType, StreamConfig

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite, SinkError
from ..core.messages import Message, Naming, content_type, messages
from ..core.secret import Secret
from ..failures import os_cause

CONNECT_S = 10.0
ANSWER_S = 30.0  # for one request, and for the acknowledgements of what is in flight
CLOSE_S = 2.0
LOOK_S = 0.2  # at the connection: the library may end one without telling
IN_FLIGHT_MAX = 1000  # messages that JetStream has not acknowledged
DUPLICATE_WINDOW_S = 300.0  # of a stream that is made here: longer than any backoff of ours

_TOO_LARGE = 10054  # JetStream's code: larger than the stream's max_msg_size
_NO_STREAM = 0  # instead of a code: the answer of a server on which nobody listens
_ANSWERS = {
    _NO_STREAM: "no stream takes the subject; add it to the stream's subjects",
    10023: "the server has no room for it; see its limits",
    10039: "the account may not use JetStream",
    10060: "another stream takes the subject; name that one, or another subject",
    10065: "another stream takes the subject already; name that one, or another subject",
    10076: "JetStream is not enabled",
    10077: "the stream is full and discards what is new",
}
_KINDS: dict[type[Exception], str] = {
    js_errors.ServiceUnavailableError: "JetStream is not available",
    errors.NoRespondersError: "JetStream is not enabled",
    errors.AuthorizationError: "the credentials are wrong",
    errors.TimeoutError: "it does not answer",
    errors.NoServersError: "no server can be reached",
}


class _Error(msgspec.Struct):
    err_code: int


class _Answer(msgspec.Struct):
    stream: str = ""
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode


class _Refused(Exception):
    """JetStream did not take a message, for now; its code."""


class _Client(Client):
    """The library's client, which leaves tasks behind where it cannot send what is pending."""

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._pending, self._pending_data_size = [], 0  # nobody waits for it any more
        await super()._close(status, do_cbs)


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
        self._stream = options.stream
        self._envelope = options.envelope
        self._headers = {
            Header.EXPECTED_STREAM.value: options.stream,
            "content-type": content_type(options.envelope),
        }
        self._nats: Client | None = None
        self._inbox = ""
        self._waiting: dict[str, int] = {}  # where an answer is to go -> index in the batch
        self._refused: dict[int, int] = {}  # index -> JetStream's code
        self._heard = asyncio.Event()  # all have answered
        self._trouble: Exception | None = None

    async def open(self) -> None:
        await self._send([])

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        if found:
            rejected |= await self._send(found)
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    async def close(self) -> None:
        await self._drop()

    async def _send(self, found: Sequence[Message]) -> dict[int, str]:
        rejected: dict[int, str] = {}
        try:
            client = await self._connected()
            for start in range(0, len(found), IN_FLIGHT_MAX):
                rejected |= await self._publish(client, found[start : start + IN_FLIGHT_MAX])
        except (errors.Error, OSError, TimeoutError, ValueError, _Refused) as exc:
            await self._drop()
            cause = self._trouble if isinstance(exc, errors.NoServersError) else None
            raise SinkError(f"cannot write to NATS: {_cause(cause or exc)}") from None
        except BaseException:
            await self._drop()
            raise
        return rejected

    async def _publish(self, client: Client, some: Sequence[Message]) -> dict[int, str]:
        rejected: dict[int, str] = {}
        refused: dict[int, int] = {}
        waiting: dict[str, int] = {}
        self._waiting, self._refused = waiting, refused
        self._heard.clear()
        for message in some:
            headers = {**self._headers, Header.MSG_ID.value: message.about.event_id}
            size = len(message.body) + sum(len(k) + len(v) + 4 for k, v in headers.items()) + 12
            if size > client.max_payload:  # the server would end the connection over it
                rejected[message.index] = f"too large: {size} bytes, max_payload is smaller"
                continue
            reply = f"{self._inbox}.{message.index}"
            waiting[reply] = message.index
            subject = self._subject.of(message.about)
            await client.publish(subject, message.body, reply=reply, headers=headers)
        async with asyncio.timeout(ANSWER_S):
            while waiting:
                with anyio.move_on_after(LOOK_S):
                    await self._heard.wait()
                if waiting and client.is_closed:
                    raise errors.ConnectionClosedError
        for index, code in refused.items():
            if code != _TOO_LARGE:
                raise _Refused(code)
            rejected[index] = "too large: the stream's max_msg_size is smaller"
        return rejected

    async def _hear(self, answer: Msg) -> None:
        """JetStream's answer to one message; the library's own way of waiting loses errors."""
        if answer.subject not in self._waiting:
            return
        said = _answer(answer.data) if answer.data else _Answer()
        index = self._waiting.pop(answer.subject)
        if said.error is not None:
            self._refused[index] = said.error.err_code
        elif said.stream != self._stream:
            self._refused[index] = _NO_STREAM
        if not self._waiting:
            self._heard.set()

    async def _connected(self) -> Client:
        if self._nats is not None and not self._nats.is_connected:
            await self._drop()
        if self._nats is None:

            async def note(error: Exception) -> None:
                self._trouble = error  # the library's own log would name addresses

            self._nats = client = _Client()
            await client.connect(
                self._servers, name="dlr-engine", connect_timeout=int(CONNECT_S),
                allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
                error_cb=note,
            )  # fmt: skip
            await self._need_stream(client.jetstream(timeout=ANSWER_S))
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.*", cb=self._hear)
        return self._nats

    async def _need_stream(self, jetstream: JetStreamContext) -> None:
        try:
            await jetstream.stream_info(self._stream)
        except js_errors.NotFoundError:
            await jetstream.add_stream(
                StreamConfig(
                    name=self._stream,
                    subjects=[self._subject.filled("*", "*")],
                    storage=StorageType.FILE,
                    duplicate_window=DUPLICATE_WINDOW_S,
                )
            )

    async def _drop(self) -> None:
        client, self._nats = self._nats, None
        if client is not None:
            with anyio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(Exception):
                await client.close()


def _cause(error: Exception) -> str:
    """For people: never the error's own words, which may hold an address."""
    code = error.args[0] if isinstance(error, _Refused) else getattr(error, "err_code", None)
    if code in _ANSWERS:
        return _ANSWERS[code]
    for kind, words in _KINDS.items():
        if isinstance(error, kind):
            return words
    if code is not None:
        return f"JetStream answers with its error {code}"
    return os_cause(error, "the connection failed")
