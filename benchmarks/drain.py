"""`infobip-drain`: a queue that gives each report once, emptied in as few requests as can be."""

from __future__ import annotations

import math
from collections import Counter

from benchmarks.harness import (
    PATIENCE_S,
    SECRET,
    Row,
    ask,
    child,
    config,
    folder,
    infobip,
    lines,
    median,
    server,
)

PAGE = 1000
SPARE = 2  # the empty answer at the end, and one more


def run(size: int, runs: int) -> list[Row]:
    """All runs in one row, by their medians; each has a simulator and a store of its own."""
    done = [_drained(size) for _ in range(runs)]
    values: dict[str, float | int | str] = {
        key: median([float(values[key]) for values, _ in done]) for key in done[0][0]
    }
    values["requests"] = int(max(values["requests"] for values, _ in done))
    faults = [fault for _, found in done for fault in found]
    return [Row(name=f"{size:,} reports", values=values, faults=faults)]


def _drained(size: int) -> tuple[dict[str, float], list[str]]:
    profile = {"name": "queue", "provider": "infobip", "api_key": SECRET}
    with folder() as base, server("sim", {"accounts": [profile]}) as url:
        order = {"account": "queue", "n": size, "plan": [[0, "DELIVERED_TO_HANDSET"]]}
        ask(f"{url}/_sim/send", order)
        spec = {
            "config": config([infobip("queue", f"{url}/queue")]),
            "base": str(base),
            "expected": size,
            "settle_s": 0.3,  # for the empty answer that ends the queue
            "patience_s": PATIENCE_S,
        }
        done = child("engine", spec)
        counts = ask(f"{url}/_sim/counts")["queue"]
        given = Counter(fact["message_id"] for fact in ask(f"{url}/_sim/given/queue"))
        taken = Counter(record["message_id"] for record in lines(base / "reports.jsonl"))
    faults = []
    if given != taken:
        lost, doubled = (given - taken).total(), (taken - given).total()
        faults.append(f"the ledger does not agree: {lost} lost, {doubled} too many")
    most = math.ceil(size / PAGE) + SPARE
    if counts["requests"] > most:
        faults.append(f"requests: expected at most {most}, got {counts['requests']}")
    values = {
        "requests": counts["requests"],
        "seconds": done["seconds"],
        "records/s": size / done["seconds"],
        "engine's CPU s": done["cpu_s"],
    }
    return values, faults
