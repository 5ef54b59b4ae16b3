"""What happens in a run, drawn from its seed: accounts, messages, weather, crashes, sinks.

Everything is there: groups, further windows, ladders of both spellings, rescans, drains, pages that
shift, windows that must be split, tokens that expire, what is tracked and what is found, states
that come late, repeat, or go back.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from engine.sim.profile import AccountProfile, Delays, Fault, Limits, Mix
from engine.sim.profile import Window as AlsoWindow
from tests.simulation.network import Weather
from tests.simulation.scenario import (
    QUIET_S,
    SKEW_S,
    WALL_JUMP_S,
    AccountPlan,
    Crash,
    Scenario,
    Sending,
    SinkPlan,
)
from tests.simulation.sinks import Nature

SEND_S = 8.0  # messages are sent in the first seconds
PROVIDERS = ("bulksms", "infobip", "avaamo", "messangi")

# Lives that are not in the simulator's own tables: states that repeat, go back, and are corrected.
LIVES: dict[str, tuple[tuple[tuple[float, str], ...], ...]] = {
    "bulksms": (
        ((0.0, "0"), (2.0, "10"), (4.0, "63"), (6.0, "10"), (8.0, "11")),
        ((0.5, "10"), (3.0, "99"), (6.0, "50")),
        ((0.0, "0"), (1.0, "10"), (3.0, "70"), (5.0, "53")),
    ),
    "infobip": (
        ((1.0, "DELIVERED_TO_OPERATOR"), (3.0, "PENDING_ENROUTE"), (6.0, "DELIVERED_TO_HANDSET")),
        ((2.0, "UNDELIVERABLE_NOT_DELIVERED"), (5.0, "DELIVERED_TO_HANDSET")),
        ((1.0, "PENDING_ACCEPTED"), (2.0, "BRAND_NEW"), (7.0, "EXPIRED_EXPIRED")),
    ),
    "avaamo": (((0.0, "sent"), (5.0, "delivered")), ((0.0, "sent"), (9.0, "undelivered"))),
    "messangi": (
        ((0.0, "QUEUE"), (1.0, "SENT"), (3.0, "ENROUTE"), (8.0, "DELIVRD")),
        ((0.0, "QUEUE"), (2.0, "BRAND NEW"), (6.0, "UNDELIV")),
    ),
}


def draw(seed: int | str) -> Scenario:
    """The scenario of a seed."""
    rand = random.Random(f"{seed}:scenario")
    scenario = Scenario()
    fair = rand.random() < 0.25  # no faults at all: what is late has no excuse
    for n in range(rand.choice((1, 1, 2, 2, 3))):
        scenario.accounts.append(_account(rand, n, fair=fair))
    if len(scenario.accounts) > 1 and rand.random() < 0.3:
        _group(rand, scenario.accounts[:2])
    for n in range(rand.choice((1, 1, 2))):
        scenario.sinks.append(_sink(rand, n, scenario.accounts, fair=fair))
    for plan in scenario.accounts:
        _sendings(rand, scenario, plan)
    scenario.sendings.sort(key=lambda sending: sending.at)
    scenario.drift = rand.uniform(-2e-5, 2e-5)
    scenario.tells_boots = rand.random() < 0.8
    scenario.grace_s = rand.choice((0.05, 2.0, 10.0))
    scenario.disk_slow_s = rand.choice((0.0005, 0.005, 0.05))
    if not fair:
        scenario.weather = Weather(
            unreachable=rand.choice((0.0, 0.0, 0.05)),
            swallowed=rand.choice((0.0, 0.0, 0.04)),
            stalls=rand.choice((0.0, 0.0, 0.04)),
            resets=rand.choice((0.0, 0.05, 0.15)),
            latency_s=rand.choice((0.005, 0.05, 0.3)),
        )
        scenario.disk_trouble = rand.choice((0.0, 0.0, 0.03))
    for _ in range(0 if fair else rand.choice((0, 1, 1, 2, 3))):
        scenario.crashes.append(_crash(rand, scenario))
    if not fair:
        _aim(random.Random(f"{seed}:aim"), scenario)
        _aim_at_inbox(random.Random(f"{seed}:inbox"), scenario)
    rebooted = False
    for crash in scenario.crashes:
        if rebooted:  # the life in between may have been too short to note its own time
            crash.jump_s = min(crash.jump_s, 0.0)
        rebooted = rebooted or crash.reboot
    locked = [plan.locked[1] for plan in scenario.accounts if plan.locked]
    if locked:
        scenario.quiet_s = max(QUIET_S, *locked)
    return scenario


def _account(
    rand: random.Random, n: int, *, fair: bool, provider: str | None = None
) -> AccountPlan:
    provider = provider or rand.choice(PROVIDERS)
    name = f"{provider}-{n}"
    requests, per = rand.choice(((5, 1.0), (10, 1.0), (3, 0.5), (4, 2.0), (20, 1.0)))
    slack_s = rand.choice((0.005, 0.02, 0.1))
    also = [rand.choice(((12, 12.0), (40, 15.0)))] if rand.random() < 0.3 else []
    concurrency = 1 if provider == "infobip" else rand.choice((1, 1, 2, 3))
    limits: dict[str, Any] = {
        "requests": requests,
        "per": per,
        "slack": slack_s,
        "concurrency": concurrency,
        "also": [{"requests": r, "per": p} for r, p in also],
    }
    offsets = rand.choice(((0.0, 2.0, 6.0, 18.0), (1.0, 5.0, 20.0), (3.0, 9.0, 16.0, 25.0)))
    previous = rand.random() < 0.3
    gaps = [b - a for a, b in zip((0.0, *offsets), offsets, strict=False)]
    jitter = rand.choice((0.0, 0.0, 0.3))
    rescans = rand.choice(((3.0, 9.0, 22.0), (2.0, 7.0, 14.0, 26.0), (20.0,), ()))
    interval = rand.choice((0.5, 2.0, 4.0))
    keys: dict[str, Any] = {
        "name": name,
        "provider": provider,
        "base_url": f"http://sim/{name}",
        "limits": limits,
        "schedule": {
            "ladder": gaps if previous else list(offsets),
            "from": "previous" if previous else "sent",
            "jitter": jitter,
            "give_up": 30.0,
            "rescan": list(rescans),
            "interval": interval,
            "idle_interval": interval * rand.choice((1, 4)),
        },
        "request": {"timeout": 3.0, "total_timeout": 12.0},
    }
    listed = 0.0 if fair else rand.choice((0.0, 0.0, 1.5))
    keys["overlap"] = 5.0 if listed else rand.choice((0.1, 5.0))
    odds: dict[str, float] = {}
    if not fair:
        kinds = ("503", "429", "500", "cut", "cut_chunked", "reset", "lost", "redirect", "html")
        odds = {kind: rand.choice((0.0, 0.03, 0.08)) for kind in kinds if rand.random() < 0.4}
        if provider == "bulksms" and rand.random() < 0.3:
            odds["error40"] = 0.05
    settings: dict[str, Any] = {
        "limits": Limits(
            requests=requests,
            per=per,
            slack=slack_s,
            concurrency=concurrency,
            also=[AlsoWindow(requests=r, per=p) for r, p in also],
        ),
        "delays": Delays(
            enroute=2.0, final=7.0, read=4.0, late=13.0, jitter=0.6,
            listed=listed,
        ),
        "mix": Mix(never=0.06, stuck=0.06, late=0.1),
        "odds": odds,
        "order": rand.choice(("newest", "oldest")),
    }  # fmt: skip
    if not fair and rand.random() < 0.3:  # a provider that wants to be left alone for a while
        away = Fault(kind=rand.choice(("429", "503")), retry_after=rand.choice((5.0, 15.0)))
        settings["faults"] = [*["ok"] * rand.randrange(3, 20), away]
    plan = AccountPlan(
        name=name,
        provider=provider,
        keys=keys,
        profile=AccountProfile(name=name, provider=provider),
        skew_s=0.0 if fair else rand.choice((0.0, 0.0, rand.uniform(-SKEW_S, SKEW_S))),
        drift=rand.uniform(-2e-5, 2e-5),
        offsets_ms=tuple(round(s * 1000) for s in offsets),
        rescans_s=rescans,
        give_up_ms=30_000,
        late_ms=round(max(gaps) * jitter * 1000),
        settled_s=max(interval * 4, 5.0),
    )
    _BY_PROVIDER[provider](rand, plan, keys, settings)
    plan.profile = AccountProfile(name=name, provider=provider, **settings)
    return plan


def _bulksms(
    rand: random.Random, plan: AccountPlan, keys: dict[str, Any], settings: dict[str, Any]
) -> None:
    plan.asks = True
    keys |= {
        "username": "john",
        "password": "sim-pass-4711",
        "method": rand.choice(("GET", "POST")),
    }
    settings |= {"username": "john", "password": "sim-pass-4711"}
    if rand.random() < 0.5:
        keys["optional_fields"] = ["completed_time", "created_time"]
    if rand.random() < 0.06:
        plan.locked = (3.0, rand.choice((30.0, 100.0, 400.0)))


def _infobip(
    rand: random.Random, plan: AccountPlan, keys: dict[str, Any], settings: dict[str, Any]
) -> None:
    plan.drained = rand.random() < 0.7
    plan.asks = not plan.drained
    limit = rand.choice((3, 10, 1000))
    plan.page = min(limit, 50)
    keys |= {"api_key": "sim-key-4711", "drain": plan.drained, "limit": limit}
    settings |= {"api_key": "sim-key-4711", "dates": rand.choice(("plain", "mixed"))}
    if settings["odds"] and rand.random() < 0.3:
        settings["odds"] |= {"truncated": 0.03, "empty": 0.03}


def _avaamo(
    rand: random.Random, plan: AccountPlan, keys: dict[str, Any], settings: dict[str, Any]
) -> None:
    keys |= {
        "agent_id": 5157, "access_token": "sim-token-4711", "per_page": rand.choice((2, 5, 100)),
        "lookback": 6.0,
    }  # fmt: skip
    settings |= {"access_token": "sim-token-4711"}
    if settings["odds"] and rand.random() < 0.5:
        settings["total_moves"] = 3


def _messangi(
    rand: random.Random, plan: AccountPlan, keys: dict[str, Any], settings: dict[str, Any]
) -> None:
    plan.tracks = False
    keys |= {"lookback": 6.0, "pretty": rand.random() < 0.7}
    settings |= {"channels": rand.choice((["S"], ["S", "E", "W"], ["P", "R"]))}
    if rand.random() < 0.3:
        keys["channels"] = ["S", "E", "P", "W", "R"]
    if rand.random() < 0.5:
        plan.logs_in = True
        url = f"http://sim/{plan.name}/login"
        keys |= {"login_url": url, "username": "u", "password": "sim-pass-4711"}
        settings |= {
            "username": "u", "password": "sim-pass-4711",
            "token_life": rand.choice((20.0, 86400.0)),
        }  # fmt: skip
    if rand.random() < 0.3:
        settings |= rand.choice(({"report_max_items": 4}, {"page_max_items": 4}))


_BY_PROVIDER = {
    "bulksms": _bulksms, "infobip": _infobip, "avaamo": _avaamo, "messangi": _messangi,
}  # fmt: skip


def _group(rand: random.Random, plans: list[AccountPlan]) -> None:
    """Two accounts that share a limit: the first one's, and no more than one request of each."""
    one = plans[0]
    for plan in plans:
        limits = dict(one.keys["limits"])
        limits |= {"group": "both", "concurrency": 1}
        plan.keys["limits"] = limits
        plan.skew_s, plan.drift = one.skew_s, one.drift
        shared = msgspec.structs.replace(one.profile.limits, concurrency=0)
        plan.profile = msgspec.structs.replace(plan.profile, limits=shared)


def _sink(rand: random.Random, n: int, accounts: list[AccountPlan], *, fair: bool) -> SinkPlan:
    keys: dict[str, Any] = {
        "batch": {"records": rand.choice((1, 3, 1000)), "wait": rand.choice((0.0, 0.2))}
    }
    if n and rand.random() < 0.5:
        keys["states"] = ["delivered", "read", "unknown"]
    if n and rand.random() < 0.3:
        keys["accounts"] = [accounts[0].name]
    nature = Nature()
    if not fair:
        nature = Nature(
            refuses=rand.choice((0.0, 0.2)),
            forgets=rand.choice((0.0, 0.15)),
            breaks=rand.choice((0.0, 0.15)),
            rejects=rand.choice((0.0, 0.0, 0.1)),
            slow_s=rand.choice((0.001, 0.05, 1.0)),
        )
    return SinkPlan(f"sink-{n}", nature, keys)


def _sendings(rand: random.Random, scenario: Scenario, plan: AccountPlan) -> None:
    left = rand.choice((5, 8, 12, 20))
    n = 0
    while left > 0:
        count = min(left, rand.choice((1, 1, 2, 4)))
        left -= count
        n += 1
        batch = str(1000 + n) if plan.provider in ("bulksms", "infobip") else None
        how: str | None = rand.choice(("inbox", "inbox", "call"))
        if not plan.tracks or (
            plan.provider != "bulksms" and not plan.asks and rand.random() < 0.4
        ):
            how = None
        life = rand.choice(LIVES[plan.provider]) if rand.random() < 0.2 else None
        twin = plan.provider == "bulksms" and rand.random() < 0.2
        if twin:  # rows are told apart by their order: each has to be there from the start
            life = LIVES["bulksms"][0]
        inbound = plan.provider == "messangi" and rand.random() < 0.1
        scenario.sendings.append(
            Sending(
                at=rand.uniform(0.0, SEND_S),
                account=plan.name,
                count=count,
                batch=batch,
                how=how,
                named=rand.random() < 0.8,
                by_batch=plan.provider == "bulksms" or rand.random() < 0.5,
                life=life,
                channel="S" if life and plan.provider == "messangi" else None,
                direction="I" if inbound and life is None else "O",
                twin=twin,
            )
        )


def _crash(rand: random.Random, scenario: Scenario) -> Crash:
    crash = Crash(
        how=rand.choice(("kill", "kill", "kill", "stop", "cancel")),
        down_s=rand.choice((0.11, 0.5, 3.0)) + rand.random() * 0.2,
        jump_s=rand.choice((0.0, rand.uniform(-WALL_JUMP_S, WALL_JUMP_S))),
    )
    crash.reboot = crash.how == "kill" and rand.random() < 0.3
    if crash.reboot or not scenario.tells_boots:
        crash.jump_s = min(crash.jump_s, 0.0)
    if crash.how == "kill" and rand.random() < 0.7:
        crash.step = rand.randrange(1, 4000)
    else:
        crash.at = rand.uniform(0.0, QUIET_S * 0.9)
    return crash


def _aim(rand: random.Random, scenario: Scenario) -> None:
    """Some lives end where it may hurt: next to a commit, or while the provider waits."""
    chance = rand.random()
    crash = Crash(down_s=rand.choice((0.11, 0.5)), reboot=rand.random() < 0.2)
    if chance < 0.2:
        crash.answer, crash.writes = rand.randrange(1, 6), rand.choice((0, 1, 1, 1, 2))
        for plan in scenario.accounts:
            if not plan.profile.delays.listed:
                plan.keys["overlap"] = 0.1  # what is passed over now is never read again
    elif chance < 0.4:
        plan = rand.choice(scenario.accounts)
        away = Fault(
            kind=rand.choice(("429", "503")),
            retry_after=rand.choice((15.0, 25.0)),
            form=rand.choice(("seconds", "seconds", "date")),
        )
        faults = [*["ok"] * rand.choice((0, 0, 1, 3, 8)), away]
        plan.profile = msgspec.structs.replace(plan.profile, faults=faults)
        if chance < 0.25:
            return
        crash.held_s = rand.uniform(3.1, 8.0)
    else:
        return
    scenario.crashes.insert(0, crash)


def _aim_at_inbox(rand: random.Random, scenario: Scenario) -> None:
    if rand.random() < 0.15:
        scenario.crashes.insert(0, Crash(inbox=rand.randrange(1, 4), down_s=0.11))


def small(what: str) -> Scenario:
    """A few messages of one provider in fair weather: to be crashed at every step.

    `what` is a provider's name, or "infobip by id".
    """
    rand = random.Random(what)
    provider = what.split()[0]
    scenario = Scenario()
    scenario.quiet_s, scenario.disk_slow_s = 0.0, 0.003
    plan = _account(rand, 0, fair=True, provider=provider)
    plan.keys["schedule"] |= {
        "ladder": [0.5, 3.0], "from": "sent", "jitter": 0.0, "rescan": [1.0, 3.0],
        "interval": 1.0, "idle_interval": 1.0,
    }  # fmt: skip
    plan.keys["limits"]["also"] = []
    plan.profile = msgspec.structs.replace(
        plan.profile,
        limits=msgspec.structs.replace(plan.profile.limits, also=[]),
        delays=Delays(enroute=0.3, final=1.0, read=0.5, jitter=0.2),
        mix=Mix(never=0.1, stuck=0.1, late=0.0),
    )
    plan.offsets_ms, plan.rescans_s, plan.late_ms = (500, 3000), (1.0, 3.0), 0
    if provider == "infobip":
        plan.drained = what == provider
        plan.asks = not plan.drained
        plan.keys |= {"drain": plan.drained, "limit": 3}
        plan.page = 3
    scenario.accounts.append(plan)
    scenario.sinks.append(_sink(rand, 0, scenario.accounts, fair=True))
    how = None if provider == "messangi" else "inbox"
    batches = ("1001", "1002") if provider in ("bulksms", "infobip") else (None, None)
    for batch in batches:
        scenario.sendings.append(
            Sending(
                at=0.05, account=plan.name, count=2, batch=batch, how=how,
                by_batch=batch is not None,
            )
        )  # fmt: skip
    return scenario
