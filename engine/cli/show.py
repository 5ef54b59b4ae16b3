"""`dlr-engine show`: a message as it stands, and what it went through.

Reads beside a running worker and changes nothing; a store that does not exist yet is not made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from engine.books.lookup import SHOWN_MAX, Found, batch_table, find, message_table
from engine.core.errors import EngineError
from engine.core.report import msisdn

from . import process
from .streams import plain, print_json

if TYPE_CHECKING:
    from engine.config.model import Config


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    by, value = _question(args)
    found = Found()
    if stored(config):
        found = process.start(lambda: _search(config, by, value))
    tables = [message_table(config, known, found) for known in found.messages[:SHOWN_MAX]]
    tables += [batch_table(config, work) for work in found.batches]
    if args.json:
        print_json(tables)
    else:
        print("\n\n".join(_text(table) for table in tables), end="\n" if tables else "")
    if len(found.messages) > SHOWN_MAX:
        print(f"dlr-engine: only the first {SHOWN_MAX:,} are shown", file=sys.stderr)
    if not tables:
        print(f"dlr-engine: no message has the {by.replace('_', ' ')} {value!r}", file=sys.stderr)
        return 1
    return 0


def stored(config: Config) -> bool:
    """Whether there is a store to look into. Raises EngineError where nobody but the worker can."""
    if config.store.scheme == "memory":
        raise EngineError(f"{config.source}: store.url: memory:// can be seen by its worker alone")
    return config.store.path is None or config.store.path.exists()


def _question(args: argparse.Namespace) -> tuple[str, str]:
    for by in ("recipient", "batch_id", "reference"):
        if getattr(args, by) is not None:
            return by, getattr(args, by)
    return "message_id", args.message_id


async def _search(config: Config, by: str, value: str) -> Found:
    from engine.books.redacting import known_redactors
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        accounts = [account.name for account in config.accounts]
        return await store.read(
            lambda tx: find(tx, accounts, by, value, known_redactors(tx, config))
        )
    finally:
        await store.close()


def _text(table: dict[str, Any]) -> str:
    """A message as people read it."""
    what = table["message_id"] or f"batch {table['batch_id']}"
    standing = "final" if table["final"] else "pending"
    verdict = f", verdict {table['verdict']}" if table["verdict"] else ""
    record = table["record"] or {}
    rows = [
        ("state", f"{table['state']} ({standing}{verdict})"),
        ("reason", _joined(record.get("reason"), record.get("error_code"))),
        ("recipient", _recipient(table["recipient"])),
        ("batch", table["batch_id"] if table["message_id"] else None),
        ("reference", table["reference"]),
        ("sent", table["sent_at"]),
        ("done", record.get("done_at")),
        ("next poll", table["next_poll_at"]),
        ("verdict at", table["verdict_at"]),
    ]
    lines = [f"{table['account']}  {what}"]
    lines += [f"  {name + ':':<12}{value}" for name, value in rows if value]
    if not table["history"]:
        lines.append("  nothing was heard of it yet")
        return _plain(lines)
    lines.append("  history, oldest first:")
    columns = [_columns(entry) for entry in table["history"]]
    widths = [max(len(row[i]) for row in columns) for i in range(len(columns[0]))]
    for row in columns:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("    " + "  ".join(cells).rstrip())
    return _plain(lines)


def _plain(lines: list[str]) -> str:
    """What a provider said could hold anything."""
    return "\n".join(plain(line) for line in lines)


def _columns(entry: dict[str, Any]) -> list[str]:
    notes = [f"verdict {entry['verdict']}"] if entry["verdict"] else []
    if entry["superseded"]:
        notes.append("superseded")
    return [
        f"#{entry['revision']}" if entry["revision"] is not None else "-",
        entry["observed_at"],
        entry["state"],
        entry["provider_status"] or "-",
        entry["error_code"] or "-",
        ", ".join(notes),
    ]


def _recipient(text: str | None) -> str | None:
    digits = msisdn(text)
    return f"{text} ({digits})" if digits is not None and digits != text else text


def _joined(*parts: Any) -> str | None:
    return ", ".join(part for part in _texts(parts)) or None


def _texts(parts: Iterable[Any]) -> Iterable[str]:
    return (str(part) for part in parts if part)
