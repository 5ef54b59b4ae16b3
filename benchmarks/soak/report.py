"""What a soak says in the end: the balance as text and as JSON, and the plot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import msgspec

from benchmarks.soak.balance import KINDS, Balance, Side
from benchmarks.soak.drive import Sample
from benchmarks.soak.evidence import Read
from benchmarks.soak.lag import LAG_MAX_S, Lag, share
from benchmarks.soak.plot import Panel, sparkline, svg
from benchmarks.soak.processes import Worker
from benchmarks.soak.setting import SLACK_S

MIB = 1 << 20
WIDTH = 100
INDENT = 11
LATE_PARTS = 40
"""Parts of the soak for each of which the lateness is told."""
COLOURS = {"SIGKILL": "#cf222e", "SIGTERM": "#8250df"}


class Lateness(msgspec.Struct):
    """Of the states that came in a part of the time: seconds after they should have been read."""

    minute: float
    p50: float
    p99: float


class Result(msgspec.Struct, kw_only=True):
    """Everything a soak has measured."""

    minutes: float
    seed: int
    load: float
    began: float
    machine: dict[str, str | int]
    sides: list[Side]
    balance: Balance
    samples: list[Sample]
    reads: list[Read]
    lag: list[Lag]
    files: int

    @property
    def took_minutes(self) -> float:
        return self.samples[-1].t / 60


def text(result: Result, worker: Worker) -> str:
    """The summary, for a terminal and for a README."""
    balance, counts = result.balance, [side.counts for side in result.sides]
    statuses, faults = _sum(counts, "statuses"), _sum(counts, "faults")
    requests, given = _total(counts, "requests"), _total(counts, "given")
    seconds = result.minutes * 60
    ends = Counter(life.how for life in worker.lives)
    lines = balance.records + balance.repeats
    out = _said(
        "Soak",
        f"{result.minutes:g} minutes at load {result.load:g}, seed {result.seed}; with the quiet"
        f" end {result.took_minutes:.1f} minutes",
    )
    out += _aligned(
        " " * INDENT,
        ["account", "sent", "known", "final", "pending", "requests", "faults", "given"],
        [_row(side) for side in result.sides],
    )
    out += _said("Asked", f"{requests:,} requests, {requests / seconds:.0f}/s: {_list(statuses)}")
    out += _said("Faults", f"{sum(faults.values()):,} on purpose: {_list(faults)}")
    out += _said(
        "Worker",
        f"started {len(worker.lives)} times; {ends['SIGKILL']} times killed,"
        f" {ends['SIGTERM']} times ended by SIGTERM, stopped and continued {worker.stops} times",
    )
    out += _said("Given", f"{given:,} reports, repetitions counted, {given / seconds:.0f}/s")
    out += _said(
        "Recorded",
        f"{balance.records:,} records of {balance.messages:,} messages, of which"
        f" {balance.verdicts:,} ended with a verdict ({balance.refused_rungs} batches with the"
        " fault that calls them unknown)",
    )
    out += _said(
        "Sinks",
        f"lines: {lines:,} in {result.files} files, {balance.repeats:,} of them repeats under the"
        f" same event_id; tables: {balance.rows:,} rows",
    )
    out += _one_time(balance)
    out += _limits(result.sides)
    out += _curves(result)
    out += _lag(result.lag)
    return "\n".join(out + _verdict(balance)) + "\n"


def _said(head: str, words: str) -> list[str]:
    """A paragraph behind its head, in lines of a terminal's width."""
    first = f"{head}:".ljust(INDENT)
    return wrap(words, WIDTH, initial_indent=first, subsequent_indent=" " * INDENT)


def _row(side: Side) -> list[str]:
    counts, books = side.counts, side.books
    numbers = [books.get(key, 0) for key in ("known", "final", "pending")]
    faults: Any = counts.get("faults", {})
    numbers += [counts.get("requests", 0), sum(faults.values()), counts.get("given", 0)]
    return [side.name, f"{len(side.lives):,}", *(f"{number:,}" for number in numbers)]


def _one_time(balance: Balance) -> list[str]:
    out = []
    for name, feed in balance.one_time.items():
        out += _said(
            "One-time",
            f"{name} gave {feed.given:,} reports: {feed.recorded:,} recorded,"
            f" {feed.superseded:,} after a newer one, {feed.cut:,} cut and {feed.spoiled:,} spoiled"
            f" by a fault, {feed.killed:,} on the wire at a kill",
        )
        out += [f"{' ' * INDENT}  {proof}" for proof in feed.answers]
    return out


def _limits(sides: Sequence[Side]) -> list[str]:
    exceeded = sum(len(side.violations) for side in sides)
    throttled = _total([side.counts for side in sides], "throttled")
    return _said(
        "Limits",
        f"exceeded {exceeded} times, {throttled} requests refused, as the simulated providers"
        f" counted within a slack of {SLACK_S * 1000:g} ms",
    )


def _curves(result: Result) -> list[str]:
    worker = [sample.worker or 0 for sample in result.samples]
    store = [sample.store for sample in result.samples]
    late = lateness(result)
    p50, p99 = [part.p50 for part in late], [part.p99 for part in late]
    return [
        f"Memory:    {sparkline(worker)} worker, at most {max(worker) / MIB:.0f} MiB",
        f"Store:     {sparkline(store)} in the end {store[-1] / MIB:.0f} MiB",
        f"Late p50:  {sparkline(p50)} at most {max(p50, default=0):.2f} s",
        f"Late p99:  {sparkline(p99)} at most {max(p99, default=0):.1f} s",
        f"{' ' * INDENT}(after they could be read; dead and stopped times and faults in it)",
    ]


def _lag(lags: Sequence[Lag]) -> list[str]:
    """How long after they could be read final states were recorded, account by account."""
    return _said(
        "Lag", f"of final states, in seconds; at most {LAG_MAX_S:g} for 99 of a hundred"
    ) + _aligned(
        " " * INDENT,
        ["account", "states", "p50", "p99", "most"],
        [
            [one.account, f"{one.states:,}", *(f"{s:.1f}" for s in (one.p50, one.p99, one.most))]
            for one in lags
        ],
    )


def _verdict(balance: Balance) -> list[str]:
    counted = ", ".join(f"{kind} {balance.counted[kind]:,}" for kind in KINDS)
    out = _said("Balance", f"{counted}: {'sound' if balance.sound else 'NOT as it should be'}")
    for kind in KINDS:
        out += [f"  {kind}: {words}" for words in balance.found[kind]]
    return out


def lateness(result: Result) -> list[Lateness]:
    """By part of the time."""
    width = result.took_minutes / LATE_PARTS or 1.0
    parts: dict[int, list[float]] = defaultdict(list)
    for read in result.reads:
        parts[int((read.due - result.began) / 60 / width)].append(max(read.late_s, 0.0))
    return [
        Lateness((n + 0.5) * width, share(parts[n], 0.5), share(parts[n], 0.99))
        for n in sorted(parts)
    ]


def plot(result: Result, worker: Worker) -> str:
    """Memory, store and lateness over time, with the kills marked."""
    lives: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for sample in result.samples:
        if sample.worker is not None:
            lives[sample.life].append((sample.t / 60, sample.worker / MIB))
    simulator = [(s.t / 60, s.simulator / MIB) for s in result.samples if s.simulator is not None]
    late = lateness(result)
    marks = [
        ((life.ended - result.began) / 60, COLOURS[life.how])
        for life in worker.lives
        if life.how in COLOURS
    ]
    panels = [
        Panel("Resident memory of the worker; red: killed, violet: ended by SIGTERM", "MiB",
              [("worker", list(lives.values()))]),
        Panel("Resident memory of the simulator, which keeps every message's life", "MiB",
              [("simulator", [simulator])]),
        Panel("Files", "MiB", [
            ("state.db", [[(s.t / 60, s.store / MIB) for s in result.samples]]),
            ("sinks", [[(s.t / 60, s.sinks / MIB) for s in result.samples]]),
        ]),
        Panel("How late states were recorded, after they could be read", "s", [
            ("p50", [[(part.minute, part.p50) for part in late]]),
            ("p99", [[(part.minute, part.p99) for part in late]]),
        ]),
    ]  # fmt: skip
    title = f"{result.balance.messages:,} messages, {len(worker.kills)} kills, seed {result.seed}"
    return svg(title, panels, result.took_minutes, marks)


def as_json(result: Result, worker: Worker) -> bytes:
    """The result without the messages themselves."""
    kept = {
        "minutes": result.minutes,
        "seed": result.seed,
        "load": result.load,
        "machine": result.machine,
        "sound": result.balance.sound,
        "balance": result.balance,
        "accounts": {
            side.name: {
                "provider": side.provider,
                "sent": len(side.lives),
                "counts": side.counts,
                "books": side.books,
                "violations": side.violations,
            }
            for side in result.sides
        },
        "worker": {"lives": worker.lives, "stops": worker.stops},
        "lateness": lateness(result),
        "lag": result.lag,
        "samples": result.samples,
    }
    return msgspec.json.encode(kept) + b"\n"


def _sum(counts: Sequence[dict[str, Any]], key: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one[key])
    return total


def _total(counts: Sequence[dict[str, Any]], key: str) -> int:
    return sum(one[key] for one in counts)


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _aligned(indent: str, head: list[str], rows: Sequence[list[str]]) -> list[str]:
    table = [head, *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(head))]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
