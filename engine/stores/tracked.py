"""What was sent, taken into the books: messages that are known before the provider reports them,
and the work that asks for them or waits for their verdict."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.core.contracts import Kind, Traits
from engine.core.reconcile import Known, batch_mark
from engine.core.redact import is_redacted
from engine.core.report import msisdn
from engine.core.schedule import Ladder
from engine.core.work import Work

from .posting import Change, who
from .settling import OWING, batch_over, final_recipients
from .transaction import Transaction


class Tracked(msgspec.Struct, kw_only=True):
    """One row of what was sent, as `track` takes it."""

    batch_id: str | None = None
    message_id: str | None = None
    recipients: list[str] = []
    references: list[str | None] = []  # one a recipient, where they differ; else `reference`
    times_ms: list[int | None] = []  # likewise, else `sent_ms`
    reference: str | None = None
    sent_ms: int


def track(
    tx: Transaction,
    account: str,
    traits: Traits,
    items: Sequence[Tracked],
    *,
    ladder: Ladder,
    now_ms: int,
    chance: float,
) -> list[Work]:
    """Take what was sent into the books. What is tracked already stays as it is.

    Returns the works that are new or have grown.
    """
    change = Change(account, {})
    works: dict[tuple[Kind, str], Work] = {}
    for item in items:
        work = (
            _track_batch(tx, account, traits, item, change, now_ms)
            if item.batch_id is not None
            else _track_message(tx, account, item, change, now_ms)
        )
        if work is not None:
            due_ms = _first_due(work, traits, ladder, chance)
            if due_ms is not None:
                work.due_ms = due_ms
                stored = tx.put_works([work])[0]
                works[(work.kind, work.key)] = stored
    if change.counts:
        tx.add_tallies(account, change.counts)
    return list(works.values())


def refit(
    tx: Transaction,
    account: str,
    traits: Traits,
    ladder: Ladder,
    rescans: Ladder,
    *,
    after_id: int,
    chance: float,
    limit: int = 2000,
) -> int | None:
    """Put works that are under way on the next rung of an edited ladder, some at a time. Where that
    has no rungs any more, there are no verdicts, and nothing is asked for them.

    Returns where to go on, or None when all were looked at.
    """
    works = tx.works_after(account, after_id, limit)
    kept: list[Work] = []
    over: list[int] = []
    for work in works:
        if work.kind is Kind.FEED:
            continue
        due_ms: int | None = work.due_ms
        if work.kind is Kind.WINDOW:
            due_ms = rescans.next_due_ms(work.start_ms, work.answered_ms, chance)
            if due_ms is None and rescans.offsets_ms:
                due_ms = work.start_ms + rescans.last_ms
        elif work.kind in (Kind.BATCH, Kind.MESSAGE):
            due_ms = _first_due(work, traits, ladder, chance)
        if due_ms is None:
            over.append(work.id or 0)
        else:
            work.due_ms = due_ms
            kept.append(work)
    tx.drop_works(over)
    tx.put_works(kept)
    return works[-1].id if len(works) == limit else None


def _first_due(work: Work, traits: Traits, ladder: Ladder, chance: float) -> int | None:
    """The next rung; for what is not asked by id, when its verdict is due."""
    if work.kind.value in traits.asks:
        due_ms = ladder.next_due_ms(work.start_ms, work.answered_ms, chance)
        return due_ms if due_ms is not None else work.start_ms + ladder.last_ms
    return work.start_ms + ladder.last_ms if ladder.offsets_ms else None


def _track_batch(
    tx: Transaction, account: str, traits: Traits, item: Tracked, change: Change, now_ms: int
) -> Work | None:
    assert item.batch_id is not None
    recipients = [who(text) for text in item.recipients]
    found = tx.find_works(account, Kind.BATCH, [item.batch_id])
    if found:
        work = found[0]
    else:
        work = _new_work(account, Kind.BATCH, item.batch_id, item)
        known, pending, _ = tx.batch_counts(account, item.batch_id)
        if known and not recipients and not pending:
            return None  # its ladder has ended, or all of it came before it was tracked
    new = 0
    if traits.derives_ids:
        new = _track_derived(tx, account, item, recipients, change, now_ms)
        grown: bool | list[str] = bool(recipients) or bool(work.data.get("recipients"))
    else:
        held: list[str] = work.data.get("recipients") or []
        grown = list(dict.fromkeys([*held, *recipients]))
        new = len(grown) - len(held)
        if not found and recipients:
            new -= len(set(grown) & final_recipients(tx, work))
    if not new and (found or recipients):
        return None
    if grown:
        kept = {key: fact for key, fact in work.data.items() if key != OWING}
        work.data = {**kept, "recipients": grown}
    if not traits.asks and batch_over(tx, work, traits, rows=0, all_final=False):
        return None
    return work


def _track_derived(
    tx: Transaction,
    account: str,
    item: Tracked,
    recipients: Sequence[str],
    change: Change,
    now_ms: int,
) -> int:
    """Messages whose ids follow from the batch: known from the start. How many are new."""
    assert item.batch_id is not None
    ids: list[tuple[str, str]] = []
    times: dict[str, int] = {}
    for digits in recipients:
        times[digits] = nth = times.get(digits, 0) + 1
        suffix = f"#{nth}" if nth > 1 else ""
        ids.append((f"{item.batch_id}:{digits}{suffix}", digits))
    mark = batch_mark(item.batch_id)
    found = tx.messages(account, [(message_id, "mt") for message_id, _ in ids], [mark] * len(ids))
    new: list[Known] = []
    early: list[Known] = []  # reported before they were tracked
    over: list[Known] = []  # … and to their end
    nothing = [None] * len(ids)
    for (message_id, digits), reference, time_ms in zip(
        ids, item.references or nothing, item.times_ms or nothing, strict=True
    ):
        sent_ms = item.sent_ms if time_ms is None else time_ms
        known = found.get((message_id, "mt"))
        if known is None:
            known = _new_known(account, message_id, digits, item, now_ms, reference)
            known.sent_ms = known.placed_ms = sent_ms
            known.mark = mark
            new.append(known)
            change.moved(None, new[-1])
        elif not known.tracked and not known.final:
            _adopt(known, item, reference)
            early.append(known)
        elif _named(known, reference or item.reference):
            over.append(known)
    tx.put_messages([*new, *early, *over])
    return len(new) + len(early)


def _track_message(
    tx: Transaction, account: str, item: Tracked, change: Change, now_ms: int
) -> Work | None:
    assert item.message_id is not None
    found = tx.messages(account, [(item.message_id, "mt")]).get((item.message_id, "mt"))
    if found is not None and (found.tracked or found.final):
        if _named(found, item.reference):
            tx.put_messages([found])
        return None
    if found is None:
        recipient = item.recipients[0] if item.recipients else None
        known = _new_known(account, item.message_id, recipient, item, now_ms)
        change.moved(None, known)
    else:
        known = found
        _adopt(known, item, None)
    tx.put_messages([known])
    return _new_work(account, Kind.MESSAGE, item.message_id, item)


def _named(known: Known, reference: str | None) -> bool:
    """Whether one that came to its end before it was tracked gets its reference now."""
    if known.tracked or known.reference is not None or reference is None:
        return False
    known.reference = reference
    return True


def _adopt(known: Known, item: Tracked, reference: str | None) -> None:
    """The provider's report came before it was tracked."""
    known.tracked = True
    known.reference = reference or item.reference or known.reference
    known.sent_ms = known.sent_ms if known.sent_ms is not None else item.sent_ms
    known.placed_ms = known.placed_ms if known.placed_ms is not None else known.sent_ms


def _new_known(
    account: str,
    message_id: str,
    recipient: str | None,
    item: Tracked,
    now_ms: int,
    reference: str | None = None,
) -> Known:
    return Known(
        account=account,
        message_id=message_id,
        sent_ms=item.sent_ms,
        placed_ms=item.sent_ms,
        seen_ms=now_ms,
        batch_id=item.batch_id,
        reference=reference or item.reference,
        recipient=recipient,
        tracked=True,
    )


def _new_work(account: str, kind: Kind, key: str, item: Tracked) -> Work:
    data = {"reference": item.reference} if item.reference is not None else {}
    return Work(
        account=account, kind=kind, key=key, due_ms=item.sent_ms, start_ms=item.sent_ms, data=data
    )


def only_open(tx: Transaction, account: str, batch_id: str) -> str | None:
    """The one recipient of a batch that is still open."""
    if tx.batch_counts(account, batch_id)[1] != 1:
        return None
    recipient = tx.batch_messages(account, batch_id, pending=True, limit=1)[0].recipient
    return None if is_redacted(recipient) else msisdn(recipient)
