"""`dlr-engine dead-letter`: what a sink refused for good, and the way back.

`list` changes nothing and works beside a worker. `retry` is done by the worker where one runs, for
a sink has one writer; else here. A letter goes only when its record was taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from engine.core.errors import ConfigError
from engine.core.units import iso, spell_size

from . import process
from .show import stored
from .streams import plain, print_json

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.dispatch.dead_letters import Retried
    from engine.stores.transaction import DeadCount, DeadLetter, Store

# Letters of one sink that are shown as text; the JSON has all.
SHOWN_MAX = 1000
# Letters read at once, and their bytes before the last one.
READ_MAX = 1000
READ_BYTES_MAX = 4 << 20


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    if not stored(config):
        print(f"dlr-engine: the store {config.store.shown} does not exist yet", file=sys.stderr)
        return 0
    if args.action == "list":
        process.start(lambda: _list(config, args.sink, as_json=args.json))
        return 0
    done = process.start(lambda: _retry(config, args.sink))
    if args.json:
        print_json({"sinks": msgspec.to_builtins(done)})
    else:
        print("\n".join(map(_outcome, done)) or "there are no dead letters")
    return 1 if any(one.cause is not None for one in done) else 0


def chosen(config: Config, name: str | None, others: Sequence[str] = ()) -> list[str]:
    """The sink of that name, or all; `others` are known besides those of the configuration.

    Raises ConfigError where there is none of that name.
    """
    known = list(dict.fromkeys([*(sink.name for sink in config.sinks), *others]))
    if name is None:
        return known
    if name not in known:
        there = ", ".join(known) or "none"
        raise ConfigError([f"{config.source}: there is no sink {name[:64]!r} (it has {there})"])
    return [name]


# Listing


async def _list(config: Config, name: str | None, *, as_json: bool) -> None:
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        counts = await store.read(lambda tx: tx.count_dead_letters())
        names = [one for one in chosen(config, name, sorted(counts)) if one in counts]
        tables = [count_table(config, one, counts[one]) for one in names]
        if as_json:
            listed = [_table(letter) for one in names async for letter in _letters(store, one)]
            print_json({"sinks": tables, "letters": listed})
            return
        for table in tables:
            await _show(store, table)
        if not tables:
            print("there are no dead letters")
    finally:
        await store.close()


async def _letters(store: Store, sink: str) -> AsyncIterator[DeadLetter]:
    after_id = 0
    while True:
        letters = await store.read(
            lambda tx, after_id=after_id: tx.dead_letters(  # type: ignore[misc]
                sink, after_id, READ_MAX, bytes_max=READ_BYTES_MAX
            )
        )
        if not letters:
            return
        for letter in letters:
            yield letter
        after_id = letters[-1].id


async def _show(store: Store, table: dict[str, Any]) -> None:
    gone = "" if table["configured"] else "; the sink is not in the configuration"
    print(f"sink {table['sink']}: {spell_count(table)}{gone}")
    shown = 0
    async for letter in _letters(store, table["sink"]):
        if shown == SHOWN_MAX:
            print(f"dlr-engine: only the first {shown:,} are shown", file=sys.stderr)
            break
        shown += 1
        what = f"{letter.message_id or letter.event_id} #{letter.revision}"
        times = f", {letter.times:,} times" if letter.times > 1 else ""
        print(plain(f"  {iso(letter.last_ms)}  {letter.account}  {what}: {letter.cause}{times}"))


def count_table(config: Config, sink: str, count: DeadCount | None) -> dict[str, Any]:
    """A sink's dead letters by number, for JSON."""
    return {
        "sink": sink,
        "configured": any(one.name == sink for one in config.sinks),
        "letters": count.letters if count else 0,
        "bytes": count.bytes if count else 0,
        "since": iso(count.first_ms) if count else None,
    }


def spell_count(table: dict[str, Any]) -> str:
    """`count_table` for people."""
    noun = "dead letter" if table["letters"] == 1 else "dead letters"
    return f"{table['letters']:,} {noun}, {spell_size(table['bytes'])}, since {table['since']}"


def _table(letter: DeadLetter) -> dict[str, Any]:
    try:
        record: Any = orjson.loads(letter.record)
    except orjson.JSONDecodeError:
        record = letter.record.decode("utf-8", "replace")
    return {
        "sink": letter.sink,
        "account": letter.account,
        "place": list(letter.place),
        "message_id": letter.message_id,
        "revision": letter.revision,
        "event_id": letter.event_id,
        "cause": letter.cause,
        "first_at": iso(letter.first_ms),
        "last_at": iso(letter.last_ms),
        "times": letter.times,
        "record": record,
    }


# Retrying


async def _retry(config: Config, name: str | None) -> list[Retried]:
    from .orders import order_sinks
    from .owning import opened

    async with opened(config) as held:
        store = held.store
        counts = await store.read(lambda tx: tx.count_dead_letters())
        names = [one for one in chosen(config, name) if one in counts]
        gone = sorted(counts.keys() - {sink.name for sink in config.sinks})
        if gone and name is None:
            told = ", ".join(gone)
            print(f"dlr-engine: not in the configuration, left alone: {told}", file=sys.stderr)
        if held.owned:
            return [await _directly(config, store, one) for one in names]
        asked = [(one, held.anybodys) for one in names]
        answers = await order_sinks(store, "retry", asked, look="dlr-engine dead-letter list")
    found = zip(names, answers, strict=True)
    return [answer.as_retried(one, counts[one].letters) for one, answer in found]


async def _directly(config: Config, store: Store, name: str) -> Retried:
    from engine.dispatch.dead_letters import retry_alone
    from engine.machine.clock import RealClock
    from engine.telemetry import Telemetry

    (sink,) = (one for one in config.sinks if one.name == name)
    return await retry_alone(sink, store, telemetry=Telemetry(), clock=RealClock())


def _outcome(done: Retried) -> str:
    left = f", {done.left:,} not offered: {done.cause}" if done.cause is not None else ""
    return f"sink {done.sink}: {done.accepted:,} taken, {done.refused:,} refused again{left}"
