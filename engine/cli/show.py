"""`dlr-engine show`: a message as it stands, and what it went through.

Reads beside a running worker and changes nothing; a store that does not exist yet is not made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from engine.core.contracts import Kind
from engine.core.errors import EngineError
from engine.core.reconcile import History, Known, newest_entry
from engine.core.report import msisdn, recipient_key
from engine.core.units import iso
from engine.core.work import Work

from . import process

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.core.redact import Redactor
    from engine.stores.transaction import Transaction

SHOWN_MAX = 1000


class Found(msgspec.Struct):
    """What was found, with the work that is scheduled for it."""

    messages: list[Known] = []
    batches: list[Work] = []  # tracked ones of which no message is known
    works: dict[tuple[str, Kind, str], Work] = {}


def command(args: argparse.Namespace) -> int:
    config = process.load_config(args.config)
    by, value = _question(args)
    found = Found()
    if stored(config):
        found = process.start(lambda: _search(config, by, value))
    tables = [_message(config, known, found) for known in found.messages[:SHOWN_MAX]]
    tables += [_batch(config, work) for work in found.batches]
    if args.json:
        sys.stdout.write(orjson.dumps(tables, option=orjson.OPT_INDENT_2).decode() + "\n")
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
    from engine.redacting import known_redactors
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        accounts = [account.name for account in config.accounts]
        return await store.read(
            lambda tx: _find(tx, accounts, by, value, known_redactors(tx, config))
        )
    finally:
        await store.close()


def _find(
    tx: Transaction, accounts: list[str], by: str, value: str, redactors: Sequence[Redactor]
) -> Found:
    found = Found()
    for key in _spellings(by, value, redactors):
        found.messages += tx.find_messages(by, key, SHOWN_MAX + 1)
    tx.newest(found.messages)
    for account in dict.fromkeys((*accounts, *(known.account for known in found.messages))):
        own = [known for known in found.messages if known.account == account]
        batches = {known.batch_id for known in own if known.batch_id is not None}
        if by == "batch_id":
            batches.add(value)
        ids = {known.message_id for known in own}
        for kind, keys in ((Kind.BATCH, batches), (Kind.MESSAGE, ids)):
            works = tx.find_works(account, kind, sorted(keys)) if keys else []
            found.works |= {(account, kind, work.key): work for work in works}
        if by == "batch_id" and not own:
            work = found.works.get((account, Kind.BATCH, value))
            found.batches += [work] if work is not None else []
    return found


def _spellings(by: str, value: str, redactors: Sequence[Redactor]) -> list[str]:
    """What the store may hold instead of what was asked for."""
    if by == "recipient":
        hashes = (recipient_key(redactor.token(value)) for redactor in redactors)
        return list(dict.fromkeys((recipient_key(value), *hashes)))
    spelled = [value]
    batch_id, colon, rest = value.rpartition(":")
    number, mark, nth = rest.partition("#")
    if by == "message_id" and colon and number:
        spelled += [f"{batch_id}:{redactor.token(number)}{mark}{nth}" for redactor in redactors]
    return list(dict.fromkeys(spelled))


def _message(config: Config, known: Known, found: Found) -> dict[str, Any]:
    """A message as JSON shows it."""
    history = sorted(
        History.of(known).entries if known.history else [], key=lambda e: str(e["observed_at"])
    )
    if known.revision:
        history.append(newest_entry(known))
    work = found.works.get((known.account, Kind.MESSAGE, known.message_id))
    if work is None and known.batch_id is not None and not known.final:
        work = found.works.get((known.account, Kind.BATCH, known.batch_id))
    return {
        "account": known.account,
        "message_id": known.message_id,
        "direction": known.direction,
        "state": known.state.value,
        "final": known.final,
        "verdict": known.verdict,
        "revision": known.revision,
        "tracked": known.tracked,
        "recipient": known.recipient,
        "batch_id": known.batch_id,
        "reference": known.reference,
        "sent_at": iso(known.sent_ms) if known.sent_ms is not None else None,
        **_next(config, work),
        "record": orjson.loads(known.record) if known.record else None,
        "history": history,
    }


def _batch(config: Config, work: Work) -> dict[str, Any]:
    """A batch that is asked for, and of which nothing was heard."""
    return {
        "account": work.account,
        "message_id": None,
        "direction": "mt",
        "state": "unknown",
        "final": False,
        "verdict": None,
        "revision": 0,
        "tracked": True,
        "recipient": None,
        "batch_id": work.key,
        "reference": work.data.get("reference"),
        "sent_at": iso(work.start_ms),
        **_next(config, work),
        "record": None,
        "history": [],
    }


def _next(config: Config, work: Work | None) -> dict[str, str | None]:
    """When it is asked for next; what no request asks for only waits for its verdict."""
    times: dict[str, str | None] = {"next_poll_at": None, "verdict_at": None}
    if work is not None:
        account = config.account(work.account)
        asked = account is None or work.kind.value in account.provider.traits.asks
        times["next_poll_at" if asked else "verdict_at"] = iso(work.due_ms)
    return times


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
        return "\n".join(lines)
    lines.append("  history, oldest first:")
    columns = [_columns(entry) for entry in table["history"]]
    widths = [max(len(row[i]) for row in columns) for i in range(len(columns[0]))]
    for row in columns:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("    " + "  ".join(cells).rstrip())
    return "\n".join(lines)


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
