"""`dlr-engine sinks`: where each sink stands, and the ways to put it elsewhere.

`list` changes nothing and works beside a worker. `rewind` and `forget` are the worker's to do where
one runs, for only one process writes positions; else they are done here.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from engine.core.errors import ConfigError, EngineError
from engine.core.units import iso, spell_duration, spell_size

from . import process
from .dead_letter import chosen, count_table, spell_count
from .show import stored
from .streams import print_json

if TYPE_CHECKING:
    from engine.config.model import Config, SinkConfig
    from engine.stores.burying import Lag
    from engine.stores.transaction import Transaction


# What each action needs, and what it may have.
_NEEDS: dict[str, tuple[str, ...]] = {"list": (), "rewind": ("sink", "to"), "forget": ("sink",)}
_MAY: dict[str, tuple[str, ...]] = {"list": (), "rewind": ("account",), "forget": ()}


def command(args: argparse.Namespace) -> int:
    _check(args)
    config = process.load_config(args.config)
    if not stored(config):
        print(f"dlr-engine: the store {config.store.shown} does not exist yet", file=sys.stderr)
        return 0
    if args.action == "list":
        return _list(config, as_json=args.json)
    if args.action == "rewind":
        to_ms = None if args.to == "start" else args.to
        return _rewind(config, args.sink, args.account, to_ms, as_json=args.json)
    return _forget(config, args.sink, as_json=args.json)


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError where options do not go with the action."""
    action, faults = args.action, []
    for option in ("sink", "to", "account"):
        given = getattr(args, option) is not None
        if option in _NEEDS[action] and not given:
            faults.append(f"dlr-engine sinks {action}: needs --{option}")
        elif given and option not in (*_NEEDS[action], *_MAY[action]):
            faults.append(f"dlr-engine sinks {action}: takes no --{option}")
    if faults:
        raise ConfigError(faults)


# Listing


def _list(config: Config, *, as_json: bool) -> int:
    tables = process.start(lambda: _read(config))
    if as_json:
        print_json({"sinks": tables})
        return 0
    for table in tables:
        print("\n".join(_lines(table)))
    if not tables:
        print("there is no sink")
    return 0


async def _read(config: Config) -> list[dict[str, Any]]:
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        now_ms = time.time_ns() // 1_000_000
        workers = await _workers(config, alive=True)
        return await store.read(lambda tx: _tables(tx, config, now_ms, workers))
    finally:
        await store.close()


def _tables(
    tx: Transaction, config: Config, now_ms: int, workers: list[str | None]
) -> list[dict[str, Any]]:
    from engine.stores.burying import lags

    places, counts = tx.places(), tx.count_dead_letters()
    configured = {sink.name: sink for sink in config.sinks}
    wanted: dict[str, tuple[list[str], str]] = {}
    for name in chosen(config, None, sorted(places.keys() | counts.keys())):
        if (sink := configured.get(name)) is not None:
            wanted[name] = (_accounts(config, sink), sink.start)
        else:
            wanted[name] = (sorted(places.get(name, {})), "oldest")
    behind = lags(tx, wanted)
    tables = []
    for name in wanted:
        sink = configured.get(name)
        trouble = _trouble(tx, name, workers)
        tables.append(
            {
                "sink": name,
                "type": sink.type if sink is not None else None,
                "state": _state(sink, trouble, begun=name in places),
                "trouble": trouble,
                "positions": [_position(one, now_ms) for one in behind.get(name, [])],
                "dead_letters": count_table(config, name, counts.get(name)),
            }
        )
    return tables


def _trouble(tx: Transaction, sink: str, workers: list[str | None]) -> str | None:
    """What one of them has with the sink."""
    from engine.chores import sink_note

    for worker in workers:
        whose, name = sink_note(sink, worker)
        note = tx.notes(name).get(whose)
        if note is not None and (trouble := orjson.loads(note)["trouble"]) is not None:
            return f"{trouble} (at worker {worker})" if worker is not None else str(trouble)
    return None


def _position(behind: Lag, now_ms: int) -> dict[str, Any]:
    age_ms = now_ms - behind.oldest_ms if behind.oldest_ms is not None else 0
    return {
        "account": behind.account,
        "place": list(behind.place) if behind.place is not None else None,
        "behind_records": behind.records,
        "behind_bytes": behind.bytes,
        "behind_s": max(0, round(age_ms / 1000)),
    }


def _accounts(config: Config, sink: SinkConfig) -> list[str]:
    names = [account.name for account in config.accounts]
    return [name for name in names if sink.accounts is None or name in sink.accounts]


def _state(sink: SinkConfig | None, trouble: str | None, *, begun: bool) -> str:
    if sink is None:
        return "gone"
    if not begun:
        return "new"
    return "ok" if trouble is None else "failing"


_WORDS = {
    "gone": "not in the configuration; `sinks forget` removes what is kept for it",
    "new": "no worker has run with it yet",
    "ok": "ok",
}


def _lines(table: dict[str, Any]) -> list[str]:
    kind = f" ({table['type']})" if table["type"] else ""
    state = f"failing: {table['trouble']}"
    lines = [f"sink {table['sink']}{kind}: {_WORDS.get(table['state'], state)}"]
    for one in table["positions"]:
        place = "at {}.{}".format(*one["place"]) if one["place"] is not None else "not begun"
        behind = "has everything"
        if one["behind_records"]:
            age = spell_duration(one["behind_s"])
            behind = (
                f"{one['behind_records']:,} records behind, {spell_size(one['behind_bytes'])},"
                f" the oldest {age} old"
            )
        lines.append(f"  {one['account']}: {place}, {behind}")
    if table["dead_letters"]["letters"]:
        lines.append(f"  {spell_count(table['dead_letters'])}")
    return lines


# Going back


def _rewind(
    config: Config, name: str, account: str | None, to_ms: int | None, *, as_json: bool
) -> int:
    chosen(config, name)
    (sink,) = (one for one in config.sinks if one.name == name)
    accounts = _accounts(config, sink)
    if account is not None and account not in accounts:
        there = ", ".join(accounts) or "none"
        raise ConfigError(
            [f"{config.source}: sink {name!r} gets nothing of {account[:64]!r} (of {there})"]
        )
    wanted = accounts if account is None else [account]
    again = process.start(lambda: _go_back(config, name, wanted, to_ms))
    since = "the oldest record kept" if to_ms is None else iso(to_ms)
    if as_json:
        print_json({"sink": name, "to": None if to_ms is None else since, "again": again})
        return 0
    for one, records in again.items():
        came = (
            f"{records:,} records come again" if records else "was not past that; nothing changed"
        )
        print(f"sink {name}: {one}: back to {since}: {came}")
    return 0


async def _go_back(
    config: Config, name: str, accounts: list[str], to_ms: int | None
) -> dict[str, int]:
    from engine.stores.burying import rewind

    from .orders import order_sinks
    from .owning import opened

    def back(tx: Transaction) -> dict[str, int]:
        return {account: rewind(tx, name, account, to_ms)[1] for account in accounts}

    async with opened(config) as held:
        if held.owned:
            return await held.store.write(back)
        look = "dlr-engine sinks list"
        asked = [(name, account) for account in accounts]
        answers = await order_sinks(held.store, "rewind", asked, to_ms=to_ms, look=look)
    found = dict(zip(accounts, answers, strict=True))
    causes = [f"{account}: {one.cause}" for account, one in found.items() if one.cause is not None]
    if causes:
        done = [account for account, one in found.items() if one.cause is None]
        also = f"; it was in {', '.join(done)}" if done else ""
        raise EngineError(f"sink {name} was not put back: {'; '.join(causes)}{also}")
    return {account: found[account].again or 0 for account in accounts}


# Forgetting


def _forget(config: Config, name: str, *, as_json: bool) -> int:
    if any(sink.name == name for sink in config.sinks):
        raise ConfigError(
            [
                f"{config.source}: sink {name!r} is still in the configuration: take it out first,"
                " and restart a worker that runs with it"
            ]
        )
    gone = process.start(lambda: _let_go(config, name))
    if as_json:
        print_json({"sink": name, **msgspec.to_builtins(gone)})
        return 0
    print(
        f"sink {name}: forgotten: its position in {gone.accounts:,} accounts,"
        f" {gone.dead_letters:,} dead letters"
    )
    return 0


async def _let_go(config: Config, name: str) -> Any:
    from engine.chores import sink_note
    from engine.stores.burying import forget

    from .orders import order_sinks
    from .owning import opened

    async with opened(config) as held:
        store = held.store
        known = await store.read(_known)
        chosen(config, name, sorted(known))
        gone: Any
        if held.owned:
            gone = await store.write(lambda tx: forget(tx, name))
        else:
            asked, look = [(name, held.anybodys)], "dlr-engine sinks list"
            (answer,) = await order_sinks(store, "forget", asked, look=look)
            if answer.cause is not None:
                raise EngineError(f"sink {name} was not forgotten: {answer.cause}")
            gone = answer.gone
        notes = [sink_note(name, worker) for worker in await _workers(config)]
        await store.write(lambda tx: _drop_notes(tx, notes))
    return gone


def _known(tx: Transaction) -> set[str]:
    """The sinks of which anything is kept."""
    return {*tx.places(), *tx.count_dead_letters()}


async def _workers(config: Config, *, alive: bool = False) -> list[str | None]:
    """Who leaves word of its sinks' health, or ever has; None: the one worker of a store."""
    if config.store.scheme != "postgresql":
        return [None]
    from engine.stores.postgres_leases import survey

    found = (await survey(config.store.url)).workers
    return [worker.name for worker in found if worker.alive or not alive]


def _drop_notes(tx: Transaction, notes: list[tuple[str, str]]) -> None:
    for whose, name in notes:
        tx.drop_note(whose, name)
