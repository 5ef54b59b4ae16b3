"""Messangi's records many at once: the same reports as one by one, at a fraction of the cost.

What a record says of its channel, direction, status and campaign is alike in many of them. Its
meaning is asked of the reader once, and looked up by the very bytes from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import orjson
from msgspec import Raw
from msgspec.structs import replace

from ..core.report import Report, msisdns
from ..core.units import iso_ms, utc_texts
from ..parsing.json_decode import Misfit, decode_value
from ..parsing.json_shape import ID, RAW, TEXT, Shape

# The fields that the record has a place for, by their long names.
_KINDS: Final[Mapping[str, Any]] = {
    "channel": RAW, "sender": TEXT, "recipient": ID, "date": TEXT, "campaignid": RAW,
    "status": RAW, "statusdate": TEXT, "content": TEXT, "subject": TEXT, "direction": RAW,
}  # fmt: skip
_KNOWN: Final = dict.fromkeys(
    (
        "statusdescription", "owner", "user", "connector_id", "agent_id", "platform", "template_id",
    ),
    RAW,
)  # fmt: skip
_DIFFERENT: Final = tuple(name for name, kind in _KINDS.items() if kind is not RAW)
# What is kept of meanings; beyond it all are forgotten.
_ALIKE_MAX: Final = 512

Time = tuple[str | None, int | None]  # as the record writes it, and in epoch ms


class Reading:
    """What the records of one answer have in common, and how they are read one by one."""

    def __init__(
        self,
        report: Callable[[dict[str, Any]], Report | str],
        time: Callable[[object], Time],
        reference: str | None,
        content: bool,
    ) -> None:
        self.report = report
        self.time = time
        self.reference = reference
        self.content = content


class AtOnce:
    """Reads an account's records by the many."""

    def __init__(self, letters: Mapping[str, str], channels: Mapping[str, str]) -> None:
        """`letters` are the long names by the short ones, `channels` the names by the letter."""
        short = {name: letter for letter, name in letters.items()}
        long = {name: name for name in short}
        self._letter_of = {name: letter for letter, name in channels.items()}
        self._spellings = (_Spelling(long, letters), _Spelling(short, letters))
        self._now = self._spellings[0]

    def learn(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Note which fields records have that were read one by one."""
        self._now = self._spellings["channel" not in records[-1]]
        self._now.shape.learn(records)

    def reports(self, raw: bytes, reading: Reading) -> list[Report]:
        """The reports of an array. Raises Misfit where they are for reading one by one."""
        now = self._now
        shape, alike = now.shape, now.alike
        records = shape.decode(raw)
        names = shape.names(RAW)
        columns = dict(zip(_DIFFERENT, shape.columns(records, *now.different), strict=True))
        to = columns["recipient"]
        numbers = [recipient.removeprefix("+") for recipient in to]
        sent, sent_ms = _times(columns["date"], reading)
        copies = shape.has_others
        out = []
        for raws, sender, recipient, number, digits, at, ms, done, content, subject in zip(
            shape.rows(records, *names), columns["sender"],
            to, numbers, msisdns(numbers), sent, sent_ms, _done(columns["statusdate"], reading),
            columns["content"], columns["subject"], strict=True,
        ):  # fmt: skip
            key = b",".join(raws)
            like = alike.get(key) or now.like(key, names, raws, reading)
            way = "I" if like.direction == "mo" else "O"
            identity = orjson.dumps(
                (self._letter_of[like.channel], sender or None, number, ms, way)
            )
            report = replace(
                like,
                message_id=blake2b(identity, digest_size=16).hexdigest(),
                reference=reading.reference,
                sender=sender or None,
                recipient=recipient,
                msisdn=like.msisdn and digits,
                sent_at=at,
                done_at=done,
                content=(content or None) if reading.content else None,
                subject=subject or None,
                extra=like.extra.copy() if copies else like.extra,
            )
            out.append(report)
        if copies:
            shape.add_others(records, [report.extra for report in out], now.names)
        return out


class _Spelling:
    """Records with long names, or with letters for them."""

    def __init__(self, name: Mapping[str, str], letters: Mapping[str, str]) -> None:
        # What `extra` calls the others.
        self.names: Mapping[str, str] = {} if name["channel"] == "channel" else letters
        self.shape = Shape(
            {name[long]: kind for long, kind in _KINDS.items()},
            {name[long]: kind for long, kind in _KNOWN.items()},
            never=lambda key: bool(self.names) and key not in letters and _named(key) in name,
        )
        self.different = tuple(name[long] for long in _DIFFERENT)
        self.alike: dict[bytes, Report] = {}

    def like(
        self, key: bytes, names: Sequence[str], raws: Sequence[Raw], reading: Reading
    ) -> Report:
        """What reports with these fields have in common; the digits only tell that it has some."""
        values = decode_value(b"[%b]" % b",".join(filter(None, raws)))
        given = [name for name, raw in zip(names, raws, strict=True) if raw]
        record = {
            self.names.get(name, name): value for name, value in zip(given, values, strict=True)
        }
        like = reading.report({**record, "recipient": "0"})
        # A direction that is neither way stays in `extra`, and is part of the message's id.
        if isinstance(like, str) or "direction" in like.extra:
            raise Misfit
        if len(self.alike) >= _ALIKE_MAX:
            self.alike.clear()
        self.alike[key] = like
        return like


def _named(key: str) -> str:
    """The long name that a key stands for where it is no letter."""
    return key.strip().removeprefix("items.").lower()


def _times(
    texts: Sequence[str | None], reading: Reading
) -> tuple[Sequence[str | None], Sequence[int | None]]:
    """Times as the record writes them, and in epoch ms."""
    if (times := utc_texts(texts, "Z")) is not None:
        return times, list(map(iso_ms, times))
    read = [reading.time(text) if text else (None, None) for text in texts]
    if any(text and time[0] is None for text, time in zip(texts, read, strict=True)):
        raise Misfit  # it belongs into `extra`
    return [text for text, _ in read], [ms for _, ms in read]


def _done(texts: Sequence[str | None], reading: Reading) -> Sequence[str | None]:
    times = utc_texts(texts, "Z")
    return _times(texts, reading)[0] if times is None else times
