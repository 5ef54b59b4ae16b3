"""What the cases share: processes of their own, results, the machine, tables.

Server and client never share an interpreter, and what is measured runs in a process that did
nothing before: its time has no imports in it, and its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

PATIENCE_S = 300.0  # a case that is not through by then has failed
SECRET = "benchmark"


class Row(msgspec.Struct, kw_only=True):
    """A line of a case's table: what was measured, and what has to hold."""

    name: str
    values: dict[str, float | int | str]
    faults: list[str] = []


class Case(msgspec.Struct, kw_only=True):
    """A case: `run(size, runs)` gives its rows."""

    name: str
    about: str
    size: int
    unit: str
    run: Callable[[int, int], list[Row]]


def machine() -> dict[str, str | int]:
    """The machine and the interpreter, as a result has to name them."""
    model = platform.processor() or "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cores": os.cpu_count() or 0,
        "cpu": model,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def hwm_kib() -> int:
    """This process's peak of resident memory; unlike ru_maxrss without its parent's."""
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    return 0


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dlr-bench-") as name:
        yield Path(name)


@contextmanager
def server(kind: str, spec: dict[str, Any]) -> Iterator[str]:
    """A server in a process of its own, until the block ends; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the {kind} server did not start")
        yield url
    finally:
        process.terminate()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


def child(job: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a job of `benchmarks.child` in a process of its own; what it measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", job],
        input=json.dumps(spec),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S + 60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def ask(url: str, body: object = None) -> Any:
    """A server's own paths, in JSON."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file."""
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as file:
        for line in file:
            yield decode(line)


def config(accounts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The engine as it is by default: durable state in SQLite, records into a JSONL file."""
    return {
        "store": {"url": "sqlite:///state.db"},
        "accounts": list(accounts),
        "sinks": [{"name": "out", "type": "jsonl", "path": "reports.jsonl"}],
    }


def infobip(name: str, base_url: str) -> dict[str, Any]:
    """An account whose limit does not bind."""
    return {
        "name": name,
        "provider": "infobip",
        "base_url": base_url,
        "api_key": SECRET,
        "limits": {"requests": 100_000, "per": "1s"},
        "schedule": {"interval": "1h", "idle_interval": "1h"},
    }


def each_once(path: Path, expected: int, name: str = "records") -> list[str]:
    """What is wrong with a file that has to hold so many records, none of them twice."""
    seen: set[tuple[str, str]] = set()
    count = 0
    for record in lines(path):
        count += 1
        seen.add((record["account"], record["event_id"]))
    faults = []
    if count != expected:
        faults.append(f"{name}: expected {expected}, got {count}")
    if len(seen) != count:
        faults.append(f"{name}: {count - len(seen)} are there twice")
    return faults


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(title: str, rows: Sequence[Row]) -> str:
    """Rows with the same columns as text."""
    columns = ["", *dict.fromkeys(key for row in rows for key in row.values)]
    cells = [[row.name, *(_cell(row.values.get(key, "")) for key in columns[1:])] for row in rows]
    widths = [max(len(line[n]) for line in (columns, *cells)) for n in range(len(columns))]
    out = [title]
    for line in (columns, *cells):
        first, *rest = zip(line, widths, strict=True)
        out.append("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip())
    out += [f"  FAULT {row.name}: {fault}" for row in rows for fault in row.faults]
    return "\n".join(out)


def _cell(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
