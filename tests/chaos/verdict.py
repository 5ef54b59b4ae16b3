"""What became of it, by the simulator's own counts beside the postgres sink's tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.chaos.fleet import FEEDS, ONE_TIME, PAGE, POLLED, Simulator

if TYPE_CHECKING:
    from tests.chaos.harm import Chaos


@dataclass
class Verdict:
    """The findings; `faults` is empty where every promise was kept."""

    faults: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        end = "every promise was kept" if self.good else "PROMISES WERE BROKEN"
        return "\n".join([*self.facts, *(f"BROKEN: {fault}" for fault in self.faults), end])


async def judge(chaos: Chaos, truth: Simulator, url: str) -> Verdict:
    verdict = Verdict()
    db = await asyncpg.connect(url)
    try:
        await _windows(verdict, truth)
        rows = await db.fetch("SELECT account, message_id, provider_status FROM reports")
        newest = await db.fetch("SELECT account, message_id, state, final FROM messages")
        for name in ONE_TIME:
            passed = "SELECT coalesce(sum(n), 0)::int FROM tally WHERE account = $1 AND name = $2"
            superseded = await db.fetchval(passed, name, "superseded")
            allowed = PAGE * chaos.lossy[name]
            await _one_time(
                verdict, truth, name, _of(rows, name), _of(newest, name), allowed, superseded
            )
        for name in (*POLLED, *FEEDS):
            await _asked_again(verdict, truth, name, _of(rows, name), _of(newest, name))
        await _books(verdict, db)
        fences = await db.fetch("SELECT account, fence FROM lease")
        moved = sum(row["fence"] - 1 for row in fences)
        harms = ", ".join(f"{name} {n}" for name, n in sorted(chaos.harms.items()))
        verdict.facts.append(f"harms: {harms}; {moved} hand-overs of {len(fences)} leases")
    finally:
        await db.close()
    return verdict


def _of(rows: list[Any], account: str) -> list[Any]:
    return [row for row in rows if row["account"] == account]


async def _windows(verdict: Verdict, truth: Simulator) -> None:
    counts = await truth.told("counts")
    for name, count in counts.items():
        if count["rate_violations"]:
            worst = f"worst {count['worst_window']}"
            verdict.faults.append(f"{name}: {count['rate_violations']} windows exceeded, {worst}")
    asked = sum(count["requests"] for count in counts.values())
    beside = sum(count["concurrency_violations"] for count in counts.values())
    verdict.facts.append(
        f"{asked} requests; no more than one at a time but for {beside}, while what a dead worker"
        " had asked was still being answered"
    )


async def _one_time(
    verdict: Verdict,
    truth: Simulator,
    name: str,
    rows: list[Any],
    newest: list[Any],
    allowed: int,
    superseded: int,
) -> None:
    """Its transitions are its reports, one for one. Only a killed worker may take with it the
    answer that was on the wire; and a state that was in the hands of one who lost the lease may
    come after the one that follows it, which the engine counts."""
    told = await truth.told(f"truth/{name}")
    wanted = {(m["message_id"], t["status"]) for m in told for t in m["transitions"]}
    found = Counter((row["message_id"], row["provider_status"]) for row in rows)
    missing, strange = wanted - found.keys(), found.keys() - wanted
    twice = [key for key, n in found.items() if n > 1]
    verdict.facts.append(
        f"{name}: {len(wanted)} transitions, {len(found)} records; {len(missing)} missing, of which"
        f" {superseded} came after a later state, and {allowed} may be gone with killed workers"
    )
    if len(missing) > allowed + superseded:
        verdict.faults.append(f"{name}: {len(missing)} reports lost, {sorted(missing)[:3]}")
    if strange or twice:
        verdict.faults.append(f"{name}: {len(strange)} made up, {len(twice)} twice")
    lost = {message for message, _ in missing}
    _states(verdict, name, [m for m in told if m["message_id"] not in lost], newest)


async def _asked_again(
    verdict: Verdict, truth: Simulator, name: str, rows: list[Any], newest: list[Any]
) -> None:
    """Nothing may be missing: what is lost on the wire is asked for again."""
    told = await truth.told(f"truth/{name}")
    keys = Counter((row["message_id"], row["provider_status"]) for row in rows)
    twice = [key for key, n in keys.items() if n > 1]
    if twice:
        verdict.faults.append(f"{name}: {len(twice)} records twice, {twice[:3]}")
    verdict.facts.append(f"{name}: {len(told)} messages, {len(newest)} in the sink")
    if len(newest) != len(told):
        verdict.faults.append(f"{name}: {len(told)} messages sent, {len(newest)} in the sink")
    _states(verdict, name, told, newest)


def _states(verdict: Verdict, name: str, told: list[Any], newest: list[Any]) -> None:
    states = {row["message_id"]: row["state"] for row in newest}
    wrong = [m for m in told if states.get(m["message_id"]) != m["state"]]
    if wrong:
        first = wrong[0]
        verdict.faults.append(
            f"{name}: {len(wrong)} messages stand wrong, as {first['message_id']}:"
            f" {states.get(first['message_id'])}, not {first['state']}"
        )


async def _books(verdict: Verdict, db: Any) -> None:
    """known = final + pending, and nothing waits in the inbox."""
    rows = await db.fetch("SELECT account, name, n FROM tally")
    tallies: dict[str, Counter[str]] = {}
    for row in rows:
        tallies.setdefault(row["account"], Counter())[row["name"]] = row["n"]
    for name, tally in tallies.items():
        if tally["known"] != tally["final"] + tally["pending"]:
            verdict.faults.append(f"{name}: the books do not balance: {dict(tally)}")
    late = await db.fetchval("SELECT count(*) FROM inbox")
    if late:
        verdict.faults.append(f"{late} items are left in the inbox")
