"""`idle-start`: what a start costs: `run --until-idle` with nothing to do, and `import engine`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import SECRET, Row, folder, median, server

IDLE_MAX_S = 2.0
IMPORT_MAX_S = 0.3
TRIES = 5
CONFIG = """\
[[accounts]]
name = "queue"
provider = "infobip"
base_url = "{url}/run/queue"
api_key = "{secret}"

[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{url}"
username = "john"
password = "{secret}"

[[sinks]]
name = "out"
type = "jsonl"
path = "reports.jsonl"
"""


def run(size: int, runs: int) -> list[Row]:
    """`size` starts of each; the medians count."""
    with folder() as base, server("pages", _EMPTY) as url:
        file = base / "engine.toml"
        file.write_text(CONFIG.format(url=url, secret=SECRET), encoding="utf-8")
        idle, faults = [], []
        for _ in range(size):
            seconds, fault = _until_idle(file)
            idle.append(seconds)
            faults += fault
    bare, imported, worker = [], [], []
    for _ in range(size):
        bare.append(_timed("-c", "pass"))
        imported.append(_timed("-c", "import engine"))
        worker.append(_timed("-c", "import engine.worker, engine.cli"))
    engine_s = median(imported) - median(bare)
    if median(idle) >= IDLE_MAX_S:
        faults.append(f"--until-idle: expected less than {IDLE_MAX_S} s, got {median(idle):.2f}")
    if engine_s >= IMPORT_MAX_S:
        faults.append(f"import: expected less than {IMPORT_MAX_S} s, got {engine_s:.2f}")
    values: dict[str, float | int | str] = {
        "run --until-idle, s": median(idle),
        "slowest": max(idle),
        "bare interpreter, ms": median(bare) * 1000,
        "import engine, ms": engine_s * 1000,
        "all of the worker, ms": (median(worker) - median(bare)) * 1000,
    }
    return [Row(name=f"{size} starts", values=values, faults=faults)]


_EMPTY = {"style": "infobip", "accounts": ["queue"], "size": 1, "pages": 0}


def _until_idle(config: Path) -> tuple[float, list[str]]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "engine", "run", "--config", str(config), "--until-idle", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    seconds = time.perf_counter() - began
    fault = f"--until-idle: exit {done.returncode}: {done.stderr.strip()[-300:]}"
    return seconds, [fault] if done.returncode else []


def _timed(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - began
