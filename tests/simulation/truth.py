"""What the provider told, and what the engine makes of it: nothing lost, nothing made up."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import orjson

from engine.core.reading import SHORT_WINDOW
from engine.core.work import Work
from engine.sim.answer import Call
from engine.sim.messages import Message
from engine.sim.plans import state_of
from engine.stores.memory import MemoryStore
from tests.simulation.contract import (
    FIRST_WORDS,
    LETTERS,
    RANKS,
    Who,
    brief,
    ids_of,
    key_of,
    ms_of,
    rows_of,
)
from tests.simulation.network import Exchange
from tests.simulation.scenario import IDLE_LOOK_S, AccountPlan, Scenario
from tests.simulation.timing import BY_ID, Timing
from tests.simulation.world import World

SEEN_S = IDLE_LOOK_S + 0.4  # until who waits for the end has seen that something has ended


class Truth:
    """The provider's side of a run."""

    def __init__(
        self, world: World, scenario: Scenario, tables: MemoryStore, timing: Timing
    ) -> None:
        self.world = world
        self.scenario = scenario
        self.plans = {plan.name: plan for plan in scenario.accounts}
        self.tables = tables._tables
        self.timing = timing
        self.told: dict[Who, list[str]] = defaultdict(list)
        self.excused: set[tuple[str, int]] = set()  # (account, number) of answers a crash took
        self.probes: dict[str, dict[str, int]] = defaultdict(dict)  # account -> id -> inbox row
        self._last_answer: dict[str, Exchange] = {}  # of one-time accounts
        self._from_ms: dict[str, int] = {}  # of windowed accounts: when the first period begins
        self._to: dict[str, int] = {}  # … and where the latest one ends
        self._read_at: dict[str, float] = {}  # of feeds, by the provider's clock: when last begun
        self._sent: dict[str, int] = defaultdict(int)  # messages, so far
        self._came_up: dict[tuple[str, str], float] = {}  # … which by themselves, and when
        # When, by the provider's clock, one of them ended, or the program began to wait for it.
        self._ended_at: dict[str, float] = {}

    def died(self, *, cleanly: bool) -> None:
        """The answers that a crash took are excused."""
        for name, exchange in self._last_answer.items():
            if not cleanly and not self._all_known(exchange):
                self.excused.add((name, exchange.call.number))
                assert exchange.said is not None
                for _, given in exchange.said.ledger:
                    told = self.told[name, given.message_id, "mt"]
                    told[:] = [status for status in told if status != given.status]
        self._last_answer.clear()
        for probes in self.probes.values():  # what was taken out of the inbox is gone with it
            for probe in [p for p, row in probes.items() if row not in self.tables.inbox]:
                del probes[probe]

    # Requests

    def puts(self, exchange: Exchange) -> None:
        """The engine has put a question, for which there is no connection yet."""
        name = exchange.host.name
        last = self._last_answer.get(name)
        if last is not None:
            self.world.hold(
                "one-time-is-durable",
                last.closed and self._all_known(last),
                lambda: f"{name} is asked before answer {last.call.number} is durable",
            )

    def sent(self, plan: AccountPlan) -> None:
        """Messages have gone out; others come up by themselves."""
        self._sent[plan.name] = len(plan.host.account.messages)

    def waits_for_the_end(self) -> None:
        """From now on the engine ends when nothing is left to do: each feed is read after this."""
        for name, plan in self.plans.items():
            self._ended_at[name] = plan.host.clock()

    def arrives(self, exchange: Exchange) -> None:
        """A question has arrived: perhaps the first one of a feed's reading."""
        name, call = exchange.host.name, exchange.call
        plan, messages = self.plans[name], exchange.host.account.messages
        for message in messages[self._sent[name] :]:
            self._came_up[name, message.message_id] = call.now
        self._sent[name] = len(messages)
        if plan.drained and key_of(plan, exchange) is None:
            self._read_at[name] = call.now
        if plan.windowed and call.path != "/login":
            to = call.query["to"] if plan.provider == "messangi" else call.query["to_timetoken"]
            to_ms = ms_of(to) if plan.provider == "messangi" else round(float(to) * 1000)
            feed = self.timing.stored(name, "feed", "")
            data = feed.data if feed is not None else {}
            # Not a window again, and not what is left of a reading that was begun before.
            new = to_ms > data.get("cursor", 0) and not data.get("spans")
            if new and self._to.get(name) != to_ms and not self._is_probe(plan, call):
                self._to[name], self._read_at[name] = to_ms, call.now
        if plan.provider == "infobip" and not exchange.closed:
            self._last_answer[name] = exchange

    def hear(self, exchange: Exchange) -> None:
        """What a whole and proper answer has told a living engine."""
        plan, said = self.plans[exchange.host.name], exchange.said
        if said is None or self._is_probe(plan, exchange.call):
            return
        for message_id, direction, status in rows_of(plan, exchange, said.body):
            told = self.told[plan.name, message_id, direction]
            if not told or told[-1] != status:
                told.append(status)

    def _is_probe(self, plan: AccountPlan, call: Call) -> bool:
        """Whether this only asks whether it connects, for another process. Its window of 1 s is a
        peek beside the feed, and what it shows is nobody's news: it is never stored, so that it
        moves no message that the feed has yet to find. The feed and the rescans alone tell."""
        if plan.provider != "messangi" or call.path == "/login":
            return False
        notes, probes = self.tables.notes, self.probes[plan.name]
        under_way = any((f"probe:{probe}", plan.name) not in notes for probe in probes)
        return under_way and ms_of(call.query["to"]) - ms_of(call.query["from"]) == 1000

    def _all_known(self, exchange: Exchange) -> bool:
        """Whether every report of an answer that the engine has read is in the store."""
        if exchange.said is None:
            return True
        return all(
            end > exchange.consumed or self._knows(exchange.host.name, given)
            for end, given in exchange.said.ledger
        )

    def _knows(self, account: str, given: Any) -> bool:
        done_ms = ms_of(given.done_at)
        who = (account, given.message_id, "mt")
        row = self.tables.rows.get(who)
        if row is None:
            return False
        known = self.tables.messages[row]
        same = known.status_ms is not None and known.provider_status == given.status
        if same and known.status_ms >= done_ms:
            return True
        history = orjson.loads(known.history)["entries"] if known.history else []
        return any(
            entry["provider_status"] == given.status and ms_of(entry["done_at"]) == done_ms
            for entry in history
            if entry["done_at"]
        )

    # Commits

    def begins(self) -> None:
        """A feed begins `lookback` before it is first in the schedule: what was sent before that,
        while the first lives could store nothing, is nobody's."""
        for name, plan in self.plans.items():
            if plan.windowed and name not in self._from_ms:
                process = self.timing.process
                if process is not None and self.timing.stored(name, "feed", ""):
                    begun_ms = process.now_ms()  # its first commit was just now
                    self._from_ms[name] = begun_ms - round(plan.keys["lookback"] * 1000)

    def ended(self, work: Work) -> None:
        """A work is gone from the schedule."""
        if work.kind in BY_ID:
            self._ended_at[work.account] = self.plans[work.account].host.clock()

    def is_true(self, plan: AccountPlan, record: dict[str, Any]) -> None:
        message = self.scenario.message(plan, record["message_id"])
        status, letter = record["provider_status"], LETTERS[record["channel"]]
        said = {t.status for t in message.transitions} if message is not None else set()
        said.add(FIRST_WORDS.get(plan.provider, ""))
        self.world.hold(
            "records-are-true",
            message is not None
            and status in said
            and (record["state"], record["final"]) == state_of(plan.provider, letter, status),
            lambda: f"{plan.name} {record['message_id']}: {brief(record)}, the provider: {said}",
        )

    def verdict(self, plan: AccountPlan, record: dict[str, Any]) -> None:
        """No verdict is given on what the provider has told an end of."""
        told = self.told.get((plan.name, record["message_id"], "mt"), [])
        letter = LETTERS[record["channel"]]
        self.world.hold(
            "verdicts-in-time",
            record["final"] and not any(state_of(plan.provider, letter, s)[1] for s in told),
            lambda: f"{brief(record)}, and the provider has told {told}",
        )

    # In the end

    def finish(self) -> None:
        """What the provider has told is known, and its feeds were read at the end."""
        for name, plan in self.plans.items():
            for message in plan.host.account.messages:
                self._compare(plan, message)
            self._compare_one_time(plan)
            ended_at, read_at = self._ended_at.get(name), self._read_at.get(name, math.inf)
            self.world.hold(
                "all-has-ended",
                ended_at is None or read_at >= ended_at - SEEN_S,
                lambda: f"{name}: its feed was read at {read_at}, and not after {ended_at}",
            )
        self._compare_tracked()

    def _compare_tracked(self) -> None:
        """What was handed over is known, reported or not."""
        known = {(m.account, key) for m in self.tables.messages.values() for key in ids_of(m)}
        for name, plan in self.plans.items():
            for key in plan.handed:
                self.world.hold(
                    "nothing-lost",
                    (name, key) in known,
                    lambda: f"{name}: {key} was tracked, and is not known",
                )

    def _compare(self, plan: AccountPlan, message: Message) -> None:
        who = (plan.name, plan.id_of(message), "mo" if message.direction == "I" else "mt")
        row = self.tables.rows.get(who)
        known = self.tables.messages[row] if row is not None else None
        told = self.told.get(who, [])
        hold = self.world.hold
        letter = message.channel
        finals = [s for s in told if state_of(plan.provider, letter, s)[1]]
        text = f"{who}: known as {known and (known.state.value, known.provider_status)}"
        if plan.windowed and self._is_found(plan, message):
            hold(
                "nothing-lost",
                known is not None or self._is_hidden(plan, message),
                lambda: f"{text}; sent {message.sent_at:.3f}",
            )
        if plan.provider != "infobip":
            hold("nothing-lost", known is not None or not told, lambda: f"{text}; told: {told}")
            if known is not None and finals:
                best = max(RANKS.get(state_of(plan.provider, letter, s)[0], 3) for s in finals)
                hold(
                    "nothing-lost",
                    known.verdict is None and RANKS.get(known.state.value, 3) >= best,
                    lambda: f"{text}; told: {told}",
                )
            end = message.transitions[-1] if message.transitions else None
            if end is not None and end.final and plan.in_time(message):
                hold(
                    "nothing-lost",
                    (known is not None and known.provider_status == end.status)
                    or who in self.timing.given_up,
                    lambda: f"{text}; the provider says {end.status} since {end.at:.3f}",
                )

    def _is_found(self, plan: AccountPlan, message: Message) -> bool:
        """Whether a feed has to find it: it was sent in the periods that are read, and has shown no
        later than the overlap goes back. What came up by itself may do so after the last reading.
        """
        came_up = self._came_up.get((plan.name, message.message_id))
        shown = message.listed_at if came_up is None else max(came_up, message.listed_at)
        return (
            message.sent_at * 1000 >= self._from_ms.get(plan.name, 0)
            and shown - message.sent_at <= plan.keys["overlap"]
            and (came_up is None or shown < self._read_at.get(plan.name, math.inf))
        )

    def _is_hidden(self, plan: AccountPlan, message: Message) -> bool:
        """Whether no question brings it, as more messages were sent in its millisecond than one
        answer holds, and the engine has said so."""
        profile, ms = plan.profile, round(message.sent_at * 1000)
        most = profile.page_max_items or profile.report_max_items
        crowd = [
            other
            for other in plan.host.account.messages
            if other.channel == message.channel and round(other.sent_at * 1000) == ms
        ]
        spans = [
            position.split()[0].split("-")
            for account, kind, position in self.tables.troubles
            if (account, kind) == (plan.name, SHORT_WINDOW)
        ]
        said = any(int(from_ms) <= ms <= int(to_ms) for from_ms, to_ms in spans)
        return 0 < most < len(crowd) and said

    def _compare_one_time(self, plan: AccountPlan) -> None:
        """Each report that has reached a living engine is known, or a later one is."""
        if plan.provider != "infobip":
            return
        for given in plan.host.account.given:
            self.world.hold(
                "nothing-lost",
                not given.on_wire
                or (plan.name, given.answer) in self.excused
                or self._knows(plan.name, given),
                lambda: f"{plan.name}: {given} is not known",
            )
        # What has come since the last reading waits for the next one.
        read_at = self._read_at.get(plan.name, plan.host.clock())
        self.world.hold(
            "nothing-lost",
            not plan.drained or plan.host.account.waiting(read_at) == 0,
            lambda: f"{plan.name}: reports wait at the provider",
        )
