"""Infobip: an account's delivery reports, each of which is handed out once.

https://www.infobip.com/docs/api/channels/sms/logs-and-status-reports/get-outbound-sms-message-delivery-reports

An answer is `{"results": [report, …]}`; failures carry one of two families of error bodies. A
report that was read is gone at the provider, also where it was asked for by id, and there is no
total and no cursor: a full page means that there may be more. The e-mail, push, RCS and MMS
endpoints, and the later versions of this one, use the same envelope with some fields renamed.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import tzinfo
from difflib import get_close_matches
from typing import Any, ClassVar, Final

import msgspec
from msgspec.structs import replace

from engine.core.contracts import (
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
from engine.core.http import outcome_of_status
from engine.core.report import Report, msisdn
from engine.core.secret import Secret
from engine.core.state import FINAL, State
from engine.core.units import iso
from engine.parsing.flaw import FLAW_RAW_MAX
from engine.parsing.json_items import JsonItems
from engine.providers.infobip_codes import ERROR_REASONS, STATE_REASONS, STATUS_REASONS
from engine.providers.infobip_fields import (
    error_of,
    explained,
    json_of,
    parts_of,
    plain,
    price_of,
    status_of,
    text_of,
    time_of,
)
from engine.providers.infobip_quick import AtOnce

# Bounds of `limit`, and the page that is given where none was asked for.
# https://www.infobip.com/docs/api/channels/sms/logs-and-status-reports/get-outbound-sms-message-delivery-reports
LIMIT_MAX: Final = 1000
_PAGE_DEFAULT: Final = 50

CHANNELS: Final = ("sms", "email", "push", "whatsapp", "rcs")
# How a report that names its channel spells it (Messages API, logs).
_CHANNELS: Final = {name.upper(): name for name in CHANNELS}

# Fields that the record has a place for; all others go into `extra`. The names that later versions
# and sister endpoints use instead (sender, destination, messageCount, mmsCount) are taken from
# there when the first name is missing.
_MAPPED: Final = frozenset({
    "bulkId", "messageId", "to", "from", "sentAt", "doneAt", "smsCount", "mccMnc", "callbackData",
    "price", "status", "error",
})  # fmt: skip

_NULL: Final = "null"  # mccMnc may be this text where it is not known

# BulkSMS's page is the only one to give a polling pattern by message age; reports here are kept
# for 48 hours, so what the last rungs still find are those that changed late.
_LADDER_S: Final = (300.0, 1800.0, 7200.0, 18_000.0, 86_400.0, 172_800.0, 432_000.0)

_CAUSE_MAX: Final = 300  # characters of the provider's words in a cause


class InfobipOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration keys that are this provider's own."""

    api_key: Secret | None = None
    username: str | None = None
    password: Secret | None = None
    authorization: Secret | None = None  # the header's whole value: IBSSO, Bearer, …
    limit: int = LIMIT_MAX
    drain: bool = True
    path: str = "/sms/1/reports"
    channel: str = "sms"


class Infobip:
    """One account. `base_url` is the account's own: `https://xxxxx.api.infobip.com`."""

    name: ClassVar[str] = "infobip"
    Options: ClassVar[type[msgspec.Struct]] = InfobipOptions

    def __init__(self, options: InfobipOptions, context: Context) -> None:
        if faults := _faults(options):
            raise ValueError("\n".join(faults))
        self._options = options
        self._zone = context.timezone
        authorization, self._secrets = _authorization(options)
        self._headers = (("Authorization", authorization), ("Accept", "application/json"))
        self._at_once = AtOnce(context.timezone)
        by_id = frozenset({"batch", "message"})
        # No rate is published for /sms/1/reports and /sms/3/reports. The sister /sms/1/logs and
        # most other reports and logs endpoints allow 120 requests a minute; spread evenly that
        # also passes a bucket of few tokens (infobip.com/docs, API fundamentals, rate limits).
        # Reports are kept for 48 hours and a page holds 1,000: looking every 10 s while they
        # come, and every minute while none do, stays far inside both.
        self.traits = Traits(
            channel=options.channel,
            feed="drained" if options.drain else None,
            one_time=True,
            dated=True,
            sent_at_stays=True,
            tracks=by_id,
            asks=frozenset() if options.drain else by_id,
            pushes=True,
            limits=(Limit(2, 1.0),),
            concurrency=1,
            ladder_s=_LADDER_S,
            interval_s=10.0,
            idle_interval_s=60.0,
        )

    def request(self, poll: Poll, token: str | None = None) -> Request:
        """All reports that wait, or those of one message or bulk; each is then handed out."""
        limit = ("limit", str(self._options.limit))
        params: tuple[tuple[str, str], ...]
        if poll.kind is Kind.FEED:
            params = (limit,)
        elif poll.kind is Kind.MESSAGE and poll.message_id:
            params = (("messageId", poll.message_id), limit)
        elif poll.kind is Kind.BATCH and poll.batch_id:
            params = (("bulkId", poll.batch_id), limit)
        elif poll.kind is Kind.PROBE and poll.nonce:
            # An id that no message has: a probe must not take a report away.
            params = (("messageId", poll.nonce), ("limit", "1"))
        else:
            raise ValueError(f"infobip has no request for {poll.kind} without its id")
        return Request(path=self._options.path, params=params, headers=self._headers)

    def reader(self, poll: Poll, head: Head) -> Reader:
        return _Reader(poll, head, self._options, self._zone, self._secrets, self._at_once)

    def lists(self, report: Report) -> bool:
        """A status is listed by its group: one of an unknown group leaves the state unknown."""
        return report.state is not State.UNKNOWN or report.provider_status is None

    def login(self) -> Request | None:
        return None

    def token(self, head: Head, body: bytes) -> str | None:
        return None


class _Reader:
    """One answer. Records are whatever stood in `results`, decoded and not checked."""

    def __init__(
        self,
        poll: Poll,
        head: Head,
        options: InfobipOptions,
        zone: tzinfo,
        secrets: tuple[str, ...],
        at_once: AtOnce,
    ) -> None:
        self._items = JsonItems("results")
        if poll.reference is None:  # else it stands beside what the reports of a message say
            self._items.offer(self._many)
        self.parser: Parser = self._items
        self._status = head.status
        self._pages = poll.kind in (Kind.FEED, Kind.BATCH)
        # A server that gives fewer than were asked for is still read to its end.
        self._page = min(options.limit, _PAGE_DEFAULT)
        self._channel = options.channel
        self._zone = zone
        self._secrets = secrets
        self._reference = poll.reference
        self._sent_at = None if poll.sent_ms is None else iso(poll.sent_ms)
        self._at_once = at_once
        self._count = 0
        self._flaws: list[Flaw] = []

    def reports(self, records: Sequence[Any]) -> list[Report]:
        if set(map(type, records)) == {Report}:  # they came by the shortcut
            self._count += len(records)
            return list(records)
        out: list[Report] = []
        usual: list[dict[str, Any]] = []
        for record in records:
            self._count += 1
            if type(record) is Report:
                out.append(record)
            elif (fault := _unusable(record)) is not None:
                self._set_aside(fault, record)
            else:
                usual.append(record)
                out.append(self._report(record))
        if usual:
            self._at_once.learn(usual)
        return out

    def _many(self, raw: bytes) -> list[Report]:
        return self._at_once.reports(raw, self._report, self._sent_at)

    def take_flaws(self) -> list[Flaw]:
        """What was set aside. An error page is no report gone wrong, so nothing of it is kept."""
        flaws = self._items.take_flaws()
        if not 200 <= self._status < 300 and not self._items.found:
            flaws = []
        flaws += self._flaws
        self._flaws = []
        return flaws

    def outcome(self) -> Outcome:
        items = self._items
        code, said = explained(items.envelope)
        code = None if code is None else self._line(code)
        failed = outcome_of_status(self._status, self._line(said))
        if failed is not None:
            return replace(failed, code=code)
        if not items.found or not items.complete or "requestError" in items.envelope:
            cause = said or items.cause or "no results in the answer"
            return Outcome(verb=Verb.RETRY, cause=self._line(cause), code=code)
        if self._pages and items.rows >= self._page:
            return Outcome(verb=Verb.MORE)
        return Outcome(verb=Verb.DONE)

    def _report(self, record: dict[str, Any]) -> Report:
        status = record.get("status")
        extra = {name: value for name, value in record.items() if name not in _MAPPED}
        state, name, text = status_of(status, extra)
        done_at = self._time("doneAt", record, extra)
        if status is None and record.get("seenAt") is not None:
            # A seen report: it has the same wrapper and no status.
            state = State.READ
            done_at = done_at or time_of(record["seenAt"], self._zone)
        error_code, error_text, permanent = error_of(record.get("error"), extra)
        reason = STATE_REASONS.get(state)
        if reason is not None:
            reason = ERROR_REASONS.get(error_code or "") or STATUS_REASONS.get(name or "") or reason
        price, currency = price_of(record.get("price"), extra)
        recipient = text_of(record, "to", extra, "destination")
        channel = extra.get("channel")
        return Report(
            provider="infobip",
            channel=(
                _CHANNELS.get(channel.upper(), self._channel)
                if type(channel) is str
                else self._channel
            ),
            message_id=plain(record.get("messageId")) or "",
            reference=self._reference_of(record, extra),
            batch_id=text_of(record, "bulkId", extra),
            sender=text_of(record, "from", extra, "sender"),
            recipient=recipient,
            msisdn=msisdn(recipient),
            state=state,
            final=state in FINAL,
            provider_status=name,
            provider_status_text=text,
            reason=reason,
            error_code=error_code,
            error_text=error_text,
            error_permanent=permanent,
            sent_at=self._time("sentAt", record, extra) or self._sent_at,
            done_at=done_at,
            parts=parts_of(record, extra),
            price=price,
            currency=currency,
            mcc_mnc=None if record.get("mccMnc") == _NULL else text_of(record, "mccMnc", extra),
            extra=extra,
        )

    def _time(self, name: str, record: dict[str, Any], extra: dict[str, Any]) -> str | None:
        """A time as the record writes it; one that cannot be read goes into `extra` as it is."""
        value = record.get(name)
        if value is None or value == "":
            return None
        time = time_of(value, self._zone)
        if time is None:
            extra[name] = value
        return time

    def _reference_of(self, record: dict[str, Any], extra: dict[str, Any]) -> str | None:
        """What `track` was told, else `callbackData`: opaque, mostly text, sometimes JSON."""
        data = record.get("callbackData")
        if data is None or data == "":
            return self._reference
        if self._reference is not None:
            if data != self._reference:
                extra["callbackData"] = data
            return self._reference
        return data if type(data) is str else json_of(data).decode()

    def _set_aside(self, cause: str, record: Any) -> None:
        raw = json_of(record)
        self._flaws.append(
            Flaw(cause, f"record {self._count}", raw[:FLAW_RAW_MAX], len(raw) > FLAW_RAW_MAX)
        )

    def _line(self, words: str) -> str:
        """The provider's words as a cause: one short line without a secret."""
        for secret in self._secrets:
            words = words.replace(secret, "***")
        line = "".join(char if char.isprintable() else " " for char in words[: 4 * _CAUSE_MAX])
        return " ".join(line.split())[:_CAUSE_MAX]


def _unusable(record: Any) -> str | None:
    """Why there is no report in a record."""
    if type(record) is not dict:
        return "not an object"
    if record.get("status") is None and record.get("receivedAt") is not None:
        return "an inbound message, not a report"
    message_id = plain(record.get("messageId"))
    return None if message_id and message_id.strip() else "no usable messageId"


def _authorization(options: InfobipOptions) -> tuple[str, tuple[str, ...]]:
    """The header's value, and all texts that must not come out again in a cause.

    https://www.infobip.com/docs/essentials/api-authentication
    """
    if options.api_key is not None:
        key = options.api_key.reveal()
        return f"App {key}", (key,)
    if options.authorization is not None:
        whole = options.authorization.reveal()
        return whole, (whole, *(part for part in whole.split()[1:] if len(part) > 3))
    password = options.password.reveal() if options.password is not None else ""
    basic = b64encode(f"{options.username}:{password}".encode()).decode()
    return f"Basic {basic}", (basic, password)


def _faults(options: InfobipOptions) -> list[str]:
    faults = []
    basic = options.username is not None or options.password is not None
    ways = [options.api_key is not None, basic, options.authorization is not None]
    if sum(ways) != 1:
        got = "none" if not any(ways) else "more than one"
        faults.append(
            "api_key: expected one way to log in (api_key, username with password,"
            f" or authorization), got {got}"
        )
    if basic and not options.username:
        faults.append("username: expected a name to go with password")
    if basic and ":" in (options.username or ""):
        faults.append("username: expected a name without a colon")
    if basic and (options.password is None or not options.password.reveal()):
        faults.append("password: expected one to go with username")
    for name in ("api_key", "authorization"):
        secret: Secret | None = getattr(options, name)
        if secret is not None and not _fits_header(secret.reveal()):
            faults.append(f"{name}: expected printable ASCII characters on one line")
    if not 1 <= options.limit <= LIMIT_MAX:
        faults.append(f"limit: expected 1 to {LIMIT_MAX}, got {options.limit}")
    if not re.fullmatch(r"/[!-~]+", options.path) or {"?", "#"} & set(options.path):
        faults.append(f'path: expected a path such as "/sms/1/reports", got {options.path!r}')
    if options.channel not in CHANNELS:
        near = get_close_matches(options.channel, CHANNELS, n=1, cutoff=0.0)[0]
        faults.append(f"channel: unknown name {options.channel!r}; the nearest one is {near!r}")
    return faults


def _fits_header(text: str) -> bool:
    return bool(text.strip()) and text.isascii() and text.isprintable()
