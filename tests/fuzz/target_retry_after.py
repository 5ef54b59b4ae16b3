"""Retry-After: any header gives None or a finite number of seconds within a day."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from engine.core.windows import RETRY_AFTER_MAX_S, retry_after_s
from tests.fuzz.draw import Draw

LENGTH = 64
WORDS = (
    b"Wed, 21 Oct 2015 07:28:00 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b" GMT", b"+0100",
    b"Sun Nov  6 08:49:37 1994", b"Mon", b"120", b"1e5", b"0.5", b"-1", b" -0000", b"Jan", b"Feb",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SECOND_1970, SECOND_2068 = 0, 3_124_137_600
CLOCKS = (0.0, 1.5, 1_447_000_000.0, 1_780_000_000.123, 3e9, -1.0, 1e11)


def seeds() -> Iterator[bytes]:
    for word in WORDS:
        yield b"\x00\x03" + word
    for mode in (1, 2, 3):
        yield bytes([mode, 3, 0, 0, 9, 9, 9, 9])


def check(data: bytes) -> None:
    draw = Draw(data)
    mode, now = draw.byte() % 4, draw.pick(CLOCKS)
    if mode == 1:
        number = str(draw.whole(draw.below(40))) + draw.pick(("", ".5", ".000001"))
        assert retry_after_s(draw.pick(("", " ")) + number, now) == min(float(number), 86_400)
        return
    if mode == 2:
        second = SECOND_1970 + draw.whole(4) % SECOND_2068
        expected = min(max(0.0, second - now), 86_400.0)
        for text in spelled(datetime.fromtimestamp(second, UTC)):
            found = retry_after_s(text, now)
            assert found is not None
            assert math.isclose(found, expected, abs_tol=1e-6)
        return
    text = draw.rest().decode("latin-1" if mode else "utf-8", "surrogateescape")
    found = retry_after_s(text, now)
    assert found is None or 0 <= found <= RETRY_AFTER_MAX_S
    if not re.search(r"\d", text):
        assert found is None
    assert retry_after_s(None, now) is None


def spelled(moment: datetime) -> tuple[str, str, str]:
    """The three forms of RFC 9110; two digits of a year are enough up to 2068."""
    day, month = DAYS[moment.weekday()], MONTHS[moment.month - 1]
    time = f"{moment.hour:02}:{moment.minute:02}:{moment.second:02}"
    return (
        f"{day[:3]}, {moment.day:02} {month} {moment.year} {time} GMT",
        f"{day}, {moment.day:02}-{month}-{moment.year % 100:02} {time} GMT",
        f"{day[:3]} {month} {moment.day:2} {time} {moment.year}",
    )
