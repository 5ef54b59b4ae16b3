"""The waits after a refusal: a backoff, and what `Retry-After` asks for."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.windows import backoff_s, retry_after_s


@given(st.integers(1, 10**9), st.integers())
def test_backoff_is_full_jitter_and_capped(attempt: int, seed: int) -> None:
    wait = backoff_s(attempt, random.Random(seed))
    assert 0 <= wait <= min(60.0, 2.0 ** min(attempt - 1, 10))


def test_backoff_spreads() -> None:
    rand = random.Random(9)
    waits = [backoff_s(3, rand) for _ in range(2000)]
    assert min(waits) < 0.1
    assert max(waits) > 3.9
    assert sum(waits) / len(waits) == pytest.approx(2.0, abs=0.1)


NOW = 784_111_777.0  # 1994-11-06 08:49:37 UTC


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("-5", None),
        ("+5", None),
        ("soon", None),
        ("1e9", None),
        ("nan", None),
        ("inf", None),
        ("٣", None),
        ("9" * 400, 86_400.0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        ("Sun Nov  6 08:50:37 1994", 60.0),
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:48:37 GMT", 86_400.0),
        ("Sun, 99 Nov 1994 08:48:37 GMT", None),
        ("Sun, 06 Nov 99999 08:48:37 GMT", None),
        ("Sunday", None),
        ("Sun, ", None),
        ("30, 30", 30.0),
        ("1, 120,7", 120.0),
        ("30, soon", None),
        ("1, ", None),
        ("Sun, 06 Nov 1994 08:50:37 GMT, Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
    ],
)
def test_retry_after(header: str | None, expected: float | None) -> None:
    assert retry_after_s(header, NOW) == expected


@given(st.text(max_size=60) | st.text("SunMoTuewdhFriat, 0123456789:-+GMT", max_size=40))
def test_retry_after_never_raises(header: str) -> None:
    for text in (header, f"Sun, {header}", formatdate(NOW, usegmt=True) + header):
        wait = retry_after_s(text, NOW)
        assert wait is None or 0 <= wait <= 86_400
