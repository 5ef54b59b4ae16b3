"""Measure the engine: `python -m benchmarks [case …] [--size N] [--runs R] [--json FILE]`.

Without a case all of them are run, one after the other. The exit status is 1 where a number that a
case promises was not reached.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks import (
    drain,
    durability,
    fleet,
    isolation,
    ladder,
    memory,
    postgres_store,
    sinks,
    start,
    throughput,
)
from benchmarks.harness import Case, Row, machine, table

RESULTS = Path(__file__).parent / "results"

CASES = (
    Case(
        name="messangi-memory",
        about="one answer of so many items: peak memory under 200 MiB",
        size=1_000_000,
        unit="items",
        run=memory.run,
    ),
    Case(
        name="infobip-drain",
        about="a one-time queue: requests, and each report recorded once",
        size=30_000,
        unit="reports",
        run=drain.run,
    ),
    Case(
        name="ladder-lateness",
        about="batches whose rungs fall due at 500/s: how late they are asked for",
        size=10_000,
        unit="batches",
        run=ladder.run,
    ),
    Case(
        name="idle-start",
        about="run --until-idle with nothing to do under 2 s, import engine under 300 ms",
        size=start.TRIES,
        unit="starts",
        run=start.run,
    ),
    Case(
        name="throughput",
        about="one-time pages of 1,000 over 8 accounts, beside a bare loop",
        size=80_000,
        unit="records",
        run=throughput.infobip_pages,
    ),
    Case(
        name="avaamo-pages",
        about="pages of 100, one after the other, beside a bare loop",
        size=40_000,
        unit="records",
        run=throughput.avaamo_pages,
    ),
    Case(
        name="bulksms-polls",
        about="one-row polls, 16 at once, beside a bare loop",
        size=5_000,
        unit="polls",
        run=throughput.bulksms_polls,
    ),
    Case(
        name="isolation",
        about="150 healthy accounts, alone and beside 50 sick ones: lateness and throughput",
        size=3_000,
        unit="rungs",
        run=isolation.run,
    ),
    Case(
        name="durability",
        about="store.synchronous: one-time pages of 50 and one-row polls at each level",
        size=4_000,
        unit="records",
        run=durability.run,
    ),
    Case(
        name="postgres-store",
        about="pages of 1,000 into the PostgreSQL store: 30,000 new messages/s, 1 to 4 processes",
        size=160_000,
        unit="messages",
        run=postgres_store.run,
    ),
    Case(
        name="fleet",
        about="run --workers 1, 2, 4 on one PostgreSQL: what a report costs each; and the leases",
        size=80_000,
        unit="reports",
        run=fleet.run,
    ),
    Case(
        name="sinks",
        about="each sink that needs an extra, beside its bare client library",
        size=60_000,
        unit="records",
        run=sinks.run,
    ),
)
SINGLE = frozenset({"ladder-lateness", "messangi-memory", "idle-start"})  # one run says enough
RUNS = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; print a table each, and keep what was measured."""
    given = _parser().parse_args(arguments)
    names: list[str] = given.case or [case.name for case in CASES]
    here = machine()
    print(f"{here['cores']} x {here['cpu']}, Python {here['python']}, {here['system']}\n")
    cases: dict[str, dict[str, object]] = {}
    failed = False
    for case in CASES:
        if case.name not in names:
            continue
        size = given.size or case.size
        runs = given.runs or (1 if case.name in SINGLE else RUNS)
        began = time.perf_counter()
        rows: list[Row] = case.run(size, runs)
        took = time.perf_counter() - began
        title = f"{case.name}: {case.about} ({size:,} {case.unit}, runs: {runs}, {took:.0f} s)"
        print(table(title, rows), end="\n\n", flush=True)
        failed = failed or any(row.faults for row in rows)
        cases[case.name] = {"size": size, "runs": runs, "took_s": round(took, 1), "rows": rows}
    _keep(given.json, names, {"machine": here, "cases": cases})
    return 1 if failed else 0


def _keep(file: Path | None, names: list[str], result: dict[str, object]) -> None:
    """Into the file asked for, else into `results/latest.json` or that of the one case."""
    name = f"{names[0]}.json" if len(names) == 1 else "latest.json"
    file = file or RESULTS / name
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **result}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the engine, each case in processes of its own.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.about})" for case in CASES),
    )
    known = [case.name for case in CASES]
    parser.add_argument("case", nargs="*", choices=[*known, []], metavar="case")
    parser.add_argument("--size", type=int, help="how much, in the case's own unit")
    parser.add_argument("--runs", type=int, help=f"whose median counts (most cases: {RUNS})")
    parser.add_argument("--json", type=Path, help="where the result is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
