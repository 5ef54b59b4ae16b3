"""A fleet on one PostgreSQL: `fleet`.

First what a report costs each of one to four workers, from the provider's answer to the sink's
file: `dlr-engine run --workers N --until-idle` over eight one-time accounts, every record counted.
Starting costs the same however much there is to do, so it is taken off: the same run with next to
nothing. Four workers take as much to start as for some 100,000 reports, so a run has more than
that. The processor is shared with the server, and with whatever else the machine does: the cost is
processor time of the workers alone, and only its ratio to that of one worker means something. What
else the machine does changes: one, two and four take turns, and the ratio is the median of those of
the turns.

Then what the leases alone ask of the server, as a hundred workers with ten thousand accounts would:
a quarter as many connections, each of which looks four times as often. And what the other looks of
a worker with nothing to do cost the server, and its notes for `stats`, one of the hundred's share
in a store of all accounts.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec

from benchmarks.harness import PATIENCE_S, SECRET, Row, folder, lines, median, server
from engine.chores import INBOX_S, ROOM_S, STATUS_S
from engine.core.secret import Secret
from engine.core.work import LogRow
from engine.dispatch.dispatcher import LOOK_S
from engine.leases import RENEW_S, TTL_S
from engine.polling.health import Health
from engine.stores.postgres import PostgresStore
from engine.stores.postgres_leases import LeaseBook
from engine.stores.transaction import Transaction

POSTGRES = os.environ.get("DLR_BENCH_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
PROCESSES = (1, 2, 4)
ACCOUNTS = 8
PAGE = 1000
GROWTH = 1.25  # what a report may cost a worker of four, beside one alone
WORKERS, LEASES = 100, 10_000
FOR_EACH = 4  # workers that one connection stands for: a server has about a hundred
LOOKS_S = 15.0
FEED_S = 10.0  # between two polls of an account
CHANGES = 2  # of an account's health for each: it was asked, and its limit's window is over
TIMES = 400  # each look at the store, of which the server's processor time is taken
AT_ONCE = 500  # accounts written in one transaction
SINKS = ("one", "two")


def run(size: int, runs: int) -> list[Row]:
    """`size` reports; medians."""
    turns = [[_turn(count, size) for count in PROCESSES] for _ in range(runs)]
    rows = [
        _row(count, size, turn)
        for count, turn in zip(PROCESSES, zip(*turns, strict=True), strict=True)
    ]
    for n, row in enumerate(rows[1:], 1):
        cost = median([turn[n].cost_us / turn[0].cost_us for turn in turns])
        row.values["cost beside one"] = cost
        if cost > GROWTH:
            row.faults.append(f"a report costs {cost:.2f} of what it costs one worker")
    alone = asyncio.run(leases(WORKERS, LEASES, LOOKS_S))
    return [*rows, alone, *asyncio.run(standing(WORKERS, LEASES, TIMES))]


class _Turn(NamedTuple):
    cost_us: float  # of a report
    rate: float
    faults: list[str]


def _turn(processes: int, size: int) -> _Turn:
    pages = _pages(size)
    idle_cpu, _, before = _once(processes, 1)
    cpu, seconds, faults = _once(processes, pages)
    cost = (cpu - idle_cpu) / ((pages - 1) * PAGE * ACCOUNTS) * 1e6
    return _Turn(cost, pages * PAGE * ACCOUNTS / seconds, [*before, *faults])


def _row(processes: int, size: int, turns: Sequence[_Turn]) -> Row:
    return Row(
        name=f"{processes} worker{'s' if processes > 1 else ''}",
        values={
            "reports": _pages(size) * PAGE * ACCOUNTS,
            "cpu us/report": median([turn.cost_us for turn in turns]),
            "reports/s, start included": median([turn.rate for turn in turns]),
        },
        faults=[fault for turn in turns for fault in turn.faults],
    )


def _pages(size: int) -> int:
    """Of each account."""
    return max(2, round(size / PAGE / ACCOUNTS))


def _once(processes: int, pages: int) -> tuple[float, float, list[str]]:
    """Processor time of all workers, the time it took, and what is wrong with what came out."""
    names = [f"account-{n}" for n in range(ACCOUNTS)]
    spec = {"style": "infobip", "accounts": names, "size": PAGE, "pages": pages}
    with folder() as base, schema() as store, server("pages", spec) as url:
        (base / "engine.toml").write_text(_config(store, f"{url}/turn", names))
        command = [
            sys.executable, "-m", "engine", "run", "--config", str(base / "engine.toml"),
            "--workers", str(processes), "--until-idle", "--quiet",
        ]  # fmt: skip
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        after, ended = os.times(), time.perf_counter()
        # The parent has waited for its workers: their time is its own, and so is ours.
        cpu = after.children_user - before.children_user
        cpu += after.children_system - before.children_system
        return cpu, ended - began, _each_once(base, pages * PAGE * ACCOUNTS)


def _config(store: str, url: str, names: list[str]) -> str:
    parts = [f'[store]\nurl = "{store}"']
    parts += [
        f'[[accounts]]\nname = "{name}"\nprovider = "infobip"\nbase_url = "{url}/{name}"\n'
        f'api_key = "{SECRET}"\nlimits = {{ requests = 100000, per = "1s" }}\n'
        'schedule = { interval = "1h" }'
        for name in names
    ]
    parts.append('[[sinks]]\nname = "out"\ntype = "jsonl"\npath = "{worker}.jsonl"\n')
    return "\n".join(parts)


def _each_once(base: Path, expected: int) -> list[str]:
    events = [record["event_id"] for path in base.glob("*.jsonl") for record in lines(path)]
    faults = []
    if len(events) != expected:
        faults.append(f"expected {expected} records, got {len(events)}")
    if len(set(events)) != len(events):
        faults.append(f"{len(events) - len(set(events))} records are there twice")
    return faults


@asynccontextmanager
async def _schema() -> AsyncIterator[str]:
    """The URL of a schema of its own, gone afterwards."""
    name = f"dlr_fleet_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(POSTGRES)
    try:
        await db.execute(f"CREATE SCHEMA {name}")
        yield f"{POSTGRES}?search_path={name}"
    finally:
        await db.execute(f"DROP SCHEMA {name} CASCADE")
        await db.close()


@contextmanager
def schema() -> Iterator[str]:
    """The same, for whoever has no event loop."""
    with asyncio.Runner() as runner:
        made = _schema()
        url = runner.run(made.__aenter__())
        try:
            yield url
        finally:
            runner.run(made.__aexit__(None, None, None))


# The leases alone


async def leases(workers: int, accounts: int, seconds: float) -> Row:
    """What so many workers with so many accounts in all ask of the server when nothing moves."""
    names = [f"account-{n:06d}" for n in range(accounts)]
    async with _leased(workers // FOR_EACH, names) as (books, url):
        db = await asyncpg.connect(url)
        try:
            backends = {
                row[0]
                for row in await db.fetch(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'dlr-engine leases'"
                )
            }
            before, wal = _cpu_s(backends), await _wal(db)
            took: list[float] = []
            held: list[int] = []
            await asyncio.gather(*(_look(book, seconds, took, held) for book in books))
            cpu, wal = _cpu_s(backends) - before, await _wal(db) - wal
        finally:
            await db.close()
    took.sort()
    share = accounts // (workers // FOR_EACH)
    return Row(
        name=f"leases: {workers} workers, {accounts:,} accounts",
        values={
            "looks/s": len(took) / seconds,
            "ms a look": median(took) * 1000,
            "p99 ms": took[len(took) * 99 // 100] * 1000,
            "server cores": cpu / seconds,
            "WAL KiB/s": wal / seconds / 1024,
        },
        faults=[] if set(held) == {share} else [f"leases were lost: {sorted(set(held))}"],
    )


@asynccontextmanager
async def _leased(workers: int, names: list[str]) -> AsyncIterator[tuple[list[LeaseBook], str]]:
    """Workers that hold all of it, in equal parts."""
    async with _schema() as url:
        books: list[LeaseBook] = []
        store = PostgresStore(Secret(url))
        await store.open(own=True)
        await store.close()
        try:
            for n in range(workers):
                book = LeaseBook(Secret(url), f"worker-{n}", names, ttl_s=60 * TTL_S)
                books.append(book)
                await book.renew(load=1.0, idle=False, leaving=False)
                await book.claim([[one] for one in names[n::workers]])
            yield books, url
        finally:
            for book in books:
                await book.close()


async def _look(book: LeaseBook, seconds: float, took: list[float], held: list[int]) -> None:
    every_s = RENEW_S / FOR_EACH
    await asyncio.sleep(hash(book.worker) % 1000 / 1000 * every_s)
    for _ in range(round(seconds / every_s)):
        began = time.perf_counter()
        seen = await book.renew(load=1.0, idle=False, leaving=False)
        took.append(time.perf_counter() - began)
        held.append(len(seen.mine))
        await asyncio.sleep(max(0.0, every_s - took[-1]))


# Standing still


async def standing(workers: int, accounts: int, times: int) -> list[Row]:
    """What each look of a worker without news costs the server, and all workers' in cores; and
    what it writes of its accounts' health."""
    names = [f"account-{n:06d}" for n in range(accounts)]
    share = names[: accounts // workers]
    looks: list[tuple[str, float, Callable[[Transaction], object]]] = [
        ("inbox", 1 / INBOX_S, lambda tx: tx.inbox_waits()),
        ("room", 1 / ROOM_S, lambda tx: tx.backlog()),
        ("sinks", len(SINKS) / LOOK_S, lambda tx: tx.log_bounds()),
    ]
    async with _schema() as url:
        store = PostgresStore(Secret(url))
        await store.open(own=True)
        await _fill(store, names)
        await store.close()
        store = PostgresStore(Secret(url))
        store.fences = dict.fromkeys(share, 1)
        store.session_name = f"dlr-bench {uuid.uuid4().hex}"
        await store.open(own=False)
        db = await asyncpg.connect(url)
        try:
            await db.execute(_LEASED, share)
            reads = [
                await _measured(db, store, name, per_s * workers, times, partial(store.read, look))
                for name, per_s, look in looks
            ]
            write = partial(store.write, _health(share), lazy=True)
            return [*reads, await _measured(db, store, "health", workers / STATUS_S, times, write)]
        finally:
            await store.close()
            await db.close()


async def _measured(
    db: Any,
    store: PostgresStore,
    name: str,
    per_s: float,
    times: int,
    act: Callable[[], Awaitable[object]],
) -> Row:
    """What the server has to do for it, `per_s` times a second."""
    await act()
    pids = {row[0] for row in await db.fetch(_NAMED, store.session_name)}
    before, wal, began = _cpu_s(pids), await _wal(db), time.perf_counter()
    for _ in range(times):
        await act()
    cost = (_cpu_s(pids) - before) / times
    values: dict[str, float | int | str] = {
        "looks/s of all": per_s,
        "server ms a look": cost * 1000,
        "ms a look": (time.perf_counter() - began) / times * 1000,
        "server cores": cost * per_s,
        "WAL KiB/s": (await _wal(db) - wal) / times * per_s / 1024,
    }
    return Row(name=f"standing still: {name}", values=values)


def _health(accounts: list[str]) -> Callable[[Transaction], None]:
    """Notes of those whose health is another one than a look before."""
    some = cycle(accounts)
    changed = max(1, round(len(accounts) / FEED_S * STATUS_S * CHANGES))

    def note(tx: Transaction) -> None:
        notes: dict[tuple[str, str], bytes] = {}
        for name in islice(some, changed):
            now_ms = time.time_ns() // 1_000_000
            health = msgspec.to_builtins(Health(answered_ms=now_ms))
            use = [{"requests": 2, "per_s": 1.0, "used": now_ms % 2}]
            told = {**health, "waits": None, "used": use, "hold_s": 0, "hold_why": None}
            notes[name, "status"] = msgspec.json.encode(told)
        tx.put_notes(notes)

    return note


_LEASED = "INSERT INTO lease (account, fence) SELECT unnest($1::text[]), 1"
_NAMED = "SELECT pid FROM pg_stat_activity WHERE application_name = $1"


async def _fill(store: PostgresStore, names: list[str]) -> None:
    """A row of the log for each account, that two sinks have not taken."""
    row = LogRow(seq=1, at_ms=time.time_ns() // 1_000_000, states=b"\0", body=b"{}")

    def fill(tx: Transaction, some: list[str]) -> None:
        for name in some:
            tx.append_log(name, [row])
        for sink in SINKS:
            tx.put_places(sink, dict.fromkeys(some, (1, 0)))

    for start in range(0, len(names), AT_ONCE):
        await store.write(partial(fill, some=names[start : start + AT_ONCE]))


def _cpu_s(pids: set[int]) -> float:
    """Processor time of these processes, where this machine can tell."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # the server is elsewhere
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _wal(db: Any) -> int:
    return int(await db.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))
