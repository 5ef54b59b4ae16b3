"""BulkSMS EAPI: reports of a batch, asked for again and again until each recipient has ended.

https://developer.bulksms.com/eapi/status_reports/get_report

An answer is text: a first line `code|words`, then a row `msisdn|status[|field…]` a recipient, the
fields in the order they were asked for. Failures come with HTTP 200 as well, in the first line.
The same numbers mean one thing there and another in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from difflib import get_close_matches
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote, quote_plus

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
from engine.core.report import Reason, Report
from engine.core.secret import Secret
from engine.core.state import FINAL, State
from engine.core.units import iso
from engine.parsing.pipe import PipeRows
from engine.providers.bulksms_push import PushReader
from engine.providers.bulksms_quick import Rows

PATH: Final = "/status_reports/get_report/2/2.0"

# Fields a row can carry besides msisdn and status code, as the page above lists them.
OPTIONAL_FIELDS: Final = (
    "body", "completed_time", "created_time", "credits", "origin_address", "source_id",
)  # fmt: skip

# Status codes of a row: state, the page's words, why it was not delivered.
# https://developer.bulksms.com/eapi/status_reports/get_report
_STATUSES: Final[dict[str, tuple[State, str, Reason | None]]] = {
    "0": (
        State.ACCEPTED,
        "In progress (a normal message submission, with no error encountered so far).",
        None,
    ),
    "10": (State.ENROUTE, "Delivered upstream", None),
    "11": (State.DELIVERED, "Delivered to mobile", None),
    "12": (
        State.ENROUTE,
        "Delivered upstream unacknowledged (assume message is in progress)",
        None,
    ),
    "22": (State.REJECTED, "Internal fatal error", "provider"),
    "23": (State.REJECTED, "Authentication failure", "provider"),
    "24": (State.REJECTED, "Data validation failed", "other"),
    "25": (State.REJECTED, "You do not have sufficient credits", "credit"),
    "26": (State.REJECTED, "Upstream credits not available", "credit"),
    "27": (State.REJECTED, "You have exceeded your daily quota", "quota"),
    "28": (State.REJECTED, "Upstream quota exceeded", "quota"),
    "29": (State.DELETED, "Message sending cancelled", "cancelled"),
    "31": (State.REJECTED, "Unroutable", "routing"),
    "32": (
        State.REJECTED,
        "Blocked (probably because of a recipient’s complaint against you)",
        "blocked",
    ),
    "33": (State.REJECTED, "Failed: censored", "content"),
    "40": (State.ENROUTE, "Temporarily unavailable", None),
    "50": (State.UNDELIVERABLE, "Delivery failed - generic failure", "other"),
    "51": (State.UNDELIVERABLE, "Delivery to phone failed", "unreachable"),
    "52": (State.UNDELIVERABLE, "Delivery to network failed", "provider"),
    "53": (State.EXPIRED, "Message expired", "expired"),
    "54": (State.UNDELIVERABLE, "Failed on remote network", "provider"),
    "55": (State.UNDELIVERABLE, "Failed: remotely blocked (variety of reasons)", "blocked"),
    "56": (
        State.UNDELIVERABLE,
        "Failed: remotely censored (typically due to content of message)",
        "content",
    ),
    "57": (State.UNDELIVERABLE, "Failed due to fault on handset (e.g. SIM full)", "device"),
    "60": (State.ENROUTE, "Transient upstream failure (transient)", None),
    "61": (State.ENROUTE, "Upstream status update (transient)", None),
    "62": (State.ENROUTE, "Upstream cancel failed (transient)", None),
    "63": (
        State.ENROUTE,
        "Queued for retry after temporary failure delivering (transient)",
        None,
    ),
    "64": (
        State.ENROUTE,
        "Queued for retry after temporary failure delivering, due to fault on handset (transient)",
        None,
    ),
    "70": (State.UNKNOWN, "Unknown upstream status", None),
}
_UNLISTED: Final = (State.UNKNOWN, None, None)

# Codes of the first line. What is in no row here (22, 26, 28, 40 and what is not documented) is
# asked again: giving up a batch for a code that nobody knows would lose its reports.
# https://developer.bulksms.com/eapi/status_reports/get_report (1000 and 1001: version 1.0 of it)
_SUCCESS: Final = frozenset({"0", "1000"})
_REFUSED: Final = {
    "23": (Verb.PAUSE, "Authentication failure"),
    "24": (Verb.ABSENT, "Data validation failed"),
    "1001": (Verb.ABSENT, "message not found"),
}

# The polling pattern which the page gives as its example.
_LADDER_S: Final = (300.0, 1800.0, 7200.0, 18_000.0, 86_400.0, 172_800.0, 432_000.0)

_CAUSE_MAX: Final = 200  # characters of the provider's words in a cause


class BulkSMSOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration keys that are this provider's own."""

    username: str
    password: Secret
    optional_fields: tuple[str, ...] = ()
    method: Literal["GET", "POST"] = "GET"


class BulkSMS:
    """One account of the EAPI. `base_url` ends before `/status_reports`, e.g. in `/eapi`."""

    name: ClassVar[str] = "bulksms"
    Options: ClassVar[type[msgspec.Struct]] = BulkSMSOptions

    def __init__(self, options: BulkSMSOptions, context: Context) -> None:
        if faults := _faults(options):
            raise ValueError("\n".join(faults))
        self._options = options
        # `body` may hold `|` and line ends, and nothing escapes them: only as the last column can
        # it be told from the fields around it.
        self._fields = tuple(sorted(options.optional_fields, key=lambda name: name == "body"))
        self._password = _spellings(options.password.reveal())
        self._content = context.content
        self._zone = context.timezone
        # "limit yourself to one concurrent connection" is what the EAPI pages ask for
        # (https://usa.bulksms.com/docs/eapi/submission/send_sms/). They publish no request rate:
        # five a second is our own guess at what one connection without haste would do.
        self.traits = Traits(
            interval_s=10.0,
            feed=None,
            tracks=frozenset({"batch"}),
            asks=frozenset({"batch"}),
            derives_ids=True,
            pushes=True,
            dated=False,
            limits=(Limit(5, 1.0),),
            concurrency=1,
            ladder_s=_LADDER_S,
        )

    def request(self, poll: Poll, token: str | None = None) -> Request:
        """One batch, or one recipient of it. A probe asks for batch 0, which never exists."""
        batch_id = "0" if poll.kind is Kind.PROBE else poll.batch_id
        if not batch_id:
            raise ValueError("bulksms is asked by batch id")
        params = [
            ("username", self._options.username),
            ("password", self._options.password.reveal()),
            ("batch_id", batch_id),
        ]
        if poll.recipient:
            params.append(("msisdn", poll.recipient))
        if self._fields:
            params.append(("optional_fields", ",".join(self._fields)))
        if self._options.method == "POST":
            return Request(method="POST", path=PATH, form=tuple(params))
        return Request(path=PATH, params=tuple(params))

    def reader(self, poll: Poll, head: Head) -> Reader:
        if poll.kind is Kind.PUSH:
            return PushReader(of_code, self._zone, head.status)
        return _Reader(poll, head, self._fields, self._password, self._zone, self._content)

    def lists(self, report: Report) -> bool:
        return report.provider_status in _STATUSES

    def login(self) -> Request | None:
        return None

    def token(self, head: Head, body: bytes) -> str | None:
        return None


class _Reader:
    """One answer. Rows are lists of strings: msisdn, code, then the fields asked for."""

    def __init__(
        self,
        poll: Poll,
        head: Head,
        fields: tuple[str, ...],
        password: tuple[str, ...],
        zone: tzinfo,
        content: bool,
    ) -> None:
        self._rows = PipeRows(2 + len(fields), open_last="body" in fields)
        self.parser: Parser = self._rows
        self._status = head.status
        self._password = password
        self._batch_id = poll.batch_id or "0"
        self._probing = poll.kind is Kind.PROBE
        self._reference = poll.reference
        self._sent_at = None if poll.sent_ms is None else iso(poll.sent_ms)
        self._many = Rows(self._like, self._batch_id, fields, zone, content=content)

    def reports(self, records: Sequence[Any]) -> list[Report]:
        header = self._rows.header
        if self._status != 200 or header is None or header[0] not in _SUCCESS:
            return []
        return self._many.reports(records)

    def take_flaws(self) -> list[Flaw]:
        """What was set aside. An error page is no report gone wrong, so nothing of it is kept."""
        flaws = self._rows.take_flaws()
        return flaws if self._status == 200 else []

    def outcome(self) -> Outcome:
        header = self._rows.header
        if self._status != 200:
            # Any other status is transient, say the EAPI pages; so a 401 too, which a proxy may
            # give: wrong credentials are code 23 under HTTP 200.
            words = f": {self._said(header[1])}" if header is not None else ""
            cause = f"HTTP {self._status}{words}"
            return Outcome(verb=Verb.RETRY, cause=cause, hold=self._status in (429, 503))
        if header is not None and header[0] not in _SUCCESS:
            code, words = header
            verb, meaning = _REFUSED.get(code, (Verb.RETRY, f"request status {code}"))
            if self._probing and verb is Verb.RETRY:
                verb = Verb.ABSENT  # it has answered, which is all that a probe wants to know
            return Outcome(verb=verb, cause=self._said(words) or meaning, code=code)
        if not self._rows.complete:
            return Outcome(verb=Verb.RETRY, cause=self._said(self._rows.cause or "not a report"))
        return Outcome(verb=Verb.DONE)

    def _like(self, code: str) -> Report:
        """What a code says of a row."""
        return replace(
            of_code(code),
            reference=self._reference,
            batch_id=self._batch_id,
            sent_at=self._sent_at,
        )

    def _said(self, words: str) -> str:
        """The provider's words as a cause: one short line without the password."""
        for spelling in self._password:
            words = words.replace(spelling, "***")
        line = "".join(char if char.isprintable() else " " for char in words)
        return line.strip(" |")[:_CAUSE_MAX]


def of_code(code: str) -> Report:
    """What a status code says of a message."""
    code = code.lstrip("0") or "0"
    state, text, reason = _STATUSES.get(code, _UNLISTED)
    return Report(
        provider="bulksms",
        message_id="",
        state=state,
        final=state in FINAL,
        provider_status=code,
        provider_status_text=text,
        reason=reason,
    )


def _spellings(password: str) -> tuple[str, ...]:
    """It was in the URL, and pages quote URLs; the longest first."""
    spellings = {password, quote(password), quote(password, safe=""), quote_plus(password)}
    return tuple(sorted(spellings, key=len, reverse=True))


def _faults(options: BulkSMSOptions) -> list[str]:
    faults = []
    if not options.username:
        faults.append("username: expected a name, got an empty one")
    if not options.password.reveal():
        faults.append("password: expected a password, got an empty one")
    seen: set[str] = set()
    for name in options.optional_fields:
        if name in seen:
            faults.append(f"optional_fields: {name!r} stands there twice")
        elif name not in OPTIONAL_FIELDS:
            near = get_close_matches(name, OPTIONAL_FIELDS, n=1, cutoff=0.0)[0]
            faults.append(f"optional_fields: unknown name {name!r}; the nearest one is {near!r}")
        seen.add(name)
    return faults
