"""What a commit does: the books of the engine, written once for every store.

Each function takes a `Transaction` and is run inside one, so that reports, log, cursor and next
poll are there together or not at all. Nothing here waits, and nothing knows which store it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from operator import attrgetter

from msgspec.structs import replace

from engine.core.contracts import Kind
from engine.core.discovery import Discovery
from engine.core.reading import TOTAL_IGNORED
from engine.core.reconcile import Known, fold, marks_of
from engine.core.report import Report
from engine.core.schedule import NEVER_MS
from engine.core.units import iso, iso_ms
from engine.core.work import Committed, Page, Work

from .posting import Change, Posting, Standing
from .reopening import reopen
from .settling import ENDED, batch_over, count_down, expire, remember, settle
from .transaction import Transaction

# The source of a page that was asked for.
POLL = "poll"
# The sources of pages whose reports were received at another time than now: read from set-aside
# pieces, and from a provider's exported file.
REPLAY, FILE = "replay", "file"
# Of one whose reports the provider has sent by itself.
PUSH = "push"

DAY_MS = 86_400_000

# Set-aside pieces and incidents of one store, and their bytes before compression; the oldest go
# first.
TROUBLES_MAX = 100_000
TROUBLES_BYTES_MAX = 4 << 30

_standing = attrgetter("state", "final", "verdict")


def commit(tx: Transaction, page: Page) -> Committed:
    """Take a page: fold its reports, write the log, move the schedule."""
    post = Posting(tx, page)
    done, change = post.done, post.change
    _take_reports(post)
    if page.settle is not None:
        settle(post, page.settles)
    if page.expire is not None:
        expire(post, page.expire)
    _note_troubles(post)
    if page.drop and not done.remaining:
        tx.drop_works(page.drop)
        done.ended.extend(page.drop)
    if page.quiet_due_ms is not None and not done.records:
        for work in page.put:
            if work.kind is Kind.FEED:
                work.due_ms = page.quiet_due_ms
    if page.cover is not None:
        _cover(post, *page.cover)
    if page.put:
        done.put.extend(tx.put_works(_going_on(post)))
    post.append()
    if change.counts:
        tx.add_tallies(page.account, change.counts)
    return done


def _going_on(post: Posting) -> list[Work]:
    """What the page puts on another time, but for what has ended another way since it was taken
    up: put again it would begin anew, as a work that nobody holds."""
    going = []
    for work in post.page.put:
        if work.id is None:
            # A copy: where this is undone and done again, the number it got was none.
            going.append(replace(work))
        elif post.tx.work(work.id) is not None:
            going.append(work)
        else:
            post.done.ended.append(work.id)
    return going


def _note_troubles(post: Posting) -> None:
    """What was set aside, what was read after all, and gaps."""
    tx, page, change = post.tx, post.page, post.change
    if page.replayed:
        change.add("replayed", tx.drop_pieces(page.replayed))
    if page.flaws:
        new = tx.put_flaws(page.account, page.source, page.flaws, page.observed_ms, page.asked)
        change.add("set_aside", new)
    if page.flaws_beyond:
        change.add("set_aside", page.flaws_beyond)
    for incident in page.incidents:
        if tx.put_incident(page.account, incident, page.observed_ms):
            change.add(f"incident:{incident.kind}")
        if incident.kind == TOTAL_IGNORED:
            tx.put_note(page.account, TOTAL_IGNORED, b"1")


def _take_reports(post: Posting) -> None:
    tx, page, done = post.tx, post.page, post.done
    if not page.reports:
        return
    ids, sent, marks = _keys(page)
    found = tx.messages(page.account, ids, marks)
    touched: dict[tuple[str, str], Known] = {}
    batches = _tracked_batches(tx, page)
    provider, traits, span = page.provider, page.traits, page.span
    observed_ms, observed_at = page.observed_ms, iso(page.observed_ms)
    unlisted, replayed = page.unlisted, page.source in (REPLAY, FILE)
    discovery = Discovery(page.account, provider, traits, observed_ms, span)
    first: list[Report] = []  # of messages that nobody knew
    moves: dict[tuple[Standing | None, Standing], int] = {}
    again: list[Known] = []  # pending once more, after a verdict
    for index, (key, report) in enumerate(zip(ids, page.reports, strict=True)):
        known = found.get(key)
        if known is None and not batches:
            known = found[key] = touched[key] = discovery.take(report, sent[index], marks[index])
            post.keep(known, report)
            first.append(report)
            if index in unlisted:
                post.change.add("unlisted")
            continue
        before: Standing | None = None
        if known is None:
            known = found[key] = _discover(page.account, key, report, batches, marks[index])
        else:
            before = (known.state, known.final, known.verdict)
        status_ms = known.status_ms
        result = fold(
            known,
            report,
            provider=provider,
            traits=traits,
            observed_ms=observed_ms,
            observed_at=observed_at,
            sent_ms=sent[index],
            listed=index not in unlisted,
            span=span,
            replayed=replayed,
            write=False,
        )
        if result.report is not None:
            post.keep(known, report)
            touched[key] = known
            move = (before, (known.state, known.final, known.verdict))
            moves[move] = moves.get(move, 0) + 1
            if index in unlisted:
                post.change.add("unlisted")
            if before is not None and before[2] is not None and not known.final:
                again.append(known)
        elif result.lost:
            done.lost += 1
            touched[key] = known
        else:
            done.repeated += 1
            if known.status_ms != status_ms:
                touched[key] = known
    moves.update(
        {(None, standing): count for standing, count in Counter(map(_standing, first)).items()}
    )
    post.change.move(moves)
    if done.lost:
        post.change.add("superseded", done.lost)
    post.put(list(touched.values()))
    if page.span is not None or page.revisit_ms is not None:
        _note_opened(post, touched.values())
    _end_tracked(post, touched.values(), batches)
    reopen(post, [known for known in again if not known.final])


def _keys(page: Page) -> tuple[list[tuple[str, str]], list[int | None], list[int | None]]:
    """What the messages are found by, and when they were sent: ids, times and marks."""
    ids: list[tuple[str, str]] = [(report.message_id, report.direction) for report in page.reports]
    sent = [iso_ms(r.sent_at) if r.sent_at is not None else None for r in page.reports]
    if page.marks is None:  # else this was begun before, and undone
        page.marks = marks_of(page.reports, page.traits, sent)
    return ids, sent, page.marks


def _note_opened(post: Posting, touched: Iterable[Known]) -> None:
    """Where messages are that have just come up and may still change: a window has to hold them.

    Entries that show up late lie before the period that is read for the first time; the window
    that is put in place for it is widened, so that they are read again, too.
    """
    places = [
        known.placed_ms
        for known in touched
        if known.open and known.revision == 1 and known.placed_ms is not None
    ]
    if not places:
        return
    first, last = min(places), max(places)
    post.done.opened_ms = (first, last)
    for work in post.page.put:
        if work.kind is Kind.WINDOW:
            widen(work, first, last)
    if post.page.revisit_ms is not None:
        _revisit(post, places, post.page.revisit_ms)


def _revisit(post: Posting, places: Sequence[int], now_ms: int) -> None:
    """Windows for the days on which something has come up by another way than the feed's; today
    only so far, for what is still to come is the feed's. A day that has one keeps it."""
    tx, page = post.tx, post.page
    due_ms = page.ladder.next_due_ms(now_ms, NEVER_MS, 0.0)
    if due_ms is None or page.traits.feed != "windowed":
        return
    wanted: dict[str, tuple[int, int]] = {}
    latest = {place // DAY_MS: place for place in sorted(places)}
    for day, last_ms in latest.items():
        from_ms, to_ms = day * DAY_MS, (day + 1) * DAY_MS
        if from_ms < now_ms < to_ms:
            to_ms = max(now_ms, last_ms + 1)
        wanted[f"{from_ms}-{to_ms}"] = (from_ms, to_ms)
    for work in tx.find_works(page.account, Kind.WINDOW, list(wanted)):
        del wanted[work.key]
    windows = [
        Work(
            account=page.account,
            kind=Kind.WINDOW,
            key=key,
            due_ms=due_ms,
            start_ms=now_ms,
            data={"from": from_ms, "to": to_ms},
        )
        for key, (from_ms, to_ms) in wanted.items()
    ]
    post.done.put.extend(tx.put_works(windows))


def _cover(post: Posting, from_ms: int, to_ms: int) -> None:
    """Widen the window that is put in place to what is open before it, from `from_ms` up to and
    without `to_ms`, and in no other window."""
    tx, page = post.tx, post.page
    ours = [work for work in page.put if work.kind is Kind.WINDOW]
    if not ours or from_ms >= to_ms:
        return
    windows = sorted(
        (int(work.data["from"]), int(work.data["to"]))
        for work in tx.find_works(page.account, Kind.WINDOW, None)
    )
    for start_ms, end_ms in [*windows, (to_ms, to_ms)]:
        gap_ms = min(start_ms, to_ms) - 1
        if from_ms <= gap_ms:
            found = tx.open_in_span(page.account, from_ms, gap_ms, pending=False, limit=1)
            if found:
                widen(ours[0], from_ms, gap_ms)
                return
        from_ms = max(from_ms, end_ms)


def widen(work: Work, first_ms: int, last_ms: int) -> None:
    """Make a window reach from `first_ms` to `last_ms`, both inside it."""
    from_ms = min(int(work.data["from"]), first_ms)
    to_ms = max(int(work.data["to"]), last_ms + 1)
    work.data = {"from": from_ms, "to": to_ms}
    work.key = f"{from_ms}-{to_ms}"


def _discover(
    account: str,
    key: tuple[str, str],
    report: Report,
    batches: dict[str, Work],
    mark: int | None,
) -> Known:
    """A message that nobody tracked; its batch may have been, with a time and a reference."""
    known = Known(account=account, message_id=key[0], direction=key[1], mark=mark)
    if batches and report.batch_id is not None and report.batch_id in batches:
        work = batches[report.batch_id]
        known.sent_ms = work.data.get("sent", work.start_ms)
        known.reference = work.data.get("reference")
    return known


def _tracked_batches(tx: Transaction, page: Page) -> dict[str, Work]:
    """The tracked batches that these reports belong to; one that is over only if none goes on."""
    if "batch" not in page.traits.tracks:
        return {}
    wanted = {report.batch_id for report in page.reports if report.batch_id is not None}
    if not wanted:
        return {}
    works = {work.key: work for work in tx.find_works(page.account, Kind.BATCH, sorted(wanted))}
    rest = sorted(wanted.difference(works))
    if rest and page.account in tx.notes(ENDED):
        works |= {work.key: work for work in tx.find_works(page.account, Kind.ENDED, rest)}
    return works


def _end_tracked(post: Posting, touched: Collection[Known], batches: dict[str, Work]) -> None:
    """What was tracked ends with its last final state, by whatever way that came in.

    A batch that is asked for ends in `settle`, which knows what its answer held, or with reports
    that were pushed or handed over; where no recipient is named, only an answer is whole.
    """
    tx, page = post.tx, post.page
    asked = {step.work.id for step in page.settles}
    finals = [known.message_id for known in touched if known.tracked and known.final]
    over = [
        work
        for work in (tx.find_works(page.account, Kind.MESSAGE, finals) if finals else [])
        if work.id not in asked
    ]
    polled = page.source == POLL and "batch" in page.traits.asks
    for work in batches.values():
        if work.kind is Kind.ENDED or work.id in asked or polled:
            continue
        if count_down(tx, work, page.traits, touched) and batch_over(
            tx, work, page.traits, rows=0, all_final=False
        ):
            over.append(work)
    for work in over:
        if work.id is not None:
            post.end(work.id)
    remember(post, over)


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
    count = len(gone) + tx.drop_troubles(
        now_ms - retention_ms, TROUBLES_MAX, TROUBLES_BYTES_MAX, limit
    )
    places = tx.places()
    for account, (_, end) in tx.log_bounds().items():
        acknowledged = end
        for sink, accounts in sinks:
            if accounts is None or account in accounts:
                acknowledged = min(acknowledged, places.get(sink, {}).get(account, (0, 0))[0])
        count += tx.drop_log(account, acknowledged, now_ms - log_retention_ms, limit)
    return count
