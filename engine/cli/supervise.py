"""`dlr-engine run --workers N`: one process that keeps N workers running.

The workers share the accounts among themselves, with those of other machines, by leases in the
store; this process only starts them, starts one again that has died, passes signals on, has the
port of `[http]` (`parent`), and ends with what they come to. Each is the same command for itself,
in a process group of its own, so that a terminal's Ctrl-C reaches it once: from here. Where all
were signalled at once, as a service manager does it, what comes from here is no second signal to
it. One whose parent has gone ends, too.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from engine.core.errors import ConfigError
from engine.core.units import spell_duration

from . import process

if TYPE_CHECKING:
    from engine.config.model import Config

    from .parent import ParentHost

log = logging.getLogger("dlr_engine")

PARENT = "DLR_ENGINE_PARENT"  # in a worker's environment: the process that has started it
PARENT_LOOK_S = 1.0

# One that dies is started again after a pause, doubled each time; it is forgotten of one that has
# run for so long.
PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 30.0
STEADY_S = 60.0
# One that fails so soon, the first time, would fail again: then there is nothing to keep running.
YOUNG_S = 5.0


# What a worker is asked to end with by its parent.
ORDER = signal.SIGUSR1

# How one ends that was told to: also where it had not got as far as listening to signals.
CLEAN = (0, -signal.SIGTERM, -signal.SIGINT, -ORDER)


def is_child() -> bool:
    """Whether another process of ours has started this one and looks after it."""
    return PARENT in os.environ


async def orphaned() -> None:
    """Wait until the process that has started this one is gone."""
    while str(os.getppid()) == os.environ[PARENT]:  # noqa: ASYNC110 - the system tells nobody
        await anyio.sleep(PARENT_LOOK_S)
    log.warning("worker: the process that has started this one is gone; stopping")


def check(args: argparse.Namespace, config: Config) -> None:
    """Raises ConfigError where several workers cannot do this."""
    if args.workers <= 1:
        return
    faults = []
    if config.store.scheme != "postgresql":
        faults.append(
            f"dlr-engine run: --workers {args.workers} needs a store that processes can share:"
            f' store.url = "postgresql://…"; this one is {config.store.scheme}://'
        )
    elif args.once:
        faults.append(
            "dlr-engine run: --once goes with one worker: what is due is done by it alone"
        )
    else:
        faults += [
            f"{config.source}: sink {sink.name}: path: with several workers it needs {{worker}}, or"
            " they would write the same place"
            for sink in config.sinks
            if sink.is_shared_file
        ]
    if faults:
        raise ConfigError(faults)


def command(args: argparse.Namespace, config: Config) -> int:
    """Keep `args.workers` workers running; their exit status."""
    return process.start(lambda: Supervisor(args, config).run())


class Supervisor:
    """The parent of N workers."""

    def __init__(self, args: argparse.Namespace, config: Config) -> None:
        self._config = config
        self._argv = _argv(args)
        self._count: int = args.workers
        self._ends = bool(args.until_idle)  # they end by themselves
        self._children: dict[int, anyio.abc.Process] = {}
        self._stopping = anyio.Event()
        self._signalled = False
        self._status = 0

    async def run(self) -> int:
        from .parent import serving

        async with anyio.create_task_group() as group:
            await group.start(self._listen)
            async with (
                serving(self._config, lambda: len(self._children)) as host,
                anyio.create_task_group() as children,
            ):
                if host is not None:
                    children.start_soon(self._tell, host)
                for number in range(self._count):
                    children.start_soon(self._keep, number)
                log.info("run: %d workers", self._count)
            group.cancel_scope.cancel()
        return self._status

    async def _tell(self, host: ParentHost) -> None:
        """Who asks for health is to know that it ends."""
        await self._stopping.wait()
        host.ending = True

    async def _listen(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """The first signal asks for a clean end, the second one ends all at once."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self._signalled:
                    self._tell_all(signal.SIGKILL)
                    os._exit(128 + number)
                self._signalled = True
                self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._tell_all(ORDER)

    def _tell_all(self, number: signal.Signals) -> None:
        for child in self._children.values():
            with suppress(ProcessLookupError):  # it has just ended
                child.send_signal(number)

    async def _keep(self, number: int) -> None:
        """Run one worker, again and again."""
        pause_s, first = PAUSE_FIRST_S, True
        while not self._stopping.is_set():
            began = anyio.current_time()
            status = await self._once(number)
            lasted_s = anyio.current_time() - began
            if self._stopping.is_set():
                # What becomes of one that was told to end counts only where it failed.
                self._status = max(self._status, 1 if status not in CLEAN else 0)
                return
            if self._is_end(status, young=first and lasted_s < YOUNG_S):
                self._status = max(self._status, status)
                self._stop()
                return
            first = False
            pause_s = PAUSE_FIRST_S if lasted_s >= STEADY_S else pause_s
            log.error(
                "run: worker %d has %s (%s); started again in %s",
                number + 1,
                "died" if status else "ended",
                f"signal {-status}" if status < 0 else f"exit status {status}",
                spell_duration(pause_s),
            )
            with anyio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(PAUSE_MAX_S, 2 * pause_s)

    def _is_end(self, status: int, *, young: bool) -> bool:
        """Whether it has ended for a reason that holds for all."""
        if status == 2 or (self._ends and status in (0, 1)):
            return True
        return status == 1 and young

    async def _once(self, number: int) -> int:
        try:
            child = await anyio.open_process(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                env={**os.environ, PARENT: str(os.getpid())},
                start_new_session=True,
            )
        except OSError as error:  # the others go on without it
            log.error("run: worker %d cannot be started: %s", number + 1, error.strerror)
            return 1
        self._children[number] = child
        if self._stopping.is_set():  # it was made meanwhile, and nobody has told it
            self._tell_all(ORDER)
        try:
            return await child.wait()
        finally:
            del self._children[number]


def _argv(args: argparse.Namespace) -> Sequence[str]:
    """The command line of one worker."""
    argv = [sys.executable, "-m", "engine", "run", f"--config={args.config}"]
    if args.until_idle:
        argv.append("--until-idle")
    if args.idle_timeout is not None:
        argv += ["--idle-timeout", str(args.idle_timeout)]
    if args.verbose:
        argv.append("--verbose")
    if args.quiet:
        argv.append("--quiet")
    return argv
