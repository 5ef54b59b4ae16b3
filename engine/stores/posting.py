"""One transaction under way: what it is given, what it has made so far, and the tallies.

The tallies (`known`, `final`, `state:<state>`, …) are moved with each change, so that
`known = final + pending` can be checked at any time without counting ten million rows.
"""

from __future__ import annotations

import msgspec

from engine.core.reconcile import Known
from engine.core.report import msisdn
from engine.core.state import State
from engine.core.work import Committed, Page

from .transaction import Transaction


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


class Posting:
    """The commit of one page."""

    def __init__(self, tx: Transaction, page: Page) -> None:
        self.tx = tx
        self.page = page
        self.done = Committed()
        self.change = Change(page.account, {})
        self.lines: list[tuple[bytes, State]] = []  # records for the log, with their states

    def end(self, work_id: int) -> None:
        """A work is over."""
        self.tx.drop_works([work_id])
        self.done.ended.append(work_id)


def who(recipient: str | None) -> str:
    """A recipient as those of a batch are compared: digits alone, else as it is."""
    return msisdn(recipient) or recipient or ""
