"""The standard streams: usable whatever the command was started with, and how to write to them.

A descriptor that was closed before the start would be given to the next file or socket that is
opened, and what is printed would go into that. A locale may lack characters that are printed. And
what a provider said must not steer the terminal that it is shown on.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

# Of a stream that is closed. Standard output takes nothing then: what is written there and lost
# would count as written.
_STAND_INS = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


def settle() -> None:
    """Put a stand-in where a stream is closed, and let none fail over a character."""
    closed = [number for number, mode in _STAND_INS if _stands_in(number, mode)]
    if 1 in closed:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if 2 in closed:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _stands_in(number: int, mode: int) -> bool:
    """Whether the descriptor was closed; it is open now."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, mode)  # gets the lowest number that is free: this one
        return True
    return False


def complain(line: str) -> None:
    """A line on standard error, if anybody reads it."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr)


def print_json(value: object) -> None:
    """On standard output, as UTF-8 whatever the locale: that is what JSON is."""
    import orjson  # not for `--help`

    data = orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"
    sys.stdout.flush()
    if (stream := getattr(sys.stdout, "buffer", None)) is not None:
        stream.write(data)
    else:
        sys.stdout.write(data.decode())


def plain(text: str) -> str:
    """The text on one line; what would steer a terminal is escaped."""
    from engine.config.values import printable  # not for `--help`

    return printable(text, len(text))


def flush() -> str | None:
    """Let out what is buffered for standard output. Why it cannot be; then it is forgotten, so that
    nothing fails at the exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return (error.strerror if isinstance(error, OSError) else None) or "it is closed"
    return None
