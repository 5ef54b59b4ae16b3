"""`json-parse` and `pipe-parse`: the streaming parsers beside the quickest that keeps no promise.

JSON: the reader of a one-time page takes a body of any size in pieces of 64 KiB and gives the
records; beside it the same decoder decodes the body when all of it is there. Text: the reader of
status reports beside a loop of `split` that checks nothing and keeps nothing. Each way runs in a
process of its own, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from benchmarks.harness import Row, child, hwm_kib, median
from benchmarks.shapes import Infobip
from engine.parsing.json_items import JsonItems
from engine.parsing.pipe import PipeRows

CHUNK = 64 * 1024
PAGE = 1000
LINES = 100_000  # of text that are made at once


def run_json(size: int, runs: int) -> list[Row]:
    """A body of `size` MB: one-time reports; and, a tenth of it, flat items of a log, and records
    with 200 objects in each, among which a boundary is hard to tell."""
    rows = _rows(("json stream", "json whole"), {"mb": size, "kind": "reports"}, runs)
    for kind in ("flat", "nested"):
        some = _rows(("json stream", "json whole"), {"mb": max(1, size // 10), "kind": kind}, runs)
        for row in some:
            row.name = f"{kind}: {row.name}"
        rows += some
    return rows


def run_pipe(size: int, runs: int) -> list[Row]:
    """`size` lines."""
    return _rows(("pipe rows", "pipe split"), {"lines": size}, runs)


def _rows(ways: tuple[str, str], spec: dict[str, Any], runs: int) -> list[Row]:
    done: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, taken in done.items():
            taken.append(child("parse", {**spec, "way": way}))
    rows = []
    for way, taken in done.items():
        pairs = list(zip(taken, done[ways[1]], strict=True))
        seconds = median([one["seconds"] for one in taken])
        faults = [
            f"expected {one['made']} records, got {one['records']}"
            for one in taken
            if one["made"] != one["records"]
        ]
        values: dict[str, float | int | str] = {
            "records": taken[0]["records"],
            "MB": taken[0]["bytes"] / 1e6,
            "MB/s": taken[0]["bytes"] / seconds / 1e6,
            "records/s": taken[0]["records"] / seconds,
            "CPU ratio": median([bare["cpu_s"] / one["cpu_s"] for one, bare in pairs]),
            "ratio": median([bare["seconds"] / one["seconds"] for one, bare in pairs]),
            "memory, MiB": median([one["grown_kib"] for one in taken]) / 1024,
        }
        rows.append(Row(name=way, values=values, faults=faults))
    return rows


# In the process that is measured


async def parse(spec: dict[str, Any]) -> dict[str, Any]:
    """One way, once. Making the body is not counted."""
    way = spec["way"]
    if way.startswith("json"):
        body, made = BODIES[spec["kind"]](spec["mb"] * 1_000_000)
    else:
        body, made = _text(spec["lines"])
    before = hwm_kib()
    began, cpu = time.monotonic(), time.process_time()
    records = WAYS[way](body)
    return {
        "began": began,
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "records": records,
        "made": made,
        "bytes": len(body),
        "grown_kib": hwm_kib() - before,
    }


def _body(size: int) -> tuple[bytes, int]:
    shape = Infobip({"accounts": ["account"], "size": PAGE, "pages": 1})
    page = len(shape.body("account", 0))
    pages = max(1, size // page)
    inner = [shape.body("account", n)[len(b'{"results":[') : -2] for n in range(pages)]
    return b'{"results":[%b]}' % b",".join(inner), pages * PAGE


def _flat(size: int) -> tuple[bytes, int]:
    """Under the key of reports, so that the same reader takes it."""
    item = '{"a":"S","b":"SHOP","c":"+5255%08d","i":"11111","j":"SENT","p":null}'
    return _items(item, size)


def _nested(size: int) -> tuple[bytes, int]:
    parts = ",".join(f'{{"id":{part}}}' for part in range(200))
    return _items('{"id":%d,"parts":[' + parts + "]}", size)


def _items(item: str, size: int) -> tuple[bytes, int]:
    count = max(1, size // len(item % 0))
    return f'{{"results":[{",".join(item % n for n in range(count))}]}}'.encode(), count


BODIES = {"reports": _body, "flat": _flat, "nested": _nested}


def _text(lines: int) -> tuple[bytes, int]:
    blocks = (
        b"".join(b"4479%08d|11\n" % n for n in range(start, min(start + LINES, lines)))
        for start in range(0, lines, LINES)
    )
    return b"0|Returns to follow\n\n" + b"".join(blocks), lines


def _chunks(body: bytes) -> Iterator[bytes]:
    return (body[start : start + CHUNK] for start in range(0, len(body), CHUNK))


def _stream(body: bytes) -> int:
    items = JsonItems("results")
    return sum(len(items.feed(chunk)) for chunk in _chunks(body)) + len(items.close())


def _whole(body: bytes) -> int:
    return len(msgspec.json.decode(body)["results"])


def _pipe(text: bytes) -> int:
    rows = PipeRows(2)
    return sum(len(rows.feed(chunk)) for chunk in _chunks(text)) + len(rows.close())


def _split(text: bytes) -> int:
    carry, count = b"", -2  # the two lines of the head
    for chunk in _chunks(text):
        data = carry + chunk
        cut = data.rfind(b"\n") + 1
        carry = data[cut:]
        count += len([line.split("|") for line in data[: cut - 1].decode().split("\n")])
    return count


WAYS: dict[str, Callable[[bytes], int]] = {
    "json stream": _stream,
    "json whole": _whole,
    "pipe rows": _pipe,
    "pipe split": _split,
}
