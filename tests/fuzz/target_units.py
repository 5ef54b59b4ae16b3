"""Durations, sizes, times, telephone numbers and identities, read from any text."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from engine.core.fields import count_of, json_of, text_of
from engine.core.report import event_id, msisdn, recipient_key
from engine.core.units import (
    DURATION_MAX_S,
    MS_MAX,
    MS_MIN,
    SIZE_MAX,
    duration_s,
    iso,
    iso_ms,
    parse_ms,
    size_bytes,
    spell_duration,
    time_ms,
)
from engine.providers import avaamo, infobip_fields, messangi
from tests.fuzz.draw import Draw

LENGTH = 96
WORDS = (
    b"250ms", b"1.5s", b"5m", b"1d", b"64kB", b"1MiB", b"1GB", b"2026-11-01T00:00:00Z", b"+01:00",
    b"2019-11-09T16:00:00.000+0000", b"2023-07-28T13:46:51.144Z", b"2023-07-28-T", b"-W01-1",
    b"1780000000", b"0.5", b"e400", b"-", b"+44 (0)20 7946 0000", b"00", b"\xd9\xa1", b"\xc2\xb2",
)  # fmt: skip
ZONES = (UTC, ZoneInfo("Europe/Madrid"), ZoneInfo("Pacific/Apia"), ZoneInfo("America/New_York"))
SECONDS = {"ms": Decimal("0.001"), "s": 1, "m": 60, "h": 3600, "d": 86_400}
SIZES = {
    "": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def seeds() -> Iterator[bytes]:
    for word in WORDS:
        yield b"\x00\x00" + word
    for mode in range(1, 7):
        yield bytes([mode, 1, *range(3, 30)])


def check(data: bytes) -> None:
    draw = Draw(data)
    (_any_text, _duration, _size, _time, _offset_time, _identity, _number)[draw.byte() % 7](draw)


def _try(read: Any, value: object) -> Any:
    """What is read, or None where it is refused with the one error that refusing has."""
    try:
        return read(value)
    except ValueError:
        return None


def _any_text(draw: Draw) -> None:
    zone = draw.pick(ZONES)
    text = draw.rest().decode("utf-8", "replace")
    seconds = _try(duration_s, text)
    assert seconds is None or 0 <= seconds < DURATION_MAX_S
    size = _try(size_bytes, text)
    assert size is None or 0 <= size < SIZE_MAX
    ms = _try(time_ms, text)
    assert ms is None or MS_MIN <= ms <= MS_MAX
    ms = parse_ms(text, zone)
    assert ms is None or iso_ms(iso(ms)) == ms
    for found in (
        infobip_fields.time_of(text, zone),
        messangi.time_of(text, zone)[0],
    ):
        assert found is None or iso(iso_ms(found)) == found
    _same_time(text, zone)
    epoch = avaamo.epoch_ms(text)
    assert epoch is None or MS_MIN <= epoch <= MS_MAX
    price = infobip_fields.price_of({"pricePerMessage": text}, {})[0]
    assert price is None or Decimal(price) == Decimal(text)
    count = count_of(text)
    assert count is None or count == int(text)
    assert text_of(text) == (text or None)
    digits = msisdn(text)
    assert digits is None or re.fullmatch(r"[0-9]{1,20}", digits)
    if "(" not in text:  # "(0)" stands for nothing, "(0 )" is no spelling
        assert recipient_key(text) == recipient_key(text.replace(" ", "").replace("-", ""))
    fact: tuple[Any, ...] = ("a", text, "mt", text, None, None, 1)
    assert event_id(*fact) == _identity_of(fact)


def _same_time(text: str, zone: Any) -> None:
    """The quick ways of reading a time say what the slow one says."""
    slow = parse_ms(text, zone)
    if slow is None:
        return
    if not text.isdigit():
        assert infobip_fields.time_of(text, zone) == iso(slow)
    if text == text.strip() and "-T" not in text:
        assert messangi.time_of(text, zone) == (iso(slow), slow)


def _duration(draw: Draw) -> None:
    number = f"{draw.whole(1 + draw.below(6))}{draw.pick(('', '.5', '.25', '.001'))}"
    unit = draw.pick(tuple(SECONDS))
    exact = Decimal(number) * SECONDS[unit]
    seconds = _try(duration_s, draw.pick(("", " ")) + number + draw.pick(("", " ")) + unit)
    if exact < DURATION_MAX_S:
        assert math.isclose(seconds, float(exact), rel_tol=1e-12)
        spelled = spell_duration(seconds)
        again = duration_s(spelled)
        assert math.isclose(again, seconds, rel_tol=1e-9, abs_tol=1e-9)
        assert spell_duration(again) == spelled
    else:
        assert seconds is None
    assert _try(duration_s, -float(exact) - 1) is None
    for bad in (number + unit.upper() + "x", unit, "-" + number + unit, True, None, [1]):
        assert _try(duration_s, bad) is None


def _size(draw: Draw) -> None:
    whole = draw.whole(1 + draw.below(9))
    unit = draw.pick(tuple(SIZES))
    size = _try(size_bytes, f"{whole}{unit}")
    if whole * SIZES[unit] < SIZE_MAX * (1 - 1e-15):
        assert math.isclose(size, whole * SIZES[unit], rel_tol=1e-15)
    assert _try(size_bytes, whole) == (whole if whole < SIZE_MAX else None)
    assert _try(size_bytes, -1 - whole) is None


def _time(draw: Draw) -> None:
    ms = MS_MIN + draw.whole(7) % (MS_MAX - MS_MIN + 1)
    text = iso(ms)
    assert (
        text
        == (EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
        + f".{ms % 1000:03}Z"
    )
    assert iso_ms(text) == time_ms(text) == parse_ms(text) == ms
    assert messangi.time_of(text) == (text, ms)
    assert infobip_fields.time_of(text, UTC) == text
    assert infobip_fields.time_of(text[:-1] + "+0000", UTC) == text
    assert time_ms(ms / 1000) == ms
    assert _try(time_ms, text[:-1]) is None
    if 0 <= ms < 2**32 * 1000:  # as far as a float tells microseconds apart: the year 2106
        assert avaamo.epoch_ms(avaamo.timetoken(ms)) == ms


def _offset_time(draw: Draw) -> None:
    ms = draw.whole(5) % 200_000_000_000 * 1000
    minutes = draw.between(-14 * 60, 14 * 60)
    sign = "-" if minutes < 0 else "+"
    hour, minute = divmod(abs(minutes), 60)
    local = iso(ms + minutes * 60_000)[:-5]
    for offset in (f"{sign}{hour:02}:{minute:02}", f"{sign}{hour:02}{minute:02}"):
        assert time_ms(local + offset) == parse_ms(local + offset, draw.pick(ZONES)) == ms
        assert infobip_fields.time_of(f"{local}.000{offset}", UTC) == iso(ms)
    zone = draw.pick(ZONES)
    there = (EPOCH + timedelta(milliseconds=ms)).astimezone(zone)
    again = parse_ms(there.replace(tzinfo=None).isoformat(), zone)
    assert again is not None
    assert again == ms or there.fold


def _identity(draw: Draw) -> None:
    texts = [draw.pick((None, "", "a", "é", "\u2028", '"', "\x00", draw.text())) for _ in range(5)]
    fact: tuple[Any, ...] = (texts[0] or "", texts[1] or "", "mt", *texts[2:], draw.whole(7))
    assert event_id(*fact) == _identity_of(fact)


def _identity_of(fact: tuple[Any, ...]) -> str:
    """By the standard library's encoder instead of the engine's."""
    array = json.dumps(list(fact), separators=(",", ":"), ensure_ascii=False)
    for control, short in (("\\u007f", "\x7f"),):
        array = array.replace(control, short)
    return hashlib.blake2b(array.encode(), digest_size=16).hexdigest()


def _number(draw: Draw) -> None:
    digits = str(draw.whole(1 + draw.below(6)))
    written = "".join(c + draw.pick(("", "", "", " ", "-", ".")) for c in digits)
    spelled = draw.pick(("", "+", "00", "+ ")) + written
    assert msisdn(digits) == (digits if len(digits) <= 20 else None)
    assert recipient_key(spelled) == recipient_key(digits).removeprefix("00")
    value = draw.pick((1.0, 1.5, -0.0, 1e300, 2**70, draw.whole(8), True, None, [1], {"a": None}))
    text = text_of(value)
    assert text is None or isinstance(text, str)
    assert json.loads(json_of(value)) == value
