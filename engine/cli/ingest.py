"""`dlr-engine ingest`: takes files of reports that a provider has exported.

Where no worker runs it owns the store meanwhile and records them itself; beside one they go through
the inbox. All files are looked at before the first is taken. They are read a piece at a time, so
that their size does not matter, and inflated where they are gzip's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.values import printable
from engine.core.contracts import Head, Kind, Poll
from engine.core.errors import ConfigError
from engine.core.units import spell_size

from . import process, progress

if TYPE_CHECKING:
    from engine.books.ingesting import Ingester, Told
    from engine.config.model import AccountConfig, Config
    from engine.core.redact import Redactor

    from .owning import Opened

CHUNK = 64 << 10
NAME_MAX = 200
WORDS_MAX = 40  # of a name beside the bar
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    account = process.account_of(config, args.account)
    process.refuse_memory(config, "ingest")
    if account.provider.traits.files is None:
        raise ConfigError(
            [
                f"{account.name}: {account.provider.name} documents no file of reports that it"
                " exports; `ingest` takes the CSV file that messangi's POST /v3/mlog mails"
            ]
        )
    _look_at(account, args.files)
    told = process.with_signals(lambda stop: _ingest(config, account, args, stop))
    return 1 if any(one.cause for one in told) else 0


# Files


def _look_at(account: AccountConfig, paths: Sequence[Path]) -> None:
    """Raises ConfigError for all that cannot be read, or begin as no export does."""
    faults = []
    for path in paths:
        try:
            if path.is_file():  # a pipe can be read once alone
                _look(account, path)
            else:
                path.stat()
                if path.is_dir():
                    faults.append(f"{_shown(path)}: is a folder")
        except (EOFError, ValueError) as error:
            faults.append(f"{_shown(path)}: {error}")
        except OSError as error:
            faults.append(f"{_shown(path)}: {error.strerror or 'cannot be read'}")
    if faults:
        raise ConfigError(faults)


def _look(account: AccountConfig, path: Path) -> None:
    """Raises ValueError where it does not begin with the row that an export begins with."""
    reader = account.provider.reader(Poll(kind=Kind.FILE, now_ms=0), Head(200, {}))
    rows, read = reader.parser, 0
    for chunk in chunks_of(path):
        rows.feed(chunk)
        read += len(chunk)
        if read >= CHUNK or rows.cause is not None:
            break
    else:
        rows.close()
    if rows.cause is not None:
        raise ValueError(f"{rows.cause}; expected {account.provider.traits.files}")


def chunks_of(path: Path, progressed: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """What is in a file, inflated where it is gzip's. Raises EOFError, which says why, where it
    cannot be read to its end, after all that can. `progressed` is told the bytes of the file."""
    from engine.network.inflate import Damaged, Inflater

    inflater: Inflater | None = None
    begun = False
    with path.open("rb") as stream:
        while True:
            try:
                raw = stream.read(CHUNK)
            except OSError as error:
                raise EOFError(error.strerror or "input/output error") from None
            if not begun and raw.startswith(_ZIP):
                raise EOFError("it is a ZIP archive: unpack it first")
            if not begun and raw.startswith(_GZIP):
                inflater = Inflater("gzip")
            begun = True
            if progressed is not None:
                progressed(len(raw))
            if not raw:
                break
            if inflater is None:
                yield raw
                continue
            try:
                yield from inflater.feed(raw)
            except Damaged:
                raise EOFError("its gzip is damaged") from None
    if inflater is not None and not inflater.ended():
        raise EOFError("its gzip is cut short")


def _shown(path: Path) -> str:
    return printable(str(path), NAME_MAX)


# Taking them


async def _ingest(
    config: Config, account: AccountConfig, args: argparse.Namespace, stop: process.Stop
) -> list[Told]:
    from engine.books.redacting import redactors

    from .owning import opened

    paths: list[Path] = args.files
    told: list[Told] = []
    total = sum(path.stat().st_size for path in paths if path.is_file())

    async def read() -> list[Told]:
        async with opened(config) as found:
            redactor = (await redactors(config, found.store)).get(account.name)
            ingester = _ingester(account, found, redactor)
            with progress.shown(account.name, total, quiet=args.quiet) as tell:
                done = 0

                def progressed(size: int) -> None:
                    nonlocal done
                    done += size
                    words = printable(path.name, WORDS_MAX)
                    # Of a pipe nobody knows how long it is.
                    tell(done, words if total else f"{words}, {spell_size(done)}")

                for path in paths:
                    one = await ingester.read(path.name, chunks_of(path, progressed))
                    told.append(one)
        return told

    whole = await stop.unless(read)
    for path, one in zip(paths, told, strict=False):
        print(f"{account.name}: {_shown(path)}: {_line(one)}")
        if one.cause:
            print(f"{_shown(path)}: {one.cause}; what came before is taken", file=sys.stderr)
    if any(one.set_aside for one in told):
        print(
            f"what was set aside: dlr-engine replay --config {args.config} --account"
            f" {account.name} --list"
        )
    if whole is None:
        print(
            f"stopped within {_shown(paths[len(told)])}: run the same command again to go on,"
            " nothing is recorded twice",
            file=sys.stderr,
        )
    return told


def _ingester(account: AccountConfig, found: Opened, redactor: Redactor | None) -> Ingester:
    from engine.books.committing import Committer
    from engine.books.ingesting import Books, Ingester, Worker
    from engine.machine.clock import RealClock
    from engine.telemetry import Telemetry

    clock, telemetry = RealClock(), Telemetry()
    committer = Committer(account, found.store, telemetry, clock, redactor)
    if found.owned:
        return Ingester(
            account, committer, Books(committer, found.store), telemetry=telemetry, clock=clock
        )
    worker = Worker(account.name, found.store, clock, clock.now_ms())
    return Ingester(account, committer, worker, telemetry=telemetry, clock=clock)


def _line(told: Told) -> str:
    rows = "1 row" if told.rows == 1 else f"{told.rows:,} rows"
    parts = [f"{told.new:,} new {'record' if told.new == 1 else 'records'}"]
    if told.repeated:
        parts.append(f"{told.repeated:,} known already")
    if told.set_aside:
        parts.append(f"{told.set_aside:,} set aside")
    return f"{rows}: {', '.join(parts)}"
