"""What happens during a soak: messages are sent and tracked, the worker is killed, figures taken.

Storm and calm take turns. In a storm the worker lives for half a minute; in a calm it is stopped
now and then, and otherwise lives on, so that its memory can be watched. Faults never rest.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.soak.processes import Worker, spawn
from benchmarks.soak.setting import MEMBERS, Member
from engine.books.tracking import inbox_item
from engine.core.errors import StoreError
from engine.stores.opening import make_store
from engine.stores.tracked import Tracked
from engine.stores.transaction import Store

TICK_S = 1.0
CATCH_UP_S = 10.0
"""A sender that was held up sends what is owed for this long at most."""
SAMPLES = 900
"""So many while messages are sent, and one a second at most."""
PHASES = 6
"""Storm, calm, storm …"""
STORM_LIFE_S = 25.0
"""Mean life of a worker in a storm; in a short soak a quarter of the phase."""
CALM_STOP_S = 60.0
COMMAND_EVERY = 20
"""Ticks between two uses of `dlr-engine track --file` instead of the inbox it puts things into."""
TRACK_TRIES = 5


class Sample(msgspec.Struct, array_like=True):
    """The figures of a moment; bytes, and seconds since the start. In JSON an array."""

    t: float
    life: int
    worker: int | None
    simulator: int | None
    store: int
    sinks: int


class Api:
    """The simulator's own paths."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self._url, self._client = f"{url}/_sim", client

    async def get(self, path: str) -> Any:
        async with self._client.get(f"{self._url}/{path}") as answer:
            return msgspec.json.decode(await answer.read())

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        async with self._client.post(f"{self._url}/{path}", json=body) as answer:
            raw = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {raw.decode()[:300]}")
            return msgspec.json.decode(raw)


class Sender:
    """Sends messages, and hands over what was sent as a sender would."""

    def __init__(self, api: Api, folder: Path, worker: Worker, load: float) -> None:
        self.sent = 0
        self._api, self._folder, self._worker, self._load = api, folder, worker, load
        self._owed = dict.fromkeys((member.name for member in MEMBERS), 0.0)
        self._ticks = 0

    async def run(self, until: float) -> None:
        store = make_store("sqlite", self._folder / "state.db", "state.db")
        await store.open(own=False)
        try:
            before = time.monotonic()
            while (began := time.monotonic()) < until:
                passed, before = min(began - before, CATCH_UP_S), began
                for member in MEMBERS:
                    await self.tick(member, passed, store)
                self._ticks += 1
                await asyncio.sleep(max(0.0, began + TICK_S - time.monotonic()))
        finally:
            await store.close()

    async def tick(self, member: Member, passed: float, store: Store) -> None:
        """Send what is owed for the time that has passed."""
        self._owed[member.name] += member.rate * self._load * passed
        items: list[Tracked] = []
        while self._owed[member.name] >= member.batch:
            self._owed[member.name] -= member.batch
            sent = await self._api.post("send", {"account": member.name, "n": member.batch})
            self.sent += member.batch
            items += _tracked(member, sent)
        if not items or not member.tracked:
            return
        turn = MEMBERS.index(member) % COMMAND_EVERY
        if self._ticks % COMMAND_EVERY == turn:
            await self._by_command(member, items)
        else:
            item = inbox_item(member.name, items, time.time_ns() // 1_000_000, None)
            await _patiently(lambda: store.write(lambda tx: tx.put_inbox(item)))

    async def _by_command(self, member: Member, items: list[Tracked]) -> None:
        """As `dlr-engine track --file` does it: into the inbox, or the books where nobody runs."""
        file = self._folder / "track.jsonl"
        with file.open("w", encoding="utf-8") as rows:
            for item in items:
                for row in _rows(item):
                    rows.write(json.dumps(row) + "\n")
        async with self._worker.gate:
            process = await spawn(
                "track", "--config", "engine.toml", "--account", member.name, "--file", str(file),
                folder=self._folder, log=self._folder / "track.log",
            )  # fmt: skip
            code = await process.wait()
        if code:
            self._worker.troubles.append(f"track --file: exit status {code}")


def _tracked(member: Member, sent: dict[str, Any]) -> list[Tracked]:
    sent_ms = round(sent["sent_at"] * 1000)
    if member.provider == "bulksms":
        return [Tracked(batch_id=sent["batch_id"], recipients=sent["recipients"], sent_ms=sent_ms)]
    pairs = zip(sent["message_ids"], sent["recipients"], strict=True)
    return [
        Tracked(message_id=message_id, recipients=[recipient], sent_ms=sent_ms)
        for message_id, recipient in pairs
    ]


def _rows(item: Tracked) -> list[dict[str, Any]]:
    sent_at = item.sent_ms / 1000
    if item.batch_id is not None:
        return [
            {"batch_id": item.batch_id, "recipient": recipient, "sent_at": sent_at}
            for recipient in item.recipients
        ]
    return [{"message_id": item.message_id, "recipient": item.recipients[0], "sent_at": sent_at}]


async def _patiently(work: Callable[[], Awaitable[object]]) -> None:
    """A store that is busy for the moment is tried again, as a sender has to."""
    for n in range(TRACK_TRIES):
        try:
            await work()
        except StoreError:
            if n + 1 == TRACK_TRIES:
                raise
            await asyncio.sleep(1.0)
        else:
            return


async def torment(worker: Worker, began: float, seconds: float, rand: random.Random) -> None:
    """Kill, end and stop the worker at random, until the time is over."""
    phase_s = seconds / PHASES
    storm_s = min(STORM_LIFE_S, phase_s / 4)
    while (now := time.monotonic() - began) < seconds:
        calm = int(now / phase_s) % 2 == 1
        wait = rand.expovariate(1 / (CALM_STOP_S if calm else storm_s))
        left = phase_s * (int(now / phase_s) + 1) - now
        await asyncio.sleep(min(wait, left))
        if worker.noticed_dead():
            async with worker.gate:
                await worker.start()
        if wait >= left:
            continue
        act = "stop" if calm else rand.choices(("kill", "term", "stop"), (6, 2, 2))[0]
        if act == "stop":
            await worker.stop_for(rand.uniform(0.5, 6.0))
            continue
        await worker.end(signal.SIGKILL if act == "kill" else signal.SIGTERM)
        await asyncio.sleep(rand.choice((0.0, rand.uniform(0.0, 5.0))))
        async with worker.gate:
            await worker.start()


async def watch(
    worker: Worker, simulator: int, folder: Path, seconds: float, samples: list[Sample]
) -> None:
    """Take the figures, until cancelled."""
    began = time.monotonic()
    while True:
        samples.append(
            Sample(
                t=round(time.monotonic() - began, 1),
                life=len(worker.lives),
                worker=_rss(worker.pid),
                simulator=_rss(simulator),
                store=_size(folder, "state.db"),
                sinks=_size(folder, "reports"),
            )
        )
        await asyncio.sleep(max(1.0, seconds / SAMPLES))


def _rss(pid: int | None) -> int | None:
    """Resident bytes of a process; None where it has ended."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _size(folder: Path, stem: str) -> int:
    """Bytes of the files whose names begin so."""
    size = 0
    for path in folder.iterdir():
        if path.name.startswith(stem):
            try:
                size += path.stat().st_size
            except FileNotFoundError:  # it was rotated just now
                continue
    return size
