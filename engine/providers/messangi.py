"""Messangi: the message log of version 3, read by time of sending, all channels or one.

https://docs.messangi.com/docs/reporting

The log has no pages and no message id. An answer says in `pagination.total` how many messages the
window holds; where fewer came, or the words in `explain` say that it is too much, a narrower
window is the only way. A message is known by its channel, sender, recipient, time and direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec
import orjson
from msgspec.structs import replace

from ..core.contracts import (
    RECIPIENT_FIELDS,
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
from ..core.report import Report, msisdn
from ..core.secret import Secret
from ..core.units import MS_MAX, iso, parse_ms
from ..parsing.flaw import FLAW_RAW_MAX
from ..parsing.json_items import JsonItems
from . import messangi_export
from .messangi_quick import AtOnce, Reading
from .messangi_states import meaning

CHANNELS: Mapping[str, str] = {"S": "sms", "E": "email", "P": "push", "W": "whatsapp", "R": "rcs"}
PHONE_CHANNELS = frozenset({"sms", "whatsapp", "rcs"})  # the recipient is a telephone number

# Letters of `pretty=false`. There is no q; what a new letter means is not guessed.
LETTERS: Mapping[str, str] = {
    "a": "channel", "b": "sender", "c": "recipient", "d": "date", "e": "recipient_email",
    "f": "recipient_phone", "g": "owner", "h": "user", "i": "campaignid", "j": "status",
    "k": "statusdate", "l": "content", "m": "user_id", "n": "reply_to", "o": "connector_id",
    "p": "agent_id", "r": "platform", "s": "subject", "t": "direction", "u": "subscriberid",
    "v": "template_id", "w": "template_params", "sd": "statusdescription",
}  # fmt: skip

# The exported file has the same names in other capitals, some behind "items.".
LONG_NAMES = frozenset(LETTERS.values())

FILTERS = ("recipient", "campaignID", "sender", "status")

DAY_MS = 86_400_000
SAID_MAX = 200  # characters of the provider's own words in a cause
RAW_MAX = FLAW_RAW_MAX  # bytes of a record that is set aside
STATUS_MAX = 64  # characters of a status that are looked up; twice the longest name
CLOCK_MIN_MS = 980_000_000_000  # a provider's clock that shows less than 2001 is none

# The log refuses more than 92 days, and speaks of "less than 92" too. Of rates it says only that
# there are some (429): two requests a second, one after the other, is a guess on the safe side.
TRAITS = Traits(
    feed="windowed",
    dated=True,
    sent_at_stays=True,
    window_max_ms=91 * DAY_MS,
    window_min_ms=1,
    channels=tuple(CHANNELS),
    limits=(Limit(2, 1.0),),
    concurrency=1,
    rescan_s=(300.0, 1800.0, 7200.0, 18000.0, 86400.0, 172800.0, 432000.0),
    interval_s=60.0,
    idle_interval_s=60.0,
    overlap_s=600.0,
    lookback_s=7 * 86400.0,
    recipient_fields=RECIPIENT_FIELDS | {"c", "e", "f"},
    sender_fields=frozenset({"sender", "b"}),
    files=messangi_export.WHAT,
)

_TOO_BIG = re.compile(r"too big|date range exceeds", re.IGNORECASE)
_REFUSED = re.compile(r"authenti|authori[sz]|credential|token|forbidden", re.IGNORECASE)
# URLs, credentials behind their scheme, and unbroken runs as long as keys are.
_PRIVATE = re.compile(r"https?://\S+|(?<=bearer )\S+|(?<=basic )\S+|[\w+/=.~-]{32,}", re.IGNORECASE)


class MessangiOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration keys that only this provider has."""

    login_url: str | None = None
    username: str | None = None
    password: Secret | None = None
    channels: tuple[str, ...] | None = None
    pretty: bool = True
    filters: dict[str, str] = {}


class Messangi:
    """`GET /v3/mlog`."""

    name: ClassVar[str] = "messangi"
    Options: ClassVar[type[msgspec.Struct]] = MessangiOptions

    def __init__(self, options: MessangiOptions, context: Context) -> None:
        if faults := _faults(options):
            raise ValueError("\n".join(faults))
        self.options = options
        self.context = context
        read = tuple(dict.fromkeys(options.channels or ()))
        self.traits = replace(TRAITS, read_channels=read)
        self._at_once = AtOnce(LETTERS, CHANNELS)

    def request(self, poll: Poll, token: str | None = None) -> Request:
        from_ms, to_ms = poll.from_ms, poll.to_ms
        if poll.kind is Kind.PROBE:
            from_ms, to_ms = poll.now_ms - 1000, poll.now_ms
        if from_ms is None or to_ms is None:
            raise ValueError("messangi is asked for windows alone")
        to_ms = max(to_ms, from_ms + 1)  # `to` has to be after `from`
        params = [
            ("from", iso(from_ms)),
            ("to", iso(to_ms)),
            ("pretty", "true" if self.options.pretty else "false"),
        ]
        if poll.channel:
            params.append(("channel", poll.channel))
        headers = [("Accept", "application/json")]
        if token is not None:
            headers.append(("Authorization", token))
        return Request(
            path="/v3/mlog",
            params=(*params, *self.options.filters.items()),
            headers=tuple(headers),
        )

    def reader(self, poll: Poll, head: Head) -> Reader:
        reader = _Reader(self.options, self.context, poll, head, self._at_once)
        if poll.kind is Kind.FILE:
            return messangi_export.ExportReader(reader.read, long_names)
        return reader

    def lists(self, report: Report) -> bool:
        return meaning(report.channel, (report.provider_status or "")[:STATUS_MAX]).listed

    def login(self) -> Request | None:
        """The answer has no body: the token, good for a day, is in a header."""
        if self.options.login_url is None or self.options.password is None:
            return None
        who = {"username": self.options.username, "password": self.options.password.reveal()}
        return Request(method="POST", url=self.options.login_url, json=orjson.dumps(who))

    def token(self, head: Head, body: bytes) -> str | None:
        if not 200 <= head.status < 300:
            return None
        return head.headers.get("authorization", "").strip() or None


class _Reader:
    """Reads `{"meta": {"timestamp", "explain"}, "pagination": {"total"}, "items": […]}`."""

    def __init__(
        self, options: MessangiOptions, context: Context, poll: Poll, head: Head, at_once: AtOnce
    ) -> None:
        time = partial(time_of, zone=context.timezone)
        reading = Reading(self.read, time, poll.reference, context.content)
        self._items = JsonItems("items")
        self._items.offer(partial(at_once.reports, reading=reading))
        self._at_once = at_once
        self.parser: Parser = self._items
        self._password = options.password.reveal() if options.password else ""
        self._logs_in = options.login_url is not None
        self._content = context.content
        self._zone = context.timezone
        self._reference = poll.reference
        self._status = head.status
        self._keys: tuple[str, ...] = ()
        self._names: tuple[str, ...] = ()
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
                continue
            found = self.read(record) if isinstance(record, dict) else "not an object"
            if isinstance(found, str):
                raw, place = json_of(record), f"record {self._seen}"
                self._flaws.append(Flaw(found, place, raw[:RAW_MAX], len(raw) > RAW_MAX))
            else:
                taken.append(found)
                read.append(record)
        if read:
            self._at_once.learn(read)
        return taken

    def read(self, record: dict[str, Any]) -> Report | str:
        """The report, or why there is none."""
        rest = record.copy() if "channel" in record else self._named(record)
        take = rest.pop
        letter = (text_of(take("channel", None)) or "").strip().upper()
        channel = CHANNELS.get(letter)
        if channel is None:
            # Causes are logged: a channel is a letter, what is longer may be anybody's number.
            return f"unknown channel {letter[:3]!r}" if letter else "no channel"
        recipient = text_of(take("recipient", None))
        date = take("date", None) or None
        if recipient is None and date is None:
            return "neither recipient nor date"
        sender = text_of(take("sender", None))
        sent_at, sent_ms = time_of(date, self._zone)
        if sent_at is None and date is not None:
            rest["date"] = date  # unreadable: it stays as it came
        statusdate = take("statusdate", None) or None
        done_at = time_of(statusdate, self._zone)[0]
        if done_at is None and statusdate is not None:
            rest["statusdate"] = statusdate
        direction = take("direction", None)
        if direction != "O" and direction != "I":
            given, direction = direction, (text_of(direction) or "O").strip().upper()
            if direction != "O" and direction != "I":
                rest["direction"] = given
        status = text_of(take("status", None))
        means = meaning(channel, status and status[:STATUS_MAX])
        content = take("content", None)
        number = recipient and recipient.removeprefix("+")
        when = text_of(date) if sent_ms is None else sent_ms
        identity = orjson.dumps((letter, sender, number, when, direction))
        return Report(
            channel=channel,
            direction="mo" if direction == "I" else "mt",
            message_id=blake2b(identity, digest_size=16).hexdigest(),
            reference=self._reference,
            campaign_id=text_of(take("campaignid", None)),
            sender=sender,
            recipient=recipient,
            msisdn=msisdn(number) if channel in PHONE_CHANNELS else None,
            state=means.state,
            final=means.final,
            provider_status=status,
            provider_status_text=text_of(take("statusdescription", None)),
            reason=means.reason,
            sent_at=sent_at,
            done_at=done_at,
            content=text_of(content) if self._content else None,
            subject=text_of(take("subject", None)),
            extra=rest,
        )

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record under long names; an answer's records mostly have the same keys."""
        keys = tuple(record)
        if keys != self._keys:
            self._keys, self._names = keys, long_names(keys)
        return dict(zip(self._names, record.values(), strict=True))

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = self.parser.take_flaws() + self._flaws, []
        return flaws

    def outcome(self) -> Outcome:
        items = self._items
        said = explanation(items.envelope)
        too_big = _TOO_BIG.search(said) is not None
        said = self._presentable(said)
        if self._status == 401 and self._logs_in:
            return Outcome(verb=Verb.LOGIN, cause=f"HTTP 401: {said or 'the token has run out'}")
        if too_big and self._status not in (401, 429):
            return Outcome(verb=Verb.SPLIT, cause=said)
        if (bad := outcome_of_status(self._status, said)) is not None:
            return bad
        if not items.complete:
            return Outcome(verb=Verb.RETRY, cause=items.cause or "the answer was cut short")
        total = count_of(_inner(items.envelope, "pagination").get("total"))
        if not items.found and (said or total != 0):
            return self._without_items(said)
        clock = count_of(_inner(items.envelope, "meta").get("timestamp"))
        sane = clock is not None and CLOCK_MIN_MS < clock <= MS_MAX
        return Outcome(total=total, server_ms=clock if sane else None)

    def _without_items(self, said: str) -> Outcome:
        """A refusal may come under HTTP 200: no items, and words."""
        if not said:
            return Outcome(verb=Verb.RETRY, cause=self._items.cause or "no items in the answer")
        if _REFUSED.search(said):
            return Outcome(verb=Verb.LOGIN if self._logs_in else Verb.PAUSE, cause=said)
        return Outcome(verb=Verb.RETRY, cause=said)

    def _presentable(self, said: str) -> str:
        """The provider's words, fit for a log line: bounded, printable, nothing private."""
        if self._password:
            said = said.replace(self._password, "***")
        said = _PRIVATE.sub("***", said)[:SAID_MAX]
        return "".join(c if c.isprintable() else " " for c in said).strip()


def explanation(envelope: Mapping[str, Any]) -> str:
    """What the answer says in words. `explain` may be JSON in a string: its `reason` then."""
    for place in (_inner(envelope, "meta"), envelope):
        for key in ("explain", "message", "error"):
            said = place.get(key)
            if isinstance(said, str) and said.lstrip().startswith("{"):
                try:
                    said = orjson.loads(said)
                except orjson.JSONDecodeError:
                    return said
            if isinstance(said, dict):
                said = said.get("reason") or said.get("message") or said
            if words := text_of(said):
                return words
    return ""


def long_names(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of a letters' record, or of the exported file, as `pretty=true` names them.

    Each name is given once, so that no field hides another.
    """
    named: dict[str, None] = {}
    for key in keys:
        name = LETTERS.get(key) or key.strip().removeprefix("items.").lower()
        named[name if name in LONG_NAMES and name not in named else key] = None
    return tuple(named) if len(named) == len(keys) else keys


def time_of(value: object, zone: tzinfo = UTC) -> tuple[str | None, int | None]:
    """A time as the record writes it, and as epoch ms; (None, None): it cannot be read.

    What the log writes is the record's own spelling, which saves writing it again. The pages
    print the mask with a hyphen before the T.
    """
    if not isinstance(value, str):
        return None, None
    if (
        len(value) == 24 and value[23] == "Z" and value[19] == "." and value[10] == "T"
        and value[7] == "-" and value[13] == ":" and value[11:13] < "24"
    ):  # fmt: skip
        try:
            return value, round(datetime.fromisoformat(value).timestamp() * 1000)
        except ValueError:
            return None, None
    ms = parse_ms(value.strip().replace("-T", "T", 1), zone)
    return (None, None) if ms is None else (iso(ms), ms)


def _inner(envelope: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = envelope.get(key)
    return value if isinstance(value, dict) else {}


def _faults(options: MessangiOptions) -> list[str]:
    faults = unknown_filters(options.filters, FILTERS)
    login = {
        "login_url": options.login_url,
        "username": options.username,
        "password": options.password and options.password.reveal(),
    }
    missing = [key for key, value in login.items() if not value]
    if 0 < len(missing) < len(login):
        faults.extend(
            f"{key}: missing; login_url, username and password go together" for key in missing
        )
    if options.login_url and not options.login_url.startswith(("http://", "https://")):
        faults.append("login_url: expected a URL that begins with https:// or http://")
    if options.channels is not None and not options.channels:
        faults.append("channels: expected at least one of S, E, P, W, R")
    for n, letter in enumerate(options.channels or ()):
        if letter not in CHANNELS:
            faults.append(f'channels[{n}]: expected one of S, E, P, W, R, got "{letter}"')
    return faults
