"""`dlr-engine run`: the worker.

It polls until it is stopped, or with --once until what is due is done, or with --until-idle until
there is nothing left to do. What is left then is named on stderr, a line each. It decides nothing
about polling: that is the engine's.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from engine.core.errors import ConfigError

from . import process, supervise

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.worker import Engine

log = logging.getLogger("dlr_engine")

IDLE_TIMEOUT_S = 300.0
SWITCH_S = 0.001


def command(args: argparse.Namespace) -> int:
    if args.idle_timeout is not None and not args.until_idle:
        raise ConfigError(["dlr-engine run: --idle-timeout goes with --until-idle alone"])
    config = process.load_config(args.config)
    supervise.check(args, config)
    if args.workers > 1:
        return supervise.command(args, config)
    order = supervise.ORDER if supervise.is_child() else None
    stuck = process.with_signals(lambda stop: _work(config, args, stop), order)
    for line in stuck:
        print(line, file=sys.stderr)
    return 1 if stuck else 0


async def _work(config: Config, args: argparse.Namespace, stop: process.Stop) -> list[str]:
    """What could not be done, a line each."""
    if not supervise.is_child():
        return await _run(config, args, stop)
    async with anyio.create_task_group() as around:
        around.start_soon(_with_parent, stop)  # also while it starts, which may take for ever
        stuck = await _run(config, args, stop)
        around.cancel_scope.cancel()
    return stuck


async def _with_parent(stop: process.Stop) -> None:
    await supervise.orphaned()
    stop.ask()


async def _run(config: Config, args: argparse.Namespace, stop: process.Stop) -> list[str]:
    from engine.worker import Engine

    # What is done once is over too soon for a port; of several workers the parent has it.
    serve = not args.once and not supervise.is_child()
    # A start may wait for a store that cannot be had: then nothing is under way yet to be ended.
    with anyio.CancelScope() as stop.starting:
        async with Engine(config, once=args.once, serve=serve) as engine:
            stop.starting = None
            stuck = await _worked(engine, args, stop)
        _sum_up(engine)
        return stuck
    log.info("worker: stopped before it had begun")
    return []


async def _worked(engine: Engine, args: argparse.Namespace, stop: process.Stop) -> list[str]:
    """Until there is a reason to end."""
    from .live import watching

    config = engine.config
    log.info(
        "%s: running, %s and %s",
        _who(engine),
        _many(len(config.accounts), "account"),
        _many(len(config.sinks), "sink"),
    )
    tune_interpreter()
    until = _until(engine, args, stop)
    live = not args.quiet and not _prints_records(config) and not supervise.is_child()
    async with watching(engine, live=live):
        stuck = await stop.unless(until)
    return stuck or []


def tune_interpreter() -> None:
    """A full collection stops the loop for tens of milliseconds, and here it finds next to nothing:
    what was loaded stays, and reports hold no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    # The store's thread and the loop hand the interpreter to each other at every row: the default
    # of 5 ms makes each of them wait for the other's turn to end.
    sys.setswitchinterval(SWITCH_S)


def _until(
    engine: Engine, args: argparse.Namespace, stop: process.Stop
) -> Callable[[], Awaitable[list[str]]]:
    """What the worker goes on until."""
    from engine.idle import until_done, until_idle

    if args.once:
        return lambda: until_done(engine)
    if args.until_idle:
        timeout_s = IDLE_TIMEOUT_S if args.idle_timeout is None else args.idle_timeout

        return lambda: until_idle(engine, timeout_s)

    async def stopped() -> list[str]:
        await stop.asked.wait()
        return []

    return stopped


def _prints_records(config: Config) -> bool:
    """Whether records come out on the very terminal that the live view would stand on."""
    return sys.stdout.isatty() and any(sink.type == "stdout" for sink in config.sinks)


def _who(engine: Engine) -> str:
    return f"worker {engine.fleet.name}" if engine.fleet is not None else "worker"


def _sum_up(engine: Engine) -> None:
    total = engine.telemetry.total
    log.info(
        "%s: ended; %s made, %s kept, %s given to sinks",
        _who(engine),
        _many(total("requests"), "request"),
        _many(total("records"), "record"),
        _many(total("written"), "record"),
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
