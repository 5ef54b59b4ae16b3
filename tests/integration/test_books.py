"""Random runs against the simulator with faults of all sorts: the books balance in the end."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.idle import until_idle
from engine.sim import AccountProfile, Delays, Limits, Mix, Profile, Simulator
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    tallies,
)

ODDS = {
    "500": 0.03, "503": 0.02, "429": 0.02, "reset": 0.03, "cut": 0.03, "cut_chunked": 0.02,
    "drip": 0.01, "html": 0.02, "truncated": 0.02, "empty": 0.02, "wrong_type": 0.02,
    "redirect": 0.02, "redirect_away": 0.01, "bad_encoding": 0.01,
}  # fmt: skip
# On a busy machine a request may be taken up 100 ms after another that was sent with it.
SPEED = {"requests": 50, "per": "1s", "concurrency": 2, "slack": "100ms"}
RUNGS = ["300ms", "800ms", "1500ms", "2500ms"]
SHORT_WAITS_MS = (50, 1500)  # the engine's, in the time of these messages: a minute takes 3 s


def profile(seed: int) -> Profile:
    common: dict[str, Any] = {
        "odds": ODDS, "seed": seed, "time_scale": 20.0, "limits": Limits(50, 1.0, 2),
        "delays": Delays(late=60.0), "mix": Mix(never=0.05, stuck=0.05),
    }  # fmt: skip
    one = {**common, "limits": Limits(50, 1.0, 1)}
    return Profile([
        AccountProfile(name="bulk", provider="bulksms", username="john", password="s3cret&%",
                       **one),
        AccountProfile(name="info", provider="infobip", api_key="k3y-canary", **one),
        AccountProfile(name="bot", provider="avaamo", access_token="t0ken-canary", **common),
        AccountProfile(name="omni", provider="messangi", username="john", password="p4ss",
                       channels=["S", "E", "P", "W", "R"], **common),
    ])  # fmt: skip


def accounts(sim: Simulator) -> list[dict[str, Any]]:
    feed = {"interval": "100ms", "idle_interval": "100ms", "rescan": RUNGS}
    drained = {"interval": "100ms", "idle_interval": "100ms", "ladder": ["4s"]}
    return [
        bulksms(sim.url("bulk"), limits={**SPEED, "concurrency": 1},
                schedule={"ladder": RUNGS, "give_up": "20s"}),
        infobip(sim.url("info"), limits=SPEED, schedule=drained, limit=20),
        avaamo(sim.url("bot"), limits=SPEED, schedule=feed, lookback="60s", per_page=20),
        messangi(sim.url("omni"), headers={}, login_url=sim.url("omni") + "/login",
                 username="john", password="p4ss", limits=SPEED, schedule=feed, lookback="60s"),
    ]  # fmt: skip


@pytest.mark.parametrize(("store", "seed"), [(STORES[0], 7), (STORES[1], 23)])
async def test_a_random_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, seed: int
) -> None:
    for module in ("stores.settling", "polling.rescans"):
        monkeypatch.setattr(f"engine.{module}.SHORT_WAITS_MS", SHORT_WAITS_MS)
    async with Simulator(profile(seed)) as sim:
        config = configured(tmp_path, *accounts(sim), store=store)
        async with hasty(config) as poller:
            for n in range(8):
                sent = sim.send("bulk", 12)
                assert sent.batch_id is not None
                await poller.track(
                    "bulk", batch_id=sent.batch_id, recipients=sent.recipients,
                    sent_at=sent.sent_at, reference=f"order-{n}",
                )  # fmt: skip
            known = sim.send("info", 150)
            for message_id in known.message_ids[:20]:
                await poller.track("info", message_id=message_id, reference="tracked")
            sim.send("bot", 90)
            for channel in "SEPWR":
                sim.send("omni", 20, channel=channel)
            with anyio.fail_after(30):
                assert await until_idle(poller, 10) == []
            await balanced(poller)
            counts = await tallies(poller)
            kept = await poller.store.read(lambda tx: tx.troubles("info", 1000))
            assert poller.telemetry.total("faults") == 0
        check_sinks(tmp_path)
        for name in ("bulk", "info", "bot", "omni"):
            violations = sim.violations(name)
            assert violations == [], (name, violations)
            assert sim.counts(name).leaked == 0
        check_bulk(sim, tmp_path, counts["bulk"])
        check_drained(sim, tmp_path, [trouble.raw for trouble in kept])
        for name in ("bot", "omni"):
            truth = sim.truth(name)
            assert counts[name]["known"] == len(truth)
            check_windowed(sim, name, tmp_path)


def newest(folder: Path, account: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in lines(folder):
        if one["account"] == account:
            found[one["message_id"]] = one
    return found


def check_sinks(folder: Path) -> None:
    """Each record once, in the order of its revision, and as many in one sink as in the other."""
    revisions: dict[Any, list[int]] = defaultdict(list)
    ids = []
    for one in lines(folder):
        revisions[one["account"], one["message_id"], one["direction"]].append(one["revision"])
        ids.append(one["event_id"])
    assert len(ids) == len(set(ids))
    for numbers in revisions.values():
        assert numbers == list(range(1, len(numbers) + 1))


def check_bulk(sim: Simulator, folder: Path, counts: dict[str, int]) -> None:
    """Every recipient has ended, as it truly did or with a verdict where nothing came in time."""
    truth = sim.truth("bulk")
    found = newest(folder, "bulk")
    assert counts["known"] == counts["final"] == len(truth) == len(found)
    for one in truth:
        record = found[one.message_id]
        assert record["final"]
        if record["verdict"] is None:
            assert record["state"] == one.state
            assert record["provider_status"] == one.status
        else:
            late = not one.final or one.transitions[-1].at - one.sent_at >= 2.4
            assert late, (one, record)


def check_drained(sim: Simulator, folder: Path, set_aside: list[bytes]) -> None:
    """Whatever came over the wire whole was recorded; nothing else can be asked for again. Where a
    fault has spoiled the report itself, its bytes were kept."""
    came = [one for one in sim.given("info") if one.on_wire]
    for one in came:
        if one.spoiled:
            assert any(one.message_id.encode() in raw for raw in set_aside), one
    given = {(one.message_id, one.status) for one in came if not one.spoiled}
    seen = {
        (one["message_id"], one["provider_status"])
        for one in lines(folder)
        if one["account"] == "info" and one["verdict"] is None
    }
    final = {message_id for message_id, status in seen if status != "DELIVERED_TO_OPERATOR"}
    missing = {one for one in given - seen if one[0] not in final}
    assert missing == set()
    assert seen
    assert seen <= given


def check_windowed(sim: Simulator, name: str, folder: Path) -> None:
    """By recipient, as messangi has no ids: what truly ended early is known as it ended."""
    found = {one["recipient"].lstrip("+"): one for one in newest(folder, name).values()}
    for one in sim.truth(name):
        record = found[one.recipient.lstrip("+")]
        if one.final and one.transitions[-1].at - one.sent_at < 1.0:
            assert record["verdict"] is None, (one, record)
            assert record["state"] == one.state
        assert record["final"]
