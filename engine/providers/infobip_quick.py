"""Infobip's reports many at once: the same as one by one, at a quarter of the cost.

What a report says of its status, error, price and network is alike in many of them. Its meaning is
asked of the reader once, and looked up by the very bytes from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import tzinfo
from typing import Any, Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from engine.core.report import Report, msisdns
from engine.core.units import utc_texts
from engine.parsing.json_decode import Misfit, decode_value
from engine.parsing.json_shape import ID, OPTIONAL, RAW, TEXT, Shape
from engine.providers.infobip_fields import time_of

_KINDS: Final = {
    "bulkId": TEXT, "messageId": ID, "to": TEXT, "from": TEXT, "sentAt": TEXT, "doneAt": TEXT,
    "callbackData": TEXT, "status": RAW, "error": RAW,
}  # fmt: skip
_DIFFERENT: Final = tuple(name for name, kind in _KINDS.items() if kind is not RAW)
_KNOWN: Final = {
    "sender": OPTIONAL, "destination": OPTIONAL,
    **dict.fromkeys(
        (
            "smsCount", "messageCount", "mmsCount", "mccMnc", "price", "channel", "platform",
            "entityId", "applicationId",
        ),
        RAW,
    ),
}  # fmt: skip
# What says that it is no delivery report: such records are looked at one by one.
_NEVER: Final = frozenset({"seenAt", "receivedAt"})
# What is kept of meanings; beyond it all are forgotten.
_ALIKE_MAX: Final = 512

ToReport = Callable[[dict[str, Any]], Report]


class AtOnce:
    """Reads an account's reports by the many."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._shape = Shape(_KINDS, _KNOWN, never=_NEVER.__contains__)
        self._alike: dict[bytes, Report] = {}

    def learn(self, records: Sequence[dict[str, Any]]) -> None:
        """Note which fields records have that were read one by one."""
        self._shape.learn(records)

    def reports(self, raw: bytes, report: ToReport, sent_at: str | None) -> list[Report]:
        """The reports of an array; `report` makes one of a record, `sent_at` is for those that say
        nothing of it. Raises Misfit where they are for reading one by one."""
        shape = self._shape
        records = shape.decode(raw)
        bulks, ids, first, senders, sent, done, datas = shape.columns(records, *_DIFFERENT)
        if any(map(str.isspace, ids)):
            raise Misfit
        to = _either(first, shape.column(records, "destination"))
        names = shape.names(RAW)
        copies = shape.has_others
        out = []
        for raws, bulk_id, message_id, recipient, digits, sender, at, done_at, data in zip(
            shape.rows(records, *names), bulks, ids, to, msisdns(to),
            _either(senders, shape.column(records, "sender")),
            self._times(sent), self._times(done), datas, strict=True,
        ):  # fmt: skip
            key = b",".join(raws)
            like = self._alike.get(key) or self._like(key, names, raws, report)
            same = replace(
                like,
                message_id=message_id,
                reference=data or None,
                batch_id=bulk_id or None,
                sender=sender or None,
                recipient=recipient or None,
                msisdn=digits,
                sent_at=at or sent_at,
                done_at=done_at,
                extra=like.extra.copy() if copies else like.extra,
            )
            out.append(same)
        if copies:
            shape.add_others(records, [same.extra for same in out], {})
        return out

    def _like(
        self, key: bytes, names: Sequence[str], raws: Sequence[Raw], report: ToReport
    ) -> Report:
        """What reports with these fields have in common."""
        values = decode_value(b"[%b]" % b",".join(filter(None, raws)))
        given = [name for name, raw in zip(names, raws, strict=True) if raw]
        like = report(dict(zip(given, values, strict=True)))
        if len(self._alike) >= _ALIKE_MAX:
            self._alike.clear()
        self._alike[key] = like
        return like

    def _times(self, values: Sequence[str | None]) -> Sequence[str | None]:
        """Times as the record writes them."""
        if (times := utc_texts(values, "+0000")) is not None:
            return times
        read = [time_of(value, self._zone) if value else None for value in values]
        if any(value and time is None for value, time in zip(values, read, strict=True)):
            raise Misfit  # it belongs into `extra`
        return read


def _either(texts: Sequence[str | None], others: Iterable[Any] | None) -> Sequence[str | None]:
    """One field that has two names. A record with both is for reading by itself."""
    if others is None:
        return texts
    pairs = list(zip(texts, others, strict=True))
    if any(text is not None and other is not UNSET for text, other in pairs):
        raise Misfit
    return [text if other is UNSET else other for text, other in pairs]
