"""Millions of pending batches in the SQLite schedule: `python -m benchmarks.schedule [--size N]`.

A store is filled with batches of ten accounts, in the order in which they were sent; all but a few
are due in the next days. Then a worker is started on it, in a process of its own: how long until
its first poll arrives, and how much memory has it taken by the end? At last, in another process,
due batches are claimed and put on their next rung as the engine does it, each group durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

import engine
from benchmarks.harness import SECRET, ask, config, hwm_kib, server
from engine.clock import RealClock
from engine.core.schedule import Ladder
from engine.core.work import Work
from engine.near import NearQueue
from engine.stores.sqlite import SqliteStore, prepare
from engine.stores.transaction import Transaction
from engine.worker import Engine

SIZE = 10_000_000
ACCOUNTS = tuple(f"bulk-{n}" for n in range(10))
DUE = 200  # polls of each account that are due at the start
DAY_MS = 86_400_000
LADDER_S = (300.0, 1800.0, 7200.0, 18_000.0, 86_400.0, 172_800.0, 432_000.0)
WORK_S = 5.0  # the worker polls for so long
CLAIMED = 200_000  # batches claimed and rescheduled
GROUP = 1000
PATIENCE_S = 120.0

_FILL = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
INSERT INTO work (account, kind, key, due_ms, start_ms, answered_ms, data)
SELECT :account, 'batch', printf('%010d', i),
    CASE WHEN i < :due THEN :now - 1000 + i ELSE :now + :hour + CAST(i * :gap AS INTEGER) END,
    :now - :day, 18000000, CAST('{"reference":"order-' || i || '"}' AS BLOB) FROM n
"""


def fill(path: Path, size: int) -> float:
    """A store with so many pending batches; how long that took."""
    began = time.perf_counter()
    prepare(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA synchronous = OFF")
        for number, name in enumerate(ACCOUNTS, 1):
            db.execute("INSERT INTO account (id, name) VALUES (?, ?)", (number, name))
            count = size // len(ACCOUNTS)
            given = {"account": number, "count": count, "due": DUE, "now": _now_ms()}
            gap = 5 * DAY_MS / count
            db.execute(_FILL, {**given, "day": DAY_MS, "hour": 3_600_000, "gap": gap})
            db.commit()
    db.close()
    return time.perf_counter() - began


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def work(base: Path, url: str) -> dict[str, Any]:
    """A worker on that store: when it began, and its memory."""
    accounts = [
        {
            "name": name,
            "provider": "bulksms",
            "base_url": url,
            "username": "john",
            "password": SECRET,
            "limits": {"requests": 50, "per": "1s"},
        }
        for name in ACCOUNTS
    ]
    configured = engine.configure(config(accounts), base=base)
    idle_kib = hwm_kib()
    began = time.time()
    async with Engine(configured):
        await asyncio.sleep(WORK_S)
        peak_kib = hwm_kib()
    return {"began": began, "idle_kib": idle_kib, "peak_kib": peak_kib}


async def claim(base: Path) -> dict[str, Any]:
    """Take what is next out of the near queue and put it on its next rung, a group a commit."""
    store = SqliteStore(base / "state.db")
    await store.open(own=True)
    clock = _Ahead()
    near = NearQueue(ACCOUNTS[0], store, clock)
    ladder = Ladder.of(LADDER_S)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < CLAIMED:
        await near.refill()
        works = [near.take() for _ in range(min(GROUP, len(near)))]
        if not works:
            break
        for one in works:
            one.answered_ms = ladder.offsets_ms[4]
            one.due_ms = ladder.next_due_ms(one.start_ms, one.answered_ms, 0.0) or 0
            one.due_ms += 10 * DAY_MS
        await store.write(partial(_move, works), lazy=True)
        near.done(works)
        count += len(works)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    await store.close()
    return {"claimed": count, "seconds": took, "cpu_s": used}


def _move(works: list[Work], tx: Transaction) -> None:
    tx.move_works(works)


class _Ahead(RealClock):
    """All batches are due."""

    def now_ms(self) -> int:
        return super().now_ms() + 9 * DAY_MS


def _child(job: str, base: Path, url: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.schedule", "--job", job, str(base), url],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=SIZE, help="pending batches")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job, base, url = given.job
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            done = runner.run(work(Path(base), url) if job == "work" else claim(Path(base)))
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory(prefix="dlr-bench-") as name, server("polls", {}) as url:
        base = Path(name)
        took = fill(base / "state.db", given.size)
        size = (base / "state.db").stat().st_size
        print(f"{given.size:,} batches, {size / 2**20:,.0f} MiB, made in {took:.0f} s", flush=True)
        worker = _child("work", base, url)
        asked = ask(f"{url}/_times")
        first_s = min(at for _, at in asked) - worker["began"]
        idle, peak = worker["idle_kib"] / 1024, worker["peak_kib"] / 1024
        print(f"start to first poll {first_s:.3f} s; {len(asked):,} polls in {WORK_S:g} s")
        print(f"memory {peak:.0f} MiB; before the start {idle:.0f} MiB", flush=True)
        done = _child("claim", base, url)
        rate, used = done["claimed"] / done["seconds"], done["cpu_s"] / done["claimed"] * 1e6
        print(f"claimed and rescheduled {done['claimed']:,}: {rate:,.0f}/s, {used:.1f} us CPU each")


if __name__ == "__main__":
    main()
