"""Records to an HTTP endpoint, a JSON array a POST, signed as Standard Webhooks specify.

2xx means that the receiver has a batch. 408, 425, 429, 5xx and a broken connection mean later,
after `Retry-After` where there is one. Any other 4xx is a refusal for good. 400, 413 and 422 may be
about one record, or about too many at once: the batch is halved until what is refused stands alone,
though a receiver that refuses everything is not asked about each record. `webhook-id` follows from
the body: the same batch keeps it over every retry.

It must never follow a redirect, nor put the URL, a header or what the receiver said into an error.
"""

from __future__ import annotations

import contextlib
import hmac
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from aiolimiter import AsyncLimiter

from ..core.cloudevents import BATCH_CONTENT_TYPE, Envelope
from ..core.contracts import Batch, Head, Request
from ..core.errors import PartialWrite, SinkError
from ..core.messages import JSON, messages
from ..core.secret import Secret
from ..transport import Timeouts, Transport, TransportError
from ..windows import http_date_s, retry_after_s

PATIENCE_S = 30.0  # for a connection or the next byte; twice that in all
ANSWER_MAX = 64 << 10  # bytes of an answer that are read; none of them is kept
RETRY_AFTER_MAX_S = 3600.0  # a receiver's mistake must not silence it for longer
KEY_BYTES = range(24, 65)  # what Standard Webhooks ask for
REFUSALS_MAX = 40  # requests that may be refused while one batch's bad records are looked for

_LATER = frozenset({408, 425, 429})
_DIVISIBLE = frozenset({400, 413, 422})
_OURS = re.compile(r"(?ai)(webhook|content|transfer)-.*|host|connection|.*[^!#$%&'*+.^_`|~\w-].*|")


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most so many requests in so many seconds, evenly spread."""

    DURATIONS: ClassVar[frozenset[str]] = frozenset({"per"})
    requests: Annotated[int, msgspec.Meta(ge=1)]
    per: float


class WebhookOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`secret` is `whsec_` and base64; `headers` go with every request."""

    url: Secret
    secret: Secret
    limits: Pace | None = None
    headers: dict[str, Secret] = {}
    envelope: Envelope | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/\s]", self.url.reveal()):
            raise ValueError("url: expected a URL such as https://host/path")
        if len(_key(self.secret)) not in KEY_BYTES:
            raise ValueError("secret: expected whsec_ and the base64 of 24 to 64 bytes")
        if self.limits is not None and self.limits.per <= 0:
            raise ValueError("limits.per: expected more than nothing")
        if wrong := [name for name in self.headers if _OURS.fullmatch(name)]:
            raise ValueError(f"headers: {wrong[0]!r} is no name of a header, or not for you to set")


class WebhookSink:
    """Posts batches, one at a time."""

    name: ClassVar[str] = "webhook"
    Options: ClassVar[type[msgspec.Struct]] = WebhookOptions

    def __init__(self, options: WebhookOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._url, self._key = options.url, _key(options.secret)
        self._envelope, self._clock = options.envelope, clock
        kind = BATCH_CONTENT_TYPE if options.envelope else JSON
        own = [(name, value.reveal()) for name, value in options.headers.items()]
        self._headers = (*own, ("Content-Type", kind))
        self._limits = options.limits
        self._limiter: AsyncLimiter | contextlib.nullcontext[None] = contextlib.nullcontext()
        self._transport = Transport(ca_file=str(options.ca_file) if options.ca_file else None)
        self._is_open = False

    async def open(self) -> None:
        if not self._is_open:
            if self._limits is not None:  # one at a time: no burst, so no window holds more
                self._limiter = AsyncLimiter(1, self._limits.per / self._limits.requests)
            try:
                await self._transport.open()
            except OSError as error:
                raise SinkError(f"ca_file cannot be read: {error.strerror or error}") from error
            self._is_open = True
        # Whatever it answers, it is there; this asks for nothing and changes nothing.
        await self._ask(Request(method="OPTIONS", url=self._url.reveal()))

    async def close(self) -> None:
        self._is_open = False
        await self._transport.close()

    async def write(self, batch: Batch) -> None:
        pieces = dict(enumerate(batch.lines))
        rejected: dict[int, str] = {}
        if self._envelope:
            events, rejected = messages(batch.lines, self._envelope)
            pieces = {event.index: event.body for event in events}
        if pieces:
            await self._deliver(pieces, rejected)
        if rejected:
            raise PartialWrite(dict(sorted(rejected.items())))

    async def _deliver(self, pieces: dict[int, bytes], rejected: dict[int, str]) -> None:
        waiting, refusals = [list(pieces)], 0
        while waiting:
            chosen = waiting.pop()
            head = await self._post(b"[" + b",".join([pieces[index] for index in chosen]) + b"]")
            if 200 <= head.status < 300:
                continue
            if not 400 <= head.status < 500 or head.status in _LATER:
                raise SinkError(f"cannot post: {_said(head)}", retry_after_s=self._pause_s(head))
            refusals += head.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            if len(chosen) > 1 and head.status in _DIVISIBLE and refusals <= REFUSALS_MAX:
                middle = len(chosen) // 2
                waiting += [chosen[middle:], chosen[:middle]]  # the first half is next
            else:
                rejected |= dict.fromkeys(chosen, _said(head))

    async def _post(self, body: bytes) -> Head:
        mark, at = f"msg_{sha256(body).hexdigest()[:32]}", str(int(self._clock()))
        signed = hmac.digest(self._key, f"{mark}.{at}.".encode() + body, "sha256")
        signature = ("webhook-signature", f"v1,{b64encode(signed).decode()}")
        headers = (*self._headers, ("webhook-id", mark), ("webhook-timestamp", at), signature)
        return await self._ask(
            Request(method="POST", url=self._url.reveal(), headers=headers, json=body)
        )

    async def _ask(self, request: Request) -> Head:
        patience = Timeouts(PATIENCE_S, 2 * PATIENCE_S, ANSWER_MAX)
        try:
            async with self._limiter, self._transport.fetch("", request, patience) as answer:
                with contextlib.suppress(TransportError):  # the head has said it all
                    async for _ in answer.chunks():  # to its end, for the connection's sake
                        pass
                return answer.head
        except TransportError as error:
            raise SinkError(f"cannot post: {error.cause}") from None

    def _pause_s(self, head: Head) -> float | None:
        now = http_date_s(head.headers.get("date", "")) or self._clock()
        asked = retry_after_s(head.headers.get("retry-after"), now)
        return None if asked is None else min(asked, RETRY_AFTER_MAX_S)


def _said(head: Head) -> str:
    known = head.status in HTTPStatus.__members__.values()
    phrase = f" {HTTPStatus(head.status).phrase}" if known else ""
    return f"the receiver answers {head.status}{phrase}"


def _key(secret: Secret) -> bytes:
    """The key in a secret as Standard Webhooks write it; empty where it is none."""
    prefix, encoded = secret.reveal()[:6], secret.reveal()[6:]
    with contextlib.suppress(ValueError):
        return b64decode(encoded if prefix == "whsec_" else "", validate=True)
    return b""
