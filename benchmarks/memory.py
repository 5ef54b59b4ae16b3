"""`messangi-memory`: one answer of any size through the whole engine.

The log of messangi has no pages: a window's answer is as long as the window is full. What the
engine holds of it must not grow with it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.harness import (
    PATIENCE_S,
    SECRET,
    Row,
    ask,
    child,
    config,
    each_once,
    folder,
    server,
)

PEAK_MAX_KIB = 200 * 1024
COMPARED = 10  # the same with a tenth of the items


def run(size: int, runs: int) -> list[Row]:
    """A row for a tenth of the items and one for all; once each: the peak hardly varies."""
    return [_through(items) for items in sorted({max(1, size // COMPARED), size})]


def _through(items: int) -> Row:
    profile = {
        "name": "omni",
        "provider": "messangi",
        "authorization": SECRET,
        "bulk_items": items,
        "bulk_span": 3600.0,
    }
    with folder() as base, server("sim", {"accounts": [profile]}) as url:
        spec = {
            "config": config([_account(url)]),
            "base": str(base),
            "expected": items,
            "patience_s": PATIENCE_S,
        }
        done = child("engine", spec)
        faults = each_once(base / "reports.jsonl", items)
        counts = ask(f"{url}/_sim/counts")["omni"]
        state = sum(file.stat().st_size for file in base.glob("state.db*"))
    if done["peak_kib"] >= PEAK_MAX_KIB:
        faults.append(f"peak: expected less than {PEAK_MAX_KIB} KiB, got {done['peak_kib']}")
    values: dict[str, float | int | str] = {
        "body MB": counts["bytes"] / 1e6,
        "requests": counts["requests"],
        "seconds": done["seconds"],
        "records/s": items / done["seconds"],
        "start MiB": done["start_kib"] / 1024,
        "peak MiB": done["peak_kib"] / 1024,
        "state MB": state / 1e6,
    }
    return Row(name=f"{items:,} items", values=values, faults=faults)


def _account(url: str) -> dict[str, Any]:
    start = datetime.now(UTC) - timedelta(hours=2)
    return {
        "name": "omni",
        "provider": "messangi",
        "base_url": f"{url}/omni",
        "headers": {"Authorization": SECRET},
        "start": start.isoformat(),
        "limits": {"requests": 100, "per": "1s"},
        "schedule": {"interval": "1h", "rescan": []},
    }
