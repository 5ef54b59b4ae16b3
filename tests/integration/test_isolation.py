"""200 accounts of which 50 are sick in every way that the simulator knows: what each is asked.

Facts and counts only. How late and how many a second is for `python -m benchmarks isolation`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.isolation import MISFITS, PROVIDERS
from engine.sim import Simulator
from engine.sim.profile import FAULT_KINDS, AccountProfile, Profile
from engine.worker import Engine
from tests.integration.harness import (
    BATCH,
    avaamo,
    bulksms,
    configured,
    infobip,
    lines,
    messangi,
    until,
)

pytestmark = pytest.mark.alone

HEALTHY, SICK = 150, 50
KINDS = sorted(FAULT_KINDS - {"ok"} | MISFITS)
PLAN = [(0.0, "11")]  # a second step would come a millisecond later, and may be missed
SECRET = "the-right-one"
# What the provider still answers, if strangely: no reason to hold the account.
ANSWERED = {"error24", "wrong_type", "truncated", "bad_encoding", "drip"}
# One read of a feed and tries with a backoff (at most 1 s, 2 s, 4 s …), four requests a redirect.
ASKED_MAX = 60


def provider_of(kind: str, n: int) -> str:
    return "bulksms" if kind.startswith("error") else PROVIDERS[n % len(PROVIDERS)]


def patient(n: int) -> tuple[AccountProfile, str]:
    """A sick account and its trouble, which meets every request."""
    kind = KINDS[n % len(KINDS)]
    trouble: dict[str, Any] = {"odds": {kind: 1.0}} if kind not in MISFITS else {}
    if kind == "slow":
        trouble = {"latency": 60.0}
    secret = "another-one" if kind == "wrong password" else SECRET
    profile = AccountProfile(
        name=f"sick-{n}",
        provider=provider_of(kind, n),
        username="john",
        password=secret,
        api_key=secret,
        access_token=secret,
        **trouble,
    )
    return profile, kind


def account(profile: AccountProfile, base: str, **keys: Any) -> dict[str, Any]:
    url = f"{base}/{profile.name}"
    keys = {"name": profile.name, **keys}
    slow = {"interval": "1m", "idle_interval": "1m"}
    if profile.provider == "bulksms":
        return bulksms(url, password=SECRET, schedule={"ladder": ["0s", "1h"]}, **keys)
    if profile.provider == "infobip":
        return infobip(url, api_key=SECRET, schedule=slow, **keys)
    if profile.provider == "avaamo":
        return avaamo(url, access_token=SECRET, schedule={**slow, "rescan": []}, **keys)
    login = {"login_url": f"{url}/login", "username": "john", "password": SECRET, "headers": {}}
    return messangi(url, schedule={**slow, "rescan": []}, **login, **keys)


async def test_the_healthy_are_asked_all_and_the_sick_but_a_little(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = [
        AccountProfile(name=f"healthy-{n}", provider="bulksms", username="john", password=SECRET)
        for n in range(HEALTHY)
    ]
    patients = [patient(n) for n in range(SICK)]
    assert {kind for _, kind in patients} == set(KINDS)
    profiles = [*healthy, *(profile for profile, _ in patients)]
    bounded = {"timeout": "2s", "total_timeout": "2s", "max_body": "2MiB"}
    sink = {"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH}
    async with Simulator(Profile(accounts=profiles)) as sim:
        accounts = [account(one, sim.base_url) for one in healthy]
        accounts += [account(one, sim.base_url, request=bounded) for one, _ in patients]
        # The real pace of failures: `Engine` with its own chance, not a hasty one.
        async with Engine(
            configured(tmp_path, *accounts, sinks=[sink], shutdown_grace="2s")
        ) as poller:
            for profile in profiles:
                if profile.provider == "bulksms":
                    numbers = ["447900000001", "447900000002"]
                    sent = sim.send(profile.name, numbers, plan=PLAN)
                    await poller.track(profile.name, batch_id=sent.batch_id, recipients=numbers)
            await anyio.sleep(3)
            await until(lambda: taken(tmp_path) >= 2 * HEALTHY, 60)
            await until(lambda: all(troubled(poller, *each) for each in patients), 60)
            health = {name: one.health for name, one in poller.pollers.items()}
        counts = {profile.name: sim.counts(profile.name) for profile in profiles}

    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in lines(tmp_path):
        records[one["account"]].append(one)
    for profile in healthy:
        ended = {one["recipient"]: one["state"] for one in records[profile.name] if one["final"]}
        assert ended == dict.fromkeys(("447900000001", "447900000002"), "delivered"), profile.name
        assert counts[profile.name].requests == 1, "one rung, one request"
        assert health[profile.name].failures == 0
        assert health[profile.name].paused is None
    for profile, kind in patients:
        asked = counts[profile.name].requests
        assert 1 <= asked <= ASKED_MAX, (profile.name, kind, asked)
        if health[profile.name].paused:
            assert asked <= 2, "a refusal is not asked again and again"
        said = [r for r in caplog.records if r.getMessage().startswith(f"{profile.name}: ")]
        assert len(said) <= 5, "one line a trouble, not a line a failure"


def taken(folder: Path) -> int:
    """Records of the healthy in the sink."""
    return sum(one["account"].startswith("healthy") for one in lines(folder))


def troubled(poller: Engine, profile: AccountProfile, kind: str) -> bool:
    """Whether its trouble has shown, or its strange answers were taken."""
    health = poller.pollers[profile.name].health
    bad = health.paused is not None or health.failing is not None
    return bad or (kind in ANSWERED and health.answered_ms is not None)
