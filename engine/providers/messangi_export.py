"""Messangi's exported report: the CSV file that `POST /v3/mlog` mails.

https://docs.messangi.com/docs/reporting#exporting-report-csv

Its columns are the log's fields in other capitals, two of them behind `items.`; a row means what
a record of the log means, and is the same message under the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.contracts import Flaw, Form, Outcome, Parser, Verb
from ..core.fields import json_of
from ..core.report import Report
from ..parsing.csv import CsvRows
from ..parsing.flaw import FLAW_RAW_MAX

WHAT = "the CSV file that messangi's POST /v3/mlog mails"

LongNames = Callable[[tuple[str, ...]], tuple[str, ...]]


class ExportReader:
    """Reads one exported file."""

    def __init__(
        self, report: Callable[[dict[str, Any]], Report | str], long_names: LongNames
    ) -> None:
        """`report` reads a record under long names, or says why there is none."""
        self._rows = CsvRows(lambda words: columns(words, long_names))
        self.parser: Parser = self._rows
        self._report = report
        self._seen = 0
        self._flaws: list[Flaw] = []

    def reports(self, records: Sequence[dict[str, Any]]) -> list[Report]:
        taken = []
        for record in records:
            self._seen += 1
            found = self._report(record)
            if isinstance(found, Report):
                taken.append(found)
                continue
            raw, place = json_of(record), self._rows.place(self._seen)
            cut = len(raw) > FLAW_RAW_MAX
            self._flaws.append(Flaw(found, place, raw[:FLAW_RAW_MAX], cut, Form.VALUE))
        return taken

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = self.parser.take_flaws() + self._flaws, []
        return flaws

    def outcome(self) -> Outcome:
        if self._rows.complete:
            return Outcome()
        return Outcome(verb=Verb.RETRY, cause=self._rows.cause or "the file was cut short")


def columns(words: Sequence[str], long_names: LongNames) -> Sequence[str] | None:
    """The keys of a row's cells; None: these are not the columns of an export."""
    keys: dict[str, None] = {}
    for number, word in enumerate(words, 1):
        key = word or f"column {number}"
        keys[key if key not in keys else f"{key} ({number})"] = None
    names = long_names(tuple(keys))
    known = set(names)
    ours = len(known) == len(words) and "channel" in known and known & {"recipient", "date"}
    return names if ours else None
