"""Records to an HTTP endpoint, a JSON array a POST, signed as Standard Webhooks specify.

2xx means that the receiver has a batch. 408, 425, 429, 5xx and a broken connection mean later,
after `Retry-After` where there is one. Any other 4xx is a refusal for good. 400, 413 and 422 may be
about one record, or about too many at once: the batch is halved until what is refused stands alone,
though a receiver that refuses everything is not asked about each record. A batch that is offered
again goes on with what is left of it: at a slow pace to find what is refused may take longer than a
sink is waited for. The same piece keeps its `webhook-id` over every retry. What the receiver says
is in no error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import msgspec

from engine.core.windows import http_date_s, retry_after_s

from ..core.cloudevents import BATCH_CONTENT_TYPE, Envelope
from ..core.contracts import Batch, Head
from ..core.errors import PartialWrite, SinkError
from ..core.http import is_http_url
from ..core.messages import JSON, messages
from ..core.secret import Secret
from ..core.standard_webhooks import signature_headers, signing_key
from ..targets.endpoint import Endpoint

RETRY_AFTER_MAX_S = 3600.0  # a receiver's mistake must not silence it for longer
REFUSALS_MAX = 40  # requests that may be refused while one batch's bad records are looked for

_LATER = frozenset({408, 425, 429})
_DIVISIBLE = frozenset({400, 413, 422})
_MOVED = frozenset({301, 302, 303, 307, 308})
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
        url = self.url.reveal()
        if not is_http_url(url) or re.search(r"\s", urlsplit(url).netloc.rpartition("@")[2]):
            raise ValueError("url: expected a URL such as https://host/path")
        signing_key(self.secret)
        if self.limits is not None and self.limits.per <= 0:
            raise ValueError("limits.per: expected more than nothing")
        if wrong := [name for name in self.headers if _OURS.fullmatch(name)]:
            raise ValueError(f"headers: {wrong[0]!r} is no name of a header, or not for you to set")
        for name, value in self.headers.items():
            if any(c != "\t" and not c.isprintable() for c in value.reveal()):
                raise ValueError(f"headers: {name} holds characters that a header cannot have")


class _Delivery:
    """What is left of a batch, and what was refused of it."""

    def __init__(self, lines: Sequence[bytes], envelope: Envelope | None) -> None:
        self.lines = lines
        self.pieces = dict(enumerate(lines))
        self.rejected: dict[int, str] = {}
        if envelope:
            events, self.rejected = messages(lines, envelope)
            self.pieces = {event.index: event.body for event in events}
        # What goes in one post each; the last is next.
        self.waiting = [list(self.pieces)] if self.pieces else []
        self.refusals = 0


class WebhookSink:
    """Posts batches, one at a time."""

    name: ClassVar[str] = "webhook"
    Options: ClassVar[type[msgspec.Struct]] = WebhookOptions

    def __init__(self, options: WebhookOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._options, self._clock = options, clock
        self._key = signing_key(options.secret)
        kind = BATCH_CONTENT_TYPE if options.envelope else JSON
        own = [(name, value.reveal()) for name, value in options.headers.items()]
        self._headers = (*own, ("Content-Type", kind))
        pace = options.limits
        gap_s = None if pace is None else pace.per / pace.requests
        self._endpoint = Endpoint(options.url, gap_s=gap_s, ca_file=options.ca_file)
        self._begun: _Delivery | None = None  # a batch that was not taken to its end

    async def open(self) -> None:
        # Whatever it answers, it is there; this asks for nothing and changes nothing.
        await self._endpoint.ask("OPTIONS")

    async def close(self) -> None:
        await self._endpoint.close()

    async def write(self, batch: Batch) -> None:
        if self._begun is None or self._begun.lines != batch.lines:
            self._begun = _Delivery(batch.lines, self._options.envelope)
        delivery = self._begun
        while delivery.waiting:
            await self._deliver_next(delivery)
        self._begun = None
        if delivery.rejected:
            raise PartialWrite(delivery.rejected)

    async def _deliver_next(self, delivery: _Delivery) -> None:
        chosen = delivery.waiting[-1]
        body = b"[" + b",".join([delivery.pieces[index] for index in chosen]) + b"]"
        head = await self._post(body)
        taken, refused = 200 <= head.status < 300, 400 <= head.status < 500
        if not taken and (not refused or head.status in _LATER):
            raise SinkError(f"cannot post: {_said(head)}", retry_after_s=self._pause_s(head))
        delivery.waiting.pop()
        if taken:
            return
        delivery.refusals += head.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        seek = head.status in _DIVISIBLE and delivery.refusals <= REFUSALS_MAX
        if len(chosen) > 1 and seek:
            middle = len(chosen) // 2
            delivery.waiting += [chosen[middle:], chosen[:middle]]  # the first half is next
        else:
            delivery.rejected |= dict.fromkeys(chosen, _said(head))

    async def _post(self, body: bytes) -> Head:
        signed = signature_headers(self._key, body, int(self._clock()))
        return await self._endpoint.ask("POST", (*self._headers, *signed), body)

    def _pause_s(self, head: Head) -> float | None:
        now = http_date_s(head.headers.get("date", "")) or self._clock()
        asked = retry_after_s(head.headers.get("retry-after"), now)
        return None if asked is None else min(asked, RETRY_AFTER_MAX_S)


def _said(head: Head) -> str:
    phrase = next((f" {known.phrase}" for known in HTTPStatus if known == head.status), "")
    hint = "; no redirect is followed: name its target" if head.status in _MOVED else ""
    return f"the receiver answers {head.status}{phrase}{hint}"
