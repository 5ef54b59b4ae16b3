"""`python -m benchmarks.soak [--minutes 60] [--seed N] [--load M] [--out DIR] [--keep]`.

Exit status 0: the balance is sound. 1: something is lost, twice, wrong, torn, or a limit was
exceeded, an account fell behind, or the worker did not do as it should; each is named. Needs Linux
for the memory's curve.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.harness import machine
from benchmarks.soak import evidence, report
from benchmarks.soak.balance import Side, judge
from benchmarks.soak.drive import Api, Sample, Sender, torment, watch
from benchmarks.soak.lag import lags
from benchmarks.soak.processes import START_S, Worker, simulator, spawn
from benchmarks.soak.setting import FOUND_S, LIFE_S, MEMBERS, RUNGS_S, configuration, profile

IDLE_S = 900.0
"""What the worker has at the end to work off what sick accounts have piled up."""
BULKY = ("state.db", "reports", "track", "simulator.log")


def main() -> int:
    given = _parser().parse_args()
    folder: Path = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"soak: {folder} is not empty; name another folder with --out", file=sys.stderr)
        return 2
    try:
        sound = asyncio.run(_soak(given, folder))
    except KeyboardInterrupt:
        print("soak: interrupted; all processes are ended", file=sys.stderr)
        return 130
    if sound and not given.keep:
        _drop_bulky(folder)
    return 0 if sound else 1


async def _soak(given: argparse.Namespace, folder: Path) -> bool:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    (folder / "profile.toml").write_text(profile(given.seed), encoding="utf-8")
    worker = Worker(folder)
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        simulator(folder, folder / "profile.toml") as (url, pid),
        aiohttp.ClientSession(timeout=timeout) as client,
    ):
        api = Api(url, client)
        began, samples = time.time(), list[Sample]()
        start = datetime.fromtimestamp(int(began), UTC).isoformat()
        (folder / "engine.toml").write_text(configuration(url, start), encoding="utf-8")
        watching = None
        try:
            await worker.start()
            await _first_request(api)
            watching = asyncio.create_task(watch(worker, pid, folder, given.minutes * 60, samples))
            await _live(given, api, folder, worker)
            print("soak: quiet now, until everything has ended", file=sys.stderr, flush=True)
            await _end(api, worker)
        finally:
            if watching is not None:
                watching.cancel()
            await worker.reap()
        sides = await _sides(api, folder, worker)
    result = _result(given, folder, began, samples, sides, worker)
    said = report.text(result, worker)
    (folder / "soak.txt").write_text(said, encoding="utf-8")
    (folder / "soak.json").write_bytes(report.as_json(result, worker))
    (folder / "memory.svg").write_text(report.plot(result, worker), encoding="utf-8")
    print(said, end="")
    print(f"The folder {folder} has soak.txt, soak.json and memory.svg.")
    return result.balance.sound


async def _first_request(api: Api) -> None:
    async with asyncio.timeout(START_S):
        while True:
            if any(counts["requests"] for counts in (await api.get("counts")).values()):
                return
            await asyncio.sleep(0.1)


async def _live(given: argparse.Namespace, api: Api, folder: Path, worker: Worker) -> None:
    seconds, began = given.minutes * 60.0, time.monotonic()
    sender = Sender(api, folder, worker, given.load)
    rand = random.Random(given.seed)
    async with asyncio.TaskGroup() as group:
        group.create_task(sender.run(began + seconds))
        group.create_task(torment(worker, began, seconds, rand))
        group.create_task(_tell(worker, sender, began, seconds))


async def _tell(worker: Worker, sender: Sender, began: float, seconds: float) -> None:
    """A line a minute, so that one sees that it goes on."""
    while (now := time.monotonic() - began) < seconds:
        print(
            f"soak: minute {now / 60:.0f}, {sender.sent:,} messages sent,"
            f" {len(worker.lives)} starts, {len(worker.troubles)} troubles",
            file=sys.stderr,
            flush=True,
        )
        await asyncio.sleep(min(60.0, seconds - now))


async def _end(api: Api, worker: Worker) -> None:
    """No more faults; every life comes to its end; the worker works off what is left."""
    for member in MEMBERS:
        await api.post("faults", {"account": member.name, "odds": {}})
    await asyncio.sleep(LIFE_S)
    await worker.end(signal.SIGTERM)
    await worker.start("--until-idle", "--idle-timeout", "150s")
    await worker.finish(IDLE_S)


async def _sides(api: Api, folder: Path, worker: Worker) -> list[Side]:
    """Both books of every account."""
    process = await spawn(
        "stats", "--config", "engine.toml", "--json", folder=folder,
        log=folder / "worker.log", piped=True,
    )  # fmt: skip
    said, _ = await process.communicate()
    books = msgspec.json.decode(said)
    counts: dict[str, Any] = await api.get("counts")
    for name, sink in books["sinks"].items():
        if sink["behind"]:
            worker.troubles.append(f"sink {name} is {sink['behind']} log rows behind")
    return [
        evidence.side(
            member.name,
            member.provider,
            await api.get(f"truth/{member.name}"),
            await api.get(f"given/{member.name}"),
            counts[member.name],
            books["accounts"][member.name],
            await api.get(f"violations/{member.name}"),
        )
        for member in MEMBERS
    ]


def _result(
    given: argparse.Namespace,
    folder: Path,
    began: float,
    samples: list[Sample],
    sides: list[Side],
    worker: Worker,
) -> report.Result:
    providers = {member.name: member.provider for member in MEMBERS}
    held = evidence.sinks(folder, providers)
    well = [side for side in sides if not side.name.endswith("-sick")]
    reads = list(evidence.reads(well, held.lines, RUNGS_S, found_s=FOUND_S))
    lag = lags(reads)
    balance = judge(
        sides,
        held,
        kills=worker.kills,
        ladder_s=RUNGS_S[-1],
        troubles=worker.troubles,
        behind=[one for one in lag if one.is_behind],
    )
    return report.Result(
        minutes=given.minutes,
        seed=given.seed,
        load=given.load,
        began=began,
        machine=machine(),
        sides=sides,
        balance=balance,
        samples=samples,
        reads=reads,
        lag=lag,
        files=len(evidence.line_files(folder)),
    )


def _drop_bulky(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith(BULKY):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="A worker at load, killed and lied to at random; then the balance, from"
        " outside: what was asked, given, recorded, lost, twice, and memory over time.",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=1, help="of kills, faults and lives (1)")
    parser.add_argument("--load", type=float, default=1.0, help="times 50 messages a second (1)")
    parser.add_argument("--out", type=Path, default=Path("soak-out"), help="an empty folder")
    parser.add_argument("--keep", action="store_true", help="keep the store and the sinks' files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
