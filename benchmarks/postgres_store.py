"""Pages into the PostgreSQL store: `postgres-store`.

The store's own path, and nothing before it: pages of 1,000 new messages over 8 accounts, one page
an account at a time, each committed as an answer of a one-time provider is; then the same messages
with their final state. Then as many new ones over more processes, each with 8 accounts of its own,
for what a report costs each of them: pages that come at the same time share a commit, and fewer
accounts in a process would have fewer that do. The server stands beside them on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec

from benchmarks.harness import PATIENCE_S, Row, hwm_kib, median
from engine.core.contracts import Traits
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.units import iso
from engine.core.work import Page
from engine.stores.ledger import commit
from engine.stores.postgres import PostgresStore
from engine.stores.transaction import Store

POSTGRES = os.environ.get("DLR_BENCH_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
NAME = f"dlr_bench_{uuid.uuid4().hex[:12]}"  # of the schema and of the connections
PAGE = 1000
ACCOUNTS = 8  # of each process
PROCESSES = (1, 2, 4)
RATE = 30_000  # reports a second that the store takes, at least
GROWTH = 1.25  # what a report may cost a process of four, beside one alone
START_S = 2.0  # from the last process that is ready to the first page

_TRAITS = Traits(feed="drained", one_time=True, dated=True, tracks=frozenset({"batch", "message"}))


def run(size: int, runs: int) -> list[Row]:
    """`size` new messages each way; medians."""
    rows = [_rows(count, size, runs) for count in PROCESSES]
    first, *others = [row for row, _ in rows]
    if float(first.values["reports/s"]) < RATE:
        first.faults.append(f"less than {RATE:,} reports/s")
    for row in others:
        cost = float(row.values["cpu us/report"]) / float(first.values["cpu us/report"])
        row.values["cost beside one"] = cost
        if cost > GROWTH:
            row.faults.append(f"a report costs {cost:.2f} of what it costs one process")
    return [row for pair in rows for row in pair if row is not None]


def _rows(processes: int, size: int, runs: int) -> tuple[Row, Row | None]:
    done: list[dict[str, dict[str, float]]] = []
    faults: list[str] = []
    for _ in range(runs):
        with _schema() as url:
            if url is None:
                empty = {"reports/s": 0.0, "cpu us/report": 1.0}
                return Row(name="no server", values=empty, faults=["no PostgreSQL server"]), None
            done.append(_once(url, processes, size, again=processes == 1))
            faults += asyncio.run(_check(url, done[-1]))
    name = f"new, {processes} process{'es' if processes > 1 else ''}"
    row = Row(name=name, values=_values(done, "new"), faults=faults)
    again = Row(name="another state", values=_values(done, "again")) if processes == 1 else None
    return row, again


def _values(done: list[dict[str, dict[str, float]]], what: str) -> dict[str, float | int | str]:
    names = (
        "reports/s",
        "cpu us/report",
        "server cpu us/report",
        "wal bytes/report",
        "peak MiB",
    )
    return {name: median([one[what][name] for one in done]) for name in names}


def _once(url: str, processes: int, size: int, *, again: bool) -> dict[str, dict[str, float]]:
    """Each process with pages of its own accounts, all from one moment on."""
    accounts = [f"account-{n}" for n in range(ACCOUNTS * processes)]
    shares = [accounts[n::processes] for n in range(processes)]
    pages = max(1, round(size / PAGE / len(accounts)))
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.postgres_store"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in shares
    ]
    measured: dict[str, dict[str, float]] = {}
    try:
        for worker, share in zip(workers, shares, strict=True):
            _tell(worker, {"url": url, "name": NAME, "accounts": share, "pages": pages})
        for worker in workers:
            _hear(worker)  # it is ready
        for what in ("new", "again") if again else ("new",):
            before, used = asyncio.run(_server(url))
            for worker in workers:
                _tell(worker, {"at": time.time() + START_S, "what": what})
            told = [_hear(worker) for worker in workers]
            count = sum(one["reports"] for one in told)
            wal, server_s = asyncio.run(_server(url))
            seconds = max(one["end"] for one in told) - min(one["began"] for one in told)
            measured[what] = {
                "count": count,
                "reports/s": count / seconds,
                "cpu us/report": sum(one["cpu_s"] for one in told) / count * 1e6,
                "server cpu us/report": (server_s - used) / count * 1e6,
                "wal bytes/report": (wal - before) / count,
                "peak MiB": max(one["peak_kib"] for one in told) / 1024,
            }
    finally:
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.close()
            worker.wait(PATIENCE_S)
            worker.stdout.close()
    return measured


def _tell(worker: subprocess.Popen[str], what: dict[str, Any]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(what) + "\n")
    worker.stdin.flush()


def _hear(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a process that was to write into the store has ended")
    told: dict[str, Any] = json.loads(line)
    return told


@contextmanager
def _schema() -> Iterator[str | None]:
    """The URL of a schema of its own, gone afterwards; None where there is no server."""
    where = urlsplit(POSTGRES)
    try:
        socket.create_connection((where.hostname or "", where.port or 5432), 5).close()
    except OSError:
        yield None
        return
    name = NAME
    asyncio.run(_execute(f"CREATE SCHEMA {name}"))
    try:
        yield f"{POSTGRES}?search_path={name}"
    finally:
        asyncio.run(_execute(f"DROP SCHEMA {name} CASCADE"))


async def _execute(statement: str) -> None:
    database = await asyncpg.connect(POSTGRES)
    try:
        await database.execute("SET client_min_messages = error")
        await database.execute(statement)
    finally:
        await database.close()


async def _server(url: str) -> tuple[int, float]:
    """Bytes of the server's log so far, of all that use it, and the seconds of processor time that
    our connections' processes have taken; 0 where it is not on this machine."""
    database = await asyncpg.connect(url)
    try:
        wal = int(await database.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
        rows = await database.fetch(
            "SELECT pid FROM pg_stat_activity"
            " WHERE application_name = $1 AND pid <> pg_backend_pid()",
            NAME,
        )
    finally:
        await database.close()
    return wal, sum(_cpu_s(row[0]) for row in rows)


def _cpu_s(pid: int) -> float:
    """Of a process, in user and system mode."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    ticks = stat.read_text().rpartition(") ")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


async def _check(url: str, done: dict[str, dict[str, float]]) -> list[str]:
    """What is wrong with the books: each message once, each record in the log."""
    database = await asyncpg.connect(url)
    try:
        known = await database.fetchval("SELECT count(*) FROM message")
        tallied = await database.fetchval("SELECT sum(n) FROM tally WHERE name = 'known'")
        logged = await database.fetchval("SELECT sum(length(states)) FROM log")
    finally:
        await database.close()
    expected = round(done["new"]["count"])
    records = round(sum(one["count"] for one in done.values()))
    found = {"messages": (known, expected), "known": (tallied, expected)}
    found["records"] = (logged, records)
    return [f"{name}: expected {want}, got {got}" for name, (got, want) in found.items()
            if got != want]  # fmt: skip


# In a process of its own


def _pages(account: str, count: int, what: str) -> list[Page]:
    """Pages of messages whose ids have no order, as a provider's have none."""
    dice = random.Random(account)
    now_ms = 1_790_000_000_000
    state, words = (State.ENROUTE, "PENDING_ENROUTE"), "Message sent to next instance"
    if what == "again":
        state, words = (State.DELIVERED, "DELIVERED_TO_HANDSET"), "Message delivered to handset"
    return [
        Page(
            account=account,
            provider="infobip",
            traits=_TRAITS,
            observed_ms=now_ms + number * 1000,
            reports=[
                Report(
                    message_id=str(uuid.UUID(int=dice.getrandbits(128))),
                    direction="mt",
                    channel="sms",
                    state=state[0],
                    final=state[0] is State.DELIVERED,
                    provider_status=state[1],
                    provider_status_text=words,
                    batch_id=f"bulk-{account}-{number}",
                    reference=f"order-{account}-{number}-{n}",
                    sender="InfoSMS",
                    recipient=(digits := f"4477{dice.randrange(10**8):08d}"),
                    msisdn=digits,
                    sent_at=iso(now_ms + number * 1000 + n),
                    done_at=iso(now_ms + number * 1000 + n + (5000 if what == "again" else 1000)),
                    parts=1,
                    price="0.01",
                    currency="EUR",
                    mcc_mnc="23410",
                    extra={"bulkId": f"bulk-{number}", "paid": True},
                )
                for n in range(PAGE)
            ],
        )
        for number in range(count)
    ]


async def _commit_all(store: Store, pages: list[Page]) -> None:
    for page in pages:
        await store.write(lambda tx, page=page: commit(tx, page))


async def _work() -> None:
    spec = json.loads(sys.stdin.readline())
    store = PostgresStore(Secret(spec["url"]))
    store.session_name = spec["name"]
    await store.open(own=True)
    print("{}", flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            work = [_pages(name, spec["pages"], order["what"]) for name in spec["accounts"]]
            await asyncio.sleep(max(0.0, order["at"] - time.time()))
            began, cpu = time.time(), time.process_time()
            async with asyncio.TaskGroup() as group:
                for pages in work:
                    group.create_task(_commit_all(store, pages))
            told = {
                "began": began,
                "end": time.time(),
                "cpu_s": time.process_time() - cpu,
                "reports": sum(len(pages) for pages in work) * PAGE,
                "peak_kib": hwm_kib(),
            }
            print(msgspec.json.encode(told).decode(), flush=True)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(_work())
