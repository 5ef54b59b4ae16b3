"""Reading a period completely: windows, pages, totals, and what to do when rows are missing.

A `Reading` is the list of spans still to be read; the first one is being read. `Progress` is what
is known of that one. After each answer `decide` says what comes next, as a value, and changes both
accordingly; the caller asks. Rows are committed as they come: to read a row twice costs nothing,
so a span that turns out short is split and read again in halves.

Where an answer says how many rows there are, that is the proof of completeness. A span that can
be split no further and is still short is an incident. A total that does not follow the window at
all proves nothing: it is reported once, then ignored. Before the first span is split over its total
this is put to the test, by three short windows that are asked for their totals; rows that they
bring are kept as any others, but count for no window. Nothing is concluded from the totals of the
halves: messages that show up late between two answers, a burst at the instant that halves share,
and a total that is capped make honest ones look false.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contracts import Outcome, Traits, Verb
from .units import iso
from .work import Incident

# Pages and rows of one span: one with more is split where that helps, for the fewer pages are read
# in one go, the less they shift. No more rows than that are told apart; beyond, all are counted.
PAGES_MAX = 500
ROWS_MAX = 50_000

# Pages of a span that no split makes smaller, or of whose total nothing is to be proven.
PAGES_FAR = 100_000

# How often the pages of one span are read, where their total goes on moving.
PASSES_MAX = 3

# How long the windows are that put a total to the test, where the provider takes such short ones.
# A provider that counts in whole seconds still tells them apart.
TEST_MS = 1000

# Kinds of incidents.
SHORT_WINDOW = "short_window"
TOTAL_IGNORED = "total_ignored"


class Span(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A window, both ends included, in epoch ms."""

    from_ms: int
    to_ms: int
    channel: str | None = None
    received: int | None = None  # read already, and short: so many rows came. Only to be split
    total: int | None = None  # and so many it claims
    told: tuple[int, ...] = ()  # asked for its total, to be held against these told before

    @property
    def width_ms(self) -> int:
        return self.to_ms - self.from_ms


class Totals(msgspec.Struct):
    """What is known of the totals that an account's provider tells; of all its readings."""

    follow: bool | None = None  # whether they follow the window, where that is known


class Reading(msgspec.Struct, kw_only=True):
    """What is still to be read. The spans are durable as JSON, so that a restart goes on where it
    stood."""

    spans: list[Span] = []
    totals: Totals = msgspec.field(default_factory=Totals)

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
    rows: int = 0  # all rows of this pass, flaws and repetitions included
    flaws: int = 0  # of this pass, too
    seen: set[int] = set()  # of a paged span: which rows, by a hash of their message's id
    seen_again: set[int] = set()  # those of this pass alone
    last: set[int] = set()  # those of the last page
    first_total: int | None = None
    total: int | None = None
    passes: int = 1  # the pages are read again when the total has moved
    shrunk: bool = False  # the total went down while these pages were read
    every_page: bool = False  # this time to the last page: rows have moved up over page edges
    fresh: int = 0  # rows of the last page that no page of this pass had before


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
) -> Next:
    """What to do after an answer to the first span with `rows` rows (`flaws` of them unusable),
    whose messages hash to `keys`."""
    span = reading.spans[0]
    if span.told:
        return _tested(reading, traits, outcome.total)
    progress.rows += rows
    progress.flaws += flaws
    progress.fresh = len(keys - progress.seen_again - progress.last) + flaws
    progress.last = keys
    if len(progress.seen) < ROWS_MAX:
        progress.seen_again |= keys
        progress.seen |= keys
    if outcome.verb is Verb.SPLIT:
        return _divide(reading, traits, outcome.cause)
    if outcome.total is not None:
        progress.shrunk |= progress.total is not None and outcome.total < progress.total
        progress.total = outcome.total
        if progress.first_total is None:
            progress.first_total = outcome.total
    total = progress.total if reading.totals.follow is not False else None
    received = progress.rows
    if traits.paged:
        if len(progress.seen) < ROWS_MAX:
            received = len(progress.seen) + progress.flaws
        split = total if _halves(span, traits) else None  # the total that a split is to prove
        if split is not None and split > ROWS_MAX and progress.page == 1:
            cause = f"{split} rows are more than one window may hold"
            return _short(reading, traits, cause, split, received)
        if _has_more(progress, outcome, total, received, rows):
            most = PAGES_FAR if split is None else PAGES_MAX
            if progress.page < most:
                progress.page += 1
                return Next(same_span=True)
            cause = f"more than {most} pages"
            if split is not None:
                return _short(reading, traits, cause, split, received)
            return _divide(reading, traits, cause, total=total, received=received)
    if total is not None and _must_read_again(progress, total, received):
        progress.passes += 1
        progress.page = 1
        progress.rows = progress.flaws = 0
        progress.seen_again = set()
        progress.first_total = total
        return Next(same_span=True)
    if total is None or received >= total:
        reading.spans.pop(0)
        return Next()
    return _short(reading, traits, f"{received} of {total} rows came", total, received)


def _has_more(
    progress: Progress, outcome: Outcome, total: int | None, received: int, rows: int
) -> bool:
    """Whether there is another page worth asking for."""
    if rows == 0:
        return False
    if outcome.page is not None and outcome.page != progress.page:
        return False  # the server ignores the page that was asked for
    told = outcome.pages is not None and progress.page < outcome.pages
    if progress.every_page:
        return outcome.pages is None or told
    if progress.fresh == 0 and progress.page > 1:
        return False  # a page that repeats others: asking on would go round in circles
    if total is not None:
        return told or received < total
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


def _short(reading: Reading, traits: Traits, cause: str, total: int, received: int) -> Next:
    """Fewer rows of the span were read than the provider says there are: it is split where it is
    known that its total follows the window. Before it is said that rows are missing, the total is
    put to the test in any case: one that is a row too high is found out where there are few."""
    span = reading.spans[0]
    if reading.totals.follow and (_halves(span, traits) or _channels(span, traits)):
        return _divide(reading, traits, cause, total=total, received=received)
    span.total, span.received = total, received
    reading.spans.insert(0, _test(span, traits, (total,)))
    return Next(cause=cause)


def _test(short: Span, traits: Traits, told: tuple[int, ...]) -> Span:
    """The next test of the total of `short`: its end, a window before that, one over both."""
    step = max(traits.window_min_ms, TEST_MS)
    from_ms, to_ms = ((1, 0), (4, 3), (4, 0))[len(told) - 1]
    return Span(
        from_ms=short.to_ms - from_ms * step,
        to_ms=short.to_ms - to_ms * step,
        channel=short.channel,
        told=told,
    )


def _tested(reading: Reading, traits: Traits, total: int | None) -> Next:
    """What has become of a test of the short span's total, which stands behind it.

    A total that does not follow the window is much the same each time. Any that is less than half
    of the first one follows it: mostly the first test ends it. Else the two windows apart have rows
    indeed, and the one over both, asked last, has as many as the two together, or nearly, as some
    go meanwhile; a total that does not follow the window is half of that.
    """
    span = reading.spans.pop(0)
    if reading.totals.follow is False:  # another reading has found out meanwhile
        return Next()
    if total is None or 2 * total < span.told[0]:
        reading.totals.follow = True
        return Next()
    told = (*span.told, total)
    if len(told) < 4:
        reading.spans.insert(0, _test(reading.spans[0], traits, told))
        return Next()
    _, one, other, both = told
    reading.totals.follow = 4 * both >= 3 * (one + other)
    return Next(incidents=[] if reading.totals.follow else [_ignored(both)])


def _ignored(total: int) -> Incident:
    return Incident(
        kind=TOTAL_IGNORED,
        text=(
            f"the provider says {total} rows whatever the window is: its total cannot prove"
            " completeness and is ignored"
        ),
        expected=total,
    )


def divide_short(reading: Reading, traits: Traits) -> Next | None:
    """Before asking: a span that is known to be short is split without being read again, unless
    its total has turned out to tell nothing."""
    span = reading.spans[0]
    if span.received is None or span.total is None:
        return None
    if reading.totals.follow is False:
        span.received = span.total = None
        return None
    cause = f"{span.received} of {span.total} rows came"
    return _divide(reading, traits, cause, total=span.total, received=span.received)


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
