"""What words on the command line mean: each function takes one, or says what was expected."""

from __future__ import annotations

import argparse

from engine.core.units import duration_s, time_ms

WORKERS_MAX = 64  # of one command: more is a mistake, or wants another machine


def text(value: str) -> str:
    """Any that is not blank."""
    if not value.strip():
        raise argparse.ArgumentTypeError("expected a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that the locale has no characters for
        raise argparse.ArgumentTypeError("expected a text in the locale's encoding") from None
    return value


def duration(value: str) -> float:
    """Seconds, of a number or a text such as 5m."""
    try:
        try:
            return duration_s(float(value))
        except ValueError:
            return duration_s(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'expected a duration such as "5m", got "{value[:40]}"'
        ) from None


def time(value: str) -> int:
    """Epoch ms; a time without an offset is refused."""
    try:
        return time_ms(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "expected epoch seconds or a time with an offset such as 2026-11-21T12:00:00Z,"
            f' got "{value[:40]}"'
        ) from None


def workers(value: str) -> int:
    """How many."""
    if value.isascii() and value.isdigit() and 1 <= int(value) <= WORKERS_MAX:
        return int(value)
    raise argparse.ArgumentTypeError(f'expected 1 to {WORKERS_MAX} workers, got "{value[:40]}"')


def back_to(value: str) -> int | str:
    """A time, or `start`."""
    return value if value == "start" else time(value)


def port(value: str) -> int:
    """Of TCP."""
    if value.isascii() and value.isdigit() and int(value) <= 65535:
        return int(value)
    raise argparse.ArgumentTypeError(f'expected a port, 0 to 65535, got "{value[:40]}"')


def seconds(value: str) -> float:
    """How long the demo takes."""
    seconds = duration(value)
    if not 5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f'expected 5 to 3600 seconds, got "{value[:40]}"')
    return seconds


def count(value: str) -> int:
    """How many messages the demo sends."""
    if value.isascii() and value.isdigit() and 10 <= int(value) <= 1_000_000:
        return int(value)
    raise argparse.ArgumentTypeError(f'expected a number from 10 to 1000000, got "{value[:40]}"')
