"""Reading a period completely: windows, pages, totals, and what to do when rows are missing.

A `Reading` is the list of spans still to be read; the first one is being read. `Progress` is what
is known of that one. After each answer `decide` says what comes next, as a value, and changes both
accordingly; the caller asks. Rows are committed as they come: to read a row twice costs nothing,
so a span that turns out short is split and read again in halves.

Where an answer says how many rows there are, that is the proof of completeness. A span that can
be split no further and is still short is an incident. A total that does not follow the window at
all (both halves claim what the whole claimed) proves nothing: it is reported once, then ignored.
Halves share the instant between them, so that no row falls through: a burst at that instant is
claimed by both honestly, and is told from a false total by where its rows are. Where a span has no
halves, its total is put to the test: in a window beside it, and in one that holds them both.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contracts import Outcome, Traits, Verb
from .units import iso
from .work import Incident

# Pages of one span. A span with more rows than that is split before it is paged through, which
# also bounds the set of rows seen.
PAGES_MAX = 500
ROWS_MAX = 50_000

# How often the pages of one span are read, where their total goes on moving.
PASSES_MAX = 3

# Kinds of incidents.
SHORT_WINDOW = "short_window"
TOTAL_IGNORED = "total_ignored"


class Span(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A window, both ends included, in epoch ms."""

    from_ms: int
    to_ms: int
    channel: str | None = None
    parent_total: int | None = None  # what the whole claimed; of a short one, what it claims
    sibling_total: int | None = None  # what the other half claimed, where it was the same
    burst_ms: int | None = None  # the instant between, where all rows of the other half were on it
    received: int | None = None  # read already, and short: so many rows came. Only to be split
    tests: int | None = None  # asked only for its total, to be held against that of others

    @property
    def width_ms(self) -> int:
        return self.to_ms - self.from_ms


class Reading(msgspec.Struct, kw_only=True):
    """What is still to be read. The spans are durable as JSON, so that a restart goes on where it
    stood."""

    spans: list[Span] = []
    total_ignored: bool = False  # it is known not to follow the window
    total_tested: bool = False  # it was found to follow it

    @staticmethod
    def of(from_ms: int, to_ms: int, traits: Traits) -> Reading:
        """A period, in windows as long as the provider takes, by channel where it is read so."""
        channels: tuple[str | None, ...] = traits.read_channels or (None,)
        longest_ms = traits.window_max_ms
        return Reading(
            spans=[
                Span(from_ms=start, to_ms=min(start + longest_ms, to_ms), channel=channel)
                for start in range(from_ms, to_ms, longest_ms)
                for channel in channels
            ]
        )

    def dump(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(span) for span in self.spans]

    @staticmethod
    def load(spans: list[dict[str, Any]]) -> Reading:
        return Reading(spans=msgspec.convert(spans, list[Span]))


class Progress(msgspec.Struct, kw_only=True):
    """What was seen of the span that is being read; begins anew with every span."""

    page: int = 1
    pages: int | None = None  # how many there are, as the provider said last
    rows: int = 0  # all rows, flaws and repetitions included
    flaws: int = 0
    seen: set[int] = set()  # of a paged span: which rows, by a hash of their message's id
    first_total: int | None = None
    total: int | None = None
    passes: int = 1  # the pages are read again when the total has moved
    shrunk: bool = False  # the total went down while these pages were read
    every_page: bool = False  # this time to the last page: rows have moved up over page edges
    fresh: int = 0  # rows of the last page that were new
    first_ms: int | None = None  # when the rows were sent
    last_ms: int | None = None


class Next(msgspec.Struct, kw_only=True):
    """What an answer leads to. Exactly one of: ask the same span again, or go on with the next."""

    same_span: bool = False
    incidents: list[Incident] = []
    cause: str = ""  # why a span was split, for the log


def decide(
    reading: Reading,
    progress: Progress,
    outcome: Outcome,
    traits: Traits,
    *,
    rows: int,
    flaws: int,
    keys: set[int],
    sent_ms: tuple[int, int] | None = None,
) -> Next:
    """What to do after an answer to the first span with `rows` rows (`flaws` of them unusable),
    whose messages hash to `keys` and were sent between the two times `sent_ms`."""
    span = reading.spans[0]
    if span.tests is not None:
        return _tested(reading, span.tests, outcome.total)
    progress.rows += rows
    progress.flaws += flaws
    progress.fresh = len(keys - progress.seen) + flaws
    progress.seen |= keys
    if sent_ms is not None:
        progress.first_ms = min(sent_ms[0], progress.first_ms or sent_ms[0])
        progress.last_ms = max(sent_ms[1], progress.last_ms or sent_ms[1])
    if outcome.verb is Verb.SPLIT:
        return _divide(reading, traits, outcome.cause)
    if outcome.total is not None:
        progress.shrunk |= progress.total is not None and outcome.total < progress.total
        progress.total = outcome.total
        if progress.first_total is None:
            progress.first_total = outcome.total
    incidents = _judge_total(reading, span, progress)
    total = None if reading.total_ignored else progress.total
    if traits.paged:
        too_many = total is not None and total > ROWS_MAX and progress.page == 1
        if too_many and _halves(span, traits):
            cause = f"{total} rows are more than one window may hold"
            other = _untold_half(reading, progress)
            if other is None or span.sibling_total is not None:
                return _divide(reading, traits, cause, total=total)
            # Only its first page was read: it is asked again once the other half has told.
            other.sibling_total = total
            reading.spans[:2] = [other, span]
            return Next(cause=cause, incidents=incidents)
        if _has_more(progress, outcome, total, rows):
            progress.page += 1
            return Next(same_span=True, incidents=incidents)
        if progress.page >= PAGES_MAX and rows and outcome.page in (None, progress.page):
            return _divide(reading, traits, f"more than {PAGES_MAX} pages")
    received = len(progress.seen) + progress.flaws if traits.paged else progress.rows
    if total is not None and _must_read_again(progress, total, received):
        progress.passes += 1
        progress.page = 1
        progress.first_total = total
        return Next(same_span=True, incidents=incidents)
    if total is None or received >= total:
        reading.spans.pop(0)
        return Next(incidents=incidents)
    step = _short(reading, traits, progress, received)
    step.incidents = [*incidents, *step.incidents]
    return step


def _has_more(progress: Progress, outcome: Outcome, total: int | None, rows: int) -> bool:
    """Whether there is another page worth asking for."""
    if rows == 0 or progress.page >= PAGES_MAX:
        return False
    if outcome.page is not None and outcome.page != progress.page:
        return False  # the server ignores the page that was asked for
    told = outcome.pages is not None and progress.page < outcome.pages
    if progress.every_page:
        return outcome.pages is None or told
    if progress.fresh == 0 and (progress.page > 1 or progress.passes > 1):
        return False  # a page that repeats others: asking on would go round in circles
    if total is not None:
        return told or len(progress.seen) + progress.flaws < total
    return outcome.pages is None or told


def _must_read_again(progress: Progress, total: int, received: int) -> bool:
    """Whether the total has moved while pages were read, so that rows may have slipped past.

    Rows that came shift others to later pages, where they only come twice; what is missing then
    is at an end that is soon found. Rows that went let others move up over a page's edge, into
    pages that were read already: every page is read again.
    """
    assert progress.first_total is not None
    went, progress.shrunk = progress.shrunk, False
    came = total > progress.first_total and received < total
    progress.every_page = went
    return (went or came) and progress.passes < PASSES_MAX


def _judge_total(reading: Reading, span: Span, progress: Progress) -> list[Incident]:
    """Whether the total follows the window: two halves cannot both hold what the whole holds."""
    if (
        not reading.total_ignored
        and progress.page == 1
        and progress.total
        and _claims_all(progress.total, span.parent_total)
        and _claims_all(span.sibling_total, span.parent_total)
        and not _on_instant(progress, span.burst_ms)
    ):
        return [_ignore_total(reading, progress.total)]
    return []


def _ignore_total(reading: Reading, total: int) -> Incident:
    reading.total_ignored = True
    # Some wait to be split for their missing rows; there is no telling any more.
    reading.spans = [span for span in reading.spans if span.received is None]
    return Incident(
        kind=TOTAL_IGNORED,
        text=(
            f"the provider says {total} rows whatever the window is: its total cannot prove"
            " completeness and is ignored"
        ),
        expected=total,
    )


def _claims_all(total: int | None, whole: int | None) -> bool:
    """Whether a half claims what the whole claimed.

    A total of all messages ever sent moves between two answers. Of so many, nearly all will do:
    they cannot be at the instant that both halves share.
    """
    if total is None or whole is None:
        return False
    return total == whole or (whole > ROWS_MAX and 4 * total >= 3 * whole)


def _untold_half(reading: Reading, progress: Progress) -> Span | None:
    """The other half of a first one that claims all: all rows may be in this one, or the total may
    not follow the window. The other half's total tells, so it is asked first."""
    span, other = reading.spans[0], reading.spans[1] if len(reading.spans) > 1 else None
    if (
        other is not None
        and other.received is None
        and other.sibling_total is None
        and other.parent_total == span.parent_total
        and _claims_all(progress.total, span.parent_total)
    ):
        return other
    return None


def _on_instant(progress: Progress, instant_ms: int | None) -> bool:
    """Whether rows came and all of them were sent at that instant."""
    return instant_ms is not None and progress.first_ms == progress.last_ms == instant_ms


def _short(reading: Reading, traits: Traits, progress: Progress, received: int) -> Next:
    """The span holds fewer rows than the provider says there are."""
    span = reading.spans[0]
    assert progress.total is not None
    cause = f"{received} of {progress.total} rows came"
    if _halves(span, traits):
        other = _untold_half(reading, progress)
        if other is not None:
            span.received, span.parent_total = received, progress.total
            other.sibling_total = progress.total
            between_ms = other.from_ms
            other.burst_ms = between_ms if _on_instant(progress, between_ms) else None
            reading.spans[0], reading.spans[1] = other, span
            return Next(cause=cause)
    elif not _channels(span, traits) and not reading.total_tested:
        span.received, span.parent_total = received, progress.total
        step = traits.window_min_ms
        reading.spans.insert(0, _test(span, span.to_ms + 2 * step, step, progress.total))
        return Next(cause=cause)
    return _divide(reading, traits, cause, total=progress.total, received=received)


def _tested(reading: Reading, tests: int, total: int | None) -> Next:
    """What has become of a test of the short span's total, which stands behind it.

    Beside it there may be rows as well. Then both together have as many as the two, or nearly, as
    some come and go meanwhile; a total that does not follow the window is half of that.
    """
    span = reading.spans.pop(0)
    short = reading.spans[0]
    beside = span.from_ms > short.to_ms
    if beside and total:
        reading.spans.insert(
            0, _test(short, short.from_ms, span.to_ms - short.from_ms, tests + total)
        )
    elif total is not None and not beside and 4 * total < 3 * tests:
        return Next(incidents=[_ignore_total(reading, total)])
    else:
        reading.total_tested = True
    return Next()


def _test(short: Span, from_ms: int, width_ms: int, tests: int) -> Span:
    return Span(from_ms=from_ms, to_ms=from_ms + width_ms, channel=short.channel, tests=tests)


def divide_short(reading: Reading, traits: Traits) -> Next | None:
    """Before asking: a span that is known to be short is split without being read again."""
    span = reading.spans[0]
    if span.received is None:
        return None
    cause = f"{span.received} of {span.parent_total} rows came"
    return _divide(reading, traits, cause, total=span.parent_total, received=span.received)


def _divide(
    reading: Reading,
    traits: Traits,
    cause: str,
    *,
    total: int | None = None,
    received: int | None = None,
) -> Next:
    """Put parts in the place of the first span; where there are none, that is an incident."""
    span = reading.spans.pop(0)
    halves = _halves(span, traits)
    if halves:
        for half in halves:
            half.parent_total = total
        reading.spans[:0] = halves
        return Next(cause=cause)
    channels = _channels(span, traits)
    if channels:
        reading.spans[:0] = [
            Span(from_ms=span.from_ms, to_ms=span.to_ms, channel=channel) for channel in channels
        ]
        return Next(cause=cause)
    return Next(incidents=[_incident(span, cause, total, received)], cause=cause)


def _halves(span: Span, traits: Traits) -> list[Span]:
    """Two halves on the provider's smallest step; none where the span is as short as it may be."""
    step = traits.window_min_ms
    if span.width_ms <= step:
        return []
    middle = (span.from_ms + span.width_ms // 2) // step * step
    if not span.from_ms < middle < span.to_ms:
        middle = span.from_ms // step * step + step
    if not span.from_ms < middle < span.to_ms:
        return []
    return [
        Span(from_ms=span.from_ms, to_ms=middle, channel=span.channel),
        Span(from_ms=middle, to_ms=span.to_ms, channel=span.channel),
    ]


def _channels(span: Span, traits: Traits) -> tuple[str, ...]:
    return traits.channels if span.channel is None else ()


def _incident(span: Span, cause: str, expected: int | None, received: int | None) -> Incident:
    where = f"{iso(span.from_ms)} to {iso(span.to_ms)}"
    if span.channel is not None:
        where += f", channel {span.channel}"
    return Incident(
        kind=SHORT_WINDOW,
        text=f"{where}: {cause}, and the window can be split no further",
        from_ms=span.from_ms,
        to_ms=span.to_ms,
        channel=span.channel,
        expected=expected,
        received=received,
    )
