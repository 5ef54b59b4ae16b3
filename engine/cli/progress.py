"""A progress bar on a terminal's stderr; elsewhere nothing, or a log line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import logs

log = logging.getLogger("dlr_engine")

LOG_S = 60.0  # in a pipe a line this often

# How much is done, and what to say about it.
Tell = Callable[[float, str], None]


@contextmanager
def shown(what: str, total: float, *, quiet: bool) -> Iterator[Tell]:
    """Show how far `what` has come, as long as the block lasts: `tell(done, words)`, of `total`; 0:
    that is not known. It may be told on another thread."""
    if quiet or not sys.stderr.isatty():
        yield _in_a_pipe(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[what]}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=max(total, 1e-9), what=what, words="")
        logs.above(console)
        try:
            yield lambda done, words: bar.update(task, completed=min(done, total), words=words)
        finally:
            logs.above(None)


def _in_a_pipe(what: str, total: float) -> Tell:
    said = time.monotonic()

    def tell(done: float, words: str) -> None:
        nonlocal said
        if time.monotonic() - said >= LOG_S:
            said = time.monotonic()
            share = [f"{100 * min(done, total) / total:.0f} %"] if total else []
            log.info("%s: %s", what, ", ".join([*share, *filter(None, [words])]))

    return tell
