"""Logging, set up for the command line: one line an event, on stderr.

    2026-11-21T12:00:00.000Z WARNING bulk-eu: HTTP 503; asked again in 2s

The library itself touches no handler. Tracebacks are never printed: their messages may hold what
an answer held. While a live view stands on the terminal, lines go above it.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from engine.core.units import iso

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("dlr_engine")


class _Line(logging.Formatter):
    """One line whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        return f"{iso(round(record.created * 1000))} {record.levelname} {text}"


class _Stderr(logging.Handler):
    """Plain lines, or lines above the live view of `console`."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Line())
        self.console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            if self.console is not None:
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads stderr any more: the work goes on
            return


_handler = _Stderr()


def set_up(*, verbose: bool, quiet: bool) -> None:
    """Log to stderr; calling it again only changes the level."""
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    if _handler not in log.handlers:
        log.addHandler(_handler)
    others = logging.getLogger()
    if not others.handlers:  # what libraries log may hold URLs
        others.addHandler(logging.NullHandler())


def above(console: Console | None) -> None:
    """From now on log above this console's live view; None: plainly again."""
    _handler.console = console
