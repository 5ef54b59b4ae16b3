"""`dlr-engine demo`: the simulator and a worker in one process, and what came of it.

Messages are sent at the simulated providers while the worker polls them through their faults; in
the end what the worker recorded is held against what the simulator knows to be true, message by
message. It is a demonstration that would notice if it went wrong: then the exit status is 1.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from engine.machine.private import write_file

from . import process
from .demo_setup import Plan, engine_toml, make_folder, profile

if TYPE_CHECKING:
    from engine.sim import Sent, Simulator
    from engine.worker import Engine

TICKS = 24  # sendings an account
LOG_S = 3.0


def command(args: argparse.Namespace) -> int:
    plan = Plan(args.seconds, args.messages)
    folder = make_folder()
    agreed = process.with_signals(lambda stop: _demo(plan, folder, stop, live=not args.quiet))
    return 0 if agreed else 1


async def _demo(plan: Plan, folder: Path, stop: process.Stop, *, live: bool) -> bool:
    """Whether everything that was recorded is as it should be."""
    from engine.sim import Simulator
    from engine.worker import Engine

    from .demo_truth import compare
    from .live import watching

    async with Simulator(profile(plan)) as simulator:
        file = folder / "engine.toml"
        write_file(file, engine_toml(plan, simulator.base_url))
        show = Show(plan, simulator)
        config = process.load_config(file)
        async with (
            Engine(config) as engine,
            watching(engine, live=live, heading=show.heading, every_s=LOG_S),
        ):
            await stop.unless(lambda: show.play(engine))
        outcome = await compare(config, simulator, ended=show.ended)
    for line in outcome.lines():
        print(line)
    print("\n".join(_where(folder, outcome.example)))
    return outcome.agrees


class Show:
    """Sends messages for a while, then waits until nothing is left to do."""

    def __init__(self, plan: Plan, simulator: Simulator) -> None:
        self.plan = plan
        self.simulator = simulator
        self.sent = 0
        self.ended = False  # all of it came to its end before the time was over
        self._began = time.monotonic()

    def heading(self) -> str:
        left_s = max(0.0, self.plan.seconds - (time.monotonic() - self._began))
        return f"· demo: {self.sent:,} of {self.plan.messages:,} sent, {left_s:.0f} s left"

    async def play(self, engine: Engine) -> None:
        from engine.idle import until_idle

        self._began = time.monotonic()
        with anyio.move_on_after(self.plan.seconds):
            await self._send_all(engine)
            stuck = await until_idle(engine, self.plan.seconds)
            self.ended = not stuck

    async def _send_all(self, engine: Engine) -> None:
        """Even sendings over the first part of the time."""
        counts = self.plan.counts()
        for tick in range(TICKS):
            due_s = self.plan.sending_s * tick / TICKS
            await anyio.sleep(max(0.0, self._began + due_s - time.monotonic()))
            for name, count in counts.items():
                n = count * (tick + 1) // TICKS - count * tick // TICKS
                if n:
                    await self._send(engine, name, n)

    async def _send(self, engine: Engine, name: str, n: int) -> None:
        """Send, and hand over what is not found in a feed by itself."""
        from engine.stores.tracked import Tracked

        sent: Sent = self.simulator.send(name, n)
        first = self.sent + 1
        self.sent += n
        sent_ms = round(sent.sent_at * 1000)
        references = [f"order-{first + i}" for i in range(n)]
        if name == "bulk":
            batch = Tracked(
                batch_id=sent.batch_id,
                recipients=sent.recipients,
                references=list(references),
                sent_ms=sent_ms,
            )
            await engine.track_all(name, [batch])
        elif name == "infobip":
            ids = zip(sent.message_ids, sent.recipients, references, strict=True)
            await engine.track_all(
                name,
                [
                    Tracked(message_id=i, recipients=[to], reference=reference, sent_ms=sent_ms)
                    for i, to, reference in ids
                ],
            )


def _where(folder: Path, example: str | None) -> list[str]:
    """Where everything is, and how to look into it."""
    recipient = f' --recipient "{example}"' if example is not None else " --reference order-1"
    return [
        "",
        f"The files are in {folder}/:",
        "  engine.toml     the configuration        state.db    the worker's own store",
        "  reports.jsonl   a record a line          reports.db  tables `reports` and `messages`",
        "Look into them:",
        f"  dlr-engine show --config {folder}/engine.toml{recipient}",
        f"  dlr-engine stats --config {folder}/engine.toml",
        f"  head -1 {folder}/reports.jsonl",
        f"  sqlite3 {folder}/reports.db 'select state, count(*) from messages group by state'",
    ]
