"""The demo's end: what the worker recorded, held against what the simulator knows to be true.

Message by message where the provider has ids; messangi has none, so there the numbers by state
are compared. What was still under way when the time was over is no disagreement, and is counted.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from engine.core.reconcile import Known

if TYPE_CHECKING:
    from engine.config.model import Config
    from engine.sim import Simulator, Truth
    from engine.stores.transaction import Store, Transaction

IDS_AT_ONCE = 5000
SHOWN_MAX = 5


class Side(msgspec.Struct):
    """One account, both sides."""

    name: str
    provider: str
    sent: int = 0
    tally: dict[str, int] = {}
    requests: int = 0
    answers: dict[str, int] = {}
    exceeded: int = 0
    under_way: int = 0
    given: int | None = None  # of a one-time feed: reports that were handed out whole
    recorded: int = 0  # … and how many of them were recorded
    wrong: list[str] = []


class Outcome(msgspec.Struct):
    """What the summary says."""

    sides: list[Side]
    records: int
    sinks: dict[str, int]
    ended: bool
    example: str | None = None

    @property
    def agrees(self) -> bool:
        return (
            not any(side.wrong or side.exceeded for side in self.sides)
            and all(side.given is None or side.given == side.recorded for side in self.sides)
            and all(count == self.records for count in self.sinks.values())
        )

    def lines(self) -> list[str]:
        lines = ["", "What was sent, and what the worker knows of it:"]
        lines += _aligned(
            ["", "account", "provider", "sent", "known", "final", "pending", "requests"],
            [
                [
                    "",
                    side.name,
                    side.provider,
                    f"{side.sent:,}",
                    *(f"{side.tally.get(key, 0):,}" for key in ("known", "final", "pending")),
                    f"{side.requests:,}",
                ]
                for side in self.sides
            ],
        )
        lines += [
            f"States:    {_counts(self._sum('state:'))}",
            f"Verdicts:  {_counts(self._sum('verdict:')) or 'none'}"
            "  (the schedule ended before a final state was heard)",
            f"Faults:    {_counts(self._faults()) or 'none'}  (all of them on purpose)",
            f"Limits:    exceeded {sum(side.exceeded for side in self.sides)} times,"
            " as the simulated providers counted",
        ]
        lines += [
            f"One-time:  {side.name} handed out {side.given:,} reports, each once;"
            f" {side.recorded:,} are recorded"
            for side in self.sides
            if side.given is not None
        ]
        sinks = ", ".join(f"{name} has {count:,}" for name, count in self.sinks.items())
        lines.append(f"Records:   {self.records:,} changes of state; {sinks}")
        return lines + self._verdict()

    def _verdict(self) -> list[str]:
        wrong = [text for side in self.sides for text in side.wrong]
        under_way = sum(side.under_way for side in self.sides)
        known = sum(side.tally.get("known", 0) for side in self.sides)
        lines = []
        if not self.ended:
            lines.append(
                f"Stopped:   {under_way:,} messages were still under way; --seconds gives more time"
            )
        if self.agrees:
            lines.append(
                f"Compared:  nothing is lost, nothing is wrong: all {known - under_way:,} messages"
                " stand as the simulator knows them"
                if self.ended
                else "Compared:  nothing that had ended is lost or wrong"
            )
        else:
            lines.append(f"Compared:  NOT as it should be: {len(wrong):,} messages differ")
            lines += [f"  {text}" for text in wrong[:SHOWN_MAX]]
        return lines

    def _sum(self, prefix: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for side in self.sides:
            for key, count in side.tally.items():
                if key.startswith(prefix) and count:
                    total[key.removeprefix(prefix)] += count
        return total

    def _faults(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for side in self.sides:
            total.update(side.answers)
        return total


async def compare(config: Config, simulator: Simulator, *, ended: bool) -> Outcome:
    """Hold both sides against one another; the worker has ended."""
    from engine.stores.opening import make_store

    store = make_store(
        config.store.scheme, config.store.path, config.store.shown, url=config.store.url
    )
    await store.open(own=False)
    try:
        tallies = await store.read(lambda tx: tx.tallies())
        sides = [
            await _side(store, simulator, account, tallies.get(account, {}), ended)
            for account in simulator.accounts
        ]
    finally:
        await store.close()
    sinks = {sink.name: await _held(sink.type, sink.sink.path) for sink in config.sinks}
    first = simulator.messages("bulk")[:1]
    return Outcome(
        sides=sides,
        records=sum(tally.get("records", 0) for tally in tallies.values()),
        sinks=sinks,
        ended=ended,
        example=f"+{first[0].recipient}" if first else None,
    )


async def _held(kind: str, path: Any) -> int:
    """Records that a sink's file holds."""

    def count() -> int:
        if kind == "jsonl":
            with open(path, "rb") as file:
                return sum(1 for _ in file)
        db = sqlite3.connect(path)
        try:
            return int(db.execute("SELECT count(*) FROM reports").fetchone()[0])
        finally:
            db.close()

    return await anyio.to_thread.run_sync(count)


async def _side(
    store: Store, simulator: Simulator, name: str, tally: dict[str, int], ended: bool
) -> Side:
    counts = simulator.counts(name)
    truths = simulator.truth(name)
    side = Side(
        name=name,
        provider=simulator.accounts[name].profile.provider,
        sent=len(truths),
        tally=tally,
        requests=counts.requests,
        answers=dict(counts.faults),
        exceeded=counts.violations,
        wrong=[],
    )
    if side.provider == "messangi":
        _by_numbers(side, truths, ended)
        return side
    known: dict[str, Known] = {}
    for start in range(0, len(truths), IDS_AT_ONCE):
        ids = [(truth.message_id, "mt") for truth in truths[start : start + IDS_AT_ONCE]]

        def find(tx: Transaction, ids: list[tuple[str, str]] = ids) -> list[Known]:
            return list(tx.messages(name, ids).values())

        known |= {found.message_id: found for found in await store.read(find)}
    for truth in truths:
        _one(side, truth, known.get(truth.message_id), ended)
    if side.provider == "infobip":
        _one_time(side, simulator, known)
    return side


def _one(side: Side, truth: Truth, known: Known | None, ended: bool) -> None:
    """One message: it is as the simulator says, or under way, or wrong."""
    if known is None or not known.final:
        if ended:
            stands = "unknown" if known is None else f"pending, {known.state.value}"
            side.wrong.append(f"{side.name} {truth.message_id}: {stands}, {truth.state} is true")
        else:
            side.under_way += 1
        return
    if known.verdict is None or truth.verdict is not None:
        if (known.state.value, known.verdict) == (truth.state, truth.verdict):
            return
    elif not ended:
        side.under_way += 1  # its final state came after the last look
        return
    side.wrong.append(
        f"{side.name} {truth.message_id}: recorded {known.state.value} ({known.verdict}),"
        f" {truth.state} ({truth.verdict}) is true"
    )


def _by_numbers(side: Side, truths: list[Truth], ended: bool) -> None:
    """Numbers by state and by verdict."""
    expected: Counter[str] = Counter(known=len(truths))
    for truth in truths:
        expected[f"state:{truth.state}"] += 1
        if truth.verdict is not None:
            expected[f"verdict:{truth.verdict}"] += 1
    if not ended:
        side.under_way = len(truths) - side.tally.get("final", 0)
        return
    keys = {key for key in side.tally if key.startswith(("state:", "verdict:"))} | set(expected)
    for key in sorted(keys):
        recorded, true = side.tally.get(key, 0), expected.get(key, 0)
        if recorded != true:
            side.wrong.append(f"{side.name}: {key}: {recorded} recorded, {true} is true")


def _one_time(side: Side, simulator: Simulator, known: dict[str, Known]) -> None:
    """Every report that was handed out whole is in the history of its message."""
    from engine.core.reconcile import History

    given = [report for report in simulator.given(side.name) if report.on_wire]
    side.given = len(given)
    for report in given:
        message = known.get(report.message_id)
        if message is None:
            continue
        past = {entry["provider_status"] for entry in History.of(message).entries}
        side.recorded += report.status == message.provider_status or report.status in past


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def _aligned(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns; numbers to the right."""
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
