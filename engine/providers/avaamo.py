"""Avaamo: the SMS report of one agent, read by time of creation, in pages.

https://docs.avaamo.com/user-guide/ref/avaamo-platform-api-documentation/sms-reporting-api

An entry never says when its status changed, and a window is by `created_at`: that a message was
delivered shows only where the window it was created in is read again. Entries keep their `uuid`,
so reading one twice is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar, cast
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from ..core.contracts import (
    Context,
    Flaw,
    Head,
    Kind,
    Limit,
    Outcome,
    Parser,
    Poll,
    Reader,
    Request,
    Traits,
    Verb,
)
from ..core.fields import count_of, json_of, text_of, unknown_filters
from ..core.http import outcome_of_status
from ..core.report import Reason, Report, msisdn, msisdns
from ..core.secret import Secret
from ..core.state import FINAL, State
from ..core.units import MS_MAX, MS_MIN, iso, iso_texts, parse_ms
from ..parsing.flaw import FLAW_RAW_MAX
from ..parsing.json_decode import Misfit
from ..parsing.json_items import JsonItems
from ..parsing.json_shape import ID, SCALAR, TEXT, Shape

# The page's table of `sms_status`. `sent` is the carrier's word, not the handset's.
STATES: Mapping[str, State] = {
    "sent": State.ENROUTE,
    "delivered": State.DELIVERED,
    "failed": State.REJECTED,
    "undelivered": State.UNDELIVERABLE,
}

# The page's section "Error status" lists 17 failures without codes; what arrives is often the
# carrier's own wording of them (Twilio's). The first row of which all parts occur, in small
# letters and without quotation marks: queues before numbers, `From` before `To`.
REASONS: tuple[tuple[tuple[str, ...], Reason], ...] = (
    (("rate limit",), "quota"),
    (("queued messages",), "quota"),
    (("queue overflow",), "quota"),
    (("permission to send",), "routing"),
    (("enabled for the region",), "routing"),
    (("not currently reachable",), "routing"),
    (("unsubscribed",), "unsubscribed"),
    (("blacklist rule",), "unsubscribed"),
    (("same from and to",), "sender"),
    (("to and from number cannot be the same",), "sender"),
    (("from number", "not a valid"), "sender"),
    (("from phone number", "not a valid"), "sender"),
    (("number", "not a valid"), "invalid_recipient"),
    (("invalid message recipient",), "invalid_recipient"),
    (("unknown destination handset",), "invalid_recipient"),
    # A landline never takes a message; a carrier out of reach is the rarer half of this one.
    (("landline or unreachable carrier",), "invalid_recipient"),
    (("unreachable destination handset",), "unreachable"),
    (("blocked",), "blocked"),
    (("filtered",), "content"),
    (("content size exceeds",), "too_long"),
    (("body exceeds",), "too_long"),
    # Suspended is the gateway account behind the agent: nothing about this message.
    (("suspended",), "provider"),
    (("network congestion",), "provider"),
    (("unknown error",), "other"),
)
_QUOTES = re.compile("['\"`\u2018\u2019\u201c\u201d]")

FILTERS = ("status", "from_phone", "to_phone")

# The fields of an entry, in the order in which they come.
KINDS: Mapping[str, Any] = {
    "uuid": ID, "from_phone": TEXT, "to_phone": TEXT, "message": TEXT, "created_at": SCALAR,
    "sms_status": TEXT, "sms_status_response": TEXT,
}  # fmt: skip
STATUSES_MAX = 64  # of which it is kept what they mean; there are four

DAY_MS = 86_400_000
CLOCK_MIN_MS = 980_000_000_000  # a provider's clock that shows less than 2001 is none
SECONDS_USUAL = 1e11  # what is less, and no debt, needs no other look
PER_PAGE_MAX = 100  # the most that the sibling endpoints with the same envelope allow
SAID_MAX = 200  # characters of the provider's own words in a cause
RAW_MAX = FLAW_RAW_MAX  # bytes of a record that is set aside

# No rate is published for this interface: two requests a second are what two people clicking
# through the same report would make.
TRAITS = Traits(
    feed="windowed",
    sent_at_stays=True,
    tracks=frozenset({"message"}),
    window_max_ms=7 * DAY_MS,  # the span that the page recommends for every report
    window_min_ms=1000,
    paged=True,
    limits=(Limit(2, 1.0),),
    concurrency=2,
    rescan_s=(300.0, 1800.0, 7200.0, 18000.0, 86400.0, 172800.0, 432000.0),
    interval_s=60.0,
    idle_interval_s=60.0,
    overlap_s=600.0,
    lookback_s=7 * 86400.0,
)


class AvaamoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration keys that only this provider has."""

    agent_id: int | str
    access_token: Secret
    per_page: int = PER_PAGE_MAX
    filters: dict[str, str] = {}


class Avaamo:
    """`GET /api/v1/agents/{agent_id}/sms/report.json`."""

    name: ClassVar[str] = "avaamo"
    Options: ClassVar[type[msgspec.Struct]] = AvaamoOptions

    def __init__(self, options: AvaamoOptions, context: Context) -> None:
        faults = unknown_filters(options.filters, FILTERS)
        if not 1 <= options.per_page <= PER_PAGE_MAX:
            faults.append(f"per_page: expected 1 to {PER_PAGE_MAX}, got {options.per_page}")
        if not str(options.agent_id).strip():
            faults.append("agent_id: expected the agent's number")
        if not options.access_token.reveal():
            faults.append("access_token: is empty")
        if faults:
            raise ValueError("\n".join(faults))
        self.options = options
        self.context = context
        self.traits = TRAITS
        self._shape = Shape(KINDS, {})
        self._path = f"/api/v1/agents/{quote(str(options.agent_id).strip(), safe='')}"
        self._headers = (
            ("access-token", options.access_token.reveal()),
            ("Accept", "application/json"),
        )

    def request(self, poll: Poll, token: str | None = None) -> Request:
        """One page of a window. Both ends always go along: without them few entries come."""
        page, per_page = poll.page, self.options.per_page
        from_ms, to_ms = poll.from_ms, poll.to_ms
        if poll.kind is Kind.PROBE:
            from_ms, to_ms, page, per_page = poll.now_ms - 1000, poll.now_ms, 1, 1
        if from_ms is None or to_ms is None:
            raise ValueError("avaamo is asked for windows alone")
        return Request(
            path=f"{self._path}/sms/report.json",
            params=(
                ("from_timetoken", timetoken(from_ms)),
                ("to_timetoken", timetoken(to_ms)),
                ("page", str(page)),
                ("per_page", str(per_page)),
                *self.options.filters.items(),
            ),
            headers=self._headers,
        )

    def reader(self, poll: Poll, head: Head) -> Reader:
        return _Reader(self.options, self.context, poll, head, self._shape)

    def lists(self, report: Report) -> bool:
        return (report.provider_status or "").strip().lower() in STATES

    def login(self) -> Request | None:
        return None

    def token(self, head: Head, body: bytes) -> str | None:
        return None


class _Reader:
    """Reads `{"current_page", "total_entries", "total_pages", "time_token", "entries": […]}`."""

    def __init__(
        self, options: AvaamoOptions, context: Context, poll: Poll, head: Head, shape: Shape
    ) -> None:
        self._items = JsonItems("entries")
        self._items.offer(self._at_once)
        self._shape = shape
        self._alike: dict[str | None, Report] = {}
        self.parser: Parser = self._items
        self._secret = options.access_token.reveal()
        self._content = context.content
        self._zone = context.timezone
        self._poll = poll
        self._status = head.status
        self._sent_at = None if poll.sent_ms is None else iso(poll.sent_ms)
        self._seen = 0
        self._flaws: list[Flaw] = []

    def reports(self, records: Sequence[Any]) -> list[Report]:
        if set(map(type, records)) == {Report}:  # they came by the shortcut
            self._seen += len(records)
            return list(records)
        taken: list[Report] = []
        read: list[dict[str, Any]] = []
        for record in records:
            self._seen += 1
            if type(record) is Report:
                taken.append(record)
            elif not isinstance(record, dict):
                self._set_aside("not an object", record)
            elif message_id := text_of(record.get("uuid")):
                read.append(record)
                taken.append(self._report(message_id, record))
            else:
                self._set_aside("no uuid", record)
        if read:
            self._shape.learn(read)
        return taken

    def _at_once(self, raw: bytes) -> list[Report]:
        """The reports in an array whose records all have the usual fields and types."""
        shape = self._shape
        records = shape.decode(raw)
        ids, senders, to, contents, created, statuses, said = shape.columns(records, *KINDS)
        out = []
        for message_id, sender, recipient, digits, content, sent_at, status, words in zip(
            ids, senders, to, msisdns(to), contents if self._content else repeat(None),
            self._times(created), statuses, said, strict=False,
        ):  # fmt: skip
            report = replace(
                self._alike.get(status) or self._like(status),
                message_id=message_id,
                sender=sender or None,
                recipient=recipient or None,
                msisdn=digits,
                sent_at=sent_at,
                content=content or None,
            )
            if words:
                reason = report.reason and reason_of(words)
                report = replace(report, error_text=words, reason=reason)
            out.append(report)
        if shape.has_others:
            out = [replace(report, extra={}) for report in out]
            shape.add_others(records, [report.extra for report in out], {})
        return out

    def _like(self, status: str | None) -> Report:
        """What the reports of one status have in common."""
        if len(self._alike) >= STATUSES_MAX:
            self._alike.clear()
        like = self._report("", {"uuid": "", "sms_status": status})
        self._alike[status] = like
        return like

    def _times(self, created: Sequence[object]) -> Sequence[str | None]:
        """When they were sent."""
        if set(map(type, created)) == {float}:
            numbers = cast("Sequence[float]", created)
            if min(numbers) > 0 and max(numbers) < SECONDS_USUAL:  # as `epoch_ms` does it
                return iso_texts([round(value * 1_000_000) // 1000 for value in numbers])
        return [self._sent(value) for value in created]

    def _sent(self, created: object) -> str | None:
        """When it was sent; what cannot be read belongs into `extra`."""
        if created is None:
            return self._sent_at
        ms = epoch_ms(created)
        if ms is None and isinstance(created, str):
            ms = parse_ms(created.strip(), self._zone)
        if ms is None:
            raise Misfit
        return iso(ms)

    def _report(self, message_id: str, record: dict[str, Any]) -> Report:
        rest = record.copy()
        take = rest.pop
        del rest["uuid"]
        status = text_of(take("sms_status", None))
        said = text_of(take("sms_status_response", None))
        state = STATES.get(status.strip().lower(), State.UNKNOWN) if status else State.UNKNOWN
        failed = state is State.REJECTED or state is State.UNDELIVERABLE
        recipient = text_of(take("to_phone", None))
        content = take("message", None)
        created = take("created_at", None)
        created_ms = epoch_ms(created)
        if created_ms is None and isinstance(created, str):
            created_ms = parse_ms(created.strip(), self._zone)
        if created_ms is None and created is not None:
            rest["created_at"] = created  # unreadable: it stays as it came
        return Report(
            message_id=message_id,
            reference=self._poll.reference,
            sender=text_of(take("from_phone", None)),
            recipient=recipient,
            msisdn=msisdn(recipient),
            state=state,
            final=state in FINAL,
            provider_status=status,
            reason=reason_of(said) if failed else None,
            error_text=said,
            sent_at=self._sent_at if created_ms is None else iso(created_ms),
            content=text_of(content) if self._content else None,
            extra=rest,
        )

    def _set_aside(self, cause: str, record: object) -> None:
        raw = json_of(record)
        self._flaws.append(Flaw(cause, f"record {self._seen}", raw[:RAW_MAX], len(raw) > RAW_MAX))

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = self.parser.take_flaws() + self._flaws, []
        return flaws

    def outcome(self) -> Outcome:
        items = self._items
        said = self._said(items.envelope)
        if (bad := outcome_of_status(self._status, said)) is not None:
            return bad
        if not items.complete:
            return Outcome(verb=Verb.RETRY, cause=items.cause or "the answer was cut short")
        total = count_of(items.envelope.get("total_entries"))
        if not items.found and (said or total != 0):
            cause = f"no entries in the answer: {said or items.cause or 'nor a word why'}"
            refused = re.search(r"(?i)access.token|unauthori|credential|permission", said)
            return Outcome(verb=Verb.PAUSE if refused else Verb.RETRY, cause=cause)
        server_ms = epoch_ms(items.envelope.get("time_token"), nearest=True)
        return Outcome(
            total=total,
            page=count_of(items.envelope.get("current_page")),
            pages=count_of(items.envelope.get("total_pages")),
            server_ms=server_ms if server_ms is not None and server_ms > CLOCK_MIN_MS else None,
        )

    def _said(self, envelope: Mapping[str, Any]) -> str:
        """The provider's explanation, fit for a log line: bounded, printable, no token, no URL."""
        for key in ("error", "message", "errors"):
            if words := text_of(envelope.get(key)):
                words = re.sub(r"https?://\S+", "***", words.replace(self._secret, "***"))
                return "".join(c if c.isprintable() else " " for c in words[:SAID_MAX]).strip()
        return ""


def timetoken(ms: int) -> str:
    """Epoch ms as the seconds that the query takes: whole, or with three decimals."""
    seconds, rest = divmod(max(ms, 0), 1000)
    return f"{seconds}.{rest:03d}" if rest else str(seconds)


def epoch_ms(value: object, *, nearest: bool = False) -> int | None:
    """Epoch seconds, a number or its text, as epoch ms; None: no time.

    A time of an event is rounded down, as everywhere, but from the nearest microsecond: 0.001 is
    a little less than 1 ms as a float.
    """
    if type(value) is float and 0 < value < SECONDS_USUAL and not nearest:
        return round(value * 1_000_000) // 1000
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,12}(?:\.\d{1,12})?\s*", value, re.A):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not MS_MIN <= value * 1000 <= MS_MAX:
        return None
    return round(value * 1000) if nearest else round(value * 1_000_000) // 1000


def reason_of(said: str | None) -> Reason:
    """Why it failed, from the words of `sms_status_response`."""
    words = _QUOTES.sub("", said or "").lower()
    for parts, reason in REASONS:
        if parts[0] in words and parts[-1] in words:
            return reason
    return "other"
