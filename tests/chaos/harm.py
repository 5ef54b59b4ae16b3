"""Harm from outside, while messages are sent: workers killed, frozen and started, the database
restarted, the way to it cut. Afterwards everything is let run out, and compared (`verdict`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos.fleet import (
    ENGINE,
    FEEDS,
    ONE_TIME,
    POLLED,
    SECOND_S,
    Command,
    Simulator,
    config,
    simulator,
)
from tests.chaos.line import Way
from tests.chaos.verdict import Verdict, judge
from tests.postgres_server import Server, own_postgres
from tests.services import HOST

KINDS = ("kill", "freeze", "restart", "cut", "hang", "stop")
WORKERS = 2  # that the parent keeps; besides there is one by itself
EVERY_S = (1.0, 3.5)  # between two harms
FROZEN_S = (1.0, 9.0)  # some for less than a lease lasts, some for more
AWAY_S = (0.5, 4.0)  # the database, or a worker that was stopped
HUNG_S = (1.0, 6.0)
SETTLE_S = 90.0  # for what is left when the harm has ended


class Chaos:
    """One run. `say` is told what happens."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        seconds: float,
        say: Callable[[str], object],
        kinds: Sequence[str] = KINDS,
    ) -> None:
        self.harms: Counter[str] = Counter()
        self.lossy: Counter[str] = Counter()  # one-time accounts whose holder was killed
        self._kinds = list(kinds)
        self._folder = folder
        self._rand = random.Random(seed)
        self._seconds = seconds
        self._say = say
        self._sent: Counter[str] = Counter()
        self._tracks: set[asyncio.Task[None]] = set()
        self._frozen: set[int] = set()
        self._server: Server
        self._way: Way
        self._loner: Command

    async def run(self) -> Verdict:
        async with own_postgres() as server, simulator(self._folder) as truth:
            self._server = server
            async with Way(HOST, server.port) as way:
                self._way = way
                url = server.url.replace(f":{server.port}/", f":{way.port}/")
                (self._folder / "engine.toml").write_text(config(truth.url, url))
                parent = Command(self._folder, "--workers", str(WORKERS))
                self._loner = Command(self._folder)
                try:
                    await parent.start()
                    await self._loner.start()
                    await self._storm(truth)
                    await self._calm(parent, self._loner)
                finally:
                    for pid in self._frozen:
                        os.kill(pid, signal.SIGCONT)
                    for command in (parent, self._loner):
                        await command.end()
            return await judge(self, truth, server.url)

    @contextlib.asynccontextmanager
    async def database(self) -> Any:
        """Straight to the server, when it is there."""
        db = await asyncpg.connect(self._server.url, timeout=5)
        try:
            yield db
        finally:
            db.terminate()

    # While it storms

    async def _storm(self, truth: Simulator) -> None:
        await self._until_polled(truth)
        sending = asyncio.create_task(self._send(truth))
        end = asyncio.get_running_loop().time() + self._seconds
        acts = {
            "kill": self._kill, "freeze": self._freeze, "restart": self._restart,
            "cut": self._cut, "hang": self._hang, "stop": self._stop,
        }  # fmt: skip
        turn: list[str] = []
        try:
            while turn or asyncio.get_running_loop().time() < end:
                if not turn:  # each comes up as often, in an order of chance
                    turn = self._rand.sample(self._kinds, len(self._kinds))
                await asyncio.sleep(self._rand.uniform(*EVERY_S))
                harm = turn.pop()
                self.harms[harm] += 1
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await acts[harm]()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    async def _until_polled(self, truth: Simulator) -> None:
        async with asyncio.timeout(60):
            while not await self._all_asked(truth):  # noqa: ASYNC110 - they are other processes
                await asyncio.sleep(0.1)

    async def _all_asked(self, truth: Simulator) -> bool:
        counts = await truth.told("counts")
        return all(counts[name]["requests"] for name in ONE_TIME)

    async def _send(self, truth: Simulator) -> None:
        """Messages for all accounts, all the time."""
        while True:
            for name in ONE_TIME:
                plan = [[0, "PENDING_ENROUTE"], [SECOND_S, "DELIVERED_TO_HANDSET"]]
                await truth.send(name, n=self._rand.randint(5, 60), plan=plan)
            for name in FEEDS:
                await truth.send(name, n=self._rand.randint(1, 20), plan=[[0, "delivered"]])
            name = self._rand.choice(POLLED)
            self._sent[name] += 1
            batch = f"{POLLED.index(name) + 1}{self._sent[name]:06d}"
            to = [f"4479{batch}{n:02d}" for n in range(self._rand.randint(1, 20))]
            await truth.send(name, recipients=to, batch=batch, plan=[[SECOND_S, "11"]])
            task = asyncio.create_task(self._track(name, batch, to))
            self._tracks.add(task)
            task.add_done_callback(self._tracks.discard)
            await asyncio.sleep(2.0)

    async def _track(self, account: str, batch: str, to: list[str]) -> None:
        """By the command line, again and again until it is taken."""
        command = [
            *ENGINE, "track", "--config", str(self._folder / "engine.toml"), "--account", account,
            "--batch-id", batch, "--recipients", ",".join(to),
        ]  # fmt: skip
        while True:
            quiet = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
            if await process.wait() == 0:
                return
            await asyncio.sleep(1.0)

    # Harms

    async def _workers(self) -> list[tuple[int, str]]:
        """Process ids and ids of the workers that run."""
        async with self.database() as db:
            rows = await db.fetch("SELECT pid, id FROM worker WHERE until > clock_timestamp()")
        return sorted((row["pid"], row["id"]) for row in rows)

    async def _victim(self) -> tuple[int, str] | None:
        there = [one for one in await self._workers() if one[0] not in self._frozen]
        return self._rand.choice(there) if there else None

    async def _kill(self) -> None:
        victim = await self._victim()
        if victim is None:
            return
        async with self.database() as db:
            held = "SELECT account FROM lease WHERE worker = $1"
            # Of what it holds an answer may be on the wire; also of what it takes just now.
            names = {row[0] for row in await db.fetch(held, victim[1])}
            os.kill(victim[0], signal.SIGKILL)
            names |= {row[0] for row in await db.fetch(held, victim[1])}
        self.lossy.update(names & set(ONE_TIME))
        self._say(f"killed {victim[0]}, which held {', '.join(sorted(names)) or 'nothing'}")
        if not self._loner.runs:
            await asyncio.sleep(self._rand.uniform(*AWAY_S))
            await self._loner.start()
            self._say("started one")

    async def _freeze(self) -> None:
        victim = await self._victim()
        if victim is not None:
            seconds = self._rand.uniform(*FROZEN_S)
            self._say(f"froze {victim[0]} for {seconds:.1f} s")
            os.kill(victim[0], signal.SIGSTOP)
            self._frozen.add(victim[0])
            await asyncio.sleep(seconds)
            self._frozen.discard(victim[0])
            os.kill(victim[0], signal.SIGCONT)

    async def _stop(self) -> None:
        """The one by itself is stopped in good order, and started again."""
        if self._loner.runs:
            self._say(f"stopped one, which came to {await self._loner.end()}")
            await asyncio.sleep(self._rand.uniform(*AWAY_S))
        if not self._loner.runs:
            await self._loner.start()

    async def _restart(self) -> None:
        how = self._rand.choice(["fast", "immediate"])
        away_s = self._rand.uniform(*AWAY_S)
        self._say(f"stopped the database ({how}) for {away_s:.1f} s")
        await self._server.stop(how)
        await asyncio.sleep(away_s)
        await self._server.start()

    async def _cut(self) -> None:
        self._say("cut the way to the database")
        await self._way.drop()
        await asyncio.sleep(self._rand.uniform(0, 1))
        self._way.cut_after(self._rand.randint(100, 20_000))

    async def _hang(self) -> None:
        seconds = self._rand.uniform(*HUNG_S)
        self._say(f"let the way to the database hang for {seconds:.1f} s")
        self._way.hang()
        await asyncio.sleep(seconds)
        await self._way.drop()

    # Afterwards

    async def _calm(self, parent: Command, loner: Command) -> None:
        """All that was sent is tracked; the workers end; one alone does what is left."""
        self._say("no more harm")
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*self._tracks)
        ended = [await loner.end(), await parent.end()]
        self._say(f"the workers were stopped and came to {ended}")
        last = Command(self._folder, "--until-idle", "--idle-timeout", "30s")
        await last.start()
        assert last.process is not None
        async with asyncio.timeout(SETTLE_S):
            status = await last.process.wait()
        self._say(f"the rest was done, exit status {status}")
        assert status == 0, (self._folder / "workers.log").read_text()[-4000:]
