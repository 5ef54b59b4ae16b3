"""One transaction under way: what it is given, what it has made so far, and the tallies.

The tallies (`known`, `final`, `state:<state>`, …) are moved with each change, so that
`known = final + pending` can be checked at any time without counting ten million rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.core.reconcile import Known
from engine.core.report import Report, encode_lines, msisdn
from engine.core.state import State
from engine.core.work import Committed, LogRow, Page

from .transaction import CODE_OF, Transaction

# A log row: at most this many records, and this many bytes before the last of them are written.
LOG_RECORDS_MAX = 1000
LOG_BYTES_MAX = 1 << 20

# Records that are written at once: half the cost of one by one, and they stay in the cache. A row
# holds so many times as many. Where they have more bytes than this, each is written by itself.
WRITTEN_TOGETHER = 20
WRITTEN_BYTES_MAX = 1 << 16


Standing = tuple[State, bool, str | None]  # state, whether it is final, verdict


class Change(msgspec.Struct):
    """The tallies' changes of one transaction, by account."""

    account: str
    counts: dict[str, int]

    def add(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def moved(self, before: Standing | None, after: Known) -> None:
        """A message is new (`before` is None), or has changed."""
        if before is None:
            self.add("known")
        else:
            self._enter(*before, by=-1)
        self._enter(after.state, after.final, after.verdict, by=1)

    def move(self, moves: dict[tuple[Standing | None, Standing], int]) -> None:
        """So many messages have gone from one standing to another, or are new (None)."""
        for (before, after), count in moves.items():
            if before is None:
                self.add("known", count)
            else:
                self._enter(*before, by=-count)
            self._enter(*after, by=count)

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
        self._told: list[tuple[Known, Report]] = []  # records that are not written yet
        self._rows: list[LogRow] = []
        self._written: list[bytes] = []  # lines of the row that is being filled
        self._states = bytearray()  # of its records
        self._size = 0
        self._seq = 0  # of that row
        self._replaced: dict[int, int] = {}

    def end(self, work_id: int) -> None:
        """A work is over."""
        self.tx.drop_works([work_id])
        self.done.ended.append(work_id)

    def keep(self, known: Known, report: Report) -> None:
        """A message has a new record, which goes into the log."""
        self._told.append((known, report))
        if len(self._told) >= WRITTEN_TOGETHER:
            self._write()

    def put(self, messages: Sequence[Known]) -> None:
        """Put messages with their new records, if they have any. The log is there with `append`."""
        self._write()
        self.tx.put_messages(messages)

    def newest(self, messages: Sequence[Known]) -> None:
        """Fill in the newest record of each, also where that is still to be appended."""
        self._write()
        ours = {row.seq: row.body.split(b"\n") for row in self._rows}
        ours[self._seq] = b"".join(self._written).split(b"\n")
        there = []
        for known in messages:
            if known.place is not None and known.place[0] in ours:
                known.record = ours[known.place[0]][known.place[1]]
            else:
                there.append(known)
        self.tx.newest(there)

    def _write(self) -> None:
        """Records in their places."""
        told, self._told = self._told, []
        if not told:
            return
        if not self._seq:
            self._seq = self.tx.next_log_seq(self.page.account)
        lines = encode_lines([report for _, report in told])
        if len(lines) <= WRITTEN_BYTES_MAX:
            self._place(told, lines)
        else:
            for known, report in told:
                self._place([(known, report)], encode_lines([report]))
        self.done.records += len(told)

    def _place(self, told: Sequence[tuple[Known, Report]], lines: bytes) -> None:
        """In rows of a bounded number of records and bytes."""
        if len(self._states) + len(told) > LOG_RECORDS_MAX or self._size >= LOG_BYTES_MAX:
            self._end_row()
        seq, place = self._seq, len(self._states)
        for known, report in told:
            if known.place is not None:
                before = known.place[0]
                self._replaced[before] = self._replaced.get(before, 0) + 1
            known.place = (seq, place)
            known.record = b""
            place += 1
            self._states.append(CODE_OF[report.state])
        if self.tx.wants_records:
            for (known, _), line in zip(told, lines.split(b"\n"), strict=False):
                known.record = line
        self._written.append(lines)
        self._size += len(lines)

    def _end_row(self) -> None:
        self._rows.append(
            LogRow(
                seq=self._seq,
                at_ms=self.page.observed_ms,
                states=bytes(self._states),
                body=b"".join(self._written)[:-1],
            )
        )
        self._seq += 1
        self._written, self._states, self._size = [], bytearray(), 0

    def append(self) -> None:
        """Write the log."""
        if self._states:
            self._end_row()
        if self._rows:
            self.tx.append_log(self.page.account, self._rows, self._replaced)
            self.change.add("records", self.done.records)


def who(recipient: str | None) -> str:
    """A recipient as those of a batch are compared: digits alone, else as it is."""
    return msisdn(recipient) or recipient or ""
