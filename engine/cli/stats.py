"""`dlr-engine stats`: the books of a store, for people and as JSON.

It shows both sides of `known = final + pending`, so that a fault in the bookkeeping would be seen.
Everything comes from one short read; what only the worker knows (health, use of the limit) is what
it last noted. Works while a worker runs, changes nothing, and makes no store.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from engine.books.periods import Progress, progress_of
from engine.core.contracts import Kind
from engine.core.errors import EngineError
from engine.core.units import iso, spell_size
from engine.core.work import NEVER_DUE_MS

from . import dead_letter, needs, process
from .show import stored
from .streams import print_json

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config
    from engine.stores.postgres_leases import Survey, Worker
    from engine.stores.transaction import DeadCount, Transaction, Trouble

TROUBLES_MAX = 20
RAW_SHOWN = 120
HOUR_MS = 3_600_000


class Books(msgspec.Struct):
    """What one read of the store brings."""

    tallies: dict[str, dict[str, int]] = {}
    due: dict[str, dict[Kind, tuple[int, int, int]]] = {}
    within_hour: dict[str, dict[Kind, tuple[int, int, int]]] = {}
    bounds: dict[str, tuple[int, int]] = {}
    places: dict[str, dict[str, tuple[int, int]]] = {}
    troubles: list[Trouble] = []
    status: dict[str, bytes] = {}
    sinks: dict[str, bytes] = {}
    backlog: dict[str, dict[str, int]] = {}
    fleet: Survey | None = None  # where workers share the store
    sink_notes: dict[tuple[str, str], bytes] = {}  # there: by sink and worker
    dead: dict[str, DeadCount] = {}
    periods: dict[str, dict[str, Progress]] = {}  # past ones, by account


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    books, missing = Books(), ""
    try:
        if stored(config):
            books = process.start(lambda: _read(config))
        else:
            missing = f"the store {config.store.shown} does not exist yet"
    except EngineError as error:
        if config.store.scheme != "memory":
            raise
        missing = str(error)
    if missing:
        print(f"dlr-engine: {missing}", file=sys.stderr)
    table = {
        "workers": [_worker(worker) for worker in books.fleet.workers] if books.fleet else [],
        "accounts": {a.name: _account(a, books) for a in config.accounts},
        "sinks": {sink.name: _sink(config, sink.name, books) for sink in config.sinks},
        "troubles": [_trouble(trouble) for trouble in books.troubles],
    }
    if args.json:
        print_json(table)
    else:
        print("\n".join(_text(table)))
    return 0


async def _read(config: Config) -> Books:
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        now_ms = time.time_ns() // 1_000_000
        books = await store.read(lambda tx: _books(tx, now_ms))
        books.periods = await store.read(
            lambda tx: {one.name: progress_of(tx, one.name) for one in config.accounts}
        )
        if config.store.scheme == "postgresql":
            from engine.stores.postgres_leases import survey

            books.fleet = found = await survey(config.store.url)
            books.sink_notes = await store.read(lambda tx: _sink_notes(tx, config, found))
        return books
    finally:
        await store.close()


def _sink_notes(tx: Transaction, config: Config, fleet: Survey) -> dict[tuple[str, str], bytes]:
    """How each sink does at each worker."""
    from engine.chores import sink_note

    keys = [(sink.name, worker.name) for sink in config.sinks for worker in fleet.workers]
    notes = {}
    for key in keys:
        whose, name = sink_note(*key)
        note = tx.notes(name).get(whose)
        if note is not None:
            notes[key] = note
    return notes


def _books(tx: Transaction, now_ms: int) -> Books:
    return Books(
        tallies=tx.tallies(),
        due=tx.count_works(now_ms),
        within_hour=tx.count_works(now_ms + HOUR_MS),
        bounds=tx.log_bounds(),
        places=tx.places(),
        troubles=tx.troubles(None, TROUBLES_MAX),
        status=tx.notes("status"),
        sinks=tx.notes("sink"),
        backlog=tx.backlog(),
        dead=tx.count_dead_letters(),
    )


def _account(account: AccountConfig, books: Books) -> dict[str, Any]:
    tally = books.tallies.get(account.name, {})
    known, final, pending = (tally.get(key, 0) for key in ("known", "final", "pending"))
    status = books.status.get(account.name)
    within = books.within_hour.get(account.name, {})
    return {
        "known": known,
        "final": final,
        "pending": pending,
        "balanced": known == final + pending,
        "states": _part(tally, "state:"),
        "verdicts": _part(tally, "verdict:"),
        "records": tally.get("records", 0),
        "set_aside": tally.get("set_aside", 0),
        "replayed": tally.get("replayed", 0),
        "refused": tally.get("refused", 0),
        "dead_dropped": tally.get("dead_dropped", 0),
        "superseded": tally.get("superseded", 0),
        "unlisted": tally.get("unlisted", 0),
        "incidents": sum(_part(tally, "incident:").values()),
        "due": {
            kind.value: {
                "count": count,
                "due": due,
                "next": iso(first_ms) if first_ms < NEVER_DUE_MS else None,
            }
            for kind, (count, due, first_ms) in sorted(books.due.get(account.name, {}).items())
        },
        "backfills": [_period(one) for one in books.periods.get(account.name, {}).values()],
        "lease": _lease(account.name, books),
        "status": orjson.loads(status) if status is not None else {},
        "needs_per_s": round(needs.scheduled_per_s(account, within), 4),
        "allows_per_s": round(needs.allows_per_s(account), 4),
    }


def _period(period: Progress) -> dict[str, Any]:
    return {
        "from": iso(period.from_ms),
        "to": iso(period.to_ms),
        "state": period.state,
        "reached": iso(period.reached_ms),
        "records": period.records,
        "incidents": period.incidents,
        "ended_at": iso(period.ended_ms) if period.ended_ms is not None else None,
    }


def _lease(name: str, books: Books) -> dict[str, Any] | None:
    """Who has the account, since when, and how often it has changed hands."""
    leases = books.fleet.leases if books.fleet else []
    for lease in leases:
        if lease.account == name:
            return {
                "worker": lease.worker,
                "since": iso(lease.since_ms) if lease.since_ms is not None else None,
                "handovers": max(0, lease.fence - 1),
            }
    return None


def _worker(worker: Worker) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(worker)
    fields["started_at"] = iso(fields.pop("started_ms"))
    return fields


def _part(tally: dict[str, int], prefix: str) -> dict[str, int]:
    return {
        key.removeprefix(prefix): count
        for key, count in sorted(tally.items())
        if key.startswith(prefix) and count
    }


def _sink(config: Config, name: str, books: Books) -> dict[str, Any]:
    sink = next(sink for sink in config.sinks if sink.name == name)
    places = books.places.get(name, {})
    behind = size = 0
    for account in config.accounts:
        if sink.accounts is not None and account.name not in sink.accounts:
            continue
        start, end = books.bounds.get(account.name, (1, 1))
        at = places.get(account.name, (start if sink.start == "oldest" else end, 0))[0]
        behind += max(0, end - max(at, start))
        size += books.backlog.get(name, {}).get(account.name, 0)
    return {
        "trouble": _sink_trouble(name, books),
        "behind_bytes": size,
        "positions": {account: list(place) for account, place in sorted(places.items())},
        "behind": behind,
        "dead_letters": dead_letter.count_table(config, name, books.dead.get(name)),
    }


def _sink_trouble(name: str, books: Books) -> str | None:
    """What stands in its way; in a fleet, at which worker."""
    if books.fleet is None:
        note = books.sinks.get(name)
        return orjson.loads(note)["trouble"] if note is not None else None
    troubles = {
        worker: trouble
        for (sink, worker), note in books.sink_notes.items()
        if sink == name and (trouble := orjson.loads(note)["trouble"])
    }
    return "; ".join(f"{worker}: {text}" for worker, text in sorted(troubles.items())) or None


def _trouble(trouble: Trouble) -> dict[str, Any]:
    return {
        "account": trouble.account,
        "kind": trouble.kind,
        "cause": trouble.cause,
        "position": trouble.position,
        "raw": trouble.raw.decode("utf-8", "replace"),
        "first_at": iso(trouble.first_ms),
        "last_at": iso(trouble.last_ms),
        "times": trouble.times,
    }


# As text


def _text(table: dict[str, Any]) -> list[str]:
    lines: list[str] = [_worker_line(worker) for worker in table["workers"]]
    for name, account in table["accounts"].items():
        lines += _account_lines(name, account)
    for name, sink in table["sinks"].items():
        size = spell_size(sink["behind_bytes"])
        behind = f"{sink['behind']:,} log rows behind, {size}" if sink["behind"] else ""
        places = ", ".join(f"{a} {seq}.{index}" for a, (seq, index) in sink["positions"].items())
        lines.append(
            f"sink {name}: {behind or 'has everything'}" + (f"; at {places}" if places else "")
        )
        if sink["trouble"]:
            lines.append(f"  {sink['trouble']}")
        if sink["dead_letters"]["letters"]:
            lines.append(f"  {dead_letter.spell_count(sink['dead_letters'])}")
    if table["troubles"]:
        lines.append("latest troubles:")
    for trouble in table["troubles"]:
        times = f", {trouble['times']:,} times" if trouble["times"] > 1 else ""
        lines.append(
            f"  {trouble['last_at']} {trouble['account']}: {trouble['kind']}: {trouble['cause']}"
            f" ({trouble['position'] or 'no position'}{times})"
        )
        if trouble["raw"]:
            lines.append(f"    {trouble['raw'][:RAW_SHOWN]!r}")
    return lines


def _worker_line(worker: dict[str, Any]) -> str:
    state = "" if worker["alive"] else ", NOT HEARD OF"
    state += ", leaving" if worker["leaving"] else ""
    return (
        f"worker {worker['name']}: {worker['accounts']:,} leases, load {worker['load']:.4g}; on"
        f" {worker['host']}, process {worker['pid']}, started {worker['started_at']}, last seen"
        f" {worker['seen_s']:.1f} s ago{state}"
    )


def _account_lines(name: str, account: dict[str, Any]) -> list[str]:
    sign, verdict = ("=", "balanced") if account["balanced"] else ("≠", "NOT balanced: report it")
    lines = [
        f"account {name}: {_condition(account['status'])}",
        f"  messages: known {account['known']:,} {sign} final {account['final']:,}"
        f" + pending {account['pending']:,} ({verdict})",
    ]
    if lease := account["lease"]:
        holder = f"{lease['worker']} since {lease['since']}" if lease["worker"] else "nobody"
        lines.append(f"  held by {holder}; handed over {lease['handovers']:,} times")
    for key, title in (("states", "states"), ("verdicts", "verdicts")):
        if account[key]:
            counts = sorted(account[key].items(), key=lambda item: -item[1])
            lines.append(f"  {title}: " + ", ".join(f"{what} {n:,}" for what, n in counts))
    for kind, due in account["due"].items():
        following = f", next {due['next']}" if due["next"] else ", at its end"
        lines.append(f"  {kind}: {due['count']:,} scheduled, {due['due']:,} due now{following}")
    lines += [
        f"  backfill {period['from']} to {period['to']}: {period['state']}, read up to"
        f" {period['reached']}, {period['records']:,} new records"
        for period in account["backfills"]
        if period["state"] != "done"
    ]
    used = ", ".join(
        f"{rate['used']} of {rate['requests']} in {rate['per_s']:g} s"
        for rate in account["status"].get("used", [])
    )
    lines.append(
        f"  limit: the schedule needs {account['needs_per_s']:.4g}/s; the limit allows"
        f" {account['allows_per_s']:.4g}/s" + (f"; in use: {used}" if used else "")
    )
    kept = (
        "set_aside", "replayed", "refused", "dead_dropped", "superseded", "unlisted", "incidents",
    )  # fmt: skip
    others = [f"{key.replace('_', ' ')} {account[key]:,}" for key in kept if account[key]]
    if others:
        lines.append(f"  besides: {', '.join(others)}")
    return lines


def _condition(status: dict[str, Any]) -> str:
    if not status:
        return "no worker has run yet"
    if status.get("paused"):
        until = status.get("paused_until_ms")
        return f"paused: {status['paused']}" + (f"; tried again at {iso(until)}" if until else "")
    if status.get("waits"):
        return f"waits: {status['waits']}"
    if status.get("hold_s") and status.get("hold_why"):
        return f"held for {status['hold_s']:g} s: {status['hold_why']}"
    if status.get("failing"):
        return f"failing: {status['failing']} ({status.get('failures', 0)} times in a row)"
    answered = status.get("answered_ms")  # of this process, or of the last: it may have had no need
    return f"ok, last answered {iso(answered)}" if answered else "ok, not asked since its start"
