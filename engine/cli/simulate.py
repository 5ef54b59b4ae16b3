"""`dlr-engine simulate`: the four providers on this machine, until it is stopped."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from engine.core.errors import ConfigError, EngineError

from . import process

if TYPE_CHECKING:
    from engine.sim import Profile


def command(args: argparse.Namespace) -> int:
    from engine.sim import Profile

    profile: Profile | None = None
    if args.profile is not None:
        try:
            profile = Profile.load(args.profile)
        except ValueError as error:
            raise ConfigError(str(error).splitlines()) from None
    process.with_signals(lambda stop: _serve(args.port, profile, stop))
    return 0


async def _serve(port: int, profile: Profile | None, stop: process.Stop) -> None:
    from engine.sim import serve

    try:
        await stop.unless(lambda: serve(port, profile, _announce))
    except* OSError as group:
        error = group.exceptions[0]
        number = getattr(error, "errno", None)
        cause = os.strerror(number) if isinstance(number, int) else "it cannot be opened"
        raise EngineError(f"port {port}: {cause.lower()}; choose another with --port") from None


def _announce(text: str) -> None:
    print(text, flush=True)
