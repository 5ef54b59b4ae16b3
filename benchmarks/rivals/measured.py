"""What each rival's program measures of itself. It runs in the rival's own virtual environment:
the standard library alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Spec = dict[str, Any]


def peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(run: Callable[[Spec], None]) -> None:
    """The spec from stdin, the figures as the last line of stdout. Imports are over by now. What
    the run itself prints goes into a file."""
    spec = json.load(sys.stdin)
    real = os.dup(1)
    file = os.open(os.path.join(spec["base"], "stdout.jsonl"), os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    began, cpu = time.monotonic(), time.process_time()
    run(spec)
    sys.stdout.flush()
    figures = {
        "began": began,
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_kib": peak_kib(),
    }
    os.write(real, json.dumps(figures).encode() + b"\n")
