"""A message looked up: as it stands, what it went through, and when it is asked for next.

What `show` prints and `GET /v1/messages` answers; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from engine.config.model import Config
from engine.core.contracts import Kind
from engine.core.reconcile import History, Known, newest_entry
from engine.core.redact import Redactor
from engine.core.report import recipient_key
from engine.core.units import iso
from engine.core.work import Work
from engine.stores.transaction import Transaction

SHOWN_MAX = 1000


class Found(msgspec.Struct):
    """What was found, with the work that is scheduled for it."""

    messages: list[Known] = []
    batches: list[Work] = []  # tracked ones of which no message is known
    works: dict[tuple[str, Kind, str], Work] = {}


def find(
    tx: Transaction,
    accounts: Sequence[str],
    by: str,
    value: str,
    redactors: Sequence[Redactor],
    *,
    account: str | None = None,
) -> Found:
    """Messages by message_id, recipient, batch_id or reference, in any account or in this one."""
    found = Found()
    for key in _spellings(by, value, redactors):
        known = tx.find_messages(by, key, SHOWN_MAX + 1)
        found.messages += [one for one in known if account in (None, one.account)]
    tx.newest(found.messages)
    for name in dict.fromkeys((*accounts, *(known.account for known in found.messages))):
        own = [known for known in found.messages if known.account == name]
        batches = {known.batch_id for known in own if known.batch_id is not None}
        if by == "batch_id":
            batches.add(value)
        ids = {known.message_id for known in own}
        for kind, keys in ((Kind.BATCH, batches), (Kind.ENDED, batches), (Kind.MESSAGE, ids)):
            works = tx.find_works(name, kind, sorted(keys)) if keys else []
            found.works |= {(name, kind, work.key): work for work in works}
        if by == "batch_id" and not own:
            work = found.works.get((name, Kind.BATCH, value))
            found.batches += [work] if work is not None else []
        if by == "reference":
            named = tx.find_batches(name, value, SHOWN_MAX)
            found.batches += [work for work in named if not any(tx.batch_counts(name, work.key))]
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


def message_table(config: Config, known: Known, found: Found) -> dict[str, Any]:
    """A message as JSON shows it."""
    history = list(History.of(known).entries) if known.history else []
    if known.revision:
        history.append(newest_entry(known))
    # A report that lost may have come after the newest record.
    history.sort(key=lambda entry: str(entry["observed_at"]))
    work = found.works.get((known.account, Kind.MESSAGE, known.message_id))
    if work is None and known.batch_id is not None and not known.final:
        batch = [(known.account, kind, known.batch_id) for kind in (Kind.BATCH, Kind.ENDED)]
        work = next((found.works[key] for key in batch if key in found.works), None)
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


def batch_table(config: Config, work: Work) -> dict[str, Any]:
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
