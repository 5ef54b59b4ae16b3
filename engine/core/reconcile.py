"""What is known of a message, and what a further report makes of it.

One pure function, `fold`, decides for every report whether it is news, a repetition or one that
loses, and numbers what is news. The stores call it inside their transaction, so that polls,
pushes and files all end in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec
import orjson
from msgspec.structs import force_setattr

from .contracts import Traits
from .report import Report, decode, encode, event_id, msisdn
from .state import RECEIPT_CHANNELS, Standing, State, wins
from .units import iso, iso_ms

# Past entries kept of one message; a message that flaps more often forgets its oldest ones, but
# still counts them.
HISTORY_MAX = 64


class Known(msgspec.Struct, gc=False, array_like=True):
    """What is known of one message. Stores keep it as JSON: further fields go behind `place`.

    `record` is its newest record, empty before the first and where a store was not asked for it.
    """

    account: str
    message_id: str
    direction: str = "mt"
    revision: int = 0
    state: State = State.UNKNOWN
    final: bool = False
    open: bool = True  # a rescan may still change it
    verdict: str | None = None
    provider_status: str | None = None
    error_code: str | None = None
    status_ms: int | None = None
    sent_ms: int | None = None
    placed_ms: int | None = None  # where windows find it: when it was sent, inside what was asked
    seen_ms: int = 0  # when it last changed, or when it was tracked
    batch_id: str | None = None
    reference: str | None = None  # what `track` said, or the provider
    recipient: str | None = None
    tracked: bool = False
    history: bytes = b""
    event_id: str = ""  # of the newest record
    done_ms: int | None = None  # the newest record's own status time
    mark: int | None = None  # see `marks_of`
    place: tuple[int, int] | None = None  # of the newest record: log row, and index in it
    record: bytes = b""
    row: int | None = None  # the driver's own row number

    @property
    def report(self) -> Report | None:
        return decode(self.record) if self.record else None


# Marks are below this: the second of sending until 2106, or a batch's number.
MARKS = 1 << 32


def marks_of(
    reports: Sequence[Report], traits: Traits, sent_ms: Sequence[int | None]
) -> list[int | None]:
    """What every report of a message has in common besides its id, and neighbours share: the second
    of sending, or the batch. Stores keep what lies near together near together, so that ten
    million messages cost no more than none. None: this one has to be found by its id alone.
    `sent_ms` are the reports' `sent_at`.
    """
    if traits.derives_ids:
        return [batch_mark(one.batch_id) if one.batch_id is not None else None for one in reports]
    if not traits.sent_at_stays:
        return [None] * len(reports)
    return [ms // 1000 % MARKS if ms is not None else None for ms in sent_ms]


def batch_mark(batch_id: str) -> int:
    """Of a batch whose messages' ids follow from its own: its number, for these are given in
    order."""
    if batch_id.isascii() and batch_id.isdigit():
        return int(batch_id[-18:]) % MARKS
    return crc32(batch_id.encode())


class History(msgspec.Struct):
    """What a message went through before its newest record, and how often it entered a status."""

    entered: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    absorbed: list[str] = []  # identities of facts that only moved the status time on

    @staticmethod
    def of(known: Known) -> History:
        if known.history:
            return _decode_history(known.history)
        return History(entered={_status_key(known): 1} if known.revision else {})


_decode_history = msgspec.json.Decoder(History).decode
_encode_history = msgspec.json.Encoder().encode


class Fold(msgspec.Struct, gc=False):
    """The result of one report: at most one of `report`, which is to be recorded as it is now, and
    `lost`; neither for a repetition."""

    report: Report | None = None
    lost: bool = False

    @property
    def record(self) -> bytes:
        return encode(self.report) if self.report is not None else b""


NO_NEWS = Fold()


def _status_key(fact: Known | Report) -> str:
    return f"{fact.provider_status}|{fact.error_code}|{fact.verdict}"


def _lost_entry(report: Report) -> dict[str, Any]:
    """The line of a report that lost."""
    return {
        "revision": None,
        "event_id": report.event_id,
        "state": report.state.value,
        "final": report.final,
        "verdict": report.verdict,
        "provider_status": report.provider_status,
        "error_code": report.error_code,
        "done_at": report.done_at,
        "observed_at": report.observed_at,
        "superseded": True,
    }


def newest_entry(known: Known) -> dict[str, Any]:
    """The line of a message's newest record, once a newer one comes."""
    return {
        "revision": known.revision,
        "event_id": known.event_id,
        "state": known.state.value,
        "final": known.final,
        "verdict": known.verdict,
        "provider_status": known.provider_status,
        "error_code": known.error_code,
        "done_at": iso(known.done_ms) if known.done_ms is not None else None,
        "observed_at": iso(known.seen_ms),
        "superseded": False,
    }


def fold(
    known: Known,
    report: Report,
    *,
    provider: str,
    traits: Traits,
    observed_ms: int,
    observed_at: str | None = None,
    sent_ms: int | None = None,
    listed: bool = True,
    span: tuple[int, int] | None = None,
    replayed: bool = False,
    write: bool = True,
) -> Fold:
    """Take `report` into `known`, which is changed in place unless the report is no news.

    `report` is completed in place: it belongs to the caller no longer. `observed_at` is
    `observed_ms` written out and `sent_ms` the report's `sent_at`, for whoever has them.
    `replayed`: it was received at `observed_ms`, which may lie before what is known by now.
    `write`: put the record into `known`; who does not want that writes many at once.
    """
    status_ms = iso_ms(report.done_at) if report.done_at is not None else None
    t_ms = status_ms if traits.dated else None
    observed_at = observed_at or iso(observed_ms)
    count = 1
    if known.revision:
        if _no_news(known, report):
            _move_on(known, report, status_ms, t_ms)
            return NO_NEWS
        history = History.of(known)
        old = Standing(
            known.state,
            final=known.final and known.verdict is None,
            status_ms=known.status_ms,
        )
        new = Standing(report.state, final=report.final, status_ms=status_ms, listed=listed)
        older = replayed and observed_ms < known.seen_ms
        won = report.verdict is not None or wins(new, old, older=older)
        if _repeats(history, known, report, t_ms, won):
            return NO_NEWS
        if not won:
            _complete(known, report, provider, observed_at)
            force_setattr(report, "event_id", _identity(report, t_ms, 1))
            _remember(history, _lost_entry(report))
            known.history = _encode_history(history)
            return Fold(lost=True)
        _remember(history, newest_entry(known))
        key = _status_key(report)
        count = history.entered[key] = history.entered.get(key, 0) + 1
        known.history = _encode_history(history)
    _complete(known, report, provider, observed_at)
    force_setattr(report, "event_id", _identity(report, t_ms, count))
    if report.sent_at is not None:
        known.sent_ms = iso_ms(report.sent_at) if sent_ms is None else sent_ms
    _accept(known, report, traits, status_ms, observed_ms)
    if span is not None:
        stays = traits.sent_at_stays and known.revision > 1
        known.placed_ms = _place_in(span, known.sent_ms, known.placed_ms, stays=stays)
    elif traits.feed == "windowed" and known.placed_ms is None:
        known.placed_ms = known.sent_ms
    if write:
        known.record = encode(report)
    return Fold(report)


def _place_in(
    span: tuple[int, int], sent_ms: int | None, before_ms: int | None, *, stays: bool
) -> int:
    """Where windows find a message that was read in this span: a time of sending that is missing,
    or lies elsewhere, must not hide it from them. What was found in there before stays where it
    was, or the window that reads it would take it for gone. A span's end is not in its window but
    in the next one, which may never be read again."""
    first_ms, last_ms = span[0], max(span[0], span[1] - 1)
    for place_ms in (before_ms, sent_ms) if stays else (sent_ms, before_ms):
        if place_ms is not None and first_ms <= place_ms <= last_ms:
            return place_ms
    return min(max(sent_ms if sent_ms is not None else last_ms, first_ms), last_ms)


def _no_news(known: Known, report: Report) -> bool:
    """A report that says what is known already."""
    return (
        report.verdict is None
        and known.state is report.state
        and known.provider_status == report.provider_status
        and known.error_code == report.error_code
    )


def _move_on(known: Known, report: Report, status_ms: int | None, t_ms: int | None) -> None:
    """A later status time is noted all the same, and that this fact has been told."""
    if status_ms is None or (known.status_ms is not None and status_ms <= known.status_ms):
        return
    known.status_ms = status_ms
    if t_ms is not None:
        history = History.of(known)
        history.absorbed = [
            *history.absorbed[-HISTORY_MAX:],
            _identity_of(known.account, known, report, t_ms),
        ]
        known.history = _encode_history(history)


def _repeats(history: History, known: Known, report: Report, t_ms: int | None, won: bool) -> bool:
    """Whether this very fact was recorded, or has lost, before.

    A fact with a status time of its own is known by it. One without may come back honestly (a
    retry queued for the second time), so there only a loser is taken for a repetition.
    """
    if t_ms is not None:
        identity = _identity_of(known.account, known, report, t_ms)
        return identity in history.absorbed or any(
            entry["event_id"] == identity for entry in history.entries
        )
    return not won and any(
        entry["provider_status"] == report.provider_status
        and entry["error_code"] == report.error_code
        and entry["verdict"] is None
        and entry["done_at"] == report.done_at
        for entry in history.entries
    )


def _identity_of(account: str, known: Known, report: Report, t_ms: int) -> str:
    return event_id(
        account,
        known.message_id,
        known.direction,
        report.provider_status,
        report.error_code,
        report.verdict,
        t_ms,
    )


def _identity(report: Report, t_ms: int | None, count: int) -> str:
    return event_id(
        report.account,
        report.message_id,
        report.direction,
        report.provider_status,
        report.error_code,
        report.verdict,
        count if t_ms is None else t_ms,
    )


def _complete(known: Known, report: Report, provider: str, observed_at: str) -> None:
    """What the engine adds: whose report it is, when it was read, and what `track` said."""
    force_setattr(report, "account", known.account)
    force_setattr(report, "observed_at", observed_at)
    if report.provider != provider:
        force_setattr(report, "provider", provider)
    if known.reference is not None:
        force_setattr(report, "reference", known.reference)
    if report.sent_at is None and known.sent_ms is not None:
        force_setattr(report, "sent_at", iso(known.sent_ms))
    if report.batch_id is None and known.batch_id is not None:
        force_setattr(report, "batch_id", known.batch_id)
    if report.recipient is None and known.recipient is not None:
        force_setattr(report, "recipient", known.recipient)
        force_setattr(report, "msisdn", msisdn(known.recipient))


def _accept(
    known: Known, report: Report, traits: Traits, status_ms: int | None, observed_ms: int
) -> None:
    state, final = report.state, report.final
    known.revision += 1
    force_setattr(report, "revision", known.revision)
    known.state = state
    known.final = final
    known.verdict = report.verdict
    known.provider_status = report.provider_status
    known.error_code = report.error_code
    known.status_ms = known.done_ms = status_ms
    known.seen_ms = observed_ms
    known.event_id = report.event_id
    known.batch_id = report.batch_id
    known.recipient = report.recipient
    if report.reference is not None:
        known.reference = report.reference
    known.open = not final or (
        state is State.DELIVERED
        and traits.feed == "windowed"
        and report.channel in RECEIPT_CHANNELS
    )


def _remember(history: History, entry: dict[str, Any]) -> None:
    history.entries.append(entry)
    if len(history.entries) > HISTORY_MAX:
        losers = (i for i, past in enumerate(history.entries) if past["superseded"])
        del history.entries[next(losers, 0)]


def verdict(
    known: Known, *, channel: str = "sms", code: str | None = None, text: str | None = None
) -> Report:
    """The record that ends a message of which no final state was heard.

    `code` and `text` are the provider's cause, where it said that it does not know the message.
    """
    last = known.report
    if last is not None:
        kept = orjson.loads(known.record)
        kept.update(final=True, verdict="last_known")
        if code is not None:
            kept.update(error_code=code, error_text=text)
        return msgspec.convert(kept, Report)
    return Report(
        channel=channel,
        message_id=known.message_id,
        direction="mo" if known.direction == "mo" else "mt",
        state=State.UNKNOWN,
        final=True,
        verdict="never_reported",
        batch_id=known.batch_id,
        recipient=known.recipient,
        msisdn=msisdn(known.recipient),
        reference=known.reference,
        sent_at=iso(known.sent_ms) if known.sent_ms is not None else None,
        error_code=code,
        error_text=text,
    )
