"""The live view of `run` and `demo`: what a worker does, on the terminal; log lines in a pipe.

It looks at the store once a second, in one short read, and at counters in memory otherwise, so that
looking on costs the worker next to nothing. It stands on stderr: stdout is for data.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from engine.core.errors import StoreError
from engine.core.units import spell_duration

from . import logs

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from engine.stores.transaction import Transaction
    from engine.worker import Engine

log = logging.getLogger("dlr_engine")

REFRESH_S = 0.4
LOOK_S = 1.0
LOG_S = 60.0  # in a pipe a line an account this often
EVENTS_SHOWN = 5
STATES_SHOWN = 5
WIDE = 136  # columns from which on the states are shown
CONDITION_MAX = 30
REST = 112  # what the other columns take


class Look(msgspec.Struct):
    """One look at the store."""

    tallies: dict[str, dict[str, int]] = {}
    works: dict[str, tuple[int, int]] = {}  # by account: in the schedule, due
    bounds: dict[str, tuple[int, int]] = {}
    places: dict[str, dict[str, tuple[int, int]]] = {}

    @staticmethod
    def at(tx: Transaction, now_ms: int) -> Look:
        works: dict[str, tuple[int, int]] = {}
        for name, kinds in tx.count_works(now_ms).items():
            counts = kinds.values()
            works[name] = (sum(c[0] for c in counts), sum(c[1] for c in counts))
        return Look(tx.tallies(), works, tx.log_bounds(), tx.places())


class Watch:
    """Follows one engine: the latest look, and rates between two of them."""

    def __init__(self, engine: Engine, heading: Callable[[], str] | None = None) -> None:
        self.engine = engine
        self.look = Look()
        self.rates: dict[tuple[str, str], float] = {}
        self._heading = heading or (lambda: "")
        self._counts: dict[tuple[str, str], int] = {}
        self._looked = time.monotonic()
        self._began = self._looked

    async def follow(self) -> None:
        while True:
            await self.refresh()
            await anyio.sleep(LOOK_S)

    async def refresh(self) -> None:
        now_ms = self.engine.clock.now_ms()
        try:
            self.look = await self.engine.store.read(lambda tx: Look.at(tx, now_ms))
        except StoreError:
            return  # the engine itself says so in its log; the view keeps what it had
        now = time.monotonic()
        counts = dict(self.engine.telemetry.counts)
        passed = now - self._looked
        if passed > 0:
            self.rates = {
                key: (count - self._counts.get(key, 0)) / passed for key, count in counts.items()
            }
        self._counts, self._looked = counts, now

    # As log lines

    async def log_lines(self, every_s: float) -> None:
        while True:
            await anyio.sleep(every_s)
            await self.refresh()
            for name in self.engine.pollers:
                known = self.look.tallies.get(name, {})
                total = self.engine.telemetry.of("requests", name)
                log.info(
                    "%s: %s; known %s, final %s, pending %s; due %s; %s requests so far",
                    name,
                    self._condition(name),
                    f"{known.get('known', 0):,}",
                    f"{known.get('final', 0):,}",
                    f"{known.get('pending', 0):,}",
                    f"{self.look.works.get(name, (0, 0))[1]:,}",
                    f"{total:,}",
                )

    # As tables

    def render(self, width: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        passed = spell_duration(int(time.monotonic() - self._began))
        parts: list[RenderableType] = [
            Text(f"dlr-engine · {passed} {self._heading()}".rstrip(), "bold", no_wrap=True),
            self._accounts(width),
        ]
        if self.engine.dispatchers:
            parts.append(self._sinks())
        events = list(self.engine.telemetry.events)[-EVENTS_SHOWN:]
        parts += [
            Text(f"  {who}: {text}", "dim", no_wrap=True, overflow="ellipsis")
            for who, text in events
        ]
        return Group(*parts)

    def _accounts(self, width: int) -> Table:
        """The states only where there is room for them."""
        wide = width >= WIDE
        names = max((len(name) for name in self.engine.pollers), default=0)
        numbers = [("known", 7), ("final", 7), ("pending", 7), ("due", 5)]
        numbers += [("req/s", 5), ("rec/s", 5), ("limit", 7)]
        table = _table([("account", min(names, 16))], numbers, states=width - REST if wide else 0)
        for name in self.engine.pollers:
            tally = self.look.tallies.get(name, {})
            cells = [
                name,
                _styled(self._condition(name)),
                *(f"{tally.get(key, 0):,}" for key in ("known", "final", "pending")),
                f"{self.look.works.get(name, (0, 0))[1]:,}",
                f"{self.rates.get(('requests', name), 0):.1f}",
                f"{self.rates.get(('records', name), 0):.0f}",
                self._use(name),
            ]
            table.add_row(*cells, *([_states(tally)] if wide else []))
        return table

    def _sinks(self) -> Table:
        names = max((len(sink.name) for sink in self.engine.dispatchers), default=0)
        numbers = [("written", 9), ("behind", 6), ("rec/s", 5)]
        table = _table([("sink", min(names, 16))], numbers, states=0)
        for sink in self.engine.dispatchers:
            failing = sink.health.failing
            table.add_row(
                sink.name,
                _styled(f"failing: {failing}" if failing else "ok"),
                f"{sink.health.written:,}",
                f"{self._behind(sink.name):,}",
                f"{self.rates.get(('written', sink.name), 0):.0f}",
            )
        return table

    def _behind(self, sink: str) -> int:
        """Rows of the log that this sink has not taken yet."""
        places = self.look.places.get(sink, {})
        return sum(
            max(0, self.look.bounds[account][1] - seq)
            for account, (seq, _) in places.items()
            if account in self.look.bounds
        )

    def _condition(self, name: str) -> str:
        health, waits = self.engine.pollers[name].health, self.engine.pollers[name].waits
        if health.paused is not None:
            return f"paused: {health.paused}"
        if waits is not None:
            return f"waits: {waits}"
        if health.failing is not None:
            return f"failing: {health.failing}"
        return "ok"

    def _use(self, name: str) -> str:
        status: dict[str, Any] = self.engine.status(name)
        used = [f"{rate['used']}/{rate['requests']}" for rate in status["used"]]
        return " ".join(used)


@asynccontextmanager
async def watching(
    engine: Engine,
    *,
    live: bool,
    heading: Callable[[], str] | None = None,
    every_s: float = LOG_S,
) -> AsyncIterator[Watch]:
    """Show the engine as long as the block lasts: a live view on a terminal, else log lines."""
    watch = Watch(engine, heading)
    console = _console() if live else None
    async with anyio.create_task_group() as group:
        if console is None:
            group.start_soon(watch.log_lines, every_s)
            yield watch
        else:
            async with _shown(watch, console, group):
                yield watch
        group.cancel_scope.cancel()


@asynccontextmanager
async def _shown(watch: Watch, console: Console, group: anyio.abc.TaskGroup) -> AsyncIterator[None]:
    from rich.live import Live

    view = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    async def draw() -> None:
        while True:
            view.update(watch.render(console.width), refresh=True)
            await anyio.sleep(REFRESH_S)

    with view:
        logs.above(console)
        try:
            group.start_soon(watch.follow)
            group.start_soon(draw)
            yield
            with anyio.CancelScope(shield=True):
                await watch.refresh()
            view.update(watch.render(console.width), refresh=True)
        finally:
            logs.above(None)


def _console() -> Console | None:
    """The terminal on stderr; None where it is none, or one that cannot move its cursor."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)
    return None if console.is_dumb_terminal else console


def _table(names: list[tuple[str, int]], numbers: list[tuple[str, int]], *, states: int) -> Table:
    """Names, a condition, numbers that are never cut, and a column of so wide `states`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, width in names:
        table.add_column(name, no_wrap=True, min_width=max(width, len(name)))
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=CONDITION_MAX)
    for name, width in numbers:
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    if states:
        table.add_column("states", no_wrap=True, overflow="ellipsis", max_width=states)
    return table


def _styled(condition: str) -> Any:
    from rich.text import Text

    style = {"ok": "green", "failing": "yellow"}.get(condition.partition(":")[0], "red")
    return Text(condition, style)


def _states(tally: dict[str, int]) -> str:
    """The most frequent states."""
    counts = sorted(
        ((count, key[6:]) for key, count in tally.items() if key.startswith("state:") and count),
        reverse=True,
    )
    shown = [f"{state} {count:,}" for count, state in counts[:STATES_SHOWN]]
    return " · ".join(shown) + (" · …" if len(counts) > STATES_SHOWN else "")
