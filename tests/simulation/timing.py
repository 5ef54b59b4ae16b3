"""When the engine asks: holds and pauses, rungs and rescans, never early and never late."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from engine.core.contracts import Kind
from engine.core.work import Work
from engine.stores.memory import MemoryStore
from tests.simulation.contract import Who, key_of, ms_of
from tests.simulation.network import Exchange
from tests.simulation.scenario import AccountPlan, Scenario
from tests.simulation.world import Process, World

PAUSES_S = (60.0, 300.0, 1800.0, 3600.0)
LONG_HOLD_S = 2.0  # shorter ones need not outlive a crash
KEPT_S = 3.0  # by then a hold is durable, a trouble of the disk included

# While all is well, a poll is made this long after it was due, beside its turn in the limit.
LATE_S = 5.0
MOMENT_MS = 300  # between putting a question and sending it
EXCHANGES_KEPT = 1000  # more than may go before a poll's turn
BACKOFF_S = 62.0  # the longest backoff, and the Retry-After of these simulations

BY_ID = (Kind.BATCH, Kind.MESSAGE)


class GoesOn(NamedTuple):
    """A question whose next page, or where a redirect leads to, is asked for next."""

    asked_ms: int
    maybe_ms: int
    since: float


class Ended(NamedTuple):
    """An exchange that is over."""

    began: float
    ended: float
    work: Work | None  # whose question it was, as it stood then; None where none is asked by its id


@dataclass
class Asks:
    """What was asked about one batch or message by its id."""

    asked: int = 0
    failed: int = 0  # or perhaps failed
    sure: list[int] = field(default_factory=list)  # when each question that was answered was asked
    maybe_ms: int | None = None  # the latest, or one that was perhaps answered
    goes_on: GoesOn | None = None  # a redirect, or a full page: the same question goes on

    @property
    def sure_ms(self) -> int | None:
        return self.sure[-1] if self.sure else None


class Timing:
    """All that has to do with when a question is put."""

    def __init__(self, world: World, scenario: Scenario, tables: MemoryStore) -> None:
        self.world = world
        self.scenario = scenario
        self.process: Process | None = None
        self.plans = {plan.name: plan for plan in scenario.accounts}
        self.tables = tables._tables
        self.restarts = 0
        self.asks: dict[tuple[str, str, str], Asks] = defaultdict(Asks)
        self.given_up: set[Who] = set()  # the last rung failed until then, faults lasted so long
        self._holds: dict[str, float] = {}
        self._held_at: dict[str, float] = {}
        self._died_at = 0.0
        self._pauses: dict[str, tuple[float, int]] = {}
        self._fault_at: dict[str, float] = defaultdict(lambda: -1e9)
        self._exchanges: dict[str, deque[Ended]] = defaultdict(lambda: deque(maxlen=EXCHANGES_KEPT))
        self._begun_at = 0.0

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

    def died(self) -> None:
        """What the process knew of the latest answers may be gone with it."""
        self.restarts += 1
        self._died_at = self.world.now
        self.process = None
        for (name, kind, key), asks in self.asks.items():
            asks.goes_on = None
            work = self.stored(name, kind, key)
            # Still due for a rung that was answered: that answer was not durable, and is gone.
            while asks.sure and work is not None and work.due_ms <= asks.sure[-1]:
                asks.sure.pop()

    # Requests

    def drops(self, exchange: Exchange) -> None:
        """A request did not go out: there was no connection, or it was withheld."""
        plan = self.plans[exchange.host.name]
        self._fault_at[plan.name] = self.world.now
        key = key_of(plan, exchange)
        if key is not None:
            asks = self.asks[plan.name, *key]
            if asks.goes_on is not None:  # the question that it went on with has failed
                asks.goes_on = None
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
        key = key_of(plan, exchange)
        if key is not None:
            self._asked_by_id(plan, exchange, key)

    def _asked_by_id(self, plan: AccountPlan, exchange: Exchange, key: tuple[str, str]) -> None:
        asks = self.asks[plan.name, *key]
        if (goes_on := asks.goes_on) is not None:
            exchange.asked_ms, asks.goes_on = goes_on.asked_ms, None
            if self._fault_at[plan.name] <= goes_on.since:
                exchange.maybe_ms = goes_on.maybe_ms
            # Else the account had to wait, and what it went on with may have been left.
            return
        asks.asked += 1
        work = self.stored(plan.name, *key)
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

    def ends(self, exchange: Exchange, *, good: bool, refused: bool) -> None:
        """An exchange is over, whichever way."""
        said, plan = exchange.said, self.plans[exchange.host.name]
        key = key_of(plan, exchange)
        work = self.stored(plan.name, *key) if key is not None else None
        self._exchanges[plan.name].append(Ended(exchange.began, self.world.now, work))
        if not good or refused:
            self._fault_at[plan.name] = self.world.now
        if said is not None and exchange.whole and exchange.process.alive:
            self._note_orders(plan, exchange, refused=refused)
        if key is not None:
            self._answered(plan, exchange, self.asks[plan.name, *key], good=good)

    def _answered(self, plan: AccountPlan, exchange: Exchange, asks: Asks, *, good: bool) -> None:
        said = exchange.said
        if not exchange.process.alive:  # it may be durable, and nobody was told
            if said is not None and exchange.consumed:
                asks.maybe_ms = exchange.maybe_ms
            return
        first = said.body[:2] if said is not None else b""
        answered = good and (plan.provider != "bulksms" or first in (b"0|", b"24"))
        # A redirect's head is followed; one that is still on its way when time is up is not.
        redirected = said is not None and exchange.head_at > 0 and 300 <= said.status < 400
        if (redirected and exchange.call.method == "GET") or (
            answered and said is not None and said.reports >= plan.page
        ):
            asks.goes_on = GoesOn(exchange.asked_ms, exchange.maybe_ms, self.world.now)
        elif answered:
            asks.sure.append(exchange.asked_ms)
            asks.maybe_ms = exchange.maybe_ms
        else:
            asks.failed += 1
            if said is not None and exchange.consumed:
                asks.maybe_ms = exchange.maybe_ms

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

    # Commits

    def moved(self, work: Work) -> None:
        """A work is new, or put on another time: where a rung was counted, its question has been
        answered."""
        plan = self.plans[work.account]
        if work.kind not in BY_ID or not plan.asks:
            return
        asks = self.asks[plan.name, work.kind.value, work.key]
        asked = [ms for ms in (asks.sure_ms, asks.maybe_ms) if ms is not None]
        allowed = {self._next_rung(plan, work, ms + add) for ms in asked for add in (0, MOMENT_MS)}
        self.world.hold(
            "every-due-poll-done",
            any(due is not None and due <= work.due_ms <= due + plan.late_ms for due in allowed)
            or not asked,
            lambda: (
                f"{work.account} {work.key} is put on {work.due_ms}, its next rung is {allowed}"
            ),
        )

    def verdict(self, plan: AccountPlan, record: dict[str, Any]) -> None:
        """The ladder has passed, and where it asks, its last rung was answered or given up."""
        sent_ms = plan.tracked_ms.get(record["message_id"])
        if sent_ms is None and record["batch_id"] is not None:
            sent_ms = plan.tracked_ms.get(record["batch_id"])
        if sent_ms is None or not plan.asks:
            return
        last_ms = sent_ms + plan.offsets_ms[-1]
        asks = self.asks.get((plan.name, "batch", record["batch_id"] or ""))
        asks = asks or self.asks.get((plan.name, "message", record["message_id"]))
        answered_ms = asks.maybe_ms if asks else None
        over = ms_of(record["observed_at"]) >= last_ms + plan.give_up_ms
        sure_ms = asks.sure_ms if asks else None
        if over and not self.world.calm and (sure_ms is None or sure_ms < last_ms):
            self.given_up.add((plan.name, record["message_id"], record["direction"]))
        self.world.hold(
            "verdicts-in-time",
            (answered_ms is not None and answered_ms >= last_ms) or over,
            lambda: (
                f"{plan.name} {record['message_id']}: {record['verdict']}, but its last rung"
                f" ({last_ms}) was not answered (last: {answered_ms})"
            ),
        )

    def _next_rung(self, plan: AccountPlan, work: Work, asked_ms: int | None) -> int | None:
        for offset in plan.offsets_ms:
            # The question was put a moment before it went out.
            if asked_ms is None or work.start_ms + offset > asked_ms - MOMENT_MS:
                return work.start_ms + offset
        return None

    def stored(self, account: str, kind: str, key: str) -> Work | None:
        work_id = self.tables.work_ids.get((account, Kind(kind), key))
        return self.tables.works.get(work_id) if work_id is not None else None

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
            for work in due:
                late_s = min(well_s, (now_ms - work.due_ms) / 1000)
                bound_s = LATE_S + plan.settled_s
                if late_s <= bound_s:
                    continue
                turns = self.scenario.turns(plan, self._ahead(work, late_s, len(due)))
                bound_s += self.scenario.spread_s(plan, turns)
                busy_s = self._busy_s(name, late_s, turns)
                self.world.hold(
                    "every-due-poll-done",
                    late_s <= bound_s + busy_s,
                    lambda: (
                        f"{name} {work.kind} {work.key} is {late_s:.1f} s late, {bound_s:.1f} s"
                        f" are allowed beside {busy_s:.1f} s of requests"
                    ),
                )

    def _ahead(self, work: Work, late_s: float, due: int) -> int:
        """How many requests had a right to go before the poll's last one, beside a reading's.

        Those of the last `late_s` for what was due no later, each page of it; and what is due
        still, once before each page of its own.
        """
        since = self.world.now - late_s
        went = [
            one.work
            for one in self._exchanges[work.account]
            if one.work is not None and one.ended > since and one.work.due_ms <= work.due_ms
        ]
        own = sum(one.id == work.id for one in went)
        return len(went) + due * max(1, own)

    def _busy_s(self, name: str, late_s: float, turns: int) -> float:
        """How long of the last `late_s` requests were on their way or their answers being stored.

        A reading asks one question after the other, so that its length is theirs, whatever the
        limit lets through. No more of them than may go before a poll's turn: what is passed over
        for ever is late, however busy the account is.
        """
        ended = self.world.now - late_s
        busy_s = 0.0
        since = [one for one in self._exchanges[name] if one.ended > ended]
        for begin, end, _ in since[:turns]:
            end += 2 * self.scenario.disk_slow_s  # of a commit's two halves
            busy_s += max(0.0, end - max(begin, ended))
            ended = max(ended, end)
        return busy_s

    def finish(self) -> None:
        """No question was asked more often than it has rungs, failures and restarts."""
        for (name, _, key), asks in self.asks.items():
            plan = self.plans[name]
            enough = len(plan.offsets_ms) + asks.failed + 2 * self.restarts
            self.world.hold(
                "asked-no-more-than-needed",
                asks.asked <= enough,
                lambda: f"{key} was asked {asks.asked} times, not {enough}",
            )
