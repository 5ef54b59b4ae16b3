"""`lateness`: how long after its rung a batch is asked for, by the server's clock, over the load.

The achievable rate is measured first: all rungs due at once. Then rungs fall due one after the
other at shares of that rate, which the account's limits do not bind, so that whatever passes
between a rung and its request is the engine's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import throughput
from benchmarks.harness import PATIENCE_S, Row, ask, child, config, folder, server
from benchmarks.shapes import BulkSMS, compare

RUNG_S = 300.0
LEAD_S = 4.0
LEAD_EACH_S = 0.0006  # tracking has to be over when the first rung is due
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9)
PROMISED = 0.8


def run(size: int, runs: int) -> list[Row]:
    """`size` rungs at each load, shorter where the load is less: each takes as long. A row a run:
    a percentile of several runs would hide the bad one."""
    rows = []
    for turn in range(runs):
        most = _climbed(size, None, "all at once")
        rate = float(most.values["rungs/s"])
        points = [_climbed(round(size * load), rate * load, f"{load:.0%}") for load in LOADS]
        curves = {
            key: [
                (load * 100, float(row.values[f"{key} ms"]))
                for load, row in zip(LOADS, points, strict=True)
            ]
            for key in ("p50", "p99")
        }
        if runs > 1:
            for row in (most, *points):
                row.name += f", run {turn + 1}"
        points[LOADS.index(PROMISED)].series = curves
        rows += [most, *points]
    return rows


def _climbed(size: int, rate: float | None, name: str) -> Row:
    with folder() as base, server("polls", {}) as url:
        track = throughput.batches(size, rate)
        spec = {
            "config": config([throughput.bulksms(url)]),
            "base": str(base),
            "expected": size,
            "patience_s": PATIENCE_S,
            "track": track,
        }
        done = child("engine", spec)
        asked = ask(f"{url}/_times")
        sent_ms = [at_ms - round(RUNG_S * 1000) for at_ms in done["due_ms"]]
        shape = BulkSMS({"account": "bulk", "first": throughput.FIRST, "sent_ms": sent_ms})
        faults = compare(base / "reports.jsonl", shape)
    return _row(name, size, rate, done, asked, faults)


def _row(
    name: str,
    size: int,
    rate: float | None,
    done: dict[str, Any],
    asked: list[tuple[str, float]],
    faults: list[str],
) -> Row:
    due_ms, first = done["due_ms"], throughput.FIRST
    late = sorted(at * 1000 - due_ms[int(batch) - first] for batch, at in asked)
    if len(asked) != size or len({batch for batch, _ in asked}) != size:
        faults.append(f"requests: expected one for each of {size} batches, got {len(asked)}")
    if late[0] < 0:
        early = sum(ms < 0 for ms in late)
        faults.append(f"{early} came before their rung, the earliest by {-late[0]:.1f} ms")
    values: dict[str, float | int | str] = {
        "batches": size,
        "rungs/s": rate or size / done["stored_s"],
        "p50 ms": _share(late, 0.5),
        "p99 ms": _share(late, 0.99),
        "max ms": late[-1],
        "CPU us/poll": done["cpu_s"] / size * 1e6,
    }
    return Row(name=name, values=values, faults=faults)


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]
