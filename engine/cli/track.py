"""`dlr-engine track`: hands over what was sent.

Where a worker owns the store, items go into its inbox and it takes them within two seconds; where
none does, they go straight into the books, by the same function. A file is read twice, first for
its faults alone, so that a faulty one leaves nothing behind.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from engine.books.sent import items_of
from engine.core.errors import ConfigError, EngineError
from engine.stores.tracked import Tracked

from . import process
from .rows import Faulty, Source

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config
    from engine.core.redact import Redactor
    from engine.stores.transaction import Store


class Counted:
    """How much was taken."""

    def __init__(self) -> None:
        self.batches = 0
        self.messages = 0
        self.new = 0

    def add(self, items: Iterable[Tracked]) -> None:
        for item in items:
            if item.batch_id is not None:
                self.batches += 1
            else:
                self.messages += 1

    def __str__(self) -> str:
        parts = [_many(self.batches, "batch", "batches")] if self.batches else []
        if self.messages or not parts:
            parts.append(_many(self.messages, "message", "messages"))
        return " and ".join(parts)


def command(args: argparse.Namespace) -> int:
    from engine.books.tracking import check_tracked

    _check_words(args)
    config = process.load_config(args.config)
    account = _account(config, args.account)
    process.refuse_memory(config, "track")
    now_ms = _now_ms()
    if args.file is None:
        item = _one(args, now_ms)
        check_tracked(account, [item])
        print(process.start(lambda: _hand_over(config, account, [[item]], now_ms)))
        return 0
    with Source(args.file) as source:
        try:
            for _ in source.chunks(lambda row: check_tracked(account, items_of([row], 0))):
                pass
        except Faulty as faulty:
            raise ConfigError(faulty.lines) from None
        print(process.start(lambda: _hand_over(config, account, _read(source, now_ms), now_ms)))
    return 0


def _check_words(args: argparse.Namespace) -> None:
    """What argparse cannot say: which options go together."""
    faults = []
    if args.file is not None:
        for name in ("recipients", "recipient", "sent_at", "reference"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                faults.append(f"{option} goes not with --file; the file has a column for it")
    elif args.batch_id is not None and args.recipient is not None:
        faults.append("--recipient goes with --message-id; a batch takes --recipients R1,R2,…")
    elif args.message_id is not None and args.recipients is not None:
        faults.append("--recipients goes with --batch-id; a message takes --recipient R")
    elif args.recipients is not None and not any(r.strip() for r in args.recipients.split(",")):
        faults.append("--recipients: expected one recipient at least")
    if faults:
        raise ConfigError([f"dlr-engine track: {fault}" for fault in faults])


def _account(config: Config, name: str) -> AccountConfig:
    account = process.account_of(config, name)
    if not account.provider.traits.tracks:
        raise ConfigError(
            [f"{name}: {account.provider.name} takes no ids: its messages are found in its feed"]
        )
    return account


def _one(args: argparse.Namespace, now_ms: int) -> Tracked:
    recipients = [args.recipient.strip()] if args.recipient is not None else []
    if args.recipients is not None:
        recipients = [r.strip() for r in args.recipients.split(",") if r.strip()]
    return Tracked(
        batch_id=_stripped(args.batch_id),
        message_id=_stripped(args.message_id),
        recipients=recipients,
        reference=_stripped(args.reference),
        sent_ms=now_ms if args.sent_at is None else args.sent_at,
    )


def _stripped(word: str | None) -> str | None:
    """As a file's cell is read."""
    return None if word is None else word.strip()


def _read(source: Source, now_ms: int) -> Iterator[list[Tracked]]:
    """The file's items, a bounded number at a time."""
    try:
        for chunk in source.chunks():
            yield items_of(chunk, now_ms)
    except Faulty:  # it had none before
        raise EngineError(
            f"{source.path.name}: it was changed while it was read; a part of it is tracked, and"
            " the same command adds the rest"
        ) from None


async def _hand_over(
    config: Config, account: AccountConfig, chunks: Iterable[list[Tracked]], now_ms: int
) -> str:
    """Put everything where the worker finds it; what to say about it."""
    from engine.books.redacting import redactors

    from .owning import opened

    counted = Counted()
    async with opened(config, own=False) as found:
        redactor = (await redactors(config, found.store)).get(account.name)
        for items in chunks:
            if not items:
                continue
            counted.add(items)
            if found.owned:
                counted.new += await _take(found.store, account, items, now_ms, redactor)
            else:
                await _put(found.store, account, items, now_ms, redactor)
    if config.store.scheme == "postgresql":
        return f"{account.name}: {counted} handed to the workers; the one that has it takes them"
    if not found.owned:
        return f"{account.name}: {counted} handed to the running worker, which takes them at once"
    return f"{account.name}: {counted} tracked, {counted.new:,} of them new or grown"


async def _take(
    store: Store,
    account: AccountConfig,
    items: list[Tracked],
    now_ms: int,
    redactor: Redactor | None,
) -> int:
    from engine.books.tracking import take_tracked

    chance = random.random()
    works = await store.write(
        lambda tx: take_tracked(tx, account, items, redactor=redactor, now_ms=now_ms, chance=chance)
    )
    return len(works)


async def _put(
    store: Store,
    account: AccountConfig,
    items: list[Tracked],
    now_ms: int,
    redactor: Redactor | None,
) -> None:
    from engine.books.tracking import inbox_item

    item = inbox_item(account.name, items, now_ms, redactor)
    await store.write(lambda tx: tx.put_inbox(item))


def _now_ms() -> int:
    from engine.machine.clock import RealClock

    return RealClock().now_ms()


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
