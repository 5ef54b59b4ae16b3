"""Which worker of a fleet holds which accounts: what is decided, from what is seen.

A worker is alive while its row in the store says so, by the database's clock; it renews that every
`RENEW_S`. By its own clock it stops asking `MARGIN_S` before the row runs out, so that it is quiet
before anybody else may begin. What is held is a `Unit`: an account, or the accounts of one limit
group with their limit, since only one process can keep a limit.

Every worker looks at the same few numbers and decides for itself. A worker below its fair share of
the load takes what is free; one above it gives up what it has too much of, and whoever is below
takes that. While anything is free somebody is below, so nothing stays free. Pure: no clock, no
chance, no input or output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from engine.config.model import AccountConfig
from engine.limits.kept import limiter_name

TTL_S = 5.0  # a worker that has not renewed for so long is dead, by the database's clock
RENEW_S = 1.5
MARGIN_S = 1.0  # so long before that it asks nothing any more, by its own clock
SETTLE_S = 3.0  # what was taken stays so long, whatever the load
SEEN_S = 6.0  # after so long what was given has been taken and measured, and its load is told
LOAD_SLACK = 0.1  # a share of the fair load that nobody moves an account for
LOAD_S = 10.0  # a look at the requests of an account goes back so far, about
IDLE_WEIGHT = 1.0  # of an account that asks nothing; a request a second weighs as much again


class Unit(msgspec.Struct, frozen=True):
    """What is held together: accounts, and the names of leases that go with them."""

    accounts: tuple[str, ...]
    names: tuple[str, ...]


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is alive, as the others see it."""

    id: str
    name: str
    load: float
    idle: bool = False  # it has nothing left to do, as `--until-idle` means it
    leaving: bool = False  # it gives back what it has


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a look into the store shows."""

    peers: tuple[Peer, ...]
    mine: Mapping[str, int]  # fence by name, of what is ours
    free: frozenset[str]  # names that nobody holds

    def shared(self, me: str) -> list[Peer]:
        """The others that share the load with us."""
        return [peer for peer in self.peers if peer.id != me and not peer.leaving]


class Held(msgspec.Struct, frozen=True):
    """A unit of ours."""

    weight: float
    since: float  # monotonic


def units_of(accounts: Iterable[AccountConfig]) -> list[Unit]:
    """The units of a configuration: accounts that share a limit are held together."""
    together: dict[str, list[str]] = {}
    for account in accounts:
        together.setdefault(limiter_name(account), []).append(account.name)
    return [
        Unit(tuple(accounts), tuple(dict.fromkeys((*accounts, limit))))
        for limit, accounts in together.items()
    ]


def weight(requests_per_s: float) -> float:
    """How much an account weighs. In steps of a factor of two: accounts that are about alike weigh
    the same, or what they differ by would decide whether a share comes out even."""
    if requests_per_s < IDLE_WEIGHT / 4:
        return IDLE_WEIGHT
    return IDLE_WEIGHT + 2.0 ** round(math.log2(requests_per_s))


def fair_load(view: View, me: str, load: float, free: int) -> float:
    """What each worker had to carry, were all carried alike."""
    others = view.shared(me)
    whole = load + sum(peer.load for peer in others) + free * IDLE_WEIGHT
    return whole / (len(others) + 1)


def to_claim(units: Sequence[Unit], view: View, me: str, load: float) -> list[Unit]:
    """The free units to take: those that bring us up to our share, each worker in an order of
    its own."""
    free = [unit for unit in units if view.free.issuperset(unit.names)]
    fair = fair_load(view, me, load, len(free))
    claimed: list[Unit] = []
    for unit in sorted(free, key=lambda unit: _draw(me, unit)):
        if load >= fair:
            break
        claimed.append(unit)
        load += IDLE_WEIGHT
    return claimed


def to_give(
    held: Mapping[Unit, Held], free: int, view: View, me: str, now: float, gave_at: float
) -> list[Unit]:
    """The units to give up: what we have above our share, in as few pieces as will do. Where all
    are near it but for one that has much less, whoever has most evens out with that one.

    `free` is how many units nobody holds, `gave_at` when we gave the last ones: what is on its way
    weighs nothing that could be seen, and is not to be given twice.
    """
    if free or now - gave_at < SEEN_S:
        return []
    load = sum(one.weight for one in held.values())
    fair = fair_load(view, me, load, 0)
    excess = load - fair
    others = view.shared(me)
    if excess < LOAD_SLACK * fair and others and all((p.load, p.id) < (load, me) for p in others):
        excess = (load - min(peer.load for peer in others)) / 2
    if not others or excess < LOAD_SLACK * fair:
        return []
    given: list[Unit] = []
    settled = (unit for unit, one in held.items() if now - one.since >= SETTLE_S)
    for unit in sorted(settled, key=lambda unit: (-held[unit].weight, unit.names)):
        if held[unit].weight <= excess:
            given.append(unit)
            excess -= held[unit].weight
    return given


def _draw(me: str, unit: Unit) -> bytes:
    return blake2b(f"{me} {unit.names[0]}".encode(), digest_size=8).digest()


class Rates:
    """How many requests a second each account makes, smoothed over about `LOAD_S`."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._counted_at = 0.0
        self._rates: dict[str, float] = {}

    def count(self, counts: Mapping[str, int], now: float) -> None:
        """So many requests were made until now. The first measure of an account counts whole: a
        load that only grows to what it is would look like room for more."""
        passed = now - self._counted_at
        if passed <= 0:
            return
        share = min(1.0, passed / LOAD_S)
        for name in counts.keys() & self._counted.keys():
            rate = (counts[name] - self._counted[name]) / passed
            before = self._rates.get(name, rate)
            self._rates[name] = before + share * (rate - before)
        self._counted, self._counted_at = dict(counts), now

    def of(self, account: str) -> float:
        return self._rates.get(account, 0.0)


class Term:
    """Until when this process may ask, by its own clock.

    It counts from before the question that renewed it, so it can only end too early.
    """

    def __init__(self) -> None:
        self._until = float("-inf")

    def renewed(self, asked_at: float) -> None:
        """The store has taken a renewal that was sent off at `asked_at`."""
        self._until = max(self._until, asked_at + TTL_S - MARGIN_S)

    def ended(self) -> None:
        self._until = float("-inf")

    def holds(self, now: float) -> bool:
        return now < self._until
