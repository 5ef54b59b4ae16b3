"""Jobs of `benchmarks.child` that run an engine: until its sink has written what is expected, while
its syncs are counted, while it has nothing to do, with healthy accounts beside sick ones. The
interpreter is set as the worker sets it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

import engine
import engine.stores.sqlite
from benchmarks.harness import hwm_kib
from benchmarks.vfs import watched
from engine.cli.run import tune_interpreter
from engine.stores.tracked import Tracked
from engine.worker import Engine

LOOK_S = 0.005
TRACK_AT_ONCE = 1000


async def _track(poller: Engine, account: str, first: int, sent_ms: list[int]) -> None:
    """Batches of one recipient: 44 and the batch's number, as the stand-in answers."""
    items = [
        Tracked(batch_id=str(first + n), recipients=[f"44{first + n:010d}"], sent_ms=at_ms)
        for n, at_ms in enumerate(sent_ms)
    ]
    for start in range(0, len(items), TRACK_AT_ONCE):
        await poller.track_all(account, items[start : start + TRACK_AT_ONCE])


def _due(track: dict[str, Any]) -> list[int]:
    """When each batch's rung is due: `lead_s` from now on, `rate` a second, or all at once."""
    first_ms = time.time_ns() // 1_000_000 + round(track["lead_s"] * 1000)
    gap_ms = 1000 / track["rate"] if track["rate"] else 0.0
    return [first_ms + round(n * gap_ms) for n in range(track["count"])]


async def counting(spec: dict[str, Any]) -> dict[str, Any]:
    """The same, and how often SQLite has synced the store's files."""
    syncs = 0

    def tell(what: str, file: str, at: int, data: bytes) -> None:
        nonlocal syncs
        syncs += what == "sync"

    with watched(tell, syncs_alone=True):
        return {**await run(spec), "syncs": syncs}


async def run(spec: dict[str, Any]) -> dict[str, Any]:
    config = engine.configure(spec["config"], base=Path(spec["base"]))
    await anyio.lowlevel.checkpoint()  # imports what it does this with, which is not counted
    start_kib = hwm_kib()
    track = spec.get("track")
    due_ms: list[int] = []
    began, cpu = time.monotonic(), time.process_time()
    async with engine.open(config) as poller:
        tune_interpreter()
        if track is not None:
            due_ms = _due(track)
            sent_ms = [at_ms - round(track["rung_s"] * 1000) for at_ms in due_ms]
            await _track(poller, track["account"], track["first"], sent_ms)
            tracked_in = time.monotonic() - began
            if tracked_in > track["lead_s"]:
                raise RuntimeError(f"tracking took {tracked_in:.1f} s: a longer lead_s is needed")
            await anyio.sleep(due_ms[0] / 1000 - time.time())
            began, cpu = time.monotonic(), time.process_time()
        with anyio.fail_after(spec["patience_s"]):
            stored_s, samples = await _until_stored(poller, spec, began, cpu)
            while poller.telemetry.total("written") < spec["expected"]:  # noqa: ASYNC110
                await anyio.sleep(LOOK_S)
        seconds, used = time.monotonic() - began, time.process_time() - cpu
        await anyio.sleep(spec.get("settle_s", 0.0))
        counts = {f"{name} {of}": n for (name, of), n in poller.telemetry.counts.items()}
        tallies = await poller.store.read(lambda tx: tx.tallies())
    return {
        "began": began,
        "seconds": seconds,
        "stored_s": stored_s,
        "cpu_s": used,
        "start_kib": start_kib,
        "peak_kib": hwm_kib(),
        "counts": counts,
        "tallies": tallies,
        "due_ms": due_ms,
        "samples": samples,
    }


async def _until_stored(
    poller: Engine, spec: dict[str, Any], began: float, cpu: float
) -> tuple[float, list[tuple[int, float, float]]]:
    """When the store had all of it; and on the way, each `every` records: (records, s, CPU s)."""
    every = spec.get("every", spec["expected"])
    samples: list[tuple[int, float, float]] = []
    while (done := poller.telemetry.total("records")) < spec["expected"]:
        if done >= every * (len(samples) + 1):
            samples.append((done, time.monotonic() - began, time.process_time() - cpu))
        await anyio.sleep(LOOK_S)
    stored_s = time.monotonic() - began
    return stored_s, [*samples, (done, stored_s, time.process_time() - cpu)]


async def idle(spec: dict[str, Any]) -> dict[str, Any]:
    """An engine that has asked and has nothing to do."""
    config = engine.configure(spec["config"], base=Path(spec["base"]))
    began = time.monotonic()
    async with engine.open(config) as poller:
        with anyio.fail_after(60):
            while poller.telemetry.total("requests") < spec["requests"]:  # noqa: ASYNC110
                await anyio.sleep(LOOK_S)
        await anyio.sleep(spec["settle_s"])
    return {"began": began, "peak_kib": hwm_kib()}


def _records(poller: Engine, accounts: list[str]) -> int:
    return sum(poller.telemetry.of("records", name) for name in accounts)


async def isolation(spec: dict[str, Any]) -> dict[str, Any]:
    """Rungs of many accounts in turn at a steady rate, then a burst of them at one moment."""
    config = engine.configure(spec["config"], base=Path(spec["base"]))
    healthy: list[str] = spec["healthy"]
    began = time.monotonic()
    async with engine.open(config) as poller:
        tune_interpreter()
        for number, name in enumerate(spec["sick"]):
            # Sent one after the other: the batches of a second would be polled in bursts for ever.
            now_ms = time.time_ns() // 1_000_000
            sent_ms = [now_ms - n * 1000 for n in range(spec["sick_batches"])]
            await _track(poller, name, number * 100, sent_ms)
        await anyio.sleep(spec["warm_s"])
        due_ms = _due({**spec, "lead_s": 16.0})
        due_ms += [due_ms[-1] + 2000] * spec["burst"]
        for place, name in enumerate(healthy):
            items = [
                Tracked(
                    batch_id=str(spec["first"] + n),
                    recipients=[f"44{spec['first'] + n:010d}"],
                    sent_ms=due_ms[n] - round(spec["rung_s"] * 1000),
                )
                for n in range(place, len(due_ms), len(healthy))
            ]
            await poller.track_all(name, items)
        if time.time() * 1000 > due_ms[0]:
            raise RuntimeError("tracking took too long: a longer lead is needed")
        cpu = time.process_time()
        with anyio.fail_after(spec["patience_s"]):
            while _records(poller, healthy) < len(due_ms):  # noqa: ASYNC110 - it has no event
                await anyio.sleep(LOOK_S * 20)
        used = time.process_time() - cpu
        sick = {
            name: poller.telemetry.of("requests", name)
            for name in poller.pollers
            if name not in healthy
        }
    return {"began": began, "due_ms": due_ms, "cpu_s": used, "sick_requests": sick}
