"""An answer on its way from bytes to reports, also where the provider's reader has a bug.

A reader is a plug-in. Where it raises on a record, only that record is set aside: the answer is
read once more from its bytes, record by record. Where the parser itself fails, what it has given
out stays, and the answer is kept raw. A one-time answer is held whole while it is read, for there
is no second one; of others a beginning is enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from types import TracebackType
from typing import Any, cast

import msgspec

from engine.books.committing import Committer
from engine.config.model import AccountConfig
from engine.core.contracts import (
    Flaw,
    Form,
    Framing,
    Head,
    Kind,
    Outcome,
    Parser,
    Poll,
    Reader,
    Shortcuts,
    Verb,
)
from engine.core.report import Report
from engine.core.state import State
from engine.core.work import Asked, Page
from engine.parsing.form import FormRecord
from engine.telemetry import Telemetry

# Pieces of one answer that are set aside; beyond that they are counted, or a provider that sends
# nothing else would fill the disk and hold up the others.
FLAWS_MAX = 1000

# How much of an answer is held while it is read. A one-time answer has a thousand reports at most,
# mostly of half a kilobyte: this holds it with eight kilobytes each.
ONE_TIME_MAX = 8 << 20
BEGINNING_MAX = 64 << 10

# A one-time answer of more than this has something in it, also where the reader finds nothing.
EMPTY_MAX = 1024

_is_final = attrgetter("final")
_message_id = attrgetter("message_id")

Mapped = tuple[list[Report], list[int]]  # reports, and the indexes of those with unlisted codes


class Taken(msgspec.Struct, gc=False, kw_only=True):
    """What has been taken out of one answer so far. `page` is what is still to be committed."""

    page: Page
    rows: int = 0  # as the parser counts them
    reports: int = 0
    finals: int = 0
    flaws: int = 0
    keys: set[int] = set()

    def begin_again(self) -> None:
        """Forget what was taken and is not committed: the answer is read from its first byte."""
        self.page.reports, self.page.flaws = [], []
        self.page.unlisted, self.page.flaws_beyond = frozenset(), 0
        self.rows = self.reports = self.finals = self.flaws = 0
        self.keys = set()


class Intake:
    """Takes in the answers of one account."""

    def __init__(self, account: AccountConfig, committer: Committer, telemetry: Telemetry) -> None:
        self.name = account.name
        self.provider = account.provider
        self.traits = account.provider.traits
        self.committer = committer
        self.careful = False  # record by record: its reader has failed before
        self._telemetry = telemetry
        self._told: set[str] = set()

    def begin(self, poll: Poll, head: Head, taken: Taken) -> Digestion:
        return Digestion(self, poll, head, taken)

    def broke(self, fault: Exception) -> str:
        """A bug in a plug-in: counted, and told once. What it is called, without its message,
        which may hold data."""
        cause = f"the reader failed: {type(fault).__name__} in {_place(fault.__traceback__)}"
        if cause not in self._told:
            self._told.add(cause)
            self._telemetry.event(
                logging.ERROR,
                self.name,
                f"{cause}: a fault in the program, please report it; what it could not read is"
                " kept, `dlr-engine replay` reads it once it is mended",
            )
        self._telemetry.count("faults", self.name)
        self._telemetry.debug(fault)
        return cause


class Digestion:
    """The way of one answer. Nothing in here raises for what a provider's code does."""

    def __init__(
        self, intake: Intake, poll: Poll, head: Head, taken: Taken, *, careful: bool = False
    ) -> None:
        self._intake = intake
        self._poll, self._head, self._taken = poll, head, taken
        self._asked = Asked(poll=poll, head=head)
        self._careful = careful or intake.careful
        self._one_time = intake.traits.one_time or poll.kind is Kind.PUSH
        self._held: list[bytes] = []
        self._room = ONE_TIME_MAX if self._one_time else BEGINNING_MAX
        self._beyond = False  # there was more than is held
        self._torn = False  # a piece was set aside that is not whole
        self._watch = intake.committer.watch()
        self._cause: str | None = None  # the reader has failed: why
        self._short = False  # the parser may do what is the reader's part
        self._mapping = False  # it was a record that it failed on
        self._seen = 0  # records that were taken one by one
        self._reader: Reader  # both are there unless the reader failed at once
        self._parser: Parser
        self._guard(self._open)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._watch.look(chunk)
        held = chunk[: self._room]
        if held:
            self._held.append(held)
            self._room -= len(held)
        self._beyond = self._beyond or len(held) < len(chunk)
        self._guard(lambda: self._take(self._parser.feed(chunk)))

    def hand(self, records: Sequence[Any]) -> None:
        """Take records that a parser had given out before."""
        self._watch.look(msgspec.json.encode(records))
        self._guard(lambda: self._take(records))

    def close(self, *, cut: bool) -> Outcome:
        """There are no more bytes; what the answer asks for."""
        outcome = Outcome()

        def end() -> None:
            nonlocal outcome
            self._take(self._parser.close(cut=cut))
            self._taken.rows = self._parser.rows
            outcome = self._intake.committer.words(self._reader.outcome())
            self._note_unread(outcome, cut=cut)

        self._guard(end)
        if self._cause is None:
            return outcome
        if (self._mapping or self._short) and not self._beyond:
            self._intake.careful = True
            return self._once_more(cut)
        if not self._mapping or self._one_time:
            self._keep(self._cause)
        return Outcome(verb=Verb.RETRY, cause=self._cause)

    @property
    def reads_form(self) -> bool:
        return self._cause is None and isinstance(self._parser, FormRecord)

    @property
    def failed(self) -> bool:
        """Whether the reader has a fault beyond single records."""
        return self._cause is not None

    def _open(self) -> None:
        self._reader = self._intake.provider.reader(self._poll, self._head)
        self._parser = self._reader.parser
        if not self._careful and not self._intake.committer.redacts:
            self._short = self._take_shortcuts(True)

    def _take_shortcuts(self, allowed: bool) -> bool:
        """Whether the parser has any."""
        if not _has_shortcuts(type(self._parser)):
            return False
        cast("Shortcuts", self._parser).take_shortcuts(allowed)
        return True

    def _guard(self, step: Callable[[], None]) -> None:
        """Do it, unless the reader has failed before; from then on bytes are only held."""
        if self._cause is None:
            try:
                step()
            except Exception as fault:
                self._cause = self._intake.broke(fault)

    # Records

    def _take(self, records: Sequence[Any]) -> None:
        reports: list[Report] = []
        unlisted: list[int] = []
        refused: list[Flaw] = []
        if records:
            reports, unlisted = self._mapped(records, refused)
        self._set_aside([*self._reader.take_flaws(), *refused])
        if reports:
            self._add(reports, unlisted)

    def _mapped(self, records: Sequence[Any], refused: list[Flaw]) -> Mapped:
        if self._careful:
            return self._one_by_one(records, refused)
        try:
            return self._map(records)
        except Exception as fault:
            self._intake.careful = True
            if not (self._one_time and self._beyond):
                self._mapping = True
                raise
            # Too long to be held and gone at the provider: go on from here as well as it can be.
            self._intake.broke(fault)
            self._careful = True
            self._take_shortcuts(False)
            return self._one_by_one(records, refused)

    def _map(self, records: Sequence[Any]) -> Mapped:
        committer = self._intake.committer
        reports = self._reader.reports(committer.records(records))
        reports = committer.reports(reports, self._watch)
        lists, unknown = self._intake.provider.lists, State.UNKNOWN
        unlisted = [
            index
            for index, report in enumerate(reports)
            if report.state is unknown and not lists(report)
        ]
        return reports, unlisted

    def _one_by_one(self, records: Sequence[Any], refused: list[Flaw]) -> Mapped:
        """One bad record must not take the others along."""
        reports: list[Report] = []
        unlisted: list[int] = []
        for record in records:
            self._seen += 1
            try:
                more, codes = self._map([record])
            except Exception as fault:
                refused.append(self._refused(record, self._intake.broke(fault)))
            else:
                unlisted += [len(reports) + index for index in codes]
                reports += more
        return reports, unlisted

    def _refused(self, record: Any, cause: str) -> Flaw:
        """A record that the reader failed on, so that it can be read again."""
        place, parser = f"record {self._seen}", self._parser
        try:
            if isinstance(parser, Framing):
                return Flaw(cause, place, parser.raw(record))
            return Flaw(cause, place, msgspec.json.encode(record), form=Form.VALUE)
        except Exception as fault:  # nested too deep, or of a type that JSON has not
            self._torn = True
            self._intake.broke(fault)
            return Flaw(cause, place, b"", truncated=True)

    def _add(self, reports: list[Report], unlisted: list[int]) -> None:
        taken, traits = self._taken, self._intake.traits
        page = taken.page
        page.asked = self._asked
        if unlisted:
            base = len(page.reports)
            page.unlisted = page.unlisted.union(base + index for index in unlisted)
        page.reports.extend(reports)
        taken.reports += len(reports)
        taken.finals += sum(map(_is_final, reports))
        if traits.paged:
            taken.keys.update(map(hash, map(_message_id, reports)))

    # What could not be read

    def _set_aside(self, flaws: list[Flaw]) -> None:
        if not flaws:
            return
        taken = self._taken
        kept = max(0, FLAWS_MAX - taken.flaws)
        taken.flaws += len(flaws)
        taken.page.asked = self._asked
        taken.page.flaws.extend(map(self._intake.committer.redacted, flaws[:kept]))
        taken.page.flaws_beyond += len(flaws[kept:])
        self._torn = self._torn or any(flaw.truncated for flaw in flaws) or kept < len(flaws)

    def _note_unread(self, outcome: Outcome, *, cut: bool) -> None:
        """Keep an answer that is no report at all, and a one-time one that was not read whole."""
        parser, taken = self._parser, self._taken
        if not (200 <= self._head.status < 300 and self._held):
            return
        nothing = parser.rows == 0 and not taken.flaws
        if nothing and not parser.complete:
            taken.flaws += 1
            self._keep(parser.cause or "no report")
        elif self._one_time and not cut:
            size = sum(map(len, self._held))
            if not parser.complete or self._torn or (nothing and size > EMPTY_MAX):
                self._keep(parser.cause or "not read whole")
            elif outcome.verb is Verb.RETRY:
                self._keep(outcome.cause or "not understood")

    def _keep(self, cause: str) -> None:
        """Set aside the answer itself, as much as is held of it."""
        page = self._taken.page
        whole = self._one_time and not self._beyond
        raw = b"".join(self._held)
        self._held.clear()
        flaw = Flaw(cause, self._where(), raw, not whole, Form.ANSWER)
        page.asked = self._asked
        kept = self._intake.committer.redacted(flaw, self._watch)
        # Where no byte could be read, a parser has given all of it for a record: once is enough,
        # and as an answer it can be read again.
        page.flaws = [*(one for one in page.flaws if one.raw != kept.raw), kept]

    def _where(self) -> str:
        poll = self._poll
        of = poll.batch_id or poll.message_id
        return f"whole answer for {poll.kind} {of}" if of else "whole answer"

    def _once_more(self, cut: bool) -> Outcome:
        """Read the answer from its first byte, record by record: what the reader counts is then
        right, which it would not be if it saw some records a second time."""
        self._taken.begin_again()
        again = Digestion(self._intake, self._poll, self._head, self._taken, careful=True)
        for chunk in self._held:
            again.feed(chunk)
        return again.close(cut=cut)


@lru_cache(maxsize=64)
def _has_shortcuts(kind: type) -> bool:
    """Asked of the kind: of each answer's parser it would cost more than reading a small one."""
    return issubclass(kind, Shortcuts)


def _place(trace: TracebackType | None) -> str:
    """Where it was raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "?"
