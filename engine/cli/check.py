"""`dlr-engine check`: is the configuration right, and with --connect, does everything answer.

Without --connect nothing but the configuration and its secrets' files is read. With it, every sink
is opened and closed, and every account is asked one harmless question (`probe`).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import anyio

from . import needs, process

if TYPE_CHECKING:
    from engine.config.model import Config, SinkConfig

OPEN_MAX_S = 60.0


def command(args: argparse.Namespace) -> int:
    from engine.config import describe

    config = process.load_config(args.config)
    for line in (*describe(config), *needs.lines(config)):
        print(line)
    if not args.connect:
        return 0
    passed = process.start(lambda: _connect(config))
    return 0 if passed else 1


async def _connect(config: Config) -> bool:
    from .probe import probe_all

    verdicts = [verdict async for verdict in probe_all(config)]
    verdicts += [await _open(sink) for sink in config.sinks]
    return all(verdicts)


async def _open(config: SinkConfig) -> bool:
    """Open and close a sink."""
    from engine.core.errors import SinkError
    from engine.core.mask import Mask
    from engine.core.secret import secrets_in

    cause = f"it was not open after {OPEN_MAX_S:g} s"
    with anyio.move_on_after(OPEN_MAX_S):
        try:
            sink = config.build()
            try:
                await sink.open()
            finally:
                await sink.close()
        except SinkError as error:
            cause = str(error)
        except OSError as error:
            cause = error.strerror or type(error).__name__
        except Exception as error:  # a plug-in may raise anything; its text may hold a secret
            cause = f"a fault in the sink, {type(error).__name__}"
        else:
            print(f"sink {config.name}: ok", flush=True)
            return True
    cause = Mask(secrets_in(config.sink)).text(cause)
    print(f"sink {config.name}: FAILED: {cause}", flush=True)
    return False
