"""`growth`: what a report costs while the state fills with messages.

One engine takes one-time pages without a pause, and its time and processor time are read each time
that a twentieth more is stored. Its start is the second to the fifth twentieth, for in the first it
warms up; its end the last four.
"""

from __future__ import annotations

from statistics import mean

from benchmarks.harness import Row
from benchmarks.throughput import PAGE, alone, one_time, ours

PARTS = 20
AVERAGED = 4

Curve = list[tuple[float, float]]


def run(size: int, runs: int) -> list[Row]:
    """Once: what is looked for is the shape of the curve."""
    with one_time(size) as work:
        measured, faults = ours(work, "growth", every=max(PAGE, work.count // PARTS))
        server = alone(work)
    cost: Curve = []
    clock: Curve = []
    before = (0, 0.0, 0.0)
    for sample in measured["samples"]:
        records, wall_s, cpu_s = (now - then for now, then in zip(sample, before, strict=True))
        if records >= PAGE:
            cost.append((sample[0], cpu_s / records * 1e6))
            clock.append((sample[0], wall_s / records * 1e6))
        before = sample
    values: dict[str, float | int | str] = {
        "messages": work.count,
        "records/s": work.count / measured["stored_s"],
        "us/record at the start": _start(clock),
        "at the end": _end(clock),
        "end / start": _end(clock) / _start(clock),
        "CPU end / start": _end(cost) / _start(cost),
        "state bytes/message": measured["state_bytes"] / work.count,
        "sink bytes/record": measured["sink_bytes"] / work.count,
        "peak MiB": measured["peak_kib"] / 1024,
    }
    series = {"us a record": clock, "CPU us a record": cost}
    row = Row(name="state", values=values, faults=faults, series=series)
    return [row, server]


def _start(curve: Curve) -> float:
    """Mean of the parts after the first, as many as at the end."""
    return mean([y for _, y in curve[1 : 1 + AVERAGED]] or [curve[0][1]])


def _end(curve: Curve) -> float:
    return mean([y for _, y in curve[-AVERAGED:]])
