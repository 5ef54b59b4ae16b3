"""Coverage-guided fuzzing of the targets, counted; what shows a defect is kept.

Each target runs in a process of its own, which libFuzzer ends. An input that raises, hangs or takes
too much memory ends its target's run and is kept in `tests/fuzz/found/TARGET/`; `test_fuzz.py`
tries it ever after.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz.targets import FOUND, RECORDED, ROOT, SHARES, target

INPUTS = 100_000
CASE_MAX_S = 20  # one input that takes longer hangs
MEMORY_MAX_MB = 700

_EXECUTED = re.compile(r"(?m)^stat::number_of_executed_units:\s*(\d+)")
_SEEN = re.compile(r"(?m)^#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")
_PEAK = re.compile(r"(?m)^stat::peak_rss_mb:\s*(\d+)")


def main() -> int:
    args = _arguments()
    if args.child:
        _child(args.targets[0], args.options)
        return 1  # libFuzzer ends the process
    names = args.targets or list(SHARES)
    began = time.monotonic()
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda name: _run(name, _count(name, names, args), args), names):
            print(_line(row), flush=True)
            rows.append(row)
            if args.record:
                _record([row | _surroundings()])
    total, found = sum(row["inputs"] for row in rows), sum(len(row["found"]) for row in rows)
    print(f"{total:,} inputs, {found} found, {time.monotonic() - began:.0f} s")
    if args.json is not None:
        args.json.write_text(json.dumps(rows))
    return 1 if found or any(row["failed"] for row in rows) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(SHARES))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--inputs", type=int, default=INPUTS, help="in all, shared out by target")
    how.add_argument("--seconds", type=int, help="for each target, instead of a number of inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--seed", type=int, default=0, help="0 draws one")
    parser.add_argument("--equal", action="store_true", help="as many inputs for each target")
    parser.add_argument("--record", action="store_true", help=f"add the runs to {RECORDED.name}")
    parser.add_argument("--found", type=Path, default=FOUND, help="where found cases are kept")
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args, args.options = parser.parse_known_args()
    if unknown := [name for name in args.targets if name not in SHARES]:
        parser.error(f"there is no target {unknown[0]!r}; there are {', '.join(SHARES)}")
    if args.options and not args.child:
        parser.error(f"unknown option {args.options[0]}")
    return args


def _count(name: str, names: list[str], args: argparse.Namespace) -> int:
    if args.equal:
        return int(args.inputs) // len(names)
    return int(args.inputs) * SHARES[name] // sum(SHARES[other] for other in names)


def _child(name: str, options: list[str]) -> None:
    """Fuzz in this process, with the engine watched."""
    import atheris

    with atheris.instrument_imports(include=["engine"]):
        aim = target(name)
        for seed in aim.seeds():
            aim.check(seed)  # what is imported late is watched, too
    # Run by hand, it would leave what it finds where it was started; a later option wins.
    elsewhere = f"-artifact_prefix={tempfile.gettempdir()}/"
    atheris.Setup([sys.argv[0], elsewhere, *options], aim.check)
    atheris.Fuzz()


def _run(name: str, inputs: int, args: argparse.Namespace) -> dict[str, Any]:
    aim = target(name)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        seeds, kept, words = Path(place, "seeds"), Path(place, "kept"), Path(place, "words")
        seeds.mkdir()
        kept.mkdir()
        for number, seed in enumerate(aim.seeds()):
            (seeds / str(number)).write_bytes(seed[: aim.LENGTH])
        for number, path in enumerate(sorted((FOUND / name).glob("*"))):
            (seeds / f"found-{number}").write_bytes(path.read_bytes()[: aim.LENGTH])
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in aim.WORDS if word))
        limit = [f"-runs={inputs}"] if args.seconds is None else [
            f"-max_total_time={args.seconds}"
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "tests.fuzz", "--child", name, *limit, f"-seed={args.seed}",
            f"-max_len={aim.LENGTH}", *([f"-dict={words}"] if aim.WORDS else []),
            f"-artifact_prefix={kept}/",
            f"-timeout={CASE_MAX_S}", f"-rss_limit_mb={MEMORY_MAX_MB}", "-print_final_stats=1",
            str(seeds),
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        row = _row(name, done, time.monotonic() - began)
        for path in kept.iterdir():
            case = args.found / name / path.name
            case.parent.mkdir(parents=True, exist_ok=True)
            case.write_bytes(path.read_bytes())
            row["found"].append(path.name)
    if row["failed"]:
        print(done.stdout[-4000:], done.stderr[-600:], sep="\n", file=sys.stderr)
    return row


def _row(name: str, done: subprocess.CompletedProcess[str], seconds: float) -> dict[str, Any]:
    executed, peak = _EXECUTED.search(done.stderr), _PEAK.search(done.stderr)
    seen = _SEEN.findall(done.stderr)
    covered, features, corpus = map(int, seen[-1]) if seen else (0, 0, 0)
    return {
        "target": name,
        "inputs": int(executed[1]) if executed else 0,
        "covered": covered,
        "features": features,
        "corpus": corpus,
        "peak_mb": int(peak[1]) if peak else 0,
        "seconds": round(seconds, 1),
        "failed": done.returncode != 0,
        "found": [],
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['target']:<12} {row['inputs']:>10,} inputs  {row['covered']:>5} branches "
        f"{row['features']:>6} features  corpus {row['corpus']:>5}  {row['peak_mb']:>4} MB "
        f"{row['seconds']:>7.0f} s  found: {', '.join(row['found']) or 'none'}"
    )


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _record(rows: list[dict[str, Any]]) -> None:
    """Add the rows to the record; to begin a new one, delete it."""
    runs = json.loads(RECORDED.read_text(encoding="utf-8"))["runs"] if RECORDED.exists() else []
    runs += rows
    totals = {name: sum(row["inputs"] for row in runs if row["target"] == name) for name in SHARES}
    recorded = {
        "inputs": sum(totals.values()),
        "found": sum(len(row["found"]) for row in runs),
        "targets": totals,
        "runs": runs,
    }
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n", encoding="utf-8")


def _surroundings() -> dict[str, Any]:
    """When, where and of what a run was made."""
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", "engine"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    packages = ("atheris", "msgspec", "orjson")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
