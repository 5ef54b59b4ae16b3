"""`memory`: one answer of any size through the whole engine, beside an idle one.

The log of messangi has no pages: a window's answer is as long as the window is full. What the
engine holds of it must not grow with it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness import PATIENCE_S, SECRET, Row, child, config, folder, server
from benchmarks.shapes import BLOCK, HOUR_S, Messangi, compare

SHARES = (16, 4, 1)  # the same with a sixteenth and a quarter of it
MIB = 1 << 20
ITEM = 282  # bytes of one, with its comma
SETTLE_S = 1.0


def run(size: int, runs: int) -> list[Row]:
    """A row for the idle engine and one for each share of `size` MiB; once each: the peak hardly
    varies."""
    idle = _idle()
    idle_mib = float(idle.values["peak MiB"])
    rows = [_through(max(1, size * MIB // share // ITEM // BLOCK) * BLOCK) for share in SHARES]
    for row in rows:
        row.values["over idle, MiB"] = float(row.values["peak MiB"]) - idle_mib
    rows[-1].series = {
        "peak": [(float(row.values["body MiB"]), float(row.values["peak MiB"])) for row in rows],
        "idle engine": [(float(row.values["body MiB"]), idle_mib) for row in rows],
    }
    rows[-1].name = f"largest: {rows[-1].name}"
    return [idle, *rows]


def _idle() -> Row:
    shape = {"accounts": ["omni"], "count": BLOCK, "start_s": int(time.time())}
    with folder() as base, server("log", {**shape, "empty": True}) as url:
        spec = {
            "config": config([_account(url, shape["start_s"])]),
            "base": str(base),
            "requests": 1,
            "settle_s": SETTLE_S,
        }
        done = child("idle", spec)
    return Row(name="idle engine", values={"peak MiB": done["peak_kib"] / 1024})


def _through(items: int) -> Row:
    shape = {"accounts": ["omni"], "count": items, "start_s": int(time.time())}
    with folder() as base, server("log", {**shape, "empty": False}) as url:
        spec = {
            "config": config([_account(url, shape["start_s"])]),
            "base": str(base),
            "expected": items,
            "patience_s": PATIENCE_S,
        }
        done = child("engine", spec)
        faults = compare(base / "reports.jsonl", Messangi(shape))
        state = sum(file.stat().st_size for file in base.glob("state.db*"))
    body = Messangi(shape).stream()[0]
    values: dict[str, float | int | str] = {
        "body MiB": body / MIB,
        "seconds": done["stored_s"],
        "records/s": items / done["stored_s"],
        "CPU us/record": done["cpu_s"] / items * 1e6,
        "state MB": state / 1e6,
        "peak MiB": done["peak_kib"] / 1024,
    }
    return Row(name=f"{items:,} items", values=values, faults=faults)


def _account(url: str, start_s: int) -> dict[str, Any]:
    return {
        "name": "omni",
        "provider": "messangi",
        "base_url": f"{url}/omni",
        "headers": {"Authorization": SECRET},
        "start": datetime.fromtimestamp(start_s - 2 * HOUR_S, UTC).isoformat(),
        "limits": {"requests": 100, "per": "1s"},
        "schedule": {"interval": "1h", "rescan": []},
    }
