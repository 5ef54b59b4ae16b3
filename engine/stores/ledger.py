"""What a commit does: the books of the engine, written once for every store.

Each function takes a `Transaction` and is run inside one, so that reports, log, cursor and next
poll are there together or not at all. Nothing here waits, and nothing knows which store it is.

The tallies (`known`, `state:<state>`, `final`, …) are moved with each change, so that
`known = final + pending` can be checked at any time without counting ten million rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.core.contracts import Kind, Traits
from engine.core.reconcile import Known, fold, verdict
from engine.core.report import Report, msisdn
from engine.core.schedule import Ladder
from engine.core.state import State
from engine.core.work import Committed, Expire, LogRow, Page, Settle, Work

from .transaction import CODE_OF, Transaction

# A log row: at most this many records, and this many bytes before the last record.
LOG_RECORDS_MAX = 1000
LOG_BYTES_MAX = 1 << 20

# Messages of one batch that one transaction ends; a batch is rarely larger.
BATCH_MAX = 200_000


class Tracked(msgspec.Struct, kw_only=True):
    """One row of what was sent, as `track` takes it."""

    batch_id: str | None = None
    message_id: str | None = None
    recipients: list[str] = []
    references: list[str | None] = []  # one a recipient, where they differ; else `reference`
    reference: str | None = None
    sent_ms: int


class Change(msgspec.Struct):
    """The tallies' changes of one transaction, by account."""

    account: str
    counts: dict[str, int]

    def add(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def moved(self, before: tuple[State, bool, str | None] | None, after: Known) -> None:
        """A message is new (`before` is None), or has changed."""
        if before is None:
            self.add("known")
        else:
            self._enter(*before, by=-1)
        self._enter(after.state, after.final, after.verdict, by=1)

    def left(self, known: Known) -> None:
        """A message was forgotten when its retention had passed."""
        self.add("known", -1)
        self._enter(known.state, known.final, known.verdict, by=-1)

    def _enter(self, state: State, final: bool, verdict: str | None, *, by: int) -> None:
        self.add("final" if final else "pending", by)
        self.add(f"state:{state.value}", by)
        if verdict is not None:
            self.add(f"verdict:{verdict}", by)


def commit(tx: Transaction, page: Page) -> Committed:
    """Take a page: fold its reports, write the log, move the schedule."""
    done = Committed()
    change = Change(page.account, {})
    lines: list[tuple[bytes, State]] = []
    _take_reports(tx, page, done, change, lines)
    if page.settle is not None:
        _settle(tx, page, page.settle, done, change, lines)
    if page.expire is not None:
        _expire(tx, page, page.expire, done, change, lines)
    if page.flaws:
        change.add(
            "set_aside", tx.put_flaws(page.account, page.source, page.flaws, page.observed_ms)
        )
    for incident in page.incidents:
        if tx.put_incident(page.account, incident, page.observed_ms):
            change.add(f"incident:{incident.kind}")
    if page.drop:
        tx.drop_works(page.drop)
        done.ended.extend(page.drop)
    if page.quiet_due_ms is not None and not lines:
        for work in page.put:
            if work.kind is Kind.FEED:
                work.due_ms = page.quiet_due_ms
    if page.put:
        done.put.extend(tx.put_works(page.put))
    done.records = len(lines)
    if lines:
        change.add("records", len(lines))
        _append(tx, page, lines, done)
    if change.counts:
        tx.add_tallies(page.account, change.counts)
    return done


def _take_reports(
    tx: Transaction,
    page: Page,
    done: Committed,
    change: Change,
    lines: list[tuple[bytes, State]],
) -> None:
    if not page.reports:
        return
    ids = [(report.message_id, report.direction) for report in page.reports]
    found = tx.messages(page.account, list(dict.fromkeys(ids)))
    touched: dict[tuple[str, str], Known] = {}
    batches = _tracked_batches(tx, page)
    for index, (key, report) in enumerate(zip(ids, page.reports, strict=True)):
        known = found.get(key)
        if known is None:
            known = _discover(page.account, key, report, batches)
            found[key] = known
            before = None
            touched[key] = known
        else:
            before = (known.state, known.final, known.verdict)
        status_ms = known.status_ms
        fresh = before is None
        result = fold(
            known,
            report,
            provider=page.provider,
            traits=page.traits,
            observed_ms=page.observed_ms,
            listed=index not in page.unlisted,
        )
        if result.record:
            lines.append((result.record, known.state))
            touched[key] = known
            change.moved(before, known)
        elif result.lost:
            done.lost += 1
            touched[key] = known
        else:
            done.repeated += 1
            if known.status_ms != status_ms:
                touched[key] = known
        if fresh and not result.record:
            raise AssertionError("the first report of a message is always news")
        if index in page.unlisted and result.record:
            change.add("unlisted")
    if done.lost:
        change.add("superseded", done.lost)
    tx.put_messages(list(touched.values()))
    _end_tracked(tx, page, done, touched.values(), batches)


def _discover(
    account: str, key: tuple[str, str], report: Report, batches: dict[str, Work]
) -> Known:
    """A message that nobody tracked; its batch may have been, with a time and a reference."""
    known = Known(account=account, message_id=key[0], direction=key[1])
    work = batches.get(report.batch_id) if report.batch_id is not None else None
    if work is not None:
        known.sent_ms = work.start_ms
        known.reference = work.data.get("reference")
    return known


def _tracked_batches(tx: Transaction, page: Page) -> dict[str, Work]:
    """The tracked batches that these reports belong to."""
    if "batch" not in page.traits.tracks:
        return {}
    wanted = {report.batch_id for report in page.reports if report.batch_id is not None}
    works = tx.find_works(page.account, Kind.BATCH, sorted(wanted)) if wanted else []
    return {work.key: work for work in works}


def _end_tracked(
    tx: Transaction,
    page: Page,
    done: Committed,
    touched: Iterable[Known],
    batches: dict[str, Work],
) -> None:
    """What was tracked ends with its last final state, by whatever way that came in.

    A batch that is asked for by id ends in `_settle`, which knows what its answer held.
    """
    asked = page.settle.work.id if page.settle is not None else None
    finals = [known.message_id for known in touched if known.tracked and known.final]
    over = [
        work.id
        for work in (tx.find_works(page.account, Kind.MESSAGE, finals) if finals else [])
        if work.id is not None and work.id != asked
    ]
    for work in batches.values():
        if work.id is None or work.id == asked or "batch" in page.traits.asks:
            continue
        if _batch_over(tx, work, page.traits, rows=1, all_final=True):
            over.append(work.id)
    if over:
        tx.drop_works(over)
        done.ended.extend(over)


def _batch_over(tx: Transaction, work: Work, traits: Traits, *, rows: int, all_final: bool) -> bool:
    """A batch with recipients is over when each of them is final; one without, when an answer
    had rows and all of them were final."""
    recipients = work.data.get("recipients")
    if traits.derives_ids and recipients:
        return tx.batch_counts(work.account, work.key)[2] == 0
    if recipients:
        return _final_recipients(tx, work).issuperset(recipients)
    if traits.asks:
        return rows > 0 and all_final
    known, pending, _ = tx.batch_counts(work.account, work.key)
    return known > 0 and pending == 0


def _who(recipient: str | None) -> str:
    """A recipient as a batch's are compared: digits alone, else as it is."""
    return msisdn(recipient) or recipient or ""


def _final_recipients(tx: Transaction, work: Work) -> set[str]:
    messages = tx.batch_messages(work.account, work.key, pending=False, limit=BATCH_MAX)
    return {_who(known.recipient) for known in messages if known.final}


def _settle(
    tx: Transaction,
    page: Page,
    settle: Settle,
    done: Committed,
    change: Change,
    lines: list[tuple[bytes, State]],
) -> None:
    """A rung was answered: end the work, or put it on its next rung, or give its verdict."""
    assert settle.work.id is not None
    work = tx.work(settle.work.id)
    if work is None:  # ended meanwhile, by a report that came another way
        done.ended.append(settle.work.id)
        return
    ended = not settle.over and _over(tx, page, settle, work)
    due_ms = None
    if not ended:
        work.answered_ms = max(
            work.answered_ms, settle.ladder.reached_ms(work.start_ms, settle.now_ms)
        )
        if not settle.over:
            due_ms = settle.ladder.next_due_ms(work.start_ms, work.answered_ms, settle.chance)
        if due_ms is None:
            pending = _pending_of(tx, work, page.traits)
            _give_verdicts(tx, page, pending, settle, done, change, lines)
    if due_ms is None:
        tx.drop_works([settle.work.id])
        done.ended.append(settle.work.id)
        return
    work.due_ms = due_ms
    work.data = {k: v for k, v in work.data.items() if k not in ("code", "text")}
    if settle.code is not None:
        work.data |= {"code": settle.code, "text": settle.text}
    done.put.extend(tx.put_works([work]))


def _over(tx: Transaction, page: Page, settle: Settle, work: Work) -> bool:
    if work.kind is Kind.MESSAGE:
        found = tx.messages(work.account, [(work.key, "mt")])
        return any(known.final for known in found.values())
    all_final = settle.finals == settle.rows
    return _batch_over(tx, work, page.traits, rows=settle.rows, all_final=all_final)


def _pending_of(tx: Transaction, work: Work, traits: Traits) -> list[Known]:
    """The messages of a work that end without a final state, those never heard of included."""
    if work.kind is Kind.MESSAGE:
        found = tx.messages(work.account, [(work.key, "mt")])
        return [known for known in found.values() if not known.final]
    pending = tx.batch_messages(work.account, work.key, pending=True, limit=BATCH_MAX)
    recipients: list[str] = work.data.get("recipients") or []
    if recipients and not traits.derives_ids:
        messages = tx.batch_messages(work.account, work.key, pending=False, limit=BATCH_MAX)
        heard = {_who(known.recipient) for known in messages}
        pending += [
            _unheard(work, f"{work.key}:{digits}", digits)
            for digits in recipients
            if digits not in heard
        ]
    if not pending and not recipients and not tx.batch_counts(work.account, work.key)[0]:
        pending = [_unheard(work, work.key, None)]
    return pending


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


def _give_verdicts(
    tx: Transaction,
    page: Page,
    pending: Sequence[Known],
    settle: Settle | None,
    done: Committed,
    change: Change,
    lines: list[tuple[bytes, State]],
) -> None:
    code, text = _cause_of(settle)
    for known in pending:
        # A message that was never stored (a recipient that was never heard of) is new here.
        stored = known.row is not None
        before = (known.state, known.final, known.verdict) if stored else None
        result = fold(
            known,
            verdict(known, code=code, text=text),
            provider=page.provider,
            traits=page.traits,
            observed_ms=page.observed_ms,
        )
        known.open = False
        if result.record:
            lines.append((result.record, known.state))
            done.verdicts += 1
            change.moved(before, known)
    tx.put_messages(pending)


def _cause_of(settle: Settle | None) -> tuple[str | None, str | None]:
    """Why the provider knows nothing, where its last proper answer said so."""
    if settle is None:
        return None, None
    if settle.over:  # this time it did not answer: what it said before stands
        return settle.work.data.get("code"), settle.work.data.get("text")
    return settle.code, settle.text


def _expire(
    tx: Transaction,
    page: Page,
    expire: Expire,
    done: Committed,
    change: Change,
    lines: list[tuple[bytes, State]],
) -> None:
    """The last rescan of a period has passed: what is pending in it gets its verdict."""
    pending = tx.open_in_span(
        page.account, expire.from_ms, expire.to_ms, pending=True, limit=expire.limit
    )
    _give_verdicts(tx, page, pending, None, done, change, lines)
    tracked = [known.message_id for known in pending if known.tracked]
    for work in tx.find_works(page.account, Kind.MESSAGE, tracked) if tracked else []:
        if work.id is not None:
            tx.drop_works([work.id])
            done.ended.append(work.id)
    done.remaining = len(pending) == expire.limit


def _append(
    tx: Transaction, page: Page, lines: Sequence[tuple[bytes, State]], done: Committed
) -> None:
    """Records into the log, in rows of a bounded number of records and bytes."""
    seq = tx.log_bounds().get(page.account, (1, 1))[1]
    rows: list[LogRow] = []
    start = size = 0
    for index, (line, _) in enumerate(lines):
        size += len(line)
        if index + 1 == len(lines) or index + 1 - start >= LOG_RECORDS_MAX or size >= LOG_BYTES_MAX:
            chunk = lines[start : index + 1]
            rows.append(
                LogRow(
                    seq=seq + len(rows),
                    at_ms=page.observed_ms,
                    states=b"".join(CODE_OF[state] for _, state in chunk),
                    body=b"\n".join(record for record, _ in chunk),
                )
            )
            start, size = index + 1, 0
    tx.append_log(page.account, rows)
    done.last_seq = rows[-1].seq


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
    recipients = [_who(text) for text in item.recipients]
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
            new -= len(set(grown) & _final_recipients(tx, work))
    if not new and (found or recipients):
        return None
    if grown:
        work.data = {**work.data, "recipients": grown}
    if not traits.asks and _batch_over(tx, work, traits, rows=0, all_final=False):
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
    ids: list[tuple[str, str]] = []
    times: dict[str, int] = {}
    for digits in recipients:
        times[digits] = nth = times.get(digits, 0) + 1
        suffix = f"#{nth}" if nth > 1 else ""
        ids.append((f"{item.batch_id}:{digits}{suffix}", digits))
    found = tx.messages(account, [(message_id, "mt") for message_id, _ in ids])
    new: list[Known] = []
    early: list[Known] = []  # reported before they were tracked
    for (message_id, digits), reference in zip(
        ids, item.references or [None] * len(ids), strict=True
    ):
        known = found.get((message_id, "mt"))
        if known is None:
            new.append(_new_known(account, message_id, digits, item, now_ms, reference))
            change.moved(None, new[-1])
        elif not known.tracked and not known.final:
            _adopt(known, item, reference)
            early.append(known)
    tx.put_messages([*new, *early])
    return len(new) + len(early)


def _track_message(
    tx: Transaction, account: str, item: Tracked, change: Change, now_ms: int
) -> Work | None:
    assert item.message_id is not None
    found = tx.messages(account, [(item.message_id, "mt")]).get((item.message_id, "mt"))
    if found is not None and (found.tracked or found.final):
        if not found.tracked and found.reference is None and item.reference is not None:
            found.reference = item.reference
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


def _adopt(known: Known, item: Tracked, reference: str | None) -> None:
    """The provider's report came before it was tracked."""
    known.tracked = True
    known.reference = reference or item.reference or known.reference
    known.sent_ms = known.sent_ms if known.sent_ms is not None else item.sent_ms


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


def prune(
    tx: Transaction,
    *,
    now_ms: int,
    retention_ms: int,
    log_retention_ms: int,
    sinks: Sequence[tuple[str, frozenset[str] | None]],
    limit: int = 5000,
) -> int:
    """Forget ended messages and acknowledged records past their retention; how many went.

    `sinks` are the configured ones with the accounts they take. No record goes before each of
    them has acknowledged it.
    """
    gone = tx.drop_ended(now_ms - retention_ms, limit)
    for account in {known.account for known in gone}:
        change = Change(account, {})
        for known in gone:
            if known.account == account:
                change.left(known)
        tx.add_tallies(account, change.counts)
    count = len(gone)
    places = tx.places()
    for account, (_, end) in tx.log_bounds().items():
        acknowledged = end
        for sink, accounts in sinks:
            if accounts is None or account in accounts:
                acknowledged = min(acknowledged, places.get(sink, {}).get(account, (0, 0))[0])
        count += tx.drop_log(account, acknowledged, now_ms - log_retention_ms, limit)
    return count
