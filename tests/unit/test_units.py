"""Durations, sizes and times: what is read, how it is written, and what is refused.

Whatever is refused must raise ValueError and nothing else: configuration turns that, and only
that, into a line that names the fault.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.core.units import (
    MS_MAX,
    MS_MIN,
    duration_s,
    iso,
    iso_ms,
    ms_of,
    parse_ms,
    size_bytes,
    spell_duration,
    time_ms,
    utc_texts,
)

DIGITS = "9" * 400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25), ("1.5s", 1.5), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0),
        ("0s", 0.0), (" 5 m ", 300.0), (30, 30.0), (0.5, 0.5), (0, 0.0),
    ],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "soon", "", "5", "-5m", "5 minutes", "1h30m", "m", ".5s", "5M", -1, True, None, [], "1e3s",
        float("nan"), float("inf"), 1e15, "\uff15m",
    ],
)  # fmt: skip
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MiB", 1 << 20), ("1GiB", 1 << 30), ("64kB", 64_000), ("64KB", 64_000), ("1.5KiB", 1536),
        ("2TiB", 2 << 40), ("3 MB", 3_000_000), ("10", 10), ("7B", 7), (12, 12), (0, 0),
    ],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["big", "", "-1", "1 XB", -1, True, None, 1.5, "1Mi", DIGITS, "\uff15"]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError):
        size_bytes(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-01T00:00:00Z", 1_793_491_200_000),
        ("2026-11-01T01:00:00+01:00", 1_793_491_200_000),
        ("2026-11-01T00:00:00.1239Z", 1_793_491_200_123),
        ("2026-11-01t01:00:00.5z", 1_793_494_800_500),
        ("1793491200", 1_793_491_200_000),
        (" 1793491200.5 ", 1_793_491_200_500),
        ("-1", -1000),
        (1793491200, 1_793_491_200_000),
        (0.25, 250),
        (datetime(2026, 11, 1, tzinfo=UTC), 1_793_491_200_000),
    ],
)
def test_times(text: object, ms: int) -> None:
    assert time_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-01T00:00:00", "2026-11-01", "yesterday", "", None, True, 10**12, -(10**12),
        datetime(2026, 11, 1), "99999999999999", float("nan"), float("inf"), DIGITS,  # noqa: DTZ001
        "0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-10:00", "\uff11700000000",
    ],
)  # fmt: skip
def test_no_times(text: object) -> None:
    with pytest.raises(ValueError):
        time_ms(text)


@given(st.integers(MS_MIN, MS_MAX))
@example(MS_MIN)
@example(126_701_150_399_987)
def test_every_time_that_is_taken_comes_back_as_it_was(ms: int) -> None:
    text = iso(ms)
    assert len(text) == 24
    assert text.endswith("Z")
    assert iso_ms(text) == ms
    assert time_ms(text) == ms
    assert parse_ms(text) == ms


@given(st.integers(MS_MIN, MS_MAX), st.integers(MS_MIN, MS_MAX))
def test_written_times_sort_as_the_times_do(one: int, other: int) -> None:
    assert (iso(one) < iso(other)) is (one < other)


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001
        max_value=datetime(2200, 1, 1),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=30))]),
    )
)
def test_milliseconds_are_rounded_down(moment: datetime) -> None:
    exact = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert ms_of(moment) == exact // timedelta(milliseconds=1)


def test_a_record_writes_utc_with_milliseconds() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(-1) == "1969-12-31T23:59:59.999Z"
    assert iso(MS_MIN) == "0001-01-01T00:00:00.000Z"
    assert iso(MS_MAX) == "9999-12-31T23:59:59.999Z"


def test_a_provider_time_without_an_offset_is_in_its_zone() -> None:
    madrid = ZoneInfo("Europe/Madrid")
    assert parse_ms("2026-07-01T12:00:00") == time_ms("2026-07-01T12:00:00Z")
    assert parse_ms("2026-07-01T12:00:00", madrid) == time_ms("2026-07-01T12:00:00+02:00")
    assert parse_ms("2026-12-01T12:00:00", madrid) == time_ms("2026-12-01T12:00:00+01:00")
    assert parse_ms("2026-12-01T12:00:00Z", madrid) == time_ms("2026-12-01T12:00:00Z")
    assert parse_ms("no time") is None
    assert parse_ms("0001-01-01T00:00:00+10:00") is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (1, "1s"), (90, "90s"), (300, "5m"),
        (5400, "90m"), (7200, "2h"), (86400, "1d"), (604800, "7d"), (0.0005, "0.5ms"),
    ],
)  # fmt: skip
def test_durations_are_spelled_as_configuration_has_them(seconds: float, text: str) -> None:
    assert spell_duration(seconds) == text
    assert duration_s(text) == pytest.approx(seconds)


@given(st.integers(0, 10**9))
@example(999_999_500)
def test_spelled_durations_read_back(ms: int) -> None:
    """Six digits are kept, which is what a person reads."""
    assert duration_s(spell_duration(ms / 1000)) == pytest.approx(ms / 1000, rel=1e-5)


def test_times_of_another_offset_are_not_taken_for_utc() -> None:
    there = "2026-05-29T01:56:43.891"
    assert utc_texts([f"{there}+0000"] * 2, "+0000") == [f"{there}Z"] * 2
    assert utc_texts([f"{there}+0000", f"{there}+0530"], "+0000") is None
    assert utc_texts([f"{there}+0530"], "+0000") is None
    assert utc_texts([f"{there}Z"], "Z") == [f"{there}Z"]
    assert utc_texts(["2026-02-30T01:56:43.891Z"], "Z") is None
