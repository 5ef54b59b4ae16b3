"""Who takes and who gives, as plain functions: everything gets a holder, shares come out even, and
nothing moves back and forth."""

from __future__ import annotations

import random

import pytest

from engine.leases import (
    IDLE_WEIGHT,
    LOAD_SLACK,
    MARGIN_S,
    SEEN_S,
    SETTLE_S,
    TTL_S,
    Held,
    Peer,
    Rates,
    Term,
    Unit,
    View,
    to_claim,
    to_give,
)

Loads = dict[str, dict[Unit, float]]


def unit(n: int) -> Unit:
    return Unit((f"a{n}",), (f"a{n}",))


class World:
    """Workers and units; a round is one look of each worker, in an order of chance. What a worker
    has just taken weighs as if it asked nothing, until it has been measured."""

    def __init__(self, weights: dict[Unit, float], seed: int = 0) -> None:
        self.weights = weights
        self.free = set(weights)
        self.held: Loads = {}
        self.rand = random.Random(seed)
        self.moves = 0
        self.since: dict[Unit, float] = {}
        self.gave_at: dict[str, float] = {}
        self.now = 0.0

    def load(self, who: str) -> float:
        return sum(self.seen(u) for u in self.held[who])

    def seen(self, unit: Unit) -> float:
        measured = self.now - self.since[unit] >= SETTLE_S
        return self.weights[unit] if measured else min(IDLE_WEIGHT, self.weights[unit])

    def view(self) -> View:
        peers = tuple(Peer(id=who, name=who, load=self.load(who)) for who in sorted(self.held))
        free = frozenset(name for u in self.free for name in u.names)
        return View(peers=peers, mine={}, free=free)

    def look(self, who: str) -> int:
        mine = self.held[who]
        claimed = to_claim(list(self.weights), self.view(), who, self.load(who))
        for one in claimed:
            self.free.remove(one)
            mine[one] = self.weights[one]
            self.since[one] = self.now
        held = {u: Held(self.seen(u), self.since[u]) for u in mine}
        gave_at = self.gave_at.get(who, -SEEN_S)
        given = to_give(held, len(self.free), self.view(), who, self.now, gave_at)
        if given:
            self.gave_at[who] = self.now
        for one in given:
            del mine[one]
            self.free.add(one)
        self.moves += len(claimed)
        return len(claimed) + len(given)

    def settle(self, rounds: int = 100) -> None:
        """Until nothing has moved for so long that all could have."""
        moved_at = self.now
        for _ in range(rounds):
            self.now += SETTLE_S
            order = sorted(self.held)
            self.rand.shuffle(order)
            if sum(self.look(who) for who in order):
                moved_at = self.now
            elif self.now - moved_at > SEEN_S + SETTLE_S:
                return
        pytest.fail("it does not come to rest")

    def join(self, who: str) -> None:
        self.held[who] = {}

    def die(self, who: str) -> None:
        self.free |= self.held.pop(who).keys()


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("units", [0, 1, 5, 40])
def test_equal_accounts_are_shared_evenly(workers: int, units: int) -> None:
    world = World({unit(n): 1.0 for n in range(units)})
    for n in range(workers):
        world.join(f"w{n}")
        world.settle()
    assert not world.free
    counts = [len(held) for held in world.held.values()]
    # Whoever is within a tenth of a fair share gives nothing up for it.
    assert max(counts) - min(counts) <= max(1, round(2 * LOAD_SLACK * units / workers))


def test_a_joining_worker_takes_its_share_and_no_more() -> None:
    world = World({unit(n): 1.0 for n in range(30)})
    for who in ("a", "b"):
        world.join(who)
    world.settle()
    world.moves = 0
    world.join("c")
    world.settle()
    assert len(world.held["c"]) == world.moves == 10


@pytest.mark.parametrize("seed", range(20))
def test_busy_accounts_go_over_once(seed: int) -> None:
    """What was given up weighs nothing that anybody can see until its new holder has measured it:
    whoever gave it does not give more for that."""
    world = World({unit(n): 5.0 for n in range(8)}, seed)
    world.join("a")
    world.settle()
    world.moves = 0
    world.join("b")
    world.settle()
    assert len(world.held["b"]) == world.moves == 4


def test_a_dead_workers_accounts_go_to_the_others() -> None:
    world = World({unit(n): 1.0 for n in range(30)})
    for who in ("a", "b", "c"):
        world.join(who)
    world.settle()
    world.moves = 0
    lost = len(world.held["c"])
    world.die("c")
    world.settle()
    assert not world.free
    assert world.moves == lost
    assert abs(len(world.held["a"]) - len(world.held["b"])) <= 2


@pytest.mark.parametrize("seed", range(20))
def test_uneven_accounts_come_to_rest_near_even(seed: int) -> None:
    rand = random.Random(seed)
    weights = {unit(n): 1.0 + rand.choice((0.0, 0.0, 0.5, 3.0, 9.0)) for n in range(40)}
    world = World(weights, seed)
    for n in range(4):
        world.join(f"w{n}")
        world.settle()
    assert not world.free
    fair = sum(weights.values()) / 4
    # One that is above its share keeps only what would bring it below.
    for who in world.held:
        excess = world.load(who) - fair
        assert excess < max(LOAD_SLACK * fair, min(weights[u] for u in world.held[who]))


def test_a_heavy_account_stays_and_the_light_ones_go() -> None:
    weights = {unit(0): 50.0} | {unit(n): 1.0 for n in range(1, 11)}
    world = World(weights)
    world.join("a")
    world.settle()
    world.join("b")
    world.settle()
    assert sorted(map(len, world.held.values())) == [1, 10]


def test_what_has_just_come_stays() -> None:
    held = {unit(n): Held(1.0, 100.0) for n in range(4)}
    peers = (Peer(id="a", name="a", load=4.0), Peer(id="b", name="b", load=0.0))
    view = View(peers=peers, mine={}, free=frozenset())
    assert to_give(held, 0, view, "a", 100.0 + SETTLE_S / 2, 0.0) == []
    assert len(to_give(held, 0, view, "a", 100.0 + SETTLE_S, 0.0)) == 2
    assert to_give(held, 0, view, "a", 100.0 + SETTLE_S, 98.0) == []  # one gift at a time
    assert to_give(held, 1, view, "a", 100.0 + SETTLE_S, 0.0) == []


def test_who_leaves_has_no_share() -> None:
    peers = (
        Peer(id="a", name="a", load=4.0),
        Peer(id="b", name="b", load=0.0, leaving=True),
    )
    held = {unit(n): Held(1.0, 0.0) for n in range(4)}
    assert to_give(held, 0, View(peers=peers, mine={}, free=frozenset()), "a", 100.0, 0.0) == []


def test_a_group_is_taken_whole_or_not_at_all() -> None:
    group = Unit(("x", "y"), ("x", "y", "group g"))
    peers = (Peer(id="a", name="a", load=0.0),)
    part = View(peers=peers, mine={}, free=frozenset({"x", "group g"}))
    whole = View(peers=peers, mine={}, free=frozenset(group.names))
    assert to_claim([group], part, "a", 0.0) == []
    assert to_claim([group], whole, "a", 0.0) == [group]


def test_what_an_account_asks_is_known_with_the_first_measure() -> None:
    rates = Rates()
    rates.count({"a": 100}, 10.0)
    assert rates.of("a") == 0.0  # since when is not known
    rates.count({"a": 140, "b": 7}, 12.0)
    assert (rates.of("a"), rates.of("b")) == (20.0, 0.0)
    rates.count({"a": 140, "b": 9}, 13.0)
    assert (rates.of("a"), rates.of("b")) == (18.0, 2.0)  # over ten seconds or so
    rates.count({}, 14.0)  # they went, and come again
    rates.count({"a": 500}, 20.0)
    assert rates.of("a") == 18.0


def test_a_term_ends_before_the_row_does() -> None:
    term = Term()
    assert not term.holds(0.0)
    term.renewed(10.0)
    assert term.holds(10.0 + TTL_S - MARGIN_S - 0.001)
    assert not term.holds(10.0 + TTL_S - MARGIN_S)
    term.renewed(9.0)  # an answer that was overtaken takes nothing away
    assert term.holds(13.5)
    term.ended()
    assert not term.holds(10.0)
