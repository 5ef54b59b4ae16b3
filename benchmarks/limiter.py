"""How exact the limiter is, and what it costs, beside aiolimiter: `python -m benchmarks.limiter`.

Each run has more waiters than the limit allows for. The error compares what was granted with what
the limit allows in the same time, CPU is the process's share of one core, and the worst window is
the largest number of grants in any window of the limit's length: more than 100 % is a limit that
was exceeded. A grant stands for a request that is sent and answered at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import aiolimiter
import uvloop

from engine.limits.limiter import Limiter, Rate

RATES = (100, 1000, 5000)
WAITERS = 1000
WARM_S = 1.0


Acquire = Callable[[], Awaitable[float]]  # gives the time of the request's arrival


async def _ours(rate: int) -> Acquire:
    account = Limiter([Rate(rate, 1.0, 0.005)]).for_account(WAITERS)

    async def acquire() -> float:
        with await account.slot() as slot:
            slot.sent()
            arrived = time.monotonic()
            slot.answered()
            return arrived

    return acquire


async def _aiolimiter(rate: int) -> Acquire:
    limiter = aiolimiter.AsyncLimiter(rate, 1.0)

    async def acquire() -> float:
        await limiter.acquire()
        return time.monotonic()

    return acquire


async def _measure(
    make: Callable[[int], Awaitable[Acquire]], rate: int, seconds: float
) -> tuple[float, float, float]:
    acquire = await make(rate)
    grants: list[float] = []

    async def worker() -> None:
        while True:
            grants.append(await acquire())

    tasks = [asyncio.create_task(worker()) for _ in range(WAITERS)]
    began = time.monotonic()
    await asyncio.sleep(WARM_S)  # the burst at the beginning is its own first window
    cpu, at = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    used, took = time.process_time() - cpu, time.monotonic() - at
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    whole = time.monotonic() - began
    error = len(grants) / (rate * (int(whole) + 1)) - 1
    worst = first = 0
    for place, when in enumerate(grants):
        while when - grants[first] >= 1.0:
            first += 1
        worst = max(worst, place - first + 1)
    return error, used / took, worst / rate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=4.5, help="of each run")
    seconds: float = options.parse_args().seconds
    print(f"{'limiter':12} {'loop':8} {'rate':>6} {'error':>8} {'CPU':>7} {'worst window':>13}")
    for name, make in (("engine", _ours), ("aiolimiter", _aiolimiter)):
        for loop in ("asyncio", "uvloop"):
            for rate in RATES:
                factory = uvloop.new_event_loop if loop == "uvloop" else None
                with asyncio.Runner(loop_factory=factory) as runner:
                    error, cpu, worst = runner.run(_measure(make, rate, seconds))
                print(f"{name:12} {loop:8} {rate:6} {error:+8.2%} {cpu:7.1%} {worst:13.1%}")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
