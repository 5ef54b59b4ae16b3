"""Records as typed rows: what fits, and what costs itself alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from engine.core.report import FIELDS, Report, encode
from engine.core.rows import COLUMNS, read_rows
from engine.core.state import State


def line(**more: Any) -> bytes:
    fields = {
        "event_id": "e", "account": "a", "provider": "p", "message_id": "m", "revision": 1,
        "state": State.READ, "final": True, "observed_at": "2026-01-01T00:00:00.123Z",
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))


def test_a_column_a_field() -> None:
    assert tuple(COLUMNS) == FIELDS
    extra = {"n": 2**70, "é": [None, {"x": "\0"}]}
    rows, rejected = read_rows([line(parts=-3, error_permanent=False, extra=extra)])
    assert rejected == {}
    row = dict(zip(FIELDS, rows[0], strict=True))
    assert (row["state"], row["final"], row["error_permanent"]) == ("read", True, False)
    assert (row["revision"], row["parts"], row["sent_at"]) == (1, -3, None)
    assert row["observed_at"] == datetime(2026, 1, 1, 0, 0, 0, 123_000, UTC)
    assert row["extra"] == '{"n":1180591620717411303424,"é":[null,{"x":"\\u0000"}]}'


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (b"x", "malformed"),
        (b"{}", "missing required field"),
        (line(parts=2**63), "`int | null`|9223372036854775807"),
        (line(revision=-(2**63) - 1), "`int`"),
        (line().replace(b'"parts":null', b'"parts":1.5'), "`int | null`"),
        (line(sent_at="2026-01-01T00:00:00.000"), "timezone"),
        (line(done_at="soon"), "RFC3339"),
        (line(observed_at=""), "RFC3339"),
        (line().replace(b'"a"', b'"\xff"'), "decode|UTF-8"),
        (line(extra={"k": "v"}).replace(b'"v"', b'"\xff"'), "decode|UTF-8"),
        (line().replace(b'"a"', rb'"\ud800"'), "surrogate"),
    ],
)
def test_what_does_not_fit_is_named(bad: bytes, cause: str) -> None:
    rows, rejected = read_rows([line(), bad, line()])
    assert list(rows) == [0, 2]
    assert list(rejected) == [1]
    assert rejected[1].startswith("not a record: ")
    assert any(word in rejected[1] for word in cause.split("|"))


def test_bounds_of_an_integer() -> None:
    rows, rejected = read_rows([line(revision=2**63 - 1, parts=-(2**63))])
    assert (len(rows), rejected) == (1, {})
