"""What is measured, in a process of its own: `python -m benchmarks.child JOB`, its spec on stdin.

It imports its job's module and nothing else, so that a loop's memory is not the engine's. The last
line of stdout is what was measured, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import uvloop

from benchmarks.harness import hwm_kib

Spec = dict[str, Any]
JOBS = {
    "engine": "benchmarks.engines:run",
    "idle": "benchmarks.engines:idle",
    "isolation": "benchmarks.engines:isolation",
    "counting": "benchmarks.engines:counting",
    "parse": "benchmarks.parse:parse",
    "one-batch": "benchmarks.schedule:one_batch",
    "claims": "benchmarks.schedule:claims",
    "sink": "benchmarks.sinks:sink",
    "bare-sink": "benchmarks.sinks:bare",
}
LOOPS = {
    "bare-infobip": "benchmarks.bare:drain",
    "bare-avaamo": "benchmarks.bare:pages",
    "bare-bulksms": "benchmarks.bare:polls",
    "blind": "benchmarks.blind:take",
}


async def _timed(loop: Callable[[Spec], Awaitable[int]], spec: Spec) -> dict[str, Any]:
    began, cpu = time.monotonic(), time.process_time()
    records = await loop(spec)
    return {
        "began": began,
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_kib": hwm_kib(),
        "records": records,
    }


def main() -> None:
    job, spec = sys.argv[1], json.load(sys.stdin)
    module, _, name = (JOBS.get(job) or LOOPS[job]).partition(":")
    act = getattr(import_module(module), name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(_timed(act, spec) if job in LOOPS else act(spec))
    print(json.dumps({"began": 0.0, **done}))


if __name__ == "__main__":
    main()
