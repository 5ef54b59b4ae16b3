"""What the streaming parsers cost, beside decoding the body whole: `python -m benchmarks.parse`.

Ratios of one run on one machine mean something; the absolute numbers move with the load. Every
way is measured several times, in turns, and the best of each counts.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator

import msgspec

from engine.parsing.json_items import JsonItems
from engine.parsing.pipe import PipeRows

CHUNK = 64 * 1024
ROUNDS = 5
RECORDS = 40_000
BIG_RECORDS = 1_000_000


def _record(number: int) -> dict[str, object]:
    status = {"groupId": 3, "groupName": "DELIVERED", "id": 5, "name": "DELIVERED_TO_HANDSET"}
    return {
        "bulkId": f"BULK-{number // 1000}",
        "messageId": f"12db39c3-7822-4e72-{number:012d}",
        "to": f"4179{number:07d}",
        "sentAt": "2019-11-09T17:00:00.000+0000",
        "smsCount": 1,
        "price": {"pricePerMessage": 0.01, "currency": "EUR"},
        "status": status,
    }


def _flat(number: int) -> dict[str, object]:
    return {"a": "S", "b": "SHOP", "c": f"+5255{number:08d}", "i": "11111", "j": "SENT", "p": None}


def _nested(number: int) -> dict[str, object]:
    return {"id": number, "parts": [{"id": part} for part in range(200)]}


def _stream(body: bytes) -> int:
    items = JsonItems("results")
    count = 0
    for start in range(0, len(body), CHUNK):
        count += len(items.feed(body[start : start + CHUNK]))
    return count + len(items.close())


def _whole(body: bytes) -> int:
    return len(msgspec.json.decode(body)["results"])


def _pipe(text: bytes) -> int:
    rows = PipeRows(2)
    count = 0
    for start in range(0, len(text), CHUNK):
        count += len(rows.feed(text[start : start + CHUNK]))
    return count + len(rows.close())


def _split(text: bytes) -> int:
    """The bare loop: no checks, no flaws, a chunk at a time."""
    carry, count = b"", 0
    for start in range(0, len(text), CHUNK):
        data = carry + text[start : start + CHUNK]
        cut = data.rfind(b"\n") + 1
        carry = data[cut:]
        count += len([line.split("|") for line in data[: cut - 1].decode().split("\n")])
    return count


def _best(ways: list[Callable[[bytes], int]], body: bytes) -> list[float]:
    best = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for index, way in enumerate(ways):
            start = time.perf_counter()
            way(body)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def _show(
    name: str, body: bytes, ours: Callable[[bytes], int], bare: Callable[[bytes], int]
) -> None:
    mine, other = _best([ours, bare], body)
    speed = len(body) / mine / 1e6
    print(f"{name:28s} {len(body) / 1e6:6.1f} MB {speed:6.0f} MB/s {other / mine:5.2f} x bare")


def _big_chunks() -> Iterator[bytes]:
    """A body that never exists as a whole, cut where it happens to be."""
    block = b",".join(msgspec.json.encode(_record(number)) for number in range(1000))
    carry = b'{"results":['
    for number in range(BIG_RECORDS // 1000):
        carry += block if number == 0 else b"," + block
        while len(carry) >= CHUNK:
            yield carry[:CHUNK]
            carry = carry[CHUNK:]
    yield carry + b"]}"


def _show_big() -> None:
    items = JsonItems("results")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = count = 0
    spent = 0.0
    for chunk in _big_chunks():
        size += len(chunk)
        start = time.perf_counter()
        count += len(items.feed(chunk))
        spent += time.perf_counter() - start
    count += len(items.close())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} records, {size / 1e6:.0f} MB: {size / spent / 1e6:.0f} MB/s, +{grown} KiB RSS")


def main() -> None:
    """Print one line for each kind of body."""
    _show_big()  # first: the peak of memory is only ever measured upwards
    for name, make, count in (
        ("nested status objects", _record, RECORDS),
        ("flat", _flat, RECORDS),
        ("200 objects in a record", _nested, RECORDS // 40),
    ):
        body = msgspec.json.encode({"results": [make(number) for number in range(count)]})
        _show(name, body, _stream, _whole)
    text = b"0|Returns to follow\n\n" + b"".join(b"4479%08d|11\n" % n for n in range(1_000_000))
    _show("pipe text, 1M rows", text, _pipe, _split)


if __name__ == "__main__":
    main()
