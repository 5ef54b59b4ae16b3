"""JsonItems: shapes, broken records, bounds, cuts; each with several ways of chunking."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.parsing import json_cursor
from engine.parsing.flaw import FLAW_RAW_MAX, Flaw
from engine.parsing.json_decode import NESTING_MAX
from engine.parsing.json_items import JsonItems

SAMPLES = Path(__file__).parent.parent / "samples"


def read(
    body: bytes, key: str = "r", size: int = 1 << 30, *, cut: bool = False, **bounds: int
) -> tuple[list[Any], JsonItems]:
    items = JsonItems(key, **bounds)
    records: list[Any] = []
    for start in range(0, len(body), size):
        records += items.feed(body[start : start + size])
    records += items.close(cut=cut)
    return records, items


def seen(records: list[Any], items: JsonItems) -> tuple[Any, ...]:
    return (
        repr(records),
        items.envelope,
        items.found,
        items.rows,
        items.complete,
        items.cause,
        items.flaws,
    )


@pytest.fixture(params=[1, 4096], ids=["step1", "step4096"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(json_cursor, "STEP_MIN", request.param)
    return int(request.param)


BODIES = {
    "plain": b'{"a":1,"r":[{"x":1},{"x":2}],"b":{"c":[1,2]}}',
    "bom": b'\xef\xbb\xbf \n{"r":[{"a":1}]}',
    "empty array": b'{"r":[ ],"n":0}',
    "null": b'{"r":null}',
    "map": b'{"r":{"one":{"a":1}}}',
    "top array": b'[{"a":1}]',
    "html": b'<html lang="en"><body>down</body>',
    "nothing": b"",
    "blanks": b" \n ",
    "broken ones": b'{"r":[{"a":1},{"a":bad},{"a":[1},{"a":1}},,{"a":3}],"t":9}',
    "no objects": b'{"r":[1,2,"a,b",[1,[2]],null,33640241674303572142123,1e999,true]}',
    "twice": b'{"r":[{"a":1}],"x":0,"r":[{"a":2}]}',
    "cut whole": b'{"r":[{"a":1},{"a":2}',
    "cut inside": b'{"r":[{"a":1},{"a":2',
    "cut number": b'{"r":[1,2',
    "cut envelope": b'{"n":12,"m":{"k":1',
    "quote lost": b'{"r":[{"a":"x},{"a":3},{"a":4}]}',
    "bad text": b'{"r":[{"a":"\\ud800"},{"a":"\xff"},{"a":"\xc3\xa9"}]}',
    "trailing": b'{"r":[{"a":1}]} {"r":[]}',
    "boundary in text": b'{"r":[{"a":"},{"},{"a":"\\"},{"},{"a":[{"a":1},{"a":2}]}]}',
    "big": b'{"r":[{"a":1}' + b" " * 300 + b',{"b":"' + b"z" * 300 + b'"},{"c":1}]}',
    "other places": b'{"x":{"r":[9]},"y":"r","z":["r",[1]],"\\u0072":[{"a":1}],"w":"]}"}',
    "colon": b'{"r" [1]}',
    "comma": b'{"r":[1] "b":2}',
}


@pytest.mark.parametrize("name", BODIES)
def test_chunking_changes_nothing(name: str, step: int) -> None:
    body = BODIES[name]
    expected = seen(*read(body, record_max=200, envelope_max=100))
    for size in (1, 2, 3, 7, 50, 100):
        assert seen(*read(body, size=size, record_max=200, envelope_max=100)) == expected


@pytest.mark.parametrize(
    ("sample", "key"),
    [
        ("infobip/report_v1.json", "results"),
        ("avaamo/report.json", "entries"),
        ("messangi/mlog_pretty.json", "items"),
        ("messangi/mlog_letters.json", "items"),
    ],
)
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_documented_bodies(sample: str, key: str, size: int) -> None:
    body = (SAMPLES / sample).read_bytes()
    expected = json.loads(body)
    records, items = read(body, key, size)
    assert records == expected.pop(key)
    assert items.envelope == expected
    assert (items.found, items.complete, items.cause) == (True, True, None)
    assert items.rows == len(records)


def test_bad_record_costs_only_itself() -> None:
    records, items = read(BODIES["broken ones"])
    assert records == [{"a": 1}, {"a": 3}]
    assert items.envelope == {"t": 9}
    assert items.complete
    assert items.rows == 6
    flaws = items.take_flaws()
    assert [flaw.raw for flaw in flaws] == [b'{"a":bad}', b'{"a":[1}', b'{"a":1}}', b""]
    assert flaws[0].position == "record 2, byte 14"
    assert flaws[0].cause == "not valid JSON: invalid character at byte 5 of the record"
    assert items.take_flaws() == []


def test_bad_records_among_many() -> None:
    good = [{"a": number, "b": {"c": "x" * 50}} for number in range(5000)]
    parts = [json.dumps(record).encode() for record in good]
    for place in (4999, 2500, 17, 0):
        parts.insert(place, b'{"a": nope}')
    records, items = read(b'{"r": [' + b", ".join(parts) + b"]}", size=65536)
    assert records == good
    assert len(items.flaws) == 4
    assert items.complete


def test_text_that_cannot_be_text() -> None:
    records, items = read(BODIES["bad text"])
    assert records == [{"a": "é"}]
    assert [flaw.cause for flaw in items.flaws] == [
        "not valid JSON: a string or the record ends too early",
        "not valid UTF-8 in a string",
    ]


def test_numbers_stay_exact() -> None:
    body = (
        b'{"r":[{"i":33640241674303572142123,"n":-9223372036854775809,"f":1.0,"e":1e5}],"b":1e999}'
    )
    records, items = read(body)
    assert records == [
        {"i": 33640241674303572142123, "n": -9223372036854775809, "f": 1.0, "e": 100000.0}
    ]
    assert isinstance(records[0]["i"], int)
    assert isinstance(records[0]["f"], float)
    assert items.flaws[0].cause == "in the envelope: a number is out of range"


def test_nan_is_refused() -> None:
    records, items = read(b'{"r":[{"a":NaN},{"a":Infinity},{"a":1}]}')
    assert records == [{"a": 1}]
    assert items.rows == 3


@pytest.mark.parametrize("depth", [1100, 100_000])
def test_too_deep_costs_only_itself(depth: int) -> None:
    body = b'{"r":[{"a":' + b"[" * depth + b"]" * depth + b'},{"b":1}]}'
    records, items = read(body, size=1000)
    assert records == [{"b": 1}]
    assert items.flaws[0].cause == "nested too deep"
    assert items.complete


def test_what_is_accepted_can_be_written() -> None:
    body = b'{"r":[' + b'{"a":' * NESTING_MAX + b"1" + b"}" * NESTING_MAX + b"]}"
    (record,), _ = read(body)
    assert orjson.loads(orjson.dumps(record)) == record


def test_depth_does_not_depend_on_the_caller() -> None:
    def deeper(levels: int, nesting: int) -> int:
        if levels:
            return deeper(levels - 1, nesting)
        return len(read(b'{"r":[0,' + b"[" * nesting + b"]" * nesting + b",1]}")[0])

    assert deeper(0, NESTING_MAX) == deeper(600, NESTING_MAX) == 3
    assert deeper(0, NESTING_MAX + 1) == deeper(600, NESTING_MAX + 1) == 2


def test_depth_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.parsing.json_scan.DEPTH_MAX", 1000)
    body = b'{"r":[{"a":1},' + b"[" * 100_000
    expected = seen(*read(body))
    assert seen(*read(body, size=999)) == expected
    records, items = read(body)
    assert records == [{"a": 1}]
    assert items.cause == "nested too deep"


def test_absent_null_map_and_other_documents() -> None:
    _, items = read(b'{"requestError":{"text":"no"}}')
    assert (items.found, items.complete, items.cause) == (False, True, None)
    _, items = read(BODIES["null"])
    assert (items.found, items.envelope, items.cause) == (False, {"r": None}, None)
    _, items = read(BODIES["map"])
    assert (items.found, items.cause) == (False, "'r' is not an array")
    for name, cause in (
        ("top array", "a JSON array where an object was expected"),
        ("html", "not JSON: begins with '<html'"),
        ("nothing", "empty"),
        ("blanks", "empty"),
    ):
        records, items = read(BODIES[name])
        assert (records, items.complete, items.cause) == ([], False, cause)
    _, items = read(BODIES["html"])
    assert items.flaws[0].raw == BODIES["html"]


def test_only_the_top_level_key_counts() -> None:
    records, items = read(BODIES["other places"])
    assert records == [{"a": 1}]
    assert items.envelope == {"x": {"r": [9]}, "y": "r", "z": ["r", [1]], "w": "]}"}


def test_two_arrays_lose_nothing() -> None:
    records, items = read(BODIES["twice"])
    assert records == [{"a": 1}, {"a": 2}]
    assert items.complete


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_cut_bodies_yield_what_is_whole(size: int) -> None:
    records, items = read(BODIES["cut whole"], size=size)
    assert (records, items.cause) == ([{"a": 1}, {"a": 2}], "cut after 2 records (byte 21)")
    records, items = read(BODIES["cut inside"], size=size)
    assert (records, items.cause) == ([{"a": 1}], "cut after 1 records (byte 20)")
    assert items.flaws == [Flaw("cut off before its end", "record 2, byte 14", b'{"a":2', False)]
    records, _ = read(BODIES["cut number"], size=size)
    assert records == [1]
    _, items = read(BODIES["cut envelope"], size=size)
    assert (items.envelope, items.cause) == ({"n": 12}, "cut before the records (byte 18)")


def test_the_transport_may_know_better() -> None:
    records, items = read(BODIES["plain"], cut=True)
    assert len(records) == 2
    assert not items.complete
    assert items.cause == f"cut after 2 records (byte {len(BODIES['plain'])})"


def test_too_big_record_is_passed_over() -> None:
    records, items = read(BODIES["big"], record_max=200)
    assert records == [{"a": 1}, {"c": 1}]
    (flaw,) = items.flaws
    assert flaw.cause == "a record of more than 200 bytes"
    assert flaw.raw == b'{"b":"' + b"z" * 194
    assert flaw.truncated
    assert items.complete


def test_memory_is_bounded() -> None:
    def body() -> Iterator[bytes]:
        yield b'{"r":[{"a":1},{"a":"'
        for _ in range(600):
            yield b"z" * 65536  # 39 MB in one record
        yield b'"},'
        for number in range(200):
            yield b'{"b":%d,"c":"' % number + b"y" * 65000 + b'"},'
        yield b'{"d":1}]}'

    items = JsonItems("r", record_max=1 << 20)
    tracemalloc.start()
    try:
        count = sum(len(items.feed(chunk)) for chunk in body()) + len(items.close())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 202
    assert items.complete
    assert len(items.take_flaws()[0].raw) == FLAW_RAW_MAX
    assert peak < 6 * (1 << 20)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_envelope_is_bounded(size: int) -> None:
    body = b'{"x":"' + b"z" * 5000 + b'","r":[{"a":1}],"n":1}'
    records, items = read(body, size=size, envelope_max=1000)
    assert records == [{"a": 1}]
    assert items.envelope == {"n": 1}
    assert (items.complete, items.cause) == (False, "an envelope of more than 1000 bytes")
    assert items.flaws[0].truncated


def test_a_key_without_end_is_bounded() -> None:
    records, items = read(b'{"' + b"k" * 2_000_000, size=5000)
    assert (records, items.cause) == ([], "a key of more than 65536 bytes")
    assert len(items.flaws[0].raw) == FLAW_RAW_MAX


def test_hostile_bodies_stay_linear() -> None:
    nested = json.dumps({"r": [{"a": [{"a": 1}] * 20_000}] * 3}, separators=(",", ":")).encode()
    assert len(read(nested, size=4096)[0]) == 3
    for body in (
        b'{"r":[{"a":"' + b"\\" * 2_000_000 + b'"},{"a":1}]}',
        b'{"r":[{"a":1}' + b" " * 2_000_000 + b',{"a":1}]}',
        b'{"r":[{"a":"' + b"},{" * 500_000 + b'"},{"a":1}]}',
        b'{"r":[{"a":"' + b'\\"' * 500_000 + b'"},{"a":1}]}',
    ):
        records, items = read(body, size=4096)
        assert len(records) == 2
        assert items.complete
    for flood in (b'"', b"}", b"{}", b"},{", b"\\", b" "):
        assert not read(b'{"r":[' + flood * 200_000, size=4096)[1].complete


def test_a_byte_at_a_time_is_linear() -> None:
    body = json.dumps({"r": [{"a": number, "b": "x" * 40} for number in range(8000)]}).encode()
    records, items = read(body, size=1)
    assert len(records) == 8000
    assert items.complete


def test_other_key_orders_are_found_too() -> None:
    first = [{"id": number, "s": [{"id": 1}, {"id": 2}]} for number in range(3000)]
    second = [{"s": number, "id": "x"} for number in range(3000)]
    body = json.dumps({"r": first + second}, indent=1).encode()
    assert read(body, size=30_000)[0] == first + second


def test_feeding_after_the_end_is_an_error() -> None:
    items = JsonItems("r")
    items.close()
    assert items.close() == []
    with pytest.raises(RuntimeError):
        items.feed(b"x")
