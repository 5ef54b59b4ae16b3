"""Crashes at chosen moments: next to an answer, between two commits, inside a hold, at the inbox.

By chance alone a crash seldom meets the few milliseconds in which an order of things matters.
"""

from __future__ import annotations

from engine.sim.profile import Fault
from tests.simulation.network import Exchange, Watcher
from tests.simulation.scenario import Crash
from tests.simulation.world import Process

LONG_S = 5.0  # of a hold that outlives a restart


class Fuse(Watcher):
    """Kills one process when what its `Crash` names has come; hands on what it sees."""

    def __init__(self, process: Process, crash: Crash | None, watcher: Watcher) -> None:
        self._process = process
        self._watcher = watcher
        self._answers = crash.answer if crash is not None else None
        self._writes = crash.writes if crash is not None else 0
        self._held_s = crash.held_s if crash is not None else None
        self._takings = crash.inbox if crash is not None else None
        self._lit = False  # the answer has been read: so many commits are left

    def puts(self, exchange: Exchange) -> None:
        self._watcher.puts(exchange)

    def drops(self, exchange: Exchange) -> None:
        self._watcher.drops(exchange)

    def starts(self, exchange: Exchange) -> None:
        self._watcher.starts(exchange)

    def arrives(self, exchange: Exchange) -> None:
        self._watcher.arrives(exchange)

    def ends(self, exchange: Exchange) -> None:
        self._watcher.ends(exchange)
        said = exchange.said
        if said is None or not exchange.whole:
            return
        if self._answers is not None and said.reports and not exchange.fault:
            self._answers -= 1
            if not self._answers:
                self._answers, self._lit = None, True
                self._burn()
        if self._held_s is not None and _is_long(exchange.fault):
            self._process.world.after(self._held_s, self._die)
            self._held_s = None

    def committed(self) -> None:
        """A transaction is durable; nobody has been told yet."""
        if self._lit:
            self._writes -= 1
            self._burn()

    def taken(self) -> None:
        """Rows of the inbox are gone with a transaction."""
        if self._takings is not None:
            self._takings -= 1
            if not self._takings:
                self._die()

    def _burn(self) -> None:
        if self._writes == 0:
            self._die()

    def _die(self) -> None:
        self._process.doomed = True


def _is_long(fault: Fault | None) -> bool:
    """Whether the provider wants to be left alone for longer than a restart takes."""
    return fault is not None and (fault.retry_after or 0.0) >= LONG_S
