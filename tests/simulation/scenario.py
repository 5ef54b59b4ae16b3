"""What a run is made of: its accounts, sinks, messages and crashes, as a seed decides them.

Everything is small (seconds instead of hours, a few messages). For `quiet_s` seconds there are
faults; then they end, and all has to come right. How it is drawn is in `drawing`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from engine import registry
from engine.config import Config, parse
from engine.core.reconcile import Known
from engine.sim.messages import Message
from engine.sim.profile import AccountProfile, Profile
from engine.sim.server import Simulator
from tests.simulation.network import Host, Weather
from tests.simulation.sinks import MemorySink, Nature
from tests.simulation.world import EPOCH_S, World

QUIET_S = 20.0  # then faults end
IDLE_LOOK_S = 0.5  # the program that waits for the end looks so often whether it has come
WALL_JUMP_S = 1.5  # a wall clock is stepped by at most this while the engine is down
SKEW_S = 2.0  # a provider's clock is off by at most this


@dataclass(eq=False)
class AccountPlan:
    """One account: its configuration, its provider, and what the checks must know of both."""

    name: str
    provider: str
    keys: dict[str, Any]
    profile: AccountProfile
    skew_s: float = 0.0
    drift: float = 0.0
    offsets_ms: tuple[int, ...] = ()
    rescans_s: tuple[float, ...] = ()
    asks: bool = False
    drained: bool = False
    logs_in: bool = False
    tracks: bool = True
    give_up_ms: int = 0
    page: int = 1 << 30  # an answer with so many reports is a full page
    late_ms: int = 0  # by which jitter may delay a rung
    settled_s: float = 0.0
    locked: tuple[float, float] | None = None  # from when to when the password is wrong
    tracked_ms: dict[str, int] = field(default_factory=dict)  # batch or message id -> sent
    handed: list[str] = field(default_factory=list)  # ids that were handed over
    whole: set[str] = field(default_factory=set)  # batches tracked with all recipients
    host: Host = field(init=False)

    @property
    def windowed(self) -> bool:
        return self.provider in ("avaamo", "messangi")

    def id_of(self, message: Message) -> str:
        if self.provider != "messangi":
            return message.message_id
        number = message.recipient.removeprefix("+")
        ms = round(message.sent_at * 1000)
        fact = (message.channel, message.sender, number, ms, message.direction)
        return blake2b(orjson.dumps(fact), digest_size=16).hexdigest()

    def true_s(self, shown_s: float) -> float:
        """The true time at which the provider's clock shows this."""
        return (shown_s - EPOCH_S - self.skew_s) / (1 + self.drift)

    def ends(self, known: Known) -> bool:
        """Whether the engine promises an end of this message."""
        if self.provider == "infobip":
            return known.tracked
        return bool(self.rescans_s) or self.provider == "bulksms"

    def in_time(self, message: Message) -> bool:
        """Whether its end comes so early that the schedule must have heard of it."""
        if self.locked is not None:
            return False
        ends = [t for t in message.transitions if t.final]
        if len(ends) > 1 and not (ends[0].state == "delivered" and message.channel in "EWR"):
            return False  # final before: nobody asks again
        span_s = self.offsets_ms[-1] / 1000 if self.asks else (*self.rescans_s, 0.0)[-1]
        whole = self.provider != "bulksms" or message.batch_id in self.whole
        margin_s = WALL_JUMP_S + SKEW_S + 0.5
        return whole and message.transitions[-1].at - message.sent_at + margin_s <= span_s


@dataclass
class SinkPlan:
    label: str
    nature: Nature
    keys: dict[str, Any]


@dataclass
class Sending:
    """Messages that go out at some time, and how the engine hears of them."""

    at: float
    account: str
    count: int
    batch: str | None
    how: str | None  # "inbox", "call", None: the engine finds them
    named: bool = True  # tracked with recipients, or by their ids
    by_batch: bool = True
    life: tuple[tuple[float, str], ...] | None = None
    channel: str | None = None
    direction: str = "O"
    twin: bool = False  # the last recipient stands in the batch again


@dataclass
class Crash:
    """How a life of the engine ends."""

    at: float | None = None  # at this time …
    step: int | None = None  # … or before this step of its loop
    answer: int | None = None  # … or with its so-maniest answer that has reports,
    writes: int = 0  # and so many commits after that
    held_s: float | None = None  # … or so long after a long Retry-After
    inbox: int | None = None  # … or with its so-maniest commit that takes rows out of the inbox
    how: str = "kill"  # "kill", "stop", "cancel"
    down_s: float = 0.5
    jump_s: float = 0.0  # of the wall clock, meanwhile
    reboot: bool = False  # the machine went down with it


class Scenario:
    """All that a seed decides."""

    def __init__(self) -> None:
        self.accounts: list[AccountPlan] = []
        self.sinks: list[SinkPlan] = []
        self.sendings: list[Sending] = []
        self.crashes: list[Crash] = []
        self.weather = Weather()
        self.disk_trouble = 0.0
        self.disk_slow_s = 0.004
        self.drift = 0.0
        self.tells_boots = True
        self.grace_s = 10.0
        self.quiet_s = QUIET_S
        self._messages: dict[str, dict[str, Message]] = {}

    # What the checks ask

    def message(self, plan: AccountPlan, message_id: str) -> Message | None:
        """By the engine's id. Some come up by themselves at the provider."""
        held = self._messages.setdefault(plan.name, {})
        for message in plan.host.account.messages[len(held) :]:
            held[plan.id_of(message)] = message
        return held.get(message_id)

    def wanted(self, label: str) -> Callable[[dict[str, Any]], bool]:
        keys = next(sink.keys for sink in self.sinks if sink.label == label)
        accounts, states = keys.get("accounts"), keys.get("states")
        return lambda record: (
            (accounts is None or record["account"] in accounts)
            and (states is None or record["state"] in states)
        )

    def turns(self, plan: AccountPlan, ahead: int) -> int:
        """How many requests may go before a poll has been answered, of all that share its limit,
        where so many of its own account go before it, or with it."""
        group = plan.keys["limits"].get("group")
        sharing = [p for p in self.accounts if group and p.keys["limits"].get("group") == group]
        # Requests of one reading, which may have to split and to go through pages and channels.
        visit = {"avaamo": 40, "messangi": 120}.get(plan.provider, 8)
        return (ahead + visit) * max(1, len(sharing))

    def spread_s(self, plan: AccountPlan, turns: int) -> float:
        """How long it may take until so many requests had their turn in the limit."""
        limits = plan.profile.limits
        rates = [(limits.requests, limits.per), *((w.requests, w.per) for w in limits.also)]
        return max(-(-turns // requests) * per * 1.1 for requests, per in rates)

    # Building

    def hosts(self, world: World) -> dict[str, Host]:
        """The simulated providers, each with its own clock; groups share a meter."""
        hosts: dict[str, Host] = {}
        meters: dict[str, Any] = {}
        for plan in self.accounts:
            clock = _clock_of(world, plan.skew_s, plan.drift)
            rand = world.dice(f"provider {plan.name}")
            simulator = Simulator(Profile([plan.profile]), clock=clock, rand=rand)
            simulator.base_url = "http://localhost:80"  # what a redirect elsewhere is made from
            slack_s = plan.keys["limits"]["slack"]
            plan.host = hosts[plan.name] = Host(simulator, plan.name, clock, slack_s)
            group = plan.keys["limits"].get("group")
            if group is not None:
                plan.host.account.meter = meters.setdefault(group, plan.host.account.meter)
        return hosts

    def config(self, sink_class: type[MemorySink]) -> Config:
        sinks = [
            {"name": s.label, "type": "memory", "label": s.label, **s.keys} for s in self.sinks
        ]
        data = {
            "store": {"url": "memory://"},
            "shutdown_grace": self.grace_s,
            "accounts": [plan.keys for plan in self.accounts],
            "sinks": sinks,
        }
        return parse(data, providers=registry.providers(), sinks={"memory": sink_class})


def _clock_of(world: World, skew_s: float, drift: float) -> Callable[[], float]:
    return lambda: EPOCH_S + world.now * (1 + drift) + skew_s
