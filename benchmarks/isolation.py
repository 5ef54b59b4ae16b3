"""`isolation`: 150 healthy accounts, alone and beside 50 that are sick in every way there is.

Runs with and without the sick take turns. The healthy ones' rungs first fall due at a steady rate:
how late are they asked for, by their server's clock? Then a burst of rungs falls due at once: how
many a second are asked for? The sick ones are the simulator's, every kind of fault all the time, in
a process that yields to the others: it costs processor time that is not the engine's. A sick
account has as much to be asked for as a healthy one.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.harness import PATIENCE_S, SECRET, Row, ask, child, config, folder, server
from engine.sim.profile import FAULT_KINDS

HEALTHY = 150
SICK = 50
RATE = 150.0  # rungs a second, of all healthy accounts together
BURST = 60  # rungs of each healthy account that fall due at one moment
RUNG_S = 300.0
SICK_BATCHES = 50  # of each sick account that is asked by batch,
SICK_RUNG_S = 50  # which have a rung each so often: one a second, as a healthy account has
FIRST = 1_000_000
WARM_S = 5.0  # the sick are sick before the first rung
MISFITS = {"wrong password", "slow"}
PROVIDERS = ("bulksms", "infobip", "avaamo", "messangi")


def run(size: int, runs: int) -> list[Row]:
    """`size` rungs at the steady rate. A row each, of medians, and the ratios."""
    alone, beside = [], []
    for _ in range(runs):
        alone.append(_measured(size, sick=0))
        beside.append(_measured(size, sick=SICK))
    rows = [_median("alone", alone), _median("beside 50 sick", beside)]
    ratios: dict[str, float | int | str] = {
        key: float(rows[1].values[key]) / float(rows[0].values[key])
        for key in ("p50 ms", "p99 ms", "burst/s")
    }
    return [*rows, Row(name="ratio", values=ratios)]


def _measured(size: int, *, sick: int) -> Row:
    names = [f"healthy-{n}" for n in range(HEALTHY)]
    kinds = sorted(FAULT_KINDS - {"ok"} | MISFITS)
    patients = [(f"sick-{n}", kinds[n % len(kinds)], n) for n in range(sick)]
    profiles = [_profile(*patient) for patient in patients] or [_profile("nobody", "500", 0)]
    with (
        folder() as base,
        server("polls", {}) as url,
        server("sim", {"accounts": profiles, "nice": 10}) as sim,
    ):
        accounts = [_healthy(name, url) for name in names]
        accounts += [_sick(*patient, sim) for patient in patients]
        spec = {
            "config": config(accounts),
            "base": str(base),
            "healthy": names,
            "sick": [name for name, kind, n in patients if _provider(kind, n) == "bulksms"],
            "first": FIRST,
            "sick_batches": SICK_BATCHES,
            "count": size,
            "rate": RATE,
            "burst": BURST * HEALTHY,
            "rung_s": RUNG_S,
            "warm_s": WARM_S,
            "patience_s": PATIENCE_S,
        }
        done = child("isolation", spec)
        asked = ask(f"{url}/_times")
    return _judged(size, done, asked)


def _judged(size: int, done: dict[str, Any], asked: list[tuple[str, float]]) -> Row:
    due_ms: list[int] = done["due_ms"]
    at_ms = {int(batch) - FIRST: at * 1000 for batch, at in asked}
    late = sorted(at_ms[n] - due_ms[n] for n in range(size))
    burst = [at_ms[n] - due_ms[n] for n in range(size, len(due_ms))]
    faults = []
    if len(asked) != len(due_ms) or len(at_ms) != len(due_ms):
        faults.append(f"expected one request for each of {len(due_ms)} rungs, got {len(asked)}")
    if late[0] < 0:
        faults.append(f"the earliest came {-late[0]:.1f} ms before its rung")
    values: dict[str, float | int | str] = {
        "p50 ms": late[len(late) // 2],
        "p99 ms": late[int(len(late) * 0.99)],
        "max ms": late[-1],
        "burst/s": len(burst) / max(burst) * 1000,
        "CPU s": done["cpu_s"],
        "sick asked": sum(done["sick_requests"].values()),
    }
    return Row(name="run", values=values, faults=faults)


def _median(name: str, rows: list[Row]) -> Row:
    values: dict[str, float | int | str] = {
        key: statistics.median(float(row.values[key]) for row in rows) for key in rows[0].values
    }
    return Row(name=name, values=values, faults=[fault for row in rows for fault in row.faults])


def _provider(kind: str, n: int) -> str:
    return "bulksms" if kind.startswith("error") else PROVIDERS[n % len(PROVIDERS)]


def _profile(name: str, kind: str, n: int) -> dict[str, Any]:
    """At the simulator: every request meets the fault."""
    profile: dict[str, Any] = {
        "name": name,
        "provider": _provider(kind, n),
        "username": "john",
        "password": SECRET,
        "api_key": SECRET,
        "access_token": SECRET,
        "generate": {"count": 10_000, "rate": 1.0},  # sick, not busy
    }
    if kind == "slow":
        profile["latency"] = 60.0
    elif kind not in MISFITS:
        profile["odds"] = {kind: 1.0}
    return profile


def _sick(name: str, kind: str, n: int, sim: str) -> dict[str, Any]:
    provider = _provider(kind, n)
    secret = "wrong" if kind == "wrong password" else SECRET
    account: dict[str, Any] = {
        "name": name,
        "provider": provider,
        "base_url": f"{sim}/{name}",
        "limits": {"requests": 50, "per": "1s"},
        "request": {"timeout": "5s", "total_timeout": "10s"},
        "schedule": {"interval": "1s", "idle_interval": "1s"},
    }
    if provider == "bulksms":
        account |= {"username": "john", "password": secret}
        ladder = [f"{1 + n * SICK_RUNG_S}s" for n in range(12)]
        account["schedule"] = {"ladder": ladder, "give_up": "1h"}
    elif provider == "infobip":
        account["api_key"] = secret
    elif provider == "avaamo":
        account |= {"agent_id": 5157, "access_token": secret, "lookback": "1h"}
    else:
        login = {"login_url": f"{sim}/{name}/login", "username": "john", "password": secret}
        account |= {**login, "lookback": "1h"}
    return account


def _healthy(name: str, url: str) -> dict[str, Any]:
    return {
        "name": name,
        "provider": "bulksms",
        "base_url": f"{url}/{name}",
        "username": "john",
        "password": SECRET,
        "limits": {"requests": 1000, "per": "1s", "concurrency": 2},
        "schedule": {"ladder": [f"{RUNG_S:g}s", "1d"], "jitter": 0},
    }
