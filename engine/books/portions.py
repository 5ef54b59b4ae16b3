"""A provider's exported file on its way through the inbox, a portion of its reports at a time.

Whoever reads the file beside a running worker has read and redacted its rows; the worker takes each
portion in one transaction with what it says of it in a note, so that the reader of the file knows
how far it has come, and hands over no more than a few at a time.
"""

from __future__ import annotations

import msgspec

from engine.books.late import Late, page_of
from engine.config.model import AccountConfig
from engine.core.work import Committed, Page
from engine.stores.ledger import FILE, commit
from engine.stores.transaction import InboxItem, Transaction

KIND = "ingest"

# Files of one account of which it is noted how far they have come; the oldest are forgotten.
RUNS_MAX = 8


class Portion(Late, kw_only=True):
    """A part of a file. `run` names one reading of it, `number` counts its portions from 1."""

    run: str
    number: int
    began_ms: int  # when that reading has begun


class Counts(msgspec.Struct, kw_only=True):
    """What has become of the portions of one reading so far."""

    portions: int = 0
    new: int = 0  # records
    repeated: int = 0  # reports that were known already, or older than what is known
    apart: int = 0  # set aside, for they cannot be recorded


def portion_item(page: Page, run: str, number: int, began_ms: int) -> InboxItem:
    """What is handed over."""
    portion = Portion.of(page, run=run, number=number, began_ms=began_ms)
    payload = msgspec.msgpack.encode(portion)
    return InboxItem(account=page.account, kind=KIND, payload=payload, at_ms=page.observed_ms)


def check(item: InboxItem) -> None:
    """Raises ValueError where it is none."""
    msgspec.msgpack.decode(item.payload, type=Portion)


def take_portion(
    tx: Transaction, account: AccountConfig, item: InboxItem, *, apart: bool
) -> Committed:
    """Into the books. `apart`: something in the inbox cannot be recorded; its reports are set
    aside, where `replay` reads them one by one."""
    portion = msgspec.msgpack.decode(item.payload, type=Portion)
    reports = len(portion.reports)
    page = page_of(portion, account, apart=apart)
    page.source, page.revisit_ms = FILE, portion.began_ms
    done = commit(tx, page)
    runs = counts_of(tx, account.name)
    counts = runs.setdefault(portion.run, Counts())
    counts.portions = portion.number
    counts.new += done.records
    counts.repeated += done.repeated + done.lost
    counts.apart += reports if apart else 0
    kept = dict(list(runs.items())[-RUNS_MAX:])
    tx.put_note(account.name, KIND, msgspec.json.encode(kept))
    return done


def counts_of(tx: Transaction, account: str) -> dict[str, Counts]:
    """By reading, the latest one last."""
    note = tx.notes(KIND).get(account)
    return {} if note is None else msgspec.json.decode(note, type=dict[str, Counts])
