"""A stream of NATS JetStream: many messages in flight, each acknowledged as this very stream's.

The library's own ways of publishing are not used: one waits for each message, the other loses the
errors that JetStream answers with. The connection does not reconnect by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import anyio
import msgspec
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import errors as js_errors
from nats.js.api import Header, StreamConfig

from engine.core.messages import in_order
from engine.network.failures import kind_cause

from .line import lost

CONNECT_S = 10.0
ANSWER_S = 30.0  # for one request, and for the acknowledgements of what is in flight
LOOK_S = 0.2  # at the connection: the library may end one without telling
IN_FLIGHT_MAX = 1000  # messages that JetStream has not acknowledged

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
_KINDS: dict[type[BaseException], str] = {
    js_errors.ServiceUnavailableError: "JetStream is not available",
    errors.NoRespondersError: "JetStream is not enabled",
    errors.AuthorizationError: "the credentials are wrong",
    TimeoutError: "it does not answer",
    errors.NoServersError: "no server can be reached",
}


class Refused(Exception):
    """JetStream did not take a message, for now; its code."""


class Unreachable(Exception):
    """What the library says of no server is less than what it says of the last one it tried."""


FAILURES = (errors.Error, OSError, TimeoutError, ValueError, Refused, Unreachable)


class Post(NamedTuple):
    """A message to be published; `place` is its index in the batch, `whose` tells the provider's
    message that it is about."""

    place: int
    whose: Hashable
    subject: str
    event_id: str
    body: bytes


class _Error(msgspec.Struct):
    err_code: int


class _Answer(msgspec.Struct):
    stream: str = ""
    error: _Error | None = None


_answer = msgspec.json.Decoder(_Answer).decode


class _Client(Client):
    """The library's client, which leaves tasks behind where it cannot send what is pending."""

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._pending, self._pending_data_size = [], 0  # nobody waits for it any more
        await super()._close(status, do_cbs)


class Stream:
    """A connection to a stream."""

    def __init__(self, client: Client, name: str, content_type: str) -> None:
        self._client = client
        self._name = name
        self._headers = {Header.EXPECTED_STREAM.value: name, "content-type": content_type}
        self._inbox = client.new_inbox()
        self._waiting: dict[str, int] = {}  # where an answer is to go -> index in the batch
        self._refused: dict[int, int] = {}  # index -> JetStream's code
        self._heard = asyncio.Event()  # all have answered

    @property
    def alive(self) -> bool:
        return bool(self._client.is_connected)

    async def listen(self) -> None:
        await self._client.subscribe(f"{self._inbox}.*", cb=self._hear)

    async def publish(self, posts: Sequence[Post]) -> dict[int, str]:
        """The causes, by index, of what can never be taken. Raises one of `FAILURES`."""
        rejected: dict[int, str] = {}
        for some in in_order(posts, lambda post: post.whose, IN_FLIGHT_MAX):
            rejected |= await self._publish(some)
        return rejected

    async def _publish(self, posts: Iterable[Post]) -> dict[int, str]:
        rejected: dict[int, str] = {}
        refused: dict[int, int] = {}
        waiting: dict[str, int] = {}
        self._waiting, self._refused = waiting, refused
        self._heard.clear()
        for place, _, subject, event_id, body in posts:
            headers = {**self._headers, Header.MSG_ID.value: event_id}
            size = len(body) + sum(len(k) + len(v) + 4 for k, v in headers.items()) + 12
            if size > self._client.max_payload:  # the server would end the connection over it
                most = self._client.max_payload
                rejected[place] = f"too large: {size} bytes with its headers, max_payload is {most}"
                continue
            reply = f"{self._inbox}.{place}"
            waiting[reply] = place
            await self._client.publish(subject, body, reply=reply, headers=headers)
        async with asyncio.timeout(ANSWER_S):
            while waiting:
                with anyio.move_on_after(LOOK_S):
                    await self._heard.wait()
                if waiting and self._client.is_closed:
                    raise errors.ConnectionClosedError
        for index, code in refused.items():
            if code != _TOO_LARGE:
                raise Refused(code)
            rejected[index] = "too large: the stream's max_msg_size is smaller"
        return rejected

    async def _hear(self, answer: Msg) -> None:
        if answer.subject not in self._waiting:
            return
        said = _answer(answer.data) if answer.data else _Answer()
        index = self._waiting.pop(answer.subject)
        if said.error is not None:
            self._refused[index] = said.error.err_code
        elif said.stream != self._name:
            self._refused[index] = _NO_STREAM
        if not self._waiting:
            self._heard.set()


async def connect(
    closing: AsyncExitStack, servers: list[str], wanted: StreamConfig, content_type: str
) -> Stream:
    """To the stream `wanted.name`, made as wanted where there is none. Raises one of `FAILURES`."""
    trouble: list[Exception] = []

    async def note(error: Exception) -> None:
        trouble[:] = [error]  # the library's own log would name addresses

    client = _Client()
    closing.push_async_callback(client.close)
    try:
        await client.connect(
            servers, name="dlr-engine", connect_timeout=int(CONNECT_S),
            allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0, error_cb=note,
        )  # fmt: skip
    except errors.NoServersError as error:
        raise Unreachable(*trouble or [error]) from None
    jetstream = client.jetstream(timeout=ANSWER_S)
    try:
        await jetstream.stream_info(str(wanted.name))
    except js_errors.NotFoundError:
        await jetstream.add_stream(wanted)
    stream = Stream(client, str(wanted.name), content_type)
    await stream.listen()
    return stream


def cause(error: BaseException) -> str:
    """Of one of `FAILURES`, for people: never its own words, which may hold an address."""
    if isinstance(error, Unreachable):
        return cause(error.args[0])
    code = error.args[0] if isinstance(error, Refused) else getattr(error, "err_code", None)
    if code in _ANSWERS:
        return _ANSWERS[code]
    if (words := kind_cause(error, _KINDS)) is not None:
        return words
    if code is not None:
        return f"JetStream answers with its error {code}"
    return lost(error)
