"""What each level of `store.synchronous` costs: `durability`.

The same work at each level, in turns: one-time pages of 50 of one account, each to be durable
before the next request, and polls of one row, sixteen at once. Syncs are those of the store's own
files, as SQLite asks for them. What a level protects is not measured but proven, in
`tests/integration/test_powerloss.py`.
"""

from __future__ import annotations

from typing import Any

from benchmarks import throughput
from benchmarks.harness import (
    PATIENCE_S,
    Row,
    child,
    config,
    each_once,
    folder,
    infobip,
    median,
    server,
)

LEVELS = ("full", "normal", "off")
PAGE = 50


def run(size: int, runs: int) -> list[Row]:
    """`size` records each way."""
    pages = max(1, size // PAGE)
    spec = {"style": "infobip", "accounts": ["info"], "size": PAGE, "pages": pages}
    count = pages * PAGE
    done: dict[tuple[str, str], list[dict[str, Any]]] = {}
    faults: list[str] = []
    with server("pages", spec) as one_time, server("polls", {}) as polls:
        for turn in range(runs):
            for level in LEVELS:
                account = infobip("info", f"{one_time}/{level}-{turn}/info")
                done.setdefault(("one-time", level), []).append(
                    _once(account, level, count, None, faults)
                )
                track = throughput.batches(size)
                done.setdefault(("again", level), []).append(
                    _once(throughput.bulksms(polls), level, size, track, faults)
                )
    return [_row(level, done, count // PAGE, size, faults) for level in LEVELS]


def _once(
    account: dict[str, Any],
    level: str,
    expected: int,
    track: dict[str, Any] | None,
    faults: list[str],
) -> dict[str, Any]:
    with folder() as base:
        whole = config([account])
        whole["store"]["synchronous"] = level
        spec = {
            "config": whole,
            "base": str(base),
            "expected": expected,
            "patience_s": PATIENCE_S,
            "track": track,
        }
        measured = child("counting", spec)
        faults += each_once(base / "reports.jsonl", expected, level)
    return measured


def _row(
    level: str,
    done: dict[tuple[str, str], list[dict[str, Any]]],
    pages: int,
    polls: int,
    faults: list[str],
) -> Row:
    one_time, again = done["one-time", level], done["again", level]
    page_s = median([one["seconds"] for one in one_time]) / pages
    poll_s = median([one["seconds"] for one in again]) / polls
    return Row(
        name=level,
        values={
            "one-time reports/s": PAGE / page_s,
            "ms/answer": page_s * 1000,
            "syncs/answer": median([one["syncs"] for one in one_time]) / pages,
            "polls/s": 1 / poll_s,
            "syncs/poll": median([one["syncs"] for one in again]) / polls,
        },
        faults=[fault for fault in faults if fault.startswith(level)],
    )
