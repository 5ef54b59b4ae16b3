"""`dlr-engine replay`: takes what was set aside through the provider's code as it is now.

Where a worker owns the store, it is asked to do it, and says in a note what came of it; where none
does, it is done here. `--list` shows the pieces and changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.core.errors import EngineError
from engine.core.units import iso

from . import process
from .show import stored
from .streams import plain, print_json

if TYPE_CHECKING:
    from engine.books.replaying import Line, Order
    from engine.config.model import AccountConfig, Config
    from engine.core.redact import Redactor
    from engine.stores.transaction import Piece, Store


# Pieces that are listed at most; the bytes that are shown of each.
LISTED_MAX = 1000
RAW_SHOWN = 120
# Pieces read at once for the list, and their bytes before the last one.
READ_MAX = 100
READ_BYTES_MAX = 4 << 20

_COLUMNS = ("account", "cause", "pieces", "digested", "new", "repeated", "still set aside")


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    accounts = _accounts(config, args.account)
    if not stored(config):
        print(f"dlr-engine: the store {config.store.shown} does not exist yet", file=sys.stderr)
        return 0
    if args.list:
        listed = process.start(lambda: _list(config, accounts, args.since))
        _show(listed, as_json=args.json)
        return 0
    lines = process.start(lambda: _replay(config, accounts, args.since, dry_run=args.dry_run))
    if args.json:
        print_json(msgspec.to_builtins(lines))
    else:
        print("\n".join(_table(lines, dry_run=args.dry_run)))
    return 0


def _accounts(config: Config, name: str | None) -> list[AccountConfig]:
    if name is None:
        return list(config.accounts)
    return [process.account_of(config, name)]


# Replaying


async def _replay(
    config: Config, accounts: Sequence[AccountConfig], since_ms: int, *, dry_run: bool
) -> list[Line]:
    from engine.books.redacting import redactors
    from engine.books.replaying import Order

    from .owning import opened

    order = Order(since_ms=since_ms, dry_run=dry_run)
    lines: list[Line] = []
    async with opened(config) as found:
        if not found.owned:
            return await _through_worker(found.store, accounts, order)
        known = await redactors(config, found.store)
        for account in accounts:
            lines += await _directly(found.store, account, order, known.get(account.name))
    return lines


async def _directly(
    store: Store, account: AccountConfig, order: Order, redactor: Redactor | None
) -> list[Line]:
    from engine.books.replaying import Replayer
    from engine.machine.clock import RealClock
    from engine.telemetry import Telemetry

    replayer = Replayer(
        account,
        store,
        telemetry=Telemetry(),
        clock=RealClock(),
        redactor=redactor,
    )
    return await replayer.run(order)


async def _through_worker(
    store: Store, accounts: Sequence[AccountConfig], order: Order
) -> list[Line]:
    """Hand it over to the workers that have the accounts."""
    from engine.books.replaying import Line

    from .orders import WORKER_MAX_S, ask_all

    names = [account.name for account in accounts]
    found = await ask_all(store, "replay", [(name, order) for name in names])
    if None in found:
        waits = ", ".join(name for name, one in zip(names, found, strict=True) if one is None)
        raise EngineError(
            f"the running worker was not through within {WORKER_MAX_S:g} s ({waits}); what it has"
            " begun it ends, `dlr-engine replay --list` shows what is left"
        )
    lines = [msgspec.json.decode(one, type=list[Line]) for one in found if one is not None]
    return [line for some in lines for line in some]


def _table(lines: Sequence[Line], *, dry_run: bool) -> list[str]:
    if not lines:
        return ["nothing is set aside that could be read again"]
    rows = [
        (line.account, line.cause, line.pieces, line.digested, line.new, line.repeated, line.left)
        for line in lines
    ]
    cells = [_COLUMNS, *([f"{v:,}" if isinstance(v, int) else v for v in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_COLUMNS))]
    text = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    if dry_run:
        text.append("a dry run: nothing was changed")
    return text


# Listing


async def _list(
    config: Config, accounts: Sequence[AccountConfig], since_ms: int
) -> list[dict[str, Any]]:
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    listed: list[dict[str, Any]] = []
    try:
        for account in accounts:
            after_id = 0
            while len(listed) < LISTED_MAX:
                pieces = await _pieces(store, account.name, after_id, since_ms)
                if not pieces:
                    break
                listed += map(_piece, pieces)
                after_id = pieces[-1].id
    finally:
        await store.close()
    return listed[:LISTED_MAX]


async def _pieces(store: Store, account: str, after_id: int, since_ms: int) -> list[Piece]:
    return await store.read(
        lambda tx: tx.pieces(account, after_id, since_ms, READ_MAX, bytes_max=READ_BYTES_MAX)
    )


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "account": piece.account,
        "cause": piece.cause,
        "position": piece.position,
        "form": piece.form.value,
        "received_at": iso(piece.at_ms),
        "bytes": piece.size,
        "truncated": piece.truncated,
        "times": piece.times,
        "raw": piece.raw[:RAW_SHOWN].decode("utf-8", "replace"),
    }


def _show(listed: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    if not listed:
        print("nothing is set aside that could be read again")
    for piece in listed:
        times = f", {piece['times']:,} times" if piece["times"] > 1 else ""
        kept = "the beginning of it kept" if piece["truncated"] else "kept whole"
        print(plain(f"{piece['received_at']} {piece['account']}: {piece['cause']}"))
        print(f"  {piece['position']}, {piece['bytes']:,} bytes, {kept}{times}")
        print(f"  {piece['raw']!r}")
    if len(listed) == LISTED_MAX:
        print(f"dlr-engine: only the first {LISTED_MAX:,} are shown", file=sys.stderr)
