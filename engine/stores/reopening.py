"""A correction after a verdict that is not final: its message is pending again.

What led to the verdict is over: its ladder has ended, its window is forgotten. The message gets the
last rung once more, as far away as that was from the one before it, and then a verdict again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.core.contracts import Kind
from engine.core.reconcile import Known
from engine.core.work import Work

from .posting import Posting


def reopen(post: Posting, messages: Sequence[Known]) -> None:
    """Put into the schedule what nothing in it will end. Without a ladder there are no verdicts."""
    page = post.page
    if not messages or not page.ladder.offsets_ms:
        return
    if page.traits.feed == "windowed":
        works = _windows(post, messages)
    else:
        works = _tracked(post, [known for known in messages if known.tracked])
    post.done.put.extend(post.tx.put_works(works))


def _windows(post: Posting, messages: Sequence[Known]) -> list[Work]:
    """A window for each place that none holds: of a millisecond, which is as good as any."""
    tx, page = post.tx, post.page
    held = [work for work in page.put if work.kind is Kind.WINDOW]
    held += tx.find_works(page.account, Kind.WINDOW, None)
    places = {
        known.placed_ms
        for known in messages
        if known.placed_ms is not None
        and not any(work.data["from"] <= known.placed_ms < work.data["to"] for work in held)
    }
    return [
        _last_rung(post, Kind.WINDOW, f"{place}-{place + 1}", {"from": place, "to": place + 1})
        for place in sorted(places)
    ]


def _tracked(post: Posting, messages: Sequence[Known]) -> list[Work]:
    """The batch or the message, whichever the provider is asked for."""
    tx, page = post.tx, post.page
    batches = {known.batch_id for known in messages if known.batch_id is not None}
    going = {work.key for work in tx.find_works(page.account, Kind.BATCH, sorted(batches))}
    rest = [known for known in messages if known.batch_id not in going]
    if page.traits.derives_ids:
        ended = {known.batch_id: known for known in rest if known.batch_id is not None}
        rungs = [_rung_of(post, Kind.BATCH, key, known) for key, known in ended.items()]
        for work in rungs:
            work.data.pop("reference", None)  # each of its messages has its own
        return rungs
    named = {known.message_id: known for known in rest}
    for work in tx.find_works(page.account, Kind.MESSAGE, sorted(named)):
        del named[work.key]
    return [_rung_of(post, Kind.MESSAGE, key, known) for key, known in named.items()]


def _rung_of(post: Posting, kind: Kind, key: str, known: Known) -> Work:
    facts = {"sent": known.sent_ms, "reference": known.reference}
    data = {name: fact for name, fact in facts.items() if fact is not None}
    return _last_rung(post, kind, key, data)


def _last_rung(post: Posting, kind: Kind, key: str, data: dict[str, Any]) -> Work:
    """Offsets count as if the rung before the last one had been answered just now."""
    page = post.page
    before_ms = page.ladder.before_last_ms
    start_ms = page.observed_ms - max(before_ms, 0)
    return Work(
        account=page.account,
        kind=kind,
        key=key,
        due_ms=start_ms + page.ladder.last_ms,
        start_ms=start_ms,
        answered_ms=before_ms,
        data=data,
    )
