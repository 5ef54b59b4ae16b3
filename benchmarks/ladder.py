"""`ladder-lateness`: how long after its rung a batch is asked for, by the server's clock.

The batches' rungs fall due one after the other at a rate that the account's limits do not bind, so
that whatever passes between a rung and its request is the engine's own.
"""

from __future__ import annotations

from collections.abc import Sequence

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

RATE = 500.0
RUNG_S = 300.0
LEAD_S = 1.0
LEAD_EACH_S = 0.0006  # tracking has to be over when the first rung is due
FIRST = 1_000_000


def run(size: int, runs: int) -> list[Row]:
    """A row a run: a percentile of several runs would hide the bad one."""
    return [_climbed(size, f"run {n + 1}") for n in range(runs)]


def _climbed(size: int, name: str) -> Row:
    account = {
        "name": "bulk",
        "provider": "bulksms",
        "username": "john",
        "password": SECRET,
        "limits": {"requests": 5000, "per": "1s", "concurrency": 16},
        "schedule": {"ladder": [f"{RUNG_S:g}s", "1d"], "jitter": 0},
    }
    with folder() as base, server("polls", {}) as url:
        account["base_url"] = url
        track = {
            "account": "bulk",
            "first": FIRST,
            "count": size,
            "rate": RATE,
            "rung_s": RUNG_S,
            "lead_s": LEAD_S + LEAD_EACH_S * size,
        }
        spec = {
            "config": config([account]),
            "base": str(base),
            "expected": size,
            "patience_s": PATIENCE_S,
            "track": track,
        }
        done = child("engine", spec)
        asked = ask(f"{url}/_times")
        faults = each_once(base / "reports.jsonl", size)
    due_ms = done["due_ms"]
    after = [(at * 1000 - due_ms[int(batch) - FIRST], int(batch) - FIRST) for batch, at in asked]
    late = sorted(ms for ms, _ in after)
    if len(asked) != size or len({batch for batch, _ in asked}) != size:
        faults.append(f"requests: expected one for each of {size} batches, got {len(asked)}")
    if late[0] < 0:
        early = sum(ms < 0 for ms in late)
        faults.append(f"{early} came before their rung, the earliest by {-late[0]:.1f} ms")
    values: dict[str, float | int | str] = {
        "batches": size,
        "rungs/s": RATE,
        "first ms": late[0],
        "p50 ms": _share(late, 0.5),
        "p99 ms": _share(late, 0.99),
        "max ms": late[-1],
        "of rung": max(after)[1] + 1,
        "engine's CPU s": done["cpu_s"],
    }
    return Row(name=name, values=values, faults=faults)


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]
