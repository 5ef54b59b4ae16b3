"""JsonItems against the standard library: random documents, chunks, cuts and corruption."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.parsing import json_cursor, json_items
from engine.parsing.json_items import JsonItems

PROPERTY = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(["},{", '"},{"', "\\", "]}", "r", '\\"},{"a":1', "\n", ',"r":[']),
)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from("abr"), inner, max_size=3)
    ),
    max_leaves=8,
)
RECORD = st.one_of(st.dictionaries(st.sampled_from("abr"), VALUE, min_size=1, max_size=3), VALUE)
ENVELOPE = st.dictionaries(TEXT.filter(lambda key: key != "r"), VALUE, max_size=3)
STYLE = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " : "), None])


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Any:
    """Look at every chunk, and guess in small windows: otherwise short bodies test little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_cursor, "STEP_MIN", 1)
        patch.setattr(json_items, "WINDOW", 48)
        yield


@st.composite
def documents(draw: st.DrawFn) -> tuple[bytes, list[Any], dict[str, Any]]:
    before, after = draw(ENVELOPE), draw(ENVELOPE)
    records = draw(st.lists(RECORD, max_size=12))
    before = {key: value for key, value in before.items() if key not in after}
    style = draw(STYLE)
    document = {**before, "r": records, **after}
    if style is None:
        text = json.dumps(document, indent=2)
    else:
        text = json.dumps(document, separators=style, ensure_ascii=draw(st.booleans()))
    return text.encode(), records, {**before, **after}


def read(body: bytes, sizes: list[int], *, cut: bool = False, **bounds: int) -> Any:
    items = JsonItems("r", **bounds)
    records: list[Any] = []
    place = turn = 0
    while place < len(body):
        size = sizes[turn % len(sizes)]
        records += items.feed(body[place : place + size])
        place += size
        turn += 1
    records += items.close(cut=cut)
    return records, items


def seen(records: list[Any], items: JsonItems) -> str:
    state = (items.envelope, items.found, items.rows, items.complete, items.cause, items.flaws)
    return repr((records, state))


SIZES = st.lists(st.integers(1, 90), min_size=1, max_size=5)


@PROPERTY
@given(documents(), SIZES)
def test_same_as_the_standard_library(document: Any, sizes: list[int]) -> None:
    body, records, envelope = document
    for way in (sizes, [1], [1 << 20]):
        got, items = read(body, way)
        assert repr(got) == repr(records)
        assert items.envelope == envelope
        assert items.complete
        assert items.found
        assert items.rows == len(records)
        assert not items.flaws


@PROPERTY
@given(documents(), SIZES, st.data())
def test_a_cut_body_yields_the_first_records(document: Any, sizes: list[int], data: Any) -> None:
    body, records, _ = document
    place = data.draw(st.integers(0, len(body)))
    got, items = read(body[:place], sizes, cut=True)
    assert repr(got) == repr(records[: len(got)])
    assert not items.complete
    assert items.cause
    assert items.rows - len(got) in (0, 1)
    assert seen(got, items) == seen(*read(body[:place], [1], cut=True))
    if place == len(body):
        assert len(got) == len(records)


@PROPERTY
@given(documents(), SIZES, st.data())
def test_corruption_is_contained(document: Any, sizes: list[int], data: Any) -> None:
    body = bytearray(document[0])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body)))
        width = data.draw(st.integers(0, 3))
        junk = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b'"', b"}", b"]", b","]))
        )
        body[place : place + width] = junk
    bounds = {"record_max": data.draw(st.integers(5, 200)), "envelope_max": 60}
    got, items = read(bytes(body), sizes, **bounds)
    assert seen(got, items) == seen(*read(bytes(body), [1], **bounds))
    assert seen(got, items) == seen(*read(bytes(body), [1 << 20], **bounds))
    assert items.complete or items.cause


@PROPERTY
@given(st.lists(RECORD, min_size=1, max_size=12), SIZES, st.data())
def test_one_bad_record_costs_only_itself(records: Any, sizes: list[int], data: Any) -> None:
    bad = data.draw(
        st.sampled_from([b'{"a":x}', b'{"a" 1}', b"1e999", b'"\\ud800"', b'"\xff"', b"{]}", b"01"])
    )
    place = data.draw(st.integers(0, len(records)))
    parts = [json.dumps(record).encode() for record in records]
    parts.insert(place, bad)
    got, items = read(b'{"r":[' + b",".join(parts) + b"]}", sizes)
    assert repr(got) == repr(records)
    assert items.complete
    assert [flaw.raw for flaw in items.flaws] == [bad]
    assert items.flaws[0].position.startswith(f"record {place + 1},")
