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

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any

import orjson

from engine.core.contracts import Kind
from engine.core.reconcile import Known
from engine.core.work import Work
from engine.sim.answer import Answer as Said
from engine.sim.answer import Call
from engine.sim.messages import Message
from engine.sim.plans import state_of
from engine.stores.memory import MemoryStore
from tests.simulation.network import Exchange, Watcher
from tests.simulation.scenario import IDLE_LOOK_S, AccountPlan, Scenario
from tests.simulation.world import Process, World

RANKS = {"unknown": 0, "accepted": 1, "enroute": 2, "delivered": 4, "read": 5}  # an end: 3
LETTERS = {"sms": "S", "email": "E", "push": "P", "whatsapp": "W", "rcs": "R"}
FIRST_WORDS = {"avaamo": "sent", "messangi": "QUEUE"}  # of a message of which nothing was said yet
PAUSES_S = (60.0, 300.0, 1800.0, 3600.0)
LONG_HOLD_S = 2.0  # shorter ones need not outlive a crash
KEPT_S = 3.0  # by then a hold is durable, a trouble of the disk included

# While all is well, a poll is made this long after it was due, beside its turn in the limit.
LATE_S = 5.0
SEEN_S = IDLE_LOOK_S + 0.4  # until who waits for the end has seen that something has ended
MOMENT_MS = 300  # between putting a question and sending it
EXCHANGES_KEPT = 1000  # more than may go before a poll's turn
BACKOFF_S = 62.0  # the longest backoff, and the Retry-After of these simulations

BY_ID = (Kind.BATCH, Kind.MESSAGE)

Who = tuple[str, str, str]  # account, message id, direction


@dataclass
class Asks:
    """What was asked about one batch or message by its id."""

    asked: int = 0
    failed: int = 0  # or perhaps failed
    sure: list[int] = field(default_factory=list)  # when each question that was answered was asked
    maybe_ms: int | None = None  # the latest, or one that was perhaps answered
    goes_on_ms: int | None = None  # a redirect, or a full page: the same question goes on

    @property
    def sure_ms(self) -> int | None:
        return self.sure[-1] if self.sure else None


@dataclass
class Taken:
    """What one sink holds."""

    last: dict[Who, int] = field(default_factory=dict)
    when: dict[str, int] = field(default_factory=dict)  # event_id -> `troubles` at that time
    rejected: set[str] = field(default_factory=set)
    troubles: int = 0


class Checks(Watcher):
    """All invariants of one run."""

    def __init__(self, world: World, scenario: Scenario, tables: MemoryStore) -> None:
        self.world = world
        self.scenario = scenario
        self.process: Process | None = None
        self.plans = {plan.name: plan for plan in scenario.accounts}
        self.tables = tables._tables
        self.restarts = 0
        self.records = 0
        self.newest: dict[Who, dict[str, Any]] = {}
        self.entered: dict[tuple[Who, str], int] = defaultdict(int)
        self.events: dict[str, tuple[str, int, int]] = {}
        self.lines: dict[str, dict[str, Any]] = {}
        self.sinks = {sink.label: Taken() for sink in scenario.sinks}
        self.asks: dict[tuple[str, str, str], Asks] = defaultdict(Asks)
        self.told: dict[Who, list[str]] = defaultdict(list)
        self.excused: set[tuple[str, int]] = set()  # (account, number) of answers a crash took
        self.probes: dict[str, dict[str, int]] = defaultdict(dict)  # account -> id -> inbox row
        self._last_answer: dict[str, Exchange] = {}  # of one-time accounts
        self._seen_to: dict[str, int] = defaultdict(lambda: 1)
        self._places: dict[tuple[str, str], tuple[int, int]] = {}
        self._works: dict[int, Work] = {}
        self._from_ms: dict[str, int] = {}  # of windowed accounts: when the first period begins
        self._to: dict[str, int] = {}  # … and where the latest one ends
        self._read_at: dict[str, float] = {}  # of feeds, by the provider's clock: when last begun
        self._sent: dict[str, int] = defaultdict(int)  # messages, so far
        self._came_up: dict[tuple[str, str], float] = {}  # … which by themselves, and when
        # When, by the provider's clock, one of them ended, or the program began to wait for it.
        self._ended_at: dict[str, float] = {}
        self._holds: dict[str, float] = {}
        self._held_at: dict[str, float] = {}
        self._died_at = 0.0
        self._given_up: set[Who] = set()  # the last rung failed until then, faults lasted so long
        self._pauses: dict[str, tuple[float, int]] = {}
        self._fault_at: dict[str, float] = defaultdict(lambda: -1e9)
        self._exchanges: dict[str, deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=EXCHANGES_KEPT)
        )
        self._begun_at = 0.0
        self._violations = 0

    # Lives

    def born(self, process: Process, jump_s: float) -> None:
        self.process = process
        self._begun_at = self.world.now
        self._holds = {
            name: until - max(0.0, jump_s)
            for name, until in self._holds.items()
            if until - self._held_at[name] > LONG_HOLD_S + 0.5
            and self._died_at - self._held_at[name] > KEPT_S
        }
        self._pauses.clear()

    def died(self, *, cleanly: bool) -> None:
        """The process has ended; what it knew of the latest answers may be gone with it."""
        self.restarts += 1
        self._died_at = self.world.now
        for taken in self.sinks.values():
            taken.troubles += 1
        for (name, kind, key), asks in self.asks.items():
            asks.goes_on_ms = None
            work = self._stored(name, kind, key)
            # Still due for a rung that was answered: that answer was not durable, and is gone.
            while asks.sure and work is not None and work.due_ms <= asks.sure[-1]:
                asks.sure.pop()
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
        self.process = None

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

    def drops(self, exchange: Exchange) -> None:
        """A request did not go out: there was no connection, or it was withheld."""
        plan = self.plans[exchange.host.name]
        self._fault_at[plan.name] = self.world.now
        key = _key(plan, exchange)
        if key is not None:
            asks = self.asks[plan.name, *key]
            if asks.goes_on_ms is not None:  # the question that it went on with has failed
                asks.goes_on_ms = None
                asks.failed += 1

    def starts(self, exchange: Exchange) -> None:
        """A request goes out."""
        name, now = exchange.host.name, self.world.now
        plan = self.plans[name]
        self.world.hold(
            "holds-kept",
            now >= self._holds.get(name, 0.0) - 0.002,
            lambda: f"{name} is asked {self._holds[name] - now:.3f} s before its Retry-After",
        )
        until = self._pauses.get(name, (0.0, 0))[0]
        self.world.hold(
            "pauses-kept",
            now >= until - 0.1,  # a pause is kept by the wall clock, which drifts
            lambda: f"{name} is asked {until - now:.3f} s before the end of its pause",
        )
        key = _key(plan, exchange)
        if key is not None:
            self._asked_by_id(plan, exchange, key)

    def _asked_by_id(self, plan: AccountPlan, exchange: Exchange, key: tuple[str, str]) -> None:
        asks = self.asks[plan.name, *key]
        if asks.goes_on_ms is not None:
            exchange.asked_ms, asks.goes_on_ms = asks.goes_on_ms, None
            return
        asks.asked += 1
        work = self._stored(plan.name, *key)
        if work is None:
            return
        due_ms = self._next_rung(plan, work, asks.sure_ms)
        self.world.hold(
            "every-due-poll-done",
            due_ms is not None and exchange.asked_ms >= due_ms,
            lambda: (
                f"{plan.name} {key[1]} is asked at {exchange.asked_ms},"
                f" before it is due at {due_ms}"
            ),
        )

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
        self._read(exchange)
        if exchange.host.account.profile.provider == "infobip" and not exchange.closed:
            self._last_answer[exchange.host.name] = exchange

    def sent(self, plan: AccountPlan) -> None:
        """Messages have gone out; others come up by themselves."""
        self._sent[plan.name] = len(plan.host.account.messages)

    def waits_for_the_end(self) -> None:
        """From now on the engine ends when nothing is left to do: each feed is read after this."""
        for name, plan in self.plans.items():
            self._ended_at[name] = plan.host.clock()

    def _read(self, exchange: Exchange) -> None:
        """A question has arrived: perhaps the first one of a feed's reading."""
        name, call = exchange.host.name, exchange.call
        plan, messages = self.plans[name], exchange.host.account.messages
        for message in messages[self._sent[name] :]:
            self._came_up[name, message.message_id] = call.now
        self._sent[name] = len(messages)
        if plan.drained and _key(plan, exchange) is None:
            self._read_at[name] = call.now
        if plan.windowed and call.path != "/login":
            to = call.query["to"] if plan.provider == "messangi" else call.query["to_timetoken"]
            to_ms = _ms(to) if plan.provider == "messangi" else round(float(to) * 1000)
            feed = self._stored(name, "feed", "")
            data = feed.data if feed is not None else {}
            # Not a window again, and not what is left of a reading that was begun before.
            new = to_ms > data.get("cursor", 0) and not data.get("spans")
            if new and self._to.get(name) != to_ms and not self._is_probe(plan, call):
                self._to[name], self._read_at[name] = to_ms, call.now

    def ends(self, exchange: Exchange) -> None:
        said, plan = exchange.said, self.plans[exchange.host.name]
        alive = exchange.process.alive
        good = bool(
            said is not None and exchange.whole and said.status == 200 and exchange.fault is None
        )
        refused = said is not None and exchange.whole and _refused(plan, exchange.call, said)
        self._exchanges[plan.name].append((exchange.began, self.world.now))
        if not good or refused:
            self._fault_at[plan.name] = self.world.now
        probe = self._is_probe(plan, exchange.call)
        if said is not None and good and not refused and alive and not probe:
            self._hear(plan, exchange, said.body)
        if said is not None and exchange.whole and alive:
            self._note_orders(plan, exchange, refused=refused)
        key = _key(plan, exchange)
        if key is not None and said is not None and exchange.consumed and not alive:
            self.asks[plan.name, *key].maybe_ms = exchange.asked_ms  # and nobody was told
        if key is not None and alive:
            asks = self.asks[plan.name, *key]
            first = said.body[:2] if said is not None else b""
            answered = good and (plan.provider != "bulksms" or first in (b"0|", b"24"))
            redirected = said is not None and 300 <= said.status < 400
            if (redirected and exchange.call.method == "GET") or (
                answered and said is not None and said.reports >= plan.page
            ):
                asks.goes_on_ms = exchange.asked_ms
            elif answered:
                asks.sure.append(exchange.asked_ms)
                asks.maybe_ms = exchange.asked_ms
            else:
                asks.failed += 1
                if said is not None and exchange.consumed:
                    asks.maybe_ms = exchange.asked_ms

    def _note_orders(self, plan: AccountPlan, exchange: Exchange, *, refused: bool) -> None:
        said = exchange.said
        assert said is not None
        if said.status in (429, 503) and (wait := said.headers.get("Retry-After")):
            if wait.isdigit():
                until = exchange.head_at + int(wait)
            else:  # a date, by the provider's clock
                until = plan.true_s(parsedate_to_datetime(wait).timestamp())
            if until > self._holds.get(plan.name, 0.0):
                self._holds[plan.name], self._held_at[plan.name] = until, self.world.now
        elif refused:
            until, times = self._pauses.get(plan.name, (0.0, 0))
            if self.world.now >= until:
                wait_s = PAUSES_S[min(times, len(PAUSES_S) - 1)]
                self._pauses[plan.name] = (self.world.now + wait_s, times + 1)
        elif said.status == 200 and exchange.fault is None and self._pauses.pop(plan.name, None):
            self._fault_at[plan.name] = self.world.now

    def _hear(self, plan: AccountPlan, exchange: Exchange, body: bytes) -> None:
        """What a whole and proper answer has told."""
        for message_id, direction, status in _rows(plan, exchange, body):
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
        return under_way and _ms(call.query["to"]) - _ms(call.query["from"]) == 1000

    def _all_known(self, exchange: Exchange) -> bool:
        """Whether every report of an answer that the engine has read is in the store."""
        if exchange.said is None:
            return True
        return all(
            end > exchange.consumed or self._knows(exchange.host.name, given)
            for end, given in exchange.said.ledger
        )

    def _knows(self, account: str, given: Any) -> bool:
        done_ms = _ms(given.done_at)
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
            entry["provider_status"] == given.status and _ms(entry["done_at"]) == done_ms
            for entry in history
            if entry["done_at"]
        )

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
        for (sink, account), place in tables.places.items():
            before = self._places.get((sink, account), (1, 0))
            if place != before and sink in self.sinks:
                self._moved(sink, account, before, place)
        self._look_at_works()

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
        old = self.newest.get(who)
        self.records += 1
        event_id = record["event_id"]
        self.world.note(f"record {account} {who[1]} #{record['revision']} {record['state']}")
        hold("nothing-twice", event_id not in self.events, lambda: f"{event_id} of {who} again")
        self.events[event_id] = (account, seq, index)
        self.lines[event_id] = record
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
                lambda: f"{who}: {_brief(record)} after {_brief(old)}",
            )
        status = f"{record['provider_status']}|{record['error_code']}|{record['verdict']}"
        self.entered[who, status] += 1
        hold(
            "records-are-true",
            event_id == _event_id(plan, record, self.entered[who, status]),
            lambda: f"{who}: event_id of {_brief(record)} is not of this fact",
        )
        if record["verdict"] is None:
            self._is_true(plan, record)
        else:
            self._verdict(plan, record)
        self.newest[who] = record

    def _is_true(self, plan: AccountPlan, record: dict[str, Any]) -> None:
        message = self.scenario.message(plan, record["message_id"])
        status, letter = record["provider_status"], LETTERS[record["channel"]]
        said = {t.status for t in message.transitions} if message is not None else set()
        said.add(FIRST_WORDS.get(plan.provider, ""))
        self.world.hold(
            "records-are-true",
            message is not None
            and status in said
            and (record["state"], record["final"]) == state_of(plan.provider, letter, status),
            lambda: f"{plan.name} {record['message_id']}: {_brief(record)}, the provider: {said}",
        )

    def _verdict(self, plan: AccountPlan, record: dict[str, Any]) -> None:
        """The ladder has passed, and where it asks, its last rung was answered or given up."""
        sent_ms = plan.tracked_ms.get(record["message_id"])
        if sent_ms is None and record["batch_id"] is not None:
            sent_ms = plan.tracked_ms.get(record["batch_id"])
        told = self.told.get((plan.name, record["message_id"], "mt"), [])
        letter = LETTERS[record["channel"]]
        self.world.hold(
            "verdicts-in-time",
            record["final"] and not any(state_of(plan.provider, letter, s)[1] for s in told),
            lambda: f"{_brief(record)}, and the provider has told {told}",
        )
        if sent_ms is None or not plan.asks:
            return
        last_ms = sent_ms + plan.offsets_ms[-1]
        asks = self.asks.get((plan.name, "batch", record["batch_id"] or ""))
        asks = asks or self.asks.get((plan.name, "message", record["message_id"]))
        answered_ms = asks.maybe_ms if asks else None
        over = _ms(record["observed_at"]) >= last_ms + plan.give_up_ms
        sure_ms = asks.sure_ms if asks else None
        if over and not self.world.calm and (sure_ms is None or sure_ms < last_ms):
            self._given_up.add((plan.name, record["message_id"], record["direction"]))
        self.world.hold(
            "verdicts-in-time",
            (answered_ms is not None and answered_ms >= last_ms) or over,
            lambda: (
                f"{plan.name} {record['message_id']}: {record['verdict']}, but its last rung"
                f" ({last_ms}) was not answered (last: {answered_ms})"
            ),
        )

    def _look_at_works(self) -> None:
        """A feed begins `lookback` before it is first in the schedule: what was sent before that,
        while the first lives could store nothing, is nobody's. Where a rung was counted, its
        question has been answered."""
        for name, plan in self.plans.items():
            if plan.windowed and name not in self._from_ms and self._stored(name, "feed", ""):
                assert self.process is not None
                begun_ms = self.process.now_ms()  # its first commit was just now
                self._from_ms[name] = begun_ms - round(plan.keys["lookback"] * 1000)
        for work_id in self._works.keys() - self.tables.works.keys():
            ended = self._works.pop(work_id)
            if ended.kind in BY_ID:
                self._ended_at[ended.account] = self.plans[ended.account].host.clock()
        for work_id, work in self.tables.works.items():
            if self._works.get(work_id) is work:
                continue
            self._works[work_id] = work
            plan = self.plans[work.account]
            if work.kind not in BY_ID or not plan.asks:
                continue
            asks = self.asks[plan.name, work.kind.value, work.key]
            asked = [ms for ms in (asks.sure_ms, asks.maybe_ms) if ms is not None]
            allowed = {
                self._next_rung(plan, work, ms + add) for ms in asked for add in (0, MOMENT_MS)
            }
            self.world.hold(
                "every-due-poll-done",
                any(due is not None and due <= work.due_ms <= due + plan.late_ms for due in allowed)
                or (asks.sure_ms is None and asks.maybe_ms is None),
                lambda: (
                    f"{work.account} {work.key} is put on {work.due_ms}, its next rung is {allowed}"
                ),
            )

    def _next_rung(self, plan: AccountPlan, work: Work, asked_ms: int | None) -> int | None:
        for offset in plan.offsets_ms:
            # The question was put a moment before it went out.
            if asked_ms is None or work.start_ms + offset > asked_ms - MOMENT_MS:
                return work.start_ms + offset
        return None

    def _stored(self, account: str, kind: str, key: str) -> Work | None:
        work_id = self.tables.work_ids.get((account, Kind(kind), key))
        return self.tables.works.get(work_id) if work_id is not None else None

    # Sinks

    def offered(self, label: str, line: bytes) -> None:
        record = orjson.loads(line)
        place = self.events.get(record["event_id"])
        self.world.hold(
            "nothing-twice",
            place is not None and place[1:] >= self._place(label, place[0]),
            lambda: f"{label} is offered {_brief(record)} again, at {place}",
        )

    def _place(self, label: str, account: str) -> tuple[int, int]:
        return self.tables.places.get((label, account), (1, 0))

    def took(self, label: str, line: bytes, *, rejected: bool = False) -> None:
        record, taken = orjson.loads(line), self.sinks[label]
        who = (record["account"], record["message_id"], record["direction"])
        event_id, revision = record["event_id"], record["revision"]
        again = event_id in taken.when
        self.world.hold(
            "nothing-twice",
            not again or taken.when[event_id] < taken.troubles,
            lambda: f"{label} was given {_brief(record)} again, for no reason",
        )
        self.world.hold(
            "revisions-in-order",
            again or revision > taken.last.get(who, 0),
            lambda: f"{label} was given #{revision} of {who} after #{taken.last[who]}",
        )
        taken.when[event_id] = taken.troubles
        taken.last[who] = max(revision, taken.last.get(who, 0))

    def failed(self, label: str) -> None:
        """A call of the sink has failed: what it took may come again."""
        self.sinks[label].troubles += 1

    def _moved(
        self, label: str, account: str, before: tuple[int, int], place: tuple[int, int]
    ) -> None:
        """A sink's position passes only what it has taken, or does not want."""
        self._places[label, account] = place
        taken, wanted = self.sinks[label], self.scenario.wanted(label)
        seq, index = before
        while (seq, index) < place and (account, seq) in self.tables.log:
            lines = self.tables.log[account, seq].body.split(b"\n")
            stop = place[1] if seq == place[0] else len(lines)
            for line in lines[index:stop]:
                record = orjson.loads(line)
                self.world.hold(
                    "nothing-lost",
                    record["event_id"] in taken.when or not wanted(record),
                    lambda: f"{label} has moved past {_brief(record)}, which it has not taken",
                )
            seq, index = seq + 1, 0

    # From time to time, and in the end

    def look(self) -> None:
        """While all is well nothing is overdue."""
        process = self.process
        if process is None or self.world.now - self._begun_at < LATE_S:
            return
        now_ms = process.now_ms()
        for name, plan in self.plans.items():
            if name in self._pauses:
                continue
            well_s = self.world.now - max(self._begun_at, self._fault_at[name] + BACKOFF_S)
            works = [w for w in self.tables.works.values() if w.account == name]
            due = [w for w in works if w.due_ms <= now_ms]
            bound_s = LATE_S + plan.settled_s + self.scenario.spread_s(plan, len(due))
            for work in due:
                late_s = min(well_s, (now_ms - work.due_ms) / 1000)
                if late_s <= bound_s:
                    continue
                busy_s = self._busy_s(name, late_s, self.scenario.turns(plan, len(due)))
                self.world.hold(
                    "every-due-poll-done",
                    late_s <= bound_s + busy_s,
                    lambda: (
                        f"{name} {work.kind} {work.key} is {late_s:.1f} s late, {bound_s:.1f} s"
                        f" are allowed beside {busy_s:.1f} s of requests"
                    ),
                )

    def _busy_s(self, name: str, late_s: float, turns: int) -> float:
        """How long of the last `late_s` requests were on their way or their answers being stored.

        A reading asks one question after the other, so that its length is theirs, whatever the
        limit lets through. No more of them than may go before a poll's turn: what is passed over
        for ever is late, however busy the account is.
        """
        ended = self.world.now - late_s
        busy_s = 0.0
        since = [one for one in self._exchanges[name] if one[1] > ended]
        for begin, end in since[:turns]:
            end += 2 * self.scenario.disk_slow_s  # of a commit's two halves
            busy_s += max(0.0, end - max(begin, ended))
            ended = max(ended, end)
        return busy_s

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
                    work.account != name or work.kind in (Kind.FEED, Kind.WINDOW),
                    lambda: f"{name}: {work.kind} {work.key} is still to be asked",
                )
            for message in plan.host.account.messages:
                self._compare(plan, message)
            self._compare_one_time(plan)
            ended_at, read_at = self._ended_at.get(name), self._read_at.get(name, math.inf)
            hold(
                "all-has-ended",
                ended_at is None or read_at >= ended_at - SEEN_S,
                lambda: f"{name}: its feed was read at {read_at}, and not after {ended_at}",
            )
        self._compare_tracked()
        self._compare_sinks()
        self._compare_asks()

    def _compare_tracked(self) -> None:
        """What was handed over is known, reported or not."""
        known = {(m.account, key) for m in self.tables.messages.values() for key in _ids(m)}
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
            hold("nothing-lost", known is not None, lambda: f"{text}; sent {message.sent_at:.3f}")
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
                    or who in self._given_up,
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

    def _compare_sinks(self) -> None:
        for label, taken in self.sinks.items():
            wanted = self.scenario.wanted(label)
            for event_id, record in self.lines.items():
                self.world.hold(
                    "nothing-lost",
                    event_id in taken.when or not wanted(record),
                    lambda: f"{label} has never got {_brief(record)}",
                )

    def _compare_asks(self) -> None:
        for (name, _, key), asks in self.asks.items():
            plan = self.plans[name]
            enough = len(plan.offsets_ms) + asks.failed + 2 * self.restarts
            self.world.hold(
                "asked-no-more-than-needed",
                asks.asked <= enough,
                lambda: f"{key} was asked {asks.asked} times, not {enough}",
            )


# The contract, said again


def replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Section 4, "which report wins", of two records of one message."""
    if new["verdict"] is not None:
        return not old["final"]
    old_final = old["final"] and old["verdict"] is None
    if old["state"] == "read" or (old_final and not new["final"]):
        return False
    if new["state"] == "unknown" and new["provider_status"] != "70" and not old_final:
        return True  # of a code that no table lists
    if new["done_at"] and old["done_at"] and new["done_at"] != old["done_at"]:
        return bool(new["done_at"] > old["done_at"])
    return RANKS.get(new["state"], 3) >= RANKS.get(old["state"], 3)


def _event_id(plan: AccountPlan, record: dict[str, Any], entered: int) -> str:
    dated = plan.provider in ("infobip", "messangi") and record["done_at"] is not None
    fact = [
        *(record[k] for k in ("account", "message_id", "direction", "provider_status")),
        *(record[k] for k in ("error_code", "verdict")),
        _ms(record["done_at"]) if dated else entered,
    ]
    return blake2b(orjson.dumps(fact), digest_size=16).hexdigest()


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _ids(known: Known) -> tuple[str | None, ...]:
    return known.message_id, known.batch_id


def _brief(record: dict[str, Any] | None) -> str:
    if record is None:
        return "nothing"
    names = ("account", "message_id", "revision", "state", "provider_status", "verdict", "done_at")
    return " ".join(str(record[name]) for name in names)


def _key(plan: AccountPlan, exchange: Exchange) -> tuple[str, str] | None:
    """Which batch or message is asked for by its id."""
    query = exchange.call.query
    if plan.provider == "bulksms":
        return "batch", query["batch_id"]
    if plan.provider == "infobip":
        for name, kind in (("messageId", "message"), ("bulkId", "batch")):
            if name in query:
                return kind, query[name]
    return None


def _refused(plan: AccountPlan, call: Call, said: Said) -> bool:
    """Wrong credentials, as each provider says it."""
    if plan.provider == "bulksms":
        return said.status == 200 and said.body.startswith(b"23|")
    if call.path == "/login":
        if said.status >= 500 or said.status == 429 or 300 <= said.status < 400:
            return False
        return "authorization" not in said.headers and "html" not in said.content_type
    return said.status == 401 and not plan.logs_in


def _rows(plan: AccountPlan, exchange: Exchange, body: bytes) -> list[tuple[str, str, str]]:
    """(message id, direction, status) of each row of an answer, read without the engine."""
    if plan.provider == "bulksms":
        batch = exchange.call.query["batch_id"]
        rows = [line.split("|") for line in body.decode().splitlines()[1:] if line]
        seen: dict[str, int] = defaultdict(int)
        found = []
        for row in rows:
            seen[row[0]] += 1
            suffix = f"#{seen[row[0]]}" if seen[row[0]] > 1 else ""
            found.append((f"{batch}:{row[0]}{suffix}", "mt", row[1]))
        return found
    if plan.provider == "infobip" and exchange.said is not None:
        return [(given.message_id, "mt", given.status) for _, given in exchange.said.ledger]
    if not body:
        return []
    data = orjson.loads(body)
    if plan.provider == "avaamo":
        return [(e["uuid"], "mt", e["sms_status"]) for e in data.get("entries", [])]
    if plan.provider == "messangi":
        return [_messangi_row(item) for item in data.get("items", [])]
    return []


def _messangi_row(item: dict[str, Any]) -> tuple[str, str, str]:
    names = ("channel", "sender", "recipient", "date", "direction", "status")
    keys = names if "channel" in item else "abcdtj"
    channel, sender, recipient, date, direction, status = (item[key] for key in keys)
    fact = (channel, sender, recipient.removeprefix("+"), _ms(date), direction)
    digest = blake2b(orjson.dumps(fact), digest_size=16).hexdigest()
    return digest, "mo" if direction == "I" else "mt", status
