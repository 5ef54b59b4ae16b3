"""Records into a Redis stream, an entry each, in its field `record`; at least once.

A batch goes out as one MULTI of XADDs, so Redis takes all of it or nothing. What its answer means
is for Redis's own configuration to say: the entries are in the server's memory; only with
`appendonly yes` and `appendfsync always` are they on its disk, too. A connection that failed or
was cancelled is dropped with whatever it still had to say; the next batch opens another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.network.failures import VERIFIED, kind_cause

from ..core.cloudevents import Envelope
from ..core.contracts import Batch
from ..core.errors import PartialWrite
from ..core.messages import Message, messages
from ..core.secret import Secret
from ..targets.line import Line, lost

CONNECT_S = 10.0
ANSWER_S = 30.0  # for each piece of an answer
ENTRIES_MAX = 1000  # in one MULTI: while it runs Redis serves nobody else
FIELD = b"record"
BODY_MAX = 512 << 20  # `proto-max-bulk-len` where the server does not tell: its default

_KINDS: dict[type[BaseException], str] = {
    exceptions.AuthenticationError: "the user name or password is wrong",
    exceptions.NoPermissionError: "this user may not write; allow PING, MULTI, EXEC and XADD on it",
    exceptions.OutOfMemoryError: "it is out of memory; raise maxmemory or set maxlen",
    exceptions.ReadOnlyError: "it is a read-only replica; name the master",
    exceptions.BusyLoadingError: "it is loading its data",
    exceptions.TimeoutError: "it does not answer",
    exceptions.MovedError: "another node of the cluster has the stream; name that one",
    exceptions.ClusterDownError: "its cluster is down",
}
_WORDS = {
    "WRONGTYPE": "the stream's key holds something else; name another",
    "MISCONF": "it cannot save to its disk and takes no writes; see its log",
    "NOREPLICAS": "too few of its replicas are there",
    "DB": "it has no database of this number",  # "DB index is out of range"
}


class RedisOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`maxlen` is about how many entries the stream keeps; None: all."""

    url: Secret
    stream: Annotated[str, msgspec.Meta(min_length=1)]
    maxlen: Annotated[int, msgspec.Meta(ge=1)] | None = None
    envelope: Envelope | None = None


class RedisSink:
    """Sends batches over one connection."""

    name: ClassVar[str] = "redis"
    Options: ClassVar[type[msgspec.Struct]] = RedisOptions

    def __init__(self, options: RedisOptions) -> None:
        try:
            parts, place = parse_url(options.url.reveal()), urlsplit(options.url.reveal())
        except (ValueError, TypeError):  # its words may hold a piece of the URL
            raise ValueError("url: expected redis://, rediss:// or unix://") from None
        # Any other path would be database 0, or one that nobody has named.
        if place.scheme != "unix" and not re.fullmatch(r"/?|/\d+/?", place.path):
            raise ValueError("url: expected the number of a database behind the host, as in /0")
        checks = (parts.get("ssl_cert_reqs", "required"), parts.get("ssl_check_hostname", True))
        if checks != ("required", True):
            raise ValueError(f"url: {VERIFIED}; ssl_ca_certs names the authority to trust")
        self._url = options.url
        self._stream = options.stream
        self._maxlen = options.maxlen
        self._envelope = options.envelope
        self._body_max = BODY_MAX
        self._line = Line(
            "cannot write to Redis", self._connect, (exceptions.RedisError, OSError), _cause
        )

    async def open(self) -> None:
        await self._line.use(self._append, [])

    async def write(self, batch: Batch) -> None:
        found, rejected = messages(batch.lines, self._envelope)
        if found:
            rejected |= await self._line.use(self._append, found)
        if rejected:
            await self._line.drop()  # what it takes is asked anew: a retry follows a change of that
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._line.drop()

    async def _append(self, redis: Redis, found: Sequence[Message]) -> dict[int, str]:
        """The causes of what is too large, by index."""
        large = {
            message.index: f"too large for Redis: {len(message.body)} bytes,"
            f" proto-max-bulk-len is {self._body_max}"
            for message in found
            if len(message.body) > self._body_max
        }
        bodies = [message.body for message in found if message.index not in large]
        for start in range(0, len(bodies), ENTRIES_MAX):
            async with redis.pipeline(transaction=True) as pipe:
                for body in bodies[start : start + ENTRIES_MAX]:
                    pipe.xadd(self._stream, {FIELD: body}, maxlen=self._maxlen, approximate=True)
                await pipe.execute()
        return large

    async def _connect(self, closing: AsyncExitStack) -> Redis:
        redis = Redis.from_url(
            self._url.reveal(),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),  # the dispatcher's to do
        )
        closing.push_async_callback(redis.aclose)
        await redis.ping()
        with suppress(exceptions.ResponseError):  # not everybody may ask
            told = await redis.config_get("proto-max-bulk-len")
            self._body_max = int(told.get("proto-max-bulk-len") or BODY_MAX)
        return redis


def _cause(error: Exception) -> str:
    """For people: never the error's own words, which may hold an address or a record."""
    if (words := kind_cause(error, _KINDS)) is not None:
        return words
    if isinstance(error, exceptions.ResponseError):
        said = re.search("[A-Z]{3,}", str(error).rpartition("caused error: ")[2])
        code = said[0] if said else "an error"
        return _WORDS.get(code, f"it answers {code}; see its documentation")
    return lost(error)
