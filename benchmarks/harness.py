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
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

PATIENCE_S = 3600.0  # a run that is not through by then has failed
CLIENT, SERVER = 0, 1  # their cores
SECRET = "3f9c1e7ab2d84c60-a51fd07be9c2463d"  # as long as providers' keys are


class Row(msgspec.Struct, kw_only=True):
    """A line of a case's table: what was measured, and what was wrong. `series`: what is drawn, the
    points of a curve by its name."""

    name: str
    values: dict[str, float | int | str]
    faults: list[str] = []
    series: dict[str, list[tuple[float, float]]] = {}


class Case(msgspec.Struct, kw_only=True):
    """A case: `run(size, runs)` gives its rows. `full` is the size that its promise is about."""

    name: str
    about: str
    size: int
    unit: str
    run: Callable[[int, int], list[Row]]
    full: int = 0
    runs: int = 3


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


def pin(pid: int, core: int) -> None:
    """Clients on core 0, servers on core 1, where there are two that we may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1 and not os.environ.get("DLR_BENCH_UNPINNED"):
            os.sched_setaffinity(pid, {cores[core]})


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
    pin(process.pid, SERVER)
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
    """Run a job of `benchmarks.child` in a process of its own; what it measured, and `ended_s`:
    from its beginning, without imports, until the process was gone."""
    return process([sys.executable, "-m", "benchmarks.child", job], spec)


def process(command: Sequence[str], spec: dict[str, Any]) -> dict[str, Any]:
    """A client in a process of its own: its spec goes into stdin, the last line it prints is what
    it measured, `began` being the reading of the monotonic clock when it began."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        pin(running.pid, CLIENT)
        try:
            out, _ = running.communicate(json.dumps(spec), timeout=PATIENCE_S + 60)
        except subprocess.TimeoutExpired:
            running.kill()
            raise
    ended = time.monotonic()
    if running.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: exit status {running.returncode}")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    answer["ended_s"] = ended - answer["began"]
    return answer


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped at the block's end, if it has not ended by then."""
    with subprocess.Popen(command) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.terminate()
                try:
                    running.wait(30)
                except subprocess.TimeoutExpired:
                    running.kill()


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
    keys = ["", *dict.fromkeys(key for row in rows for key in row.values)]
    cells = [[row.name, *(_cell(row.values.get(key, "")) for key in keys[1:])] for row in rows]
    out = [title, *columns([keys, *cells])]
    out += [f"  FAULT {row.name}: {fault}" for row in rows for fault in row.faults]
    return "\n".join(out)


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells under one another, the first of each line to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]).rstrip()
        for line in lines
    ]  # fmt: skip


def _cell(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
