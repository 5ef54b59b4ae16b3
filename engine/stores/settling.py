"""How a ladder goes on or ends: the next rung, the last final state, or a verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.core.contracts import Kind, Traits
from engine.core.reconcile import Known, fold, verdict
from engine.core.work import Expire, Settle, Work

from .posting import Posting, who
from .transaction import Transaction

# Messages of one batch that one transaction ends; a batch is rarely larger.
BATCH_MAX = 200_000

# Where an answer had at least so many rows, the last recipient that is open is asked for alone:
# else a look into the store before each question costs more than it saves.
LARGE_BATCH = 10

# The note of an account in which what `track` said of ended batches is kept: where nobody tracks
# any, a page of a thousand bulks is not looked through for them.
ENDED = "ended"

# In a batch's data: how many ends have to come before it is counted again.
OWING = "owing"
# What an answer makes obsolete.
FORGOTTEN = frozenset({"code", "text", OWING})

# What `track` said of a batch stays for so long after its end, where its ladder does not last
# longer: infobip hands a report out for 48 hours.
LATE_MS = 48 * 3_600_000

# Where the last answer of a ladder, or the last reading of a window, is visibly not whole, it is
# asked for once more after these.
SHORT_WAITS_MS = (1_000, 30_000)


def batch_over(tx: Transaction, work: Work, traits: Traits, *, rows: int, all_final: bool) -> bool:
    """A batch with recipients is over when each of them is final; one without, when an answer
    had rows and all of them were final."""
    recipients = work.data.get("recipients")
    if traits.derives_ids and recipients:
        return tx.batch_counts(work.account, work.key)[2] == 0
    if recipients:
        known, pending, _ = tx.batch_counts(work.account, work.key)
        if known - pending < len(recipients):  # each has a message of its own: no need to read them
            return False
        return final_recipients(tx, work).issuperset(recipients)
    if "batch" in traits.asks:
        return rows > 0 and all_final
    known, pending, _ = tx.batch_counts(work.account, work.key)
    return known > 0 and pending == 0


def count_down(tx: Transaction, work: Work, traits: Traits, touched: Collection[Known]) -> bool:
    """Whether it is time to look if a batch is over: to count a hundred thousand messages at each
    pushed report would hold up everybody. At least so many ends have to come as messages were
    pending when they were last counted; whoever else changes that forgets the number."""
    if not (traits.derives_ids and work.data.get("recipients")):
        return True
    ends = sum(known.final and known.batch_id == work.key for known in touched)
    left = int(work.data.get(OWING, 0)) - ends
    if left <= 0:
        left = tx.batch_counts(work.account, work.key)[2]
    if left:
        work.data = work.data | {OWING: left}
        tx.move_works([work])
    return not left


def final_recipients(tx: Transaction, work: Work) -> set[str]:
    messages = tx.batch_messages(work.account, work.key, pending=False, limit=BATCH_MAX)
    return {who(known.recipient) for known in messages if known.final}


def settle(post: Posting, steps: Sequence[Settle]) -> None:
    """Rungs were answered: end each work, or put it on its next rung, or give its verdict."""
    tx, done = post.tx, post.done
    asked = [step.work.id for step in steps if step.work.id is not None]
    works = tx.works(asked)
    named = [work.key for work in works.values() if work.data.get("recipients")]
    counts = bool(named) and post.page.traits.derives_ids
    waiting = tx.open_batches(post.page.account, named) if counts else set()
    moved: list[Work] = []
    for step in steps:
        work = works.get(step.work.id or 0)
        if work is not None and (due_ms := _next_ms(post, step, work, waiting)) is not None:
            work.due_ms = due_ms
            work.data = {k: v for k, v in work.data.items() if k not in FORGOTTEN}
            if step.code is not None:
                work.data |= {"code": step.code, "text": step.text}
            if step.rows >= LARGE_BATCH:
                work.data |= {"large": True}
            moved.append(work)
    if moved:
        tx.move_works(moved)
        done.put.extend(moved)
    # Those that had ended meanwhile, by a report that came another way, included.
    over = set(asked).difference(work.id for work in moved)
    if over:
        tx.drop_works([work_id for work_id in asked if work_id in over])
        done.ended.extend(work_id for work_id in asked if work_id in over)
        remember(post, [work for work_id, work in works.items() if work_id in over])


def remember(post: Posting, works: Sequence[Work]) -> None:
    """Keep what `track` said of batches that are over, where their messages are found as they come:
    one that nobody had heard of may still do so, a page later or days. What has come by the end of
    that, is still pending and was not tracked gets its verdict."""
    page = post.page
    if page.traits.derives_ids:  # an answer names every recipient of a batch
        return
    kept = []
    for work in works:
        if work.kind is not Kind.BATCH:
            continue
        facts = {"sent": work.data.get("sent", work.start_ms)}
        if "reference" in work.data:
            facts["reference"] = work.data["reference"]
        kept.append(
            Work(
                account=work.account,
                kind=Kind.ENDED,
                key=work.key,
                due_ms=max(work.start_ms + page.ladder.last_ms, page.observed_ms + LATE_MS),
                start_ms=work.start_ms,
                data=facts,
            )
        )
    if kept:
        post.done.put.extend(post.tx.put_works(kept))
        post.tx.put_note(page.account, ENDED, b"1")


def _next_ms(post: Posting, step: Settle, work: Work, waiting: set[str]) -> int | None:
    """When the next rung is due; None: there is none, and what is pending has its verdict."""
    if not step.over and _over(post, step, work, waiting):
        return None
    due_ms = None
    if not step.over:
        answered_ms = max(work.answered_ms, step.ladder.reached_ms(work.start_ms, step.now_ms))
        due_ms = step.ladder.next_due_ms(work.start_ms, answered_ms, step.chance)
        if due_ms is None:
            due_ms = _once_more_ms(post, step, work)
        else:
            work.answered_ms = answered_ms
    if due_ms is None:
        _give_verdicts(post, _pending_of(post.tx, work, post.page.traits), step)
    return due_ms


def _once_more_ms(post: Posting, step: Settle, work: Work) -> int | None:
    """When to ask for the last rung again before a verdict is given on it; None: not again."""
    tries = int(work.data.get("short", 0))
    if tries == len(SHORT_WAITS_MS) or not _is_short(post, step, work):
        return None
    work.data = work.data | {"short": tries + 1}
    return step.now_ms + SHORT_WAITS_MS[tries]


def _is_short(post: Posting, step: Settle, work: Work) -> bool:
    """Whether the answer had rows that cannot be read, or fewer than had been told before.

    Asked of texts without an end mark alone: elsewhere the parser knows what was cut.
    """
    if step.code is not None or not post.page.traits.derives_ids:
        return False
    if step.flaws:
        return True
    messages = post.tx.batch_messages(work.account, work.key, pending=step.alone, limit=BATCH_MAX)
    return step.rows < sum(known.revision > 0 for known in messages)


def _over(post: Posting, step: Settle, work: Work, waiting: set[str]) -> bool:
    """`waiting`: of the batches asked for, those of which a tracked message is not final."""
    if work.kind is Kind.MESSAGE:
        found = post.tx.messages(work.account, [(work.key, "mt")])
        return any(known.final for known in found.values())
    if post.page.traits.derives_ids and work.data.get("recipients"):
        return work.key not in waiting
    all_final = step.finals == step.rows
    return batch_over(post.tx, work, post.page.traits, rows=step.rows, all_final=all_final)


def _pending_of(tx: Transaction, work: Work, traits: Traits) -> list[Known]:
    """The messages of a work that end without a final state, those never heard of included."""
    if work.kind is Kind.MESSAGE:
        found = tx.messages(work.account, [(work.key, "mt")])
        return [known for known in found.values() if not known.final]
    pending = tx.batch_messages(work.account, work.key, pending=True, limit=BATCH_MAX)
    if work.kind is Kind.ENDED:  # what has a ladder of its own gets its verdict by that
        goes_on = bool(tx.find_works(work.account, Kind.BATCH, [work.key]))
        return [] if goes_on else [known for known in pending if not known.tracked]
    recipients: list[str] = work.data.get("recipients") or []
    if recipients and not traits.derives_ids:
        messages = tx.batch_messages(work.account, work.key, pending=False, limit=BATCH_MAX)
        heard = {who(known.recipient) for known in messages}
        pending += _not_known(
            tx,
            work,
            {f"{work.key}:{digits}": digits for digits in recipients if digits not in heard},
        )
    if not pending and not recipients and not tx.batch_counts(work.account, work.key)[0]:
        pending = _not_known(tx, work, {work.key: None})
    return pending


def _not_known(tx: Transaction, work: Work, unheard: dict[str, str | None]) -> list[Known]:
    """Messages under these ids, of these recipients; one that goes by such an id by chance stays
    what it is."""
    found = tx.messages(work.account, [(message_id, "mt") for message_id in unheard])
    return [
        _unheard(work, message_id, digits)
        for message_id, digits in unheard.items()
        if (message_id, "mt") not in found
    ]


def _unheard(work: Work, message_id: str, recipient: str | None) -> Known:
    return Known(
        account=work.account,
        message_id=message_id,
        batch_id=work.key,
        recipient=recipient,
        reference=work.data.get("reference"),
        sent_ms=work.start_ms,
        tracked=True,
    )


def _give_verdicts(post: Posting, pending: Sequence[Known], step: Settle | None) -> None:
    code, text = _cause_of(step)
    page = post.page
    post.newest(pending)
    for known in pending:
        # A message that was never stored (a recipient that was never heard of) is new here.
        stored = known.row is not None
        before = (known.state, known.final, known.verdict) if stored else None
        result = fold(
            known,
            verdict(known, channel=page.traits.channel, code=code, text=text),
            provider=page.provider,
            traits=page.traits,
            observed_ms=page.observed_ms,
            write=False,
        )
        known.open = False
        if result.report is not None:
            post.keep(known, result.report)
            post.done.verdicts += 1
            post.change.moved(before, known)
    post.put(pending)


def _cause_of(step: Settle | None) -> tuple[str | None, str | None]:
    """Why the provider knows nothing, where its last proper answer said so."""
    if step is None:
        return None, None
    if step.over:  # this time it did not answer: what it said before stands
        return step.work.data.get("code"), step.work.data.get("text")
    return step.code, step.text


def expire(post: Posting, span: Expire) -> None:
    """The last rescan of a period has passed: what is pending in it gets its verdict."""
    account = post.page.account
    pending = post.tx.open_in_span(
        account, span.from_ms, span.to_ms, pending=True, limit=span.limit
    )
    _give_verdicts(post, pending, None)
    tracked = [known.message_id for known in pending if known.tracked]
    for work in post.tx.find_works(account, Kind.MESSAGE, tracked) if tracked else []:
        if work.id is not None:
            post.end(work.id)
    post.done.remaining = len(pending) == span.limit
