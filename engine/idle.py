"""Whether there is anything left to do: for `--until-idle` and `--once`.

Asks the store and the running parts; changes nothing, except that a feed which alone is missing
is read now instead of at its next time, and that sinks which alone are missing wait for no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
import msgspec

from engine.core.contracts import Kind
from engine.polling.health import held
from engine.polling.poller import AccountPoller
from engine.stores.transaction import Store, Transaction

if TYPE_CHECKING:
    from engine.worker import Engine

IDLE_LOOK_S = 0.1
STORE_MIN_S = 5.0  # a store is not given up sooner, however short the timeout


class Remaining(msgspec.Struct):
    """What is left to do, by name."""

    accounts: dict[str, str] = {}
    feeds: dict[str, str] = {}
    sinks: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.accounts or self.feeds or self.sinks)


async def until_idle(engine: Engine, timeout_s: float) -> list[str]:
    """Wait until there is nothing left to do: []; or name what is stuck for `timeout_s`.

    Everything tracked has ended, no rescan is due any more, each feed was read to its end after
    that, and every sink has acknowledged everything.
    """
    # Of each account: since when nothing of it is under way, so that its feed must be read again.
    since_ms: dict[str, int] = {}
    stuck_since: float | None = None
    while True:
        waits, left = False, None
        for name in engine.pollers:  # in a fleet they come and go
            now_ms = engine.clock.now_ms()
            since_ms[name] = min(since_ms.get(name, now_ms), now_ms)  # a clock may be put back
        with anyio.move_on_after(max(timeout_s, STORE_MIN_S)):
            waits = await engine.store.read(lambda tx: tx.inbox_waits())
            left = await _remaining(engine, since_ms)
        if left is None:
            return [f"store: {engine.store.trouble or 'it does not answer'}"]
        if engine.fleet is not None:
            engine.fleet.idle = not left and not waits
        if not left and not waits and (engine.fleet is None or engine.fleet.all_idle):
            return []
        for name in left.accounts:
            since_ms[name] = engine.clock.now_ms()
        for name in filter(engine.pollers.__contains__, left.feeds):  # in order: a seed is a run
            engine.pollers[name].hasten_feed()
        if not left.accounts and not left.feeds and not waits:
            for dispatcher in engine.dispatchers:
                dispatcher.hasten()
        if left and _all_stuck(engine, left):
            stuck_since = engine.clock.monotonic() if stuck_since is None else stuck_since
            if engine.clock.monotonic() - stuck_since >= timeout_s:
                return _name_stuck(engine, left)
        else:
            stuck_since = None
        await engine.clock.sleep(IDLE_LOOK_S)


async def until_done(engine: Engine) -> list[str]:
    """With `once`: wait until what was due is done and written; name what would not go."""
    await engine.polls_ended()
    await engine.flush()
    left = Remaining()
    for name, poller in engine.pollers.items():
        if _trouble(poller) or poller.unanswered:
            left.accounts[name] = "what is due was not answered"
    await _look_at_sinks(engine, left)
    return _name_stuck(engine, left)


async def _remaining(engine: Engine, since_ms: Mapping[str, int]) -> Remaining:
    counts = await engine.store.read(lambda tx: tx.count_works(0))
    left = Remaining()
    for name, poller in list(engine.pollers.items()):
        works = counts.get(name, {})
        tracked = sum(works.get(kind, (0, 0, 0))[0] for kind in (Kind.BATCH, Kind.MESSAGE))
        if tracked:
            left.accounts[name] = f"{tracked} tracked batches or messages have not ended"
        elif Kind.BACKFILL in works:
            left.accounts[name] = "a past period is still being read"
        elif Kind.WINDOW in works and await _windows_open(engine.store, name):
            left.accounts[name] = "windows with open messages are still to be read again"
        elif poller.traits.feed is not None and not poller.feed_ended:
            began_ms = poller.feed_began_ms
            if began_ms is None or began_ms < since_ms.get(name, began_ms + 1):
                left.feeds[name] = "its feed has not been read to its end"
    await _look_at_sinks(engine, left)
    return left


async def _look_at_sinks(engine: Engine, left: Remaining) -> None:
    for dispatcher in engine.dispatchers:
        if await dispatcher.reader.behind():
            left.sinks[dispatcher.name] = "it has not taken everything"


async def _windows_open(store: Store, name: str) -> bool:
    """Whether a rescan that is still to come has anything to read again."""

    def look(tx: Transaction) -> bool:
        windows = [work.data for work in tx.find_works(name, Kind.WINDOW, None)]
        first = min((window["from"] for window in windows), default=0)
        last = max((window["to"] for window in windows), default=0)
        if not tx.open_in_span(name, first, last, pending=False, limit=1):
            return False
        return any(
            tx.open_in_span(name, window["from"], window["to"] - 1, pending=False, limit=1)
            for window in windows
        )

    return await store.read(look)


def _all_stuck(engine: Engine, left: Remaining) -> bool:
    """Whether all that is left is paused or dead."""
    pollers = [one for name, one in engine.pollers.items() if name in left.accounts | left.feeds]
    sinks = [sink for sink in engine.dispatchers if sink.name in left.sinks]
    return all(_trouble(poller) for poller in pollers) and all(sink.dead for sink in sinks)


def _trouble(poller: AccountPoller) -> str | None:
    health = poller.health
    if health.paused:
        return f"paused: {health.paused}"
    if health.failing:
        return f"failing: {health.failing}"
    return f"waits: {poller.waits}" if poller.waits else held(poller.limiter)


def _why(poller: AccountPoller) -> str | None:
    return _trouble(poller) or (poller.unanswered and f"failed: {poller.unanswered}")


def _name_stuck(engine: Engine, left: Remaining) -> list[str]:
    lines = []
    for name, what in (left.accounts | left.feeds).items():
        if name in engine.pollers:
            lines.append(f"account {name}: {what}; {_why(engine.pollers[name])}")
    lines.extend(
        f"sink {sink.name}: {left.sinks[sink.name]}; {sink.dead}"
        for sink in engine.dispatchers
        if sink.name in left.sinks
    )
    return lines
