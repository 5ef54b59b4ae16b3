"""The invariants, checked while a run goes on: at each request, each commit, each write of a sink.

They are stated anew here, from the contract: of the engine only its stored tables are read, never
its own judgement. Each has a name, which a failure prints:

- no-window-exceeded, no-concurrency-exceeded: as the provider's meter counts, by its own clock
- one-time-is-durable: no further question before the reports of the last answer are committed
- nothing-lost: what the provider told a living engine is known, and every sink has each record
- nothing-twice: one record for one fact; a sink is offered no record again that it acknowledged
- revisions-in-order: without gaps in the log, and rising at each sink for any one message
- no-state-backwards: a record follows another only where the rule of the contract lets it
- records-are-true: a record says what the provider said at some time, under its proper event_id
- books-balance: known = final + pending, and both are what the messages are
- every-due-poll-done: no rung is passed over, counted without an answer, early, or too late
- verdicts-in-time: none before the ladder's last rung was answered or given up
- holds-kept, pauses-kept: nothing is asked before Retry-After, or 1, 5, 30, 60 min after a refusal
- asked-no-more-than-needed: one answered question a rung
- all-has-ended: in the end nothing tracked is pending
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson

from engine.core.contracts import Kind
from engine.core.work import Work
from engine.stores.memory import MemoryStore
from tests.simulation.contract import Who, brief, event_id_of, refuses, replaces
from tests.simulation.deliveries import Deliveries
from tests.simulation.network import Exchange, Watcher
from tests.simulation.scenario import Scenario
from tests.simulation.timing import Timing
from tests.simulation.truth import Truth
from tests.simulation.world import Process, World


class Checks(Watcher):
    """All invariants of one run: those of the log and the books here, the others in their parts."""

    def __init__(self, world: World, scenario: Scenario, tables: MemoryStore) -> None:
        self.world = world
        self.plans = {plan.name: plan for plan in scenario.accounts}
        self.tables = tables._tables
        self.timing = Timing(world, scenario, tables)
        self.truth = Truth(world, scenario, tables, self.timing)
        self.deliveries = Deliveries(world, scenario, tables)
        self.records = 0
        self._newest: dict[Who, dict[str, Any]] = {}
        self._entered: dict[tuple[Who, str], int] = defaultdict(int)
        self._seen_to: dict[str, int] = defaultdict(lambda: 1)
        self._works: dict[int, Work] = {}

    # Lives

    def born(self, process: Process, jump_s: float) -> None:
        """A process has begun, the wall clock having been set by `jump_s` meanwhile."""
        self.timing.born(process, jump_s)

    def died(self, *, cleanly: bool) -> None:
        """The process has ended; what it knew of the latest answers may be gone with it."""
        self.deliveries.died()
        self.timing.died()
        self.truth.died(cleanly=cleanly)

    # Requests

    def puts(self, exchange: Exchange) -> None:
        self.truth.puts(exchange)

    def drops(self, exchange: Exchange) -> None:
        self.timing.drops(exchange)

    def starts(self, exchange: Exchange) -> None:
        self.timing.starts(exchange)

    def arrives(self, exchange: Exchange) -> None:
        meter = exchange.host.account.meter
        count = meter.rate_violations + meter.concurrency_violations
        if count and self.world.violation is None:
            worst = meter.violations[-1]
            name = "window" if worst.kind == "rate" else "concurrency"
            self.world.broken(
                f"no-{name}-exceeded",
                f"{exchange.host.name}: {worst.seen} where {worst.allowed} are allowed"
                f" in {worst.per:g} s",
            )
        self.truth.arrives(exchange)

    def ends(self, exchange: Exchange) -> None:
        said, plan = exchange.said, self.plans[exchange.host.name]
        whole = said is not None and exchange.whole
        good = whole and said is not None and said.status == 200 and exchange.fault is None
        refused = whole and said is not None and refuses(plan, exchange.call, said)
        if good and not refused and exchange.process.alive:
            self.truth.hear(exchange)
        self.timing.ends(exchange, good=good, refused=refused)

    # Commits

    def committed(self) -> None:
        tables = self.tables
        for account, (_, end) in tables.log_bounds.items():
            while self._seen_to[account] < end:
                seq = self._seen_to[account]
                for index, line in enumerate(tables.log[account, seq].body.split(b"\n")):
                    self._logged(account, seq, index, line)
                self._seen_to[account] = seq + 1
        for account in self.plans:
            known, final, pending = self._tallies(account)
            self.world.hold(
                "books-balance",
                known == final + pending,
                lambda: f"{account}: {known} are known, {final} final and {pending} pending",
            )
        self.deliveries.committed()
        self._look_at_works()

    def _look_at_works(self) -> None:
        self.truth.begins()
        works = self.tables.works
        for work_id in self._works.keys() - works.keys():
            self.truth.ended(self._works.pop(work_id))
        for work_id, work in works.items():
            if self._works.get(work_id) is not work:
                self._works[work_id] = work
                self.timing.moved(work)

    def _tallies(self, account: str) -> tuple[int, int, int]:
        """Known, final and pending, as the books have it."""
        tallies = self.tables.tallies
        known, final, pending = (
            tallies.get((account, name), 0) for name in ("known", "final", "pending")
        )
        return known, final, pending

    def _logged(self, account: str, seq: int, index: int, line: bytes) -> None:
        record = orjson.loads(line)
        who = (account, record["message_id"], record["direction"])
        hold, plan = self.world.hold, self.plans[account]
        old = self._newest.get(who)
        self.records += 1
        event_id = record["event_id"]
        self.world.note(f"record {account} {who[1]} #{record['revision']} {record['state']}")
        self.deliveries.logged(record, account, seq, index)
        expected = old["revision"] + 1 if old else 1
        hold(
            "revisions-in-order",
            record["revision"] == expected,
            lambda: f"{who} has #{record['revision']} where #{expected} is next",
        )
        if old is not None:
            hold(
                "no-state-backwards",
                replaces(record, old),
                lambda: f"{who}: {brief(record)} after {brief(old)}",
            )
        status = f"{record['provider_status']}|{record['error_code']}|{record['verdict']}"
        self._entered[who, status] += 1
        hold(
            "records-are-true",
            event_id == event_id_of(plan, record, self._entered[who, status]),
            lambda: f"{who}: event_id of {brief(record)} is not of this fact",
        )
        if record["verdict"] is None:
            self.truth.is_true(plan, record)
        else:
            self.truth.verdict(plan, record)
            self.timing.verdict(plan, record)
        self._newest[who] = record

    # From time to time, and in the end

    def look(self) -> None:
        """While all is well nothing is overdue."""
        self.timing.look()

    def finish(self) -> None:
        """All is over and quiet: the engine's books against the provider's truth."""
        hold, tables = self.world.hold, self.tables
        for name, plan in self.plans.items():
            known = [m for m in tables.messages.values() if m.account == name]
            final = sum(m.final for m in known)
            books = self._tallies(name)
            hold(
                "books-balance",
                books == (len(known), final, len(known) - final),
                lambda: f"{name}: {books} in the books, {len(known)}, {final} there",
            )
            for message in known:
                hold(
                    "all-has-ended",
                    message.final or not plan.ends(message),
                    lambda: f"{name} {message.message_id} is {message.state}",
                )
            for work in tables.works.values():
                hold(
                    "all-has-ended",
                    work.account != name or work.kind in (Kind.FEED, Kind.WINDOW, Kind.ENDED),
                    lambda: f"{name}: {work.kind} {work.key} is still to be asked",
                )
        self.truth.finish()
        self.deliveries.finish()
        self.timing.finish()
