"""`schedule`: so many pending batches in the SQLite store.

What must not grow with them: the memory of the worker and the time from its start to its first
poll; both are those of `dlr-engine run` in a process of its own. And how many polls a second the
schedule itself can give: due ones read from the store and put on their next rung, once in lists as
the driver takes them, once with the books of an answer that had nothing, poll by poll.

The store is filled behind the engine's back, by copying one batch that it has tracked.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import engine
from benchmarks.harness import (
    CLIENT,
    SECRET,
    Row,
    ask,
    child,
    config,
    folder,
    pin,
    server,
    started,
)
from engine.core.schedule import Ladder
from engine.core.work import Page, Settle
from engine.stores import ledger
from engine.stores.opening import make_store
from engine.stores.tracked import Tracked

FIRST = 10_000_000
OVERDUE = 20_000  # of the pending ones are due when the worker starts
CLAIMED = 200_000  # at most, for the rates
AT_ONCE = 1000
TOGETHER = 64  # answers that are committed at the same time
LADDER_S = (300.0, 432_000.0)
DAYS_MS = 5 * 86_400_000
RUNNING_S = 5.0  # that long after its first poll the worker's peak of memory is read, or as long
POLL_S = 0.002  # as it takes to poll what there is
WAIT_S = 120.0
CONFIG = """\
[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{url}"
username = "john"
password = "{secret}"
limits = {{ requests = 100_000, per = "1s", concurrency = 16 }}
schedule = {{ ladder = ["5m", "5d"], jitter = 0 }}

[[sinks]]
name = "out"
type = "jsonl"
path = "reports.jsonl"
"""


def run(size: int, runs: int) -> list[Row]:
    """`size` batches; the worker starts `runs` times."""
    with folder() as base, server("polls", {"open": True}) as url:
        file = base / "engine.toml"
        file.write_text(CONFIG.format(url=url, secret=SECRET), encoding="utf-8")
        child("one-batch", {"base": str(base), "url": url, "first": FIRST})
        filled_s = _fill(base / "state.db", size)
        store, run_s = base / "state.db", min(RUNNING_S, size * POLL_S)
        starts = [_worker(file, store, url, nth, run_s) for nth in range(1, runs + 1)]
        claims = child("claims", {"base": str(base), "count": min(size, CLAIMED)})
        faults = _left(base / "state.db", size)
    best = sorted(starts, key=lambda start: start["first_s"])[len(starts) // 2]
    count = claims["count"]
    values: dict[str, float | int | str] = {
        "pending": size,
        "filled in, s": filled_s,
        "store MB": claims["store_bytes"] / 1e6,
        "worker, MiB": max(start["peak_kib"] for start in starts) / 1024,
        "start to first poll, s": best["first_s"],
        "of it imports, s": best["imports_s"],
        "claimed and put again/s": count / claims["lists_s"],
        "with its books/s": claims["booked"] / claims["books_s"],
    }
    return [Row(name=f"{size:,} batches", values=values, faults=faults)]


def _fill(path: Path, size: int) -> float:
    """Copies of the one batch: some overdue, the rest due over the next five days."""
    began = time.monotonic()
    now_ms = time.time_ns() // 1_000_000
    with closing(sqlite3.connect(path)) as db:
        names = [row[1] for row in db.execute("PRAGMA table_info(work)") if row[1] != "id"]
        overdue = min(OVERDUE, size)
        first_ms, step_ms = now_ms + 300_000, max(1, DAYS_MS // size)
        due = f"CASE WHEN n < {overdue} THEN {now_ms - 60_000} ELSE {first_ms} + n * {step_ms} END"
        made = {"key": f"CAST({FIRST} + n AS TEXT)", "due_ms": due, "start_ms": f"{due} - 300000"}
        columns = ", ".join(made.get(name, f"work.{name}") for name in names)
        db.execute(
            f"WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted"
            f" WHERE n < {size - 1}) INSERT INTO work ({', '.join(names)})"
            f" SELECT {columns} FROM counted, work WHERE work.key = '{FIRST}'"
        )
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return time.monotonic() - began


def _left(path: Path, size: int) -> list[str]:
    """No batch is over, for no answer had anything; none is there twice, by the store's index."""
    with closing(sqlite3.connect(path)) as db:
        (count,) = db.execute("SELECT count(*) FROM work WHERE kind = 'batch'").fetchone()
    return [] if count == size else [f"pending batches: expected {size}, got {count}"]


def _worker(file: Path, store: Path, url: str, nth: int, run_s: float) -> dict[str, Any]:
    """Start the worker, wait for its next poll, look at its memory, stop it. Between two starts
    what was polled is overdue again."""
    asked = len(ask(f"{url}/_times"))
    if nth > 1:
        now_ms = time.time_ns() // 1_000_000
        with closing(sqlite3.connect(store)) as db:
            db.execute(
                "UPDATE work SET due_ms = ?, answered_ms = -1 WHERE kind = 'batch' AND id IN"
                " (SELECT id FROM work ORDER BY id LIMIT ?)",
                (now_ms - 1000, OVERDUE),
            )
            db.commit()
    command = [sys.executable, "-m", "engine", "run", "--config", str(file), "-q"]
    imports = _imports_s()
    began = time.time()
    with started(command) as worker:
        pin(worker.pid, CLIENT)
        until = time.monotonic() + WAIT_S
        while len(times := ask(f"{url}/_times")) == asked and time.monotonic() < until:
            time.sleep(0.05)
        if len(times) == asked:
            raise RuntimeError(f"the worker has not polled within {WAIT_S:g} s")
        time.sleep(run_s)
        status = Path(f"/proc/{worker.pid}/status").read_text(encoding="ascii")
        peak_kib = next(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    return {"first_s": times[asked][1] - began, "imports_s": imports, "peak_kib": peak_kib}


def _imports_s() -> float:
    """Of an interpreter and the worker's modules."""
    began = time.monotonic()
    with started([sys.executable, "-c", "import engine.worker, engine.cli.run"]) as process:
        process.wait(WAIT_S)
    return time.monotonic() - began


# In a process of its own


def _settings(base: str, url: str) -> engine.Config:
    account = {
        "name": "bulk",
        "provider": "bulksms",
        "base_url": url,
        "username": "john",
        "password": SECRET,
        "limits": {"requests": 100_000, "per": "1s", "concurrency": 16},
        "schedule": {"ladder": ["5m", "5d"], "jitter": 0},
    }
    return engine.configure(config([account]), base=Path(base))


async def one_batch(spec: dict[str, Any]) -> dict[str, Any]:
    """A store with one batch without recipients, whose rung is not due yet."""
    settings = _settings(spec["base"], spec["url"])
    now_ms = time.time_ns() // 1_000_000
    async with engine.open(settings) as poller:
        batch = Tracked(batch_id=str(spec["first"]), sent_ms=now_ms)
        await poller.track_all("bulk", [batch])
    return {}


async def claims(spec: dict[str, Any]) -> dict[str, Any]:
    """Take what is due first and put it on its next rung, as quickly as the store goes."""
    path = Path(spec["base"]) / "state.db"
    store = make_store("sqlite", path, str(path))
    await store.open(own=True)
    traits = _settings(spec["base"], "http://127.0.0.1").accounts[0].provider.traits
    ladder = Ladder.of(LADDER_S)
    now_ms = time.time_ns() // 1_000_000 + 2 * DAYS_MS  # all of them are due by then

    async def lists() -> None:
        left = count
        while left > 0:
            works = await store.read(lambda tx: tx.works_due("bulk", now_ms, min(AT_ONCE, count)))
            for work in works:
                work.due_ms = now_ms + DAYS_MS
            await store.write(lambda tx, put=works: tx.move_works(put), lazy=True)
            left -= len(works)

    async def books() -> None:
        works = await store.read(lambda tx: tx.works_due("bulk", now_ms + 2 * DAYS_MS, booked))
        for start in range(0, booked, TOGETHER):
            pages = [
                Page(
                    account="bulk",
                    provider="bulksms",
                    traits=traits,
                    observed_ms=now_ms,
                    settle=Settle(work=work, ladder=ladder, now_ms=work.start_ms + 300_000),
                )
                for work in works[start : start + TOGETHER]
            ]
            jobs = [_commit(page) for page in pages]
            await asyncio.gather(*(store.write(job, lazy=True) for job in jobs))

    count: int = spec["count"]
    booked = max(1, count // 10)
    found = {"count": count, "booked": booked}
    for name, act in (("lists_s", lists), ("books_s", books)):
        began = time.monotonic()
        await act()
        found[name] = time.monotonic() - began
    await store.close()
    found["store_bytes"] = sum(file.stat().st_size for file in path.parent.glob("state.db*"))
    return found


def _commit(page: Page) -> Callable[[Any], Any]:
    return lambda tx: ledger.commit(tx, page)
