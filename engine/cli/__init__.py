"""The command `dlr-engine`: its entry point, and what becomes of an error.

Each command lives in a module of its own that is imported when it is called, so that `--help` and
a typing mistake are answered at once. What goes wrong as expected ends in one line on stderr and
an exit status: 1 it failed while running, 2 the command line or configuration is wrong. Nothing in
here may print a traceback's messages: they can hold what an answer or a configuration held.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module

from engine.core.errors import ConfigError, EngineError

from . import streams
from .parser import build
from .streams import complain

__all__ = ["main"]

FAILED = 1
WRONG = 2
INTERRUPTED = 130  # 128 + SIGINT, for a command that cannot stop in a better way


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    streams.settle()
    status = _run(argv)
    if (trouble := streams.flush()) is None:
        return status
    if not status:
        complain(f"dlr-engine: cannot write to standard output: {trouble}")
    return status or FAILED


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build().parse_args(argv)
        from . import logs

        logs.set_up(verbose=args.verbose, quiet=args.quiet)
        with _ended_by_signals() if args.command == "run" else nullcontext():
            status = import_module(f".{args.command.replace('-', '_')}", __package__).command(args)
        return int(status)
    except SystemExit as end:  # argparse has said what there was to say
        return int(end.code or 0) if not isinstance(end.code, str) else WRONG
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # whoever read the output has seen enough
    except BaseExceptionGroup as group:
        return _failed(_first(group))
    except Exception as error:
        return _failed(error)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until the worker listens to signals itself nothing has begun: one of them ends it, and that
    is the end that was asked for."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: os._exit(0)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _failed(error: BaseException) -> int:
    """Say what went wrong in one line (a configuration: one a fault); the exit status."""
    if isinstance(error, ConfigError):
        for fault in error.faults:
            complain(fault)
        return WRONG
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, EngineError):
        complain(f"dlr-engine: {error}")
    elif isinstance(error, OSError):
        what = f"{error.filename}: " if isinstance(error.filename, str) else ""
        complain(f"dlr-engine: {what}{error.strerror or type(error).__name__}")
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        place = f" in {frame[0].name}:{frame[0].lineno}" if frame else ""
        complain(
            f"dlr-engine: a fault in the program, {type(error).__name__}{place}: please report it"
            " (-v shows where)"
        )
    if logging.getLogger("dlr_engine").isEnabledFor(logging.DEBUG):
        _show_places(error)
    return FAILED


def _show_places(error: BaseException) -> None:
    """The stack by places and types alone."""
    seen: BaseException | None = error
    while seen is not None:
        complain(f"  {type(seen).__name__} at")
        for frame in traceback.extract_tb(seen.__traceback__):
            complain(f"    {frame.filename}:{frame.lineno} {frame.name}")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
