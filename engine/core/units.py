"""Durations, sizes and times: how they are written, read and compared.

Inside the engine a time is an `int` of epoch milliseconds (`…_ms`) and a duration a `float` of
seconds (`…_s`); text exists at the edges alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import cast

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB)?", re.ASCII | re.IGNORECASE)
_BYTES = {
    "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_FRACTIONS = tuple(f".{rest:03d}Z" for rest in range(1000))
_FRACTION_MS = {text: rest for rest, text in enumerate(_FRACTIONS)}
_ZEROS = str.maketrans("123456789", "000000000")

SIZE_MAX = 1 << 62

# Longer than any clock here runs; keeps arithmetic with durations finite.
DURATION_MAX_S = 1e12

# Times outside these years are refused: they cannot be written as RFC 3339.
MS_MIN = -62_135_596_800_000
MS_MAX = 253_402_300_799_999


def duration_s(value: object) -> float:
    """`"250ms"`, `"1.5s"`, `"5m"`, `"1d"`, or a number of seconds.

    Raises ValueError for anything else, a negative number included.
    """
    if isinstance(value, bool):
        raise ValueError("expected a duration")
    if isinstance(value, (int, float)) and 0 <= value < DURATION_MAX_S:
        return float(value)
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        seconds = float(found[1]) * _SECONDS[found[2]]
        if seconds < DURATION_MAX_S:
            return seconds
    raise ValueError("expected a duration")


def size_bytes(value: object) -> int:
    """`"1MiB"`, `"64kB"`, or a number of bytes. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < SIZE_MAX:
        return value
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        size = float(found[1]) * _BYTES[(found[2] or "B").lower()]
        if size < SIZE_MAX:
            return int(size)
    raise ValueError("expected a size")


def time_ms(value: object) -> int:
    """RFC 3339 with an offset, or epoch seconds, as epoch milliseconds.

    Raises ValueError: a time without an offset could mean two instants, so it is refused.
    """
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        return _rounded(value)
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII):
            return _rounded(float(text))
        moment = datetime.fromisoformat(text.upper())  # RFC 3339 has "t" and "z", too
    else:
        raise ValueError("expected a time")
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, such as Z or +01:00")
    return _bounded(ms_of(moment))


def parse_ms(text: str, zone: tzinfo = UTC) -> int | None:
    """A provider's ISO 8601 time as epoch ms; one without an offset is in `zone`. None: no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    ms = ms_of(moment)
    return ms if MS_MIN <= ms <= MS_MAX else None


def ms_of(moment: datetime) -> int:
    """Epoch milliseconds of an aware datetime, rounded down."""
    return (moment - _EPOCH) // _MILLISECOND


def iso(ms: int) -> str:
    """Epoch ms as the record writes times: RFC 3339, UTC, milliseconds, `Z`."""
    seconds, rest = divmod(ms, 1000)
    return _second(seconds) + _FRACTIONS[rest]


def iso_texts(times_ms: Sequence[int]) -> list[str]:
    """The same of many."""
    second, fractions = _second, _FRACTIONS
    return [second(ms // 1000) + fractions[ms % 1000] for ms in times_ms]


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    """Reports come in bursts that share their seconds: 3.3 us becomes 0.9 us a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def iso_ms(text: str) -> int:
    """The epoch ms of what `iso` wrote."""
    rest = _FRACTION_MS.get(text[19:])
    if rest is not None:  # what `iso` itself writes; 0.3 us instead of 1.5 us
        return _second_ms(text[:19]) + rest
    return ms_of(datetime.fromisoformat(text))


@lru_cache(maxsize=4096)
def _second_ms(text: str) -> int:
    return ms_of(datetime.fromisoformat(text).replace(tzinfo=UTC))


def utc_texts(times: Sequence[str | None], suffix: str) -> list[str] | None:
    """Times such as `2026-11-09T17:00:05.003+0000` as the record writes them, where all of them
    are spelled so and in UTC: `suffix` is how that is said. None: they are not.

    Many are looked at together, which costs a third of reading one after the other.
    """
    if None in times:
        return None
    times = cast("Sequence[str]", times)
    joined = "\n".join(times)
    mask = f"0000-00-00T00:00:00.000{suffix.translate(_ZEROS)}\n"
    if joined.translate(_ZEROS) != (mask * len(times))[:-1] or "T24" in joined:
        return None
    if joined.count(suffix) != len(times):  # +0530 looks like it, too
        return None
    try:
        deque(map(datetime.fromisoformat, times), maxlen=0)
    except ValueError:
        return None
    return joined.replace(suffix, "Z").split("\n") if suffix != "Z" else list(times)


def spell_duration(seconds: float) -> str:
    """A duration as configuration would write it: the largest unit that keeps it whole."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    value, unit = (seconds, "s") if seconds >= 1 or seconds == 0 else (seconds * 1000, "ms")
    return f"{value:.6f}".rstrip("0").rstrip(".") + unit


def spell_size(count: int) -> str:
    """A number of bytes for people: three digits and a unit."""
    value, name = float(count), "bytes"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, name = value / 1024, unit
    return f"{value:.3g} {name}" if value < 1000 else f"{value:.0f} {name}"


def _rounded(seconds: float) -> int:
    try:
        return _bounded(round(seconds * 1000))
    except OverflowError:  # infinite, or hundreds of digits
        return _bounded(MS_MAX + 1)


def _bounded(ms: int) -> int:
    if not MS_MIN <= ms <= MS_MAX:
        raise ValueError("expected a time between the years 1 and 9999")
    return ms
