"""Measure the engine: `python -m benchmarks [case …] [--size N | --full] [--runs R] [--json FILE]`.

Without a case all of them are run, one after the other. The exit status is 1 where records were
lost, doubled or wrong, 3 where all was right and a number that is wanted was not reached.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import (
    drain,
    durability,
    fleet,
    goals,
    growth,
    isolation,
    ladder,
    memory,
    parse,
    plots,
    postgres_store,
    rivals,
    schedule,
    sinks,
    start,
    throughput,
)
from benchmarks.harness import Case, Row, columns, machine, table

RESULTS = Path(__file__).parent / "results"
MILLION = 1_000_000

CASES = (
    Case(
        name="throughput",
        about="one-time pages of 1,000 over 8 accounts, beside bare loops",
        size=80_000,
        unit="records",
        run=throughput.infobip_pages,
        full=MILLION,
    ),
    Case(
        name="avaamo-pages",
        about="pages of 100, one after the other, beside bare loops",
        size=40_000,
        unit="records",
        run=throughput.avaamo_pages,
        full=400_000,
    ),
    Case(
        name="bulksms-polls",
        about="one-row polls, 16 at once, beside bare loops",
        size=5_000,
        unit="polls",
        run=throughput.bulksms_polls,
        full=50_000,
    ),
    Case(
        name="bulksms-tls",
        about="the same over TLS",
        size=5_000,
        unit="polls",
        run=throughput.bulksms_tls,
        full=50_000,
    ),
    Case(
        name="json-parse",
        about="a body in pieces of 64 KiB, beside decoding it whole",
        size=60,
        unit="MB",
        run=parse.run_json,
        full=300,
    ),
    Case(
        name="pipe-parse",
        about="pipe-delimited text, beside a split loop that keeps nothing",
        size=MILLION,
        unit="lines",
        run=parse.run_pipe,
        full=10 * MILLION,
    ),
    Case(
        name="memory",
        about="one answer of any length: peak memory, beside an idle engine",
        size=64,
        unit="MiB",
        run=memory.run,
        full=1024,
        runs=1,
    ),
    Case(
        name="schedule",
        about="pending batches in the SQLite store: memory, start, due polls put on their way",
        size=MILLION,
        unit="batches",
        run=schedule.run,
        full=10 * MILLION,
    ),
    Case(
        name="lateness",
        about="how late after its rung a batch is asked for, over the load",
        size=6_000,
        unit="polls",
        run=ladder.run,
        full=30_000,
        runs=1,
    ),
    Case(
        name="growth",
        about="what a report costs while the state fills",
        size=200_000,
        unit="messages",
        run=growth.run,
        full=10 * MILLION,
        runs=1,
    ),
    Case(
        name="rivals",
        about="the same one-time pages through dlt, singer-sdk, airbyte-cdk and Scrapy",
        size=40_000,
        unit="records",
        run=rivals.run,
        full=200_000,
    ),
    Case(
        name="infobip-drain",
        about="a one-time queue of the simulator: requests, and each report recorded once",
        size=30_000,
        unit="reports",
        run=drain.run,
    ),
    Case(
        name="idle-start",
        about="run --until-idle with nothing to do under 2 s, import engine under 300 ms",
        size=start.TRIES,
        unit="starts",
        run=start.run,
        runs=1,
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
        size=240_000,
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
WRONG, MISSED = 1, 3


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; print a table each and that of the goals; keep what was measured."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.add and (given.json is None or not given.json.exists()):
        parser.error("--add goes with a --json FILE that is there")
    if given.unpinned:
        os.environ["DLR_BENCH_UNPINNED"] = "1"
    names: list[str] = given.case or [case.name for case in CASES]
    here = machine()
    print(f"{here['cores']} x {here['cpu']}, Python {here['python']}, {here['system']}\n")
    cases: dict[str, dict[str, Any]] = _before(given.json) if given.add else {}
    for case in CASES:
        if case.name in names:
            cases[case.name] = _measured(case, given)
            _keep(given.json, names, {"machine": here, "cases": cases})
    found = goals.verdicts(cases)
    if found:
        print("goals", *columns(goals.summary(found)), sep="\n", flush=True)
    if any(row["faults"] for case in cases.values() for row in case["rows"]):
        return WRONG
    return MISSED if any(one.says == "missed" for one in found) else 0


def _measured(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    size = given.size or (given.full and case.full) or case.size
    runs = given.runs or case.runs
    began, load = time.perf_counter(), os.getloadavg()[0]
    rows: list[Row] = case.run(size, runs)
    took = time.perf_counter() - began
    title = f"{case.name}: {case.about} ({size:,} {case.unit}, runs: {runs}, {took:.0f} s)"
    print(table(title, rows), end="\n\n", flush=True)
    return {
        "size": size,
        "unit": case.unit,
        "runs": runs,
        "took_s": round(took, 1),
        "load_before": round(load, 2),
        "rows": [msgspec.to_builtins(row) for row in rows],
    }


def _before(file: Path) -> dict[str, dict[str, Any]]:
    kept: dict[str, dict[str, Any]] = msgspec.json.decode(file.read_bytes())["cases"]
    return kept


def _keep(file: Path | None, names: list[str], result: dict[str, Any]) -> None:
    """Into the file asked for, else into `results/latest.json` or that of the one case; and the
    plots beside it."""
    name = f"{names[0]}.json" if len(names) == 1 else "latest.json"
    file = file or RESULTS / name
    file.parent.mkdir(parents=True, exist_ok=True)
    result = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **result}
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    plots.draw(result["cases"], file.parent, file.stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the engine, each case in processes of its own.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.about})" for case in CASES),
    )
    known = [case.name for case in CASES]
    parser.add_argument("case", nargs="*", choices=[*known, []], metavar="case")
    parser.add_argument("--size", type=int, help="how much, in the case's own unit")
    parser.add_argument("--full", action="store_true", help="the size that the goals are about")
    parser.add_argument("--runs", type=int, help="whose medians count")
    parser.add_argument("--json", type=Path, help="where the result is kept")
    parser.add_argument("--add", action="store_true", help="keep the other cases of that file")
    parser.add_argument("--unpinned", action="store_true", help="any core for any process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
