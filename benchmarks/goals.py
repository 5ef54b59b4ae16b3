"""What the engine is to reach, as ratios and bounds, and how a run compares with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Goal(msgspec.Struct, frozen=True):
    """One line of the table of goals: where its figure stands, and what it has to be.

    `row` is the beginning of a row's name. `less`: the figure is to be smaller, not bigger.
    """

    what: str
    against: str
    case: str
    row: str
    value: str
    least: float
    aim: float
    unit: str = ""
    less: bool = False

    def met(self, measured: float, bound: float) -> bool:
        return measured <= bound if self.less else measured >= bound


BARE = "bare loop"
OWN = "its own start"
GOALS = (
    Goal("one-time pages of 1,000", BARE, "throughput", "engine", "ratio", 0.8, 1.3),
    Goal("the same, until it has ended", BARE, "throughput", "engine", "ended ratio", 0.65, 1.0),
    Goal("avaamo pages of 100", BARE, "avaamo-pages", "engine", "ratio", 0.6, 1.0),
    Goal("one-row polls, 16 at once", BARE, "bulksms-polls", "engine", "ratio", 0.6, 0.9),
    Goal("one-row polls over TLS", BARE, "bulksms-tls", "engine", "ratio", 0.6, 0.9),
    Goal("JSON in pieces", "decoded whole", "json-parse", "json stream", "ratio", 1.0, 2.0),
    Goal("pipe-delimited text", "split loop", "pipe-parse", "pipe rows", "ratio", 0.6, 0.9),
    Goal("peak memory, one long body", "idle engine", "memory", "largest", "over idle, MiB",
         48, 16, "MiB", less=True),
    Goal("pending batches: worker", "", "schedule", "", "worker, MiB", 150, 80, "MiB", less=True),
    Goal("pending batches: start to first poll", "", "schedule", "", "start to first poll, s",
         1.0, 0.3, "s", less=True),
    Goal("pending batches: claimed, put again", "", "schedule", "", "claimed and put again/s",
         30_000, 60_000, "/s"),
    Goal("p99 lateness at 80 % load", "", "lateness", "80%", "p99 ms", 100, 20, "ms", less=True),
    Goal("a report's cost as the state grows", OWN, "growth", "state", "end / start",
         1.5, 1.1, less=True),
)  # fmt: skip


class Verdict(msgspec.Struct):
    """A goal, what was measured, at which size, and what that means. `cpu`: the ratio by processor
    time, which other work on the machine disturbs less."""

    goal: Goal
    measured: float
    size: str
    says: str
    cpu: float | None = None


def verdicts(cases: dict[str, Any]) -> list[Verdict]:
    """Of the cases that were run, as they stand in a result."""
    found = []
    for goal in GOALS:
        case = cases.get(goal.case)
        if case is None:
            continue
        values = [row["values"] for row in case["rows"] if row["name"].startswith(goal.row)]
        measured = [float(value[goal.value]) for value in values if goal.value in value]
        if not measured:
            continue
        figure = sorted(measured)[len(measured) // 2]
        if goal.met(figure, goal.aim):
            says = "aim"
        else:
            says = "least" if goal.met(figure, goal.least) else "missed"
        cpu = values[0].get("CPU ratio") if goal.value == "ratio" else None
        found.append(Verdict(goal, figure, f"{case['size']:,} {case['unit']}", says, cpu))
    return found


def summary(found: Sequence[Verdict]) -> list[list[str]]:
    """The table of goals, its head first."""
    lines = [["what", "size", "against", "at least", "aim", "measured", "", "by CPU time"]]
    for one in found:
        goal = one.goal
        sign = "<= " if goal.less else ""
        lines.append([
            goal.what,
            one.size,
            goal.against,
            f"{sign}{goal.least:,g} {goal.unit}".strip(),
            f"{sign}{goal.aim:,g} {goal.unit}".strip(),
            f"{_figure(one.measured)} {goal.unit}".strip(),
            {"aim": "reached", "least": "enough", "missed": "MISSED"}[one.says],
            "" if one.cpu is None else _figure(one.cpu),
        ])  # fmt: skip
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, its head first."""
    head, *rest = lines
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rest)) + "\n"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
