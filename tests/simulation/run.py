"""One run: lives of the engine one after the other, on one disk, in one world, to a quiet end."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import msgspec
import orjson

from engine import idle
from engine.books.tracking import inbox_item
from engine.config import Config
from engine.core.errors import StoreTrouble
from engine.core.units import MS_MAX
from engine.sim.account import Account
from engine.sim.messages import Sent
from engine.sim.profile import AccountProfile
from engine.stores.memory import MemoryStore
from engine.stores.tracked import Tracked
from engine.stores.transaction import InboxItem
from engine.worker import Engine
from tests.simulation.checks import Checks
from tests.simulation.disk import Disk
from tests.simulation.drawing import draw
from tests.simulation.fuse import Fuse
from tests.simulation.loop import Crashed, Stuck, repeatable
from tests.simulation.network import Network
from tests.simulation.scenario import IDLE_LOOK_S, Crash, Scenario, Sending
from tests.simulation.sinks import Target, bound
from tests.simulation.world import EPOCH_S, Machine, Process, Violation, World

# After the faults the engine may still wait: for a hold of a minute, or an hourly try.
SETTLE_S = 4000.0
LOOK_S = 1.0
CONNECT_S = 0.3  # after the start of a life

# By then a life of the engine has stored that it goes on.
STORED_STEPS = 100


@dataclass
class Outcome:
    """What a run came to."""

    seed: int | str
    digest: str
    violation: Violation | None
    lives: int
    steps: int
    records: int
    requests: int
    seconds: float


class Run:
    """One scenario, played."""

    def __init__(
        self,
        seed: int | str,
        scenario: Scenario | None = None,
        *,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.world = World(seed, tell=tell)
        self.scenario = scenario or draw(seed)
        self.tables = MemoryStore()
        self.checks = Checks(self.world, self.scenario, self.tables)
        self.hosts = self.scenario.hosts(self.world)
        self.process: Process | None = None
        self.engine: Engine | None = None
        self.steps = 0
        self.lives = 0
        self._machine = Machine("boot 0", -100.0, self.scenario.tells_boots)
        self._ahead_s = self.world.dice("wall").uniform(-1.0, 1.0)
        self._rows: set[int] = set()  # of the inbox
        self._untold: list[tuple[str, Tracked]] = []  # what the engine has not confirmed yet
        self._sent: asyncio.Event | None = None  # where a life waits for more of that
        self._targets = self._make_targets()
        self._config: Config = self.scenario.config(bound(self._targets, self._living))

    def play(self) -> Outcome:
        world, scenario = self.world, self.scenario
        for sending in scenario.sendings:
            world.at(sending.at, lambda sending=sending: self._send(sending))
        for plan in scenario.accounts:
            if plan.locked is not None:
                start, end = plan.locked
                account = plan.host.account
                right = account.profile.password
                world.at(start, lambda a=account: _lock(a, "other"))
                world.at(end, lambda a=account, p=right: _lock(a, p))
        world.at(scenario.quiet_s, self._calm)
        world.at(LOOK_S, self._look)
        was_on = gc.isenabled()
        gc.disable()  # it would end forgotten generators at a time of its own
        look_s, idle.IDLE_LOOK_S = idle.IDLE_LOOK_S, IDLE_LOOK_S
        try:
            with repeatable():
                self._lives()
        finally:
            idle.IDLE_LOOK_S = look_s
            if was_on:
                gc.enable()
        if world.violation is None:
            self.checks.finish()
        requests = sum(host.account.tally.requests for host in self.hosts.values())
        return Outcome(
            world.seed, world.digest, world.violation, self.lives, self.steps,
            self.checks.records, requests, world.now,
        )  # fmt: skip

    # The world

    def _living(self) -> Process:
        assert self.process is not None
        return self.process

    def _make_targets(self) -> dict[str, Target]:
        targets = {}
        for sink in self.scenario.sinks:
            target = Target(sink.label, sink.nature, self.world.dice(sink.label))
            label = sink.label
            target.offered = lambda line, label=label: self.checks.deliveries.offered(label, line)
            target.taken = lambda line, label=label: self.checks.deliveries.took(label, line)
            target.failed = lambda label=label: self.checks.deliveries.failed(label)
            targets[label] = target
        return targets

    def _unlock(self, account: Account, right: AccountProfile) -> None:
        """The password is right again; faults that have ended meanwhile do not come back."""
        odds = {} if self.world.calm else right.odds
        account.profile = msgspec.structs.replace(right, odds=odds)

    def _calm(self) -> None:
        """Faults end."""
        self.world.calm = True
        self.world.note("calm")
        for host in self.hosts.values():
            host.simulator.fail(host.name, {})
            host.account.script.clear()

    def _look(self) -> None:
        self.checks.look()
        self.world.after(LOOK_S, self._look)

    def _send(self, sending: Sending) -> None:
        plan = next(p for p in self.scenario.accounts if p.name == sending.account)
        to: list[str] | None = None
        if sending.twin:
            to = [f"4477009{sending.batch}{n:02d}" for n in range(sending.count)]
            to.append(to[-1])
        simulator = plan.host.simulator
        sent = simulator.send(
            plan.name, None if to else sending.count, to, batch=sending.batch, plan=sending.life,
            channel=sending.channel, direction=sending.direction,
        )  # fmt: skip
        self.checks.truth.sent(plan)
        self.world.note(f"sent {plan.name} {sent.batch_id} {len(sent.message_ids)}")
        if sending.how is None:
            return
        sent_ms = round((EPOCH_S + self.world.now) * 1000)
        for item in _tracked(sending, sent, sent_ms):
            plan.tracked_ms.setdefault(item.batch_id or item.message_id or "", sent_ms)
            plan.handed.append(item.batch_id or item.message_id or "")
            if item.batch_id and item.recipients:
                plan.whole.add(item.batch_id)
                for message_id in sent.message_ids:
                    plan.tracked_ms.setdefault(message_id, sent_ms)
            if sending.how == "inbox":
                self._put_inbox(inbox_item(plan.name, [item], sent_ms, None))
            else:
                self._untold.append((plan.name, item))
                if self._sent is not None:
                    self._sent.set()

    def _connect(self) -> None:
        """Another process wants to know whether it connects. After an unclean end the worker still
        waits for its first place then, without having logged in."""
        for plan in self.scenario.accounts:
            if plan.logs_in:
                probe = f"life {self.lives}"
                payload = orjson.dumps({"id": probe, "until_ms": MS_MAX})
                row = InboxItem(account=plan.name, kind="probe", payload=payload, at_ms=0)
                self.checks.truth.probes[plan.name][probe] = self._put_inbox(row)

    def _put_inbox(self, row: InboxItem) -> int:
        """What it is known by there."""
        before = self.tables._opened
        self.tables._opened = True  # another process, on the same store
        row_id = self.tables._run(lambda tx: tx.put_inbox(row), writes=True)
        self.tables._opened = before
        self._rows.add(row_id)
        return row_id

    # The lives of the engine

    def _lives(self) -> None:
        crashes = list(self.scenario.crashes)
        jump_s = stepped_s = 0.0  # the latter since the books were stored
        while self.world.violation is None:
            crash = crashes.pop(0) if crashes else None
            steps = self.steps
            if self._live(crash, jump_s):
                return
            if crash is not None:
                # A life that has stored nothing leaves the books of the one before: where the
                # machine went down since then, only the wall clock tells how old they are, and one
                # that was set forward meanwhile makes them older than they are.
                stored = self.steps - steps > STORED_STEPS
                jump_s = crash.jump_s if stored else min(crash.jump_s, 0)
                self._ahead_s += jump_s
                stepped_s = jump_s if stored else stepped_s + jump_s
                if crash.reboot and (stored or stepped_s <= 0):
                    self._machine = Machine(
                        f"boot {self.lives}", self.world.now, self.scenario.tells_boots
                    )
                self.world.pass_to(self.world.now + crash.down_s)

    def _live(self, crash: Crash | None, jump_s: float) -> bool:
        """One life. True: it has come to the quiet end."""
        self.lives += 1
        world = self.world
        process = Process(
            world,
            self.lives,
            machine=self._machine,
            wall_ahead_s=self._ahead_s,
            drift=self.scenario.drift,
        )
        self.process = process
        self.checks.born(process, jump_s)
        world.note(f"life {self.lives}")
        fuse = Fuse(process, crash, self.checks)
        network = Network(process, self.hosts, self.scenario.weather, fuse)

        def committed() -> None:
            self.checks.committed()
            fuse.committed()
            if taken := self._rows - self.tables._tables.inbox.keys():
                self._rows -= taken
                fuse.taken()

        disk = Disk(
            process,
            self.tables,
            committed,
            trouble=self.scenario.disk_trouble,
            slow_s=self.scenario.disk_slow_s,
        )
        world.after(CONNECT_S, lambda: process.alive and self._connect())
        loop = process.loop
        if crash is not None and crash.step is not None:
            loop.last_step = crash.step
        loop.halted = lambda: world.violation is not None or process.doomed
        if crash is not None and crash.at is not None and crash.how == "kill":
            world.at(crash.at, lambda: setattr(process, "doomed", True))
        main = self._main(process, network, disk, crash)
        cleanly, ended, again_s = True, False, 0.0
        try:
            ended = loop.run_until_complete(loop.create_task(main))
        except Crashed:
            cleanly = False
        except StoreTrouble as error:  # it says so at a start and at a stop, and is started again
            world.note(f"ended: {error}")
            again_s = 1.0
        except Stuck as error:
            world.broken("never-stuck", str(error))
        except Exception as error:
            world.broken("never-fails", f"{type(error).__name__}: {error} ({_where(error)})")
        process.alive = False
        self._sent = None
        self.steps += loop.steps
        world.note(f"end of life {self.lives} after {loop.steps} steps, cleanly: {cleanly}")
        network.die()
        self.checks.died(cleanly=cleanly)
        self.tables._opened = self.tables._owned = False
        loop.bury()
        world.pass_to(world.now + again_s)
        return ended

    async def _main(
        self, process: Process, network: Network, disk: Disk, crash: Crash | None
    ) -> bool:
        engine = Engine(
            self._config, clock=process, rand=process.rand, store=disk, transport=network
        )
        scope = anyio.CancelScope()
        if crash is not None and crash.how == "cancel" and crash.at is not None:
            self.world.at(crash.at, lambda: process.alive and scope.cancel())
        with scope:
            async with engine, anyio.create_task_group() as callers:
                callers.start_soon(self._track, engine)
                if crash is not None and crash.how == "stop" and crash.at is not None:
                    await anyio.sleep(max(0.0, crash.at - self.world.now))
                else:
                    await self._to_the_end(engine, crash)
                callers.cancel_scope.cancel()
        return crash is None

    async def _to_the_end(self, engine: Engine, crash: Crash | None) -> None:
        """Until all is quiet and nothing is left to do; with a crash ahead, until it comes."""
        await anyio.sleep(max(0.0, self._over_at() - self.world.now))
        if crash is not None and crash.at is not None and crash.at > self.world.now:
            await anyio.sleep_forever()
        self.checks.truth.waits_for_the_end()
        left = await idle.until_idle(engine, SETTLE_S)
        if left:
            self.world.broken("all-has-ended", "; ".join(left))

    def _over_at(self) -> float:
        """When the schedules are over, as far as that can be said before."""
        last = max((sending.at for sending in self.scenario.sendings), default=0.0)
        ladders = [(0, *plan.offsets_ms)[-1] / 1000 for plan in self.scenario.accounts]
        rescans = [(0.0, *plan.rescans_s)[-1] for plan in self.scenario.accounts]
        return max(self.scenario.quiet_s, last + max(*ladders, *rescans))

    async def _track(self, engine: Engine) -> None:
        """The embedding program: hands over what was sent until the engine has confirmed it."""
        self._sent = asyncio.Event()
        while True:
            self._sent.clear()
            while self._untold:
                name, item = self._untold[0]
                try:
                    await engine.track_all(name, [item])
                except StoreTrouble:  # the caller is told, and hands it over again
                    await asyncio.sleep(0.3)
                else:
                    self._untold.pop(0)
            await self._sent.wait()


def _tracked(sending: Sending, sent: Sent, sent_ms: int) -> list[Tracked]:
    if sending.by_batch and sent.batch_id is not None:
        recipients = sent.recipients if sending.named else []
        return [Tracked(batch_id=sent.batch_id, recipients=recipients, sent_ms=sent_ms)]
    return [
        Tracked(message_id=message_id, recipients=[to], sent_ms=sent_ms)
        for message_id, to in zip(sent.message_ids, sent.recipients, strict=True)
    ]


def _lock(account: Account, password: str) -> None:
    account.profile = msgspec.structs.replace(account.profile, password=password)


def _where(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.name}:{frame.lineno}"


def play(seed: int | str, *, tell: Callable[[str], None] | None = None) -> Outcome:
    """The run of a seed."""
    return Run(seed, tell=tell).play()


def failure(outcome: Outcome) -> str:
    """What was broken, and the command that plays it again."""
    return (
        f"seed {outcome.seed} FAILED: {outcome.violation}\n"
        f"  replay: python -m tests.simulation --seed {outcome.seed} --trace"
    )
