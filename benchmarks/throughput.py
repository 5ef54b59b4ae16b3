"""The engine beside a loop written by hand: `throughput`, `avaamo-pages`, `bulksms-polls`.

The engine keeps durable state, knows what it has seen, obeys a limit and syncs what it writes; the
loop does none of that. Their runs take turns, and only the ratio of their medians means something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import ladder
from benchmarks.harness import (
    PATIENCE_S,
    SECRET,
    Row,
    child,
    config,
    each_once,
    folder,
    infobip,
    median,
    server,
)

ACCOUNTS = tuple(f"account-{n}" for n in range(8))
PAGE = 1000
AVAAMO_PAGE = 100
FIRST = 1_000_000
CONCURRENCY = 16

Turn = Callable[[str], tuple[dict[str, Any], list[str]]]


def infobip_pages(size: int, runs: int) -> list[Row]:
    """One-time pages of 1,000 over eight accounts."""
    each = max(1, size // PAGE // len(ACCOUNTS))
    spec = {"style": "infobip", "accounts": ACCOUNTS, "size": PAGE, "pages": each}
    count = each * PAGE * len(ACCOUNTS)
    with server("pages", spec) as url:
        return _beside(
            "bare-infobip",
            count,
            runs,
            lambda turn: [f"{url}/{turn}/{name}" for name in ACCOUNTS],
            lambda urls: [infobip(name, at) for name, at in zip(ACCOUNTS, urls, strict=True)],
        )


def avaamo_pages(size: int, runs: int) -> list[Row]:
    """One window of one account, in pages of 100."""
    pages = max(1, size // AVAAMO_PAGE)
    spec = {"style": "avaamo", "accounts": ["bot"], "size": AVAAMO_PAGE, "pages": pages}
    with server("pages", spec) as url:
        return _beside(
            "bare-avaamo",
            pages * AVAAMO_PAGE,
            runs,
            lambda turn: [f"{url}/{turn}/bot"],
            lambda urls: [_avaamo(urls[0])],
        )


def bulksms_polls(size: int, runs: int) -> list[Row]:
    """Batches of one recipient, sixteen asked for at once."""
    with server("polls", {}) as url:
        return _beside(
            "bare-bulksms",
            size,
            runs,
            lambda turn: [url],
            lambda urls: [bulksms(urls[0])],
            batches(size),
        )


def _avaamo(url: str) -> dict[str, Any]:
    return {
        "name": "bot",
        "provider": "avaamo",
        "base_url": url,
        "agent_id": 5157,
        "access_token": SECRET,
        "lookback": "1h",
        "limits": {"requests": 100_000, "per": "1s"},
        "schedule": {"interval": "1h", "idle_interval": "1h", "rescan": []},
    }


def bulksms(url: str) -> dict[str, Any]:
    return {
        "name": "bulk",
        "provider": "bulksms",
        "base_url": url,
        "username": "john",
        "password": SECRET,
        "limits": {"requests": 100_000, "per": "1s", "concurrency": CONCURRENCY},
        "schedule": {"ladder": [f"{ladder.RUNG_S:g}s", "1d"], "jitter": 0},
    }


def batches(count: int) -> dict[str, Any]:
    """Tracked by the engine that asks for them; all are due at once, a moment later."""
    return {
        "account": "bulk",
        "first": FIRST,
        "count": count,
        "rate": None,
        "rung_s": ladder.RUNG_S,
        "lead_s": ladder.LEAD_S + ladder.LEAD_EACH_S * count,
    }


def _beside(
    loop: str,
    count: int,
    runs: int,
    urls: Callable[[str], list[str]],
    accounts: Callable[[list[str]], list[dict[str, Any]]],
    track: dict[str, Any] | None = None,
) -> list[Row]:
    """Engine and loop in turns; a row for each, and one for their ratio."""
    ours, bare, faults = [], [], []
    for turn in range(runs):
        with folder() as base:
            at = urls(f"bare-{turn}")
            spec: dict[str, Any] = {"base": str(base), "urls": at, **(track or {})}
            bare.append(child(loop, spec))
        if bare[-1]["records"] != count:
            faults.append(f"the loop: expected {count} records, got {bare[-1]['records']}")
        with folder() as base:
            at = urls(f"engine-{turn}")
            spec = {
                "config": config(accounts(at)),
                "base": str(base),
                "expected": count,
                "patience_s": PATIENCE_S,
                "track": track,
            }
            ours.append(child("engine", spec))
            faults += each_once(base / "reports.jsonl", count)
    ratios = [b["seconds"] / o["seconds"] for o, b in zip(ours, bare, strict=True)]
    return [
        _row("engine", ours, count, median(ratios), faults),
        _row("bare loop", bare, count, 1.0, []),
    ]


def _row(name: str, done: list[dict[str, Any]], count: int, ratio: float, faults: list[str]) -> Row:
    seconds = median([one["seconds"] for one in done])
    values: dict[str, float | int | str] = {
        "records": count,
        "records/s": count / seconds,
        "ratio": ratio,
        "CPU us/record": median([one["cpu_s"] for one in done]) / count * 1e6,
        "peak MiB": median([one["peak_kib"] for one in done]) / 1024,
    }
    return Row(name=name, values=values, faults=faults)
