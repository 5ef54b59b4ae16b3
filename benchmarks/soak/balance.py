"""The balance of a soak: what the provider knows against what came out, message by message.

A pure computation over both sides. Each thing that is not as it should be is named under one of
`KINDS`; what is allowed (an answer on the wire at a kill, a verdict where nothing was said in
time) has to be proven for each case, and is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

KINDS = ("lost", "twice", "wrong", "torn", "gap", "limit", "worker", "lag")
SHOWN_MAX = 20
"""Of each kind, how many are kept in words; all are counted."""
WIRE_MAX_S = 20.0
"""An answer takes at most its `total_timeout`, and the worker may stand still meanwhile."""
EARLY_S = 0.002
"""Times are told in whole milliseconds."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """From `at` on the provider says `status`."""

    at: float
    status: str
    state: str
    final: bool


class Life(msgspec.Struct, frozen=True, gc=False):
    """A message as the provider knows it."""

    sent_at: float
    steps: tuple[Step, ...]


class Given(msgspec.Struct, frozen=True, gc=False):
    """A one-time report that was handed out; `at` is when its request came."""

    key: str
    status: str
    answer: int
    at: float
    on_wire: bool
    spoiled: bool = False


class Line(msgspec.Struct, frozen=True, gc=False):
    """A record as a sink has it."""

    event_id: str
    account: str
    key: str
    revision: int
    state: str
    final: bool
    verdict: str | None
    status: str | None
    error_code: str | None
    observed_at: float

    @property
    def fact(self) -> tuple[str | None, str | None, str | None]:
        return self.status, self.error_code, self.verdict


class Kill(msgspec.Struct, frozen=True):
    """A `kill -9`, and when the next worker was started: until then no other one could ask."""

    at: float
    until: float


class Side(msgspec.Struct, kw_only=True):
    """An account, by the provider's books and by the worker's."""

    name: str
    provider: str
    lives: dict[str, Life]
    given: list[Given] = []
    counts: dict[str, object] = {}
    books: dict[str, object] = {}
    violations: list[str] = []


class Sinks(msgspec.Struct, kw_only=True):
    """What is in the sinks: the file's lines in their order, the ids of the tables' rows."""

    lines: list[Line]
    torn: list[str] = []
    rows: list[str] = []
    newest: list[str] = []
    """The event ids in the table of the newest record of each message."""


class OneTime(msgspec.Struct, kw_only=True):
    """A one-time feed: what became of each report that was handed out."""

    given: int = 0
    cut: int = 0
    """A fault of the simulator's took it on its way: it never was on the wire whole."""
    spoiled: int = 0
    """A fault made it no UTF-8: it is set aside with its bytes."""
    recorded: int = 0
    superseded: int = 0
    """It came after a later one of the same message, and is in the history alone."""
    killed: int = 0
    """It was in the one answer that was on the wire at a `kill -9`."""
    answers: list[str] = []
    """Those answers, each with its proof."""


class Balance(msgspec.Struct, kw_only=True):
    """The result. It is sound where nothing was found."""

    found: dict[str, list[str]]
    counted: dict[str, int]
    messages: int = 0
    records: int = 0
    repeats: int = 0
    rows: int = 0
    verdicts: int = 0
    refused_rungs: int = 0
    """Verdicts that carry the provider's "no such batch" (one of the faults) as their cause."""
    one_time: dict[str, OneTime] = {}

    @property
    def sound(self) -> bool:
        return not any(self.counted.values())


class _Finder:
    """Collects what is not as it should be."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.counted: Counter[str] = Counter(dict.fromkeys(KINDS, 0))

    def note(self, kind: str, text: str) -> None:
        self.counted[kind] += 1
        if len(self.found[kind]) < SHOWN_MAX:
            self.found[kind].append(text)


def judge(
    sides: Sequence[Side],
    sinks: Sinks,
    *,
    kills: Sequence[Kill],
    ladder_s: float,
    troubles: Iterable[str] = (),
    behind: Iterable[object] = (),
) -> Balance:
    """Hold both sides against one another.

    `ladder_s` is how long after sending a state is still asked for; `troubles` is what went wrong
    with the worker itself; `behind` are the accounts that fell behind, in words.
    """
    finder = _Finder()
    for text in troubles:
        finder.note("worker", text)
    for account in behind:
        finder.note("lag", str(account))
    for text in sinks.torn:
        finder.note("torn", text)
    once, repeats = _once(sinks.lines, bool(kills), finder)
    balance = Balance(found=finder.found, counted={}, repeats=repeats, rows=len(sinks.rows))
    balance.records = len(once)
    _same_in_tables(sinks, once, finder)
    by_account: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in once:
        by_account[line.account][line.key].append(line)
    for side in sides:
        told = by_account.pop(side.name, {})
        _history(side, told, finder)
        if side.provider == "infobip":
            _one_time(side, told, kills, balance, finder)
        refused = _ends(side, told, ladder_s, finder)
        balance.refused_rungs += refused
        _books(side, finder)
        balance.messages += len(side.lives)
        balance.verdicts += sum(lines[-1].verdict is not None for lines in told.values())
    for account, told in by_account.items():
        finder.note("wrong", f"{account}: {len(told)} messages of an account that nobody has")
    balance.counted = dict(finder.counted)
    return balance


def _once(lines: Sequence[Line], killed: bool, finder: _Finder) -> tuple[list[Line], int]:
    """The records without their repeats, which only a kill may cause."""
    seen: dict[str, Line] = {}
    repeats = 0
    for line in lines:
        before = seen.get(line.event_id)
        if before is None:
            seen[line.event_id] = line
            continue
        repeats += 1
        if before != line:
            finder.note("wrong", f"{_of(line)}: two records under one event_id {line.event_id}")
        elif not killed:
            finder.note("twice", f"{_of(line)}: line repeated, and nothing was killed")
    return list(seen.values()), repeats


def _same_in_tables(sinks: Sinks, once: Sequence[Line], finder: _Finder) -> None:
    rows = Counter(sinks.rows)
    for line in once:
        if line.event_id not in rows:
            finder.note("lost", f"{_of(line)}: revision {line.revision} is not in the tables")
    ids = {line.event_id for line in once}
    for event_id, count in rows.items():
        if event_id not in ids:
            finder.note("lost", f"record {event_id} is in the tables and not in the lines")
        if count > 1:
            finder.note("twice", f"record {event_id} is in the tables {count} times")
    last = {(line.account, line.key): line.event_id for line in once}
    for event_id in sorted(set(last.values()) ^ set(sinks.newest)):
        finder.note("wrong", f"record {event_id}: the newest of its message in one sink alone")


def _history(side: Side, told: Mapping[str, Sequence[Line]], finder: _Finder) -> None:
    """Each message's records: numbered through, nothing twice, and all of it truly said."""
    for key, lines in told.items():
        life = side.lives.get(key)
        if life is None:
            finder.note("wrong", f"{side.name} {key}: recorded, and nobody sent it")
            continue
        revisions = [line.revision for line in lines]
        if revisions != list(range(1, len(lines) + 1)):
            finder.note("gap", f"{side.name} {key}: revisions {revisions}")
        for fact, count in Counter(line.fact for line in lines).items():
            if count > 1:
                finder.note("twice", f"{side.name} {key}: {fact} is recorded {count} times")
        steps = {step.status: step for step in life.steps}
        for line in lines:
            if line.status is None:
                continue
            step = steps.get(line.status)
            if step is None or step.state != line.state:
                finder.note("wrong", f"{side.name} {key}: {line.status} ({line.state}) never said")
            elif line.observed_at < step.at - EARLY_S:
                finder.note("wrong", f"{side.name} {key}: {line.status} recorded before it was so")


def _ends(side: Side, told: Mapping[str, Sequence[Line]], ladder_s: float, finder: _Finder) -> int:
    """Each message stands as it should in the end; how many verdicts a refused rung explains."""
    refused: set[str] = set()
    for key, life in side.lives.items():
        lines = told.get(key)
        if not lines:
            finder.note("lost", f"{side.name} {key}: nothing is recorded of it")
            continue
        if side.provider == "infobip":  # a report comes once: what came is what can be known
            heard = {line.status for line in lines if line.verdict is None}
            least = max((n for n, s in enumerate(life.steps) if s.status in heard), default=-1)
            most = least
        else:  # at least what was so when it was asked for the last time
            until = life.sent_at + ladder_s
            least = max((n for n, step in enumerate(life.steps) if step.at <= until), default=-1)
            most = len(life.steps) - 1
        last = lines[-1]
        if last.verdict is not None and last.error_code == "24" and side.provider == "bulksms":
            refused.add(key.partition(":")[0])
        elif not any(_stands(last, life, n) for n in range(least, most + 1)):
            stands = f"{last.state} ({last.verdict})" if last.final else f"{last.state}, pending"
            finder.note("wrong", f"{side.name} {key}: {stands}, {_true(life, least, most)} is true")
    faults = side.counts.get("faults")
    allowed = int(faults.get("error24", 0)) if isinstance(faults, dict) else 0
    if len(refused) > allowed:
        finder.note(
            "wrong", f"{side.name}: {len(refused)} batches called unknown, the provider: {allowed}"
        )
    return len(refused)


def _stands(line: Line, life: Life, n: int) -> bool:
    """Whether this record is the right last one of a message that was heard up to step `n`."""
    if n < 0:
        return line.verdict == "never_reported" and line.final and line.state == "unknown"
    step = life.steps[n]
    verdict = None if step.final else "last_known"
    return (line.status, line.verdict, line.final) == (step.status, verdict, True)


def _true(life: Life, least: int, most: int) -> str:
    names = [life.steps[n].status if n >= 0 else "nothing" for n in range(least, most + 1)]
    return " or ".join(names)


def _one_time(
    side: Side,
    told: Mapping[str, Sequence[Line]],
    kills: Sequence[Kill],
    balance: Balance,
    finder: _Finder,
) -> None:
    """Every report that was on the wire is recorded, superseded, or in an answer a kill took."""
    result = balance.one_time[side.name] = OneTime(given=len(side.given))
    late: list[Given] = []
    missing: dict[int, list[Given]] = defaultdict(list)
    recorded: Counter[int] = Counter()
    begun = {given.answer: given.at for given in side.given}
    for given in side.given:
        heard = {line.status for line in told.get(given.key, ()) if line.verdict is None}
        if given.status in heard:
            result.recorded += 1
            recorded[given.answer] += 1
        elif not given.on_wire:
            result.cut += 1
        elif given.spoiled:
            result.spoiled += 1
        elif _is_superseded(side.lives[given.key], given.status, heard):
            late.append(given)
        else:
            missing[given.answer].append(given)
    allowed = _on_wire_at_a_kill(begun, kills, set(missing))
    for answer, lost in missing.items():
        kill = allowed.get(answer)
        if kill is None or recorded[answer]:
            why = "no kill explains it" if kill is None else "the rest of its answer is recorded"
            for given in lost:
                finder.note("lost", f"{side.name} {given.key} {given.status}: {why}")
            continue
        result.killed += len(lost)
        result.answers.append(
            f"answer {answer}: its request came {_when(begun[answer], kill)},"
            f" {len(lost)} reports, none of it recorded"
        )
    aside, superseded = side.books.get("set_aside", 0), side.books.get("superseded", 0)
    if isinstance(aside, int) and result.spoiled > aside:
        finder.note("lost", f"{side.name}: {result.spoiled} spoiled reports, {aside} are set aside")
    within = sum(given.answer in allowed for given in late)
    result.superseded = len(late)
    if isinstance(superseded, int) and len(late) - within > superseded:
        finder.note(
            "lost",
            f"{side.name}: {len(late)} reports came too late to count, the books have {superseded}",
        )


def _is_superseded(life: Life, status: str, heard: set[str | None]) -> bool:
    """A later step of the same message was heard."""
    statuses = [step.status for step in life.steps]
    return any(later in heard for later in statuses[statuses.index(status) + 1 :])


def _on_wire_at_a_kill(
    begun: Mapping[int, float], kills: Sequence[Kill], missing: set[int]
) -> dict[int, Kill]:
    """Of the answers with missing reports: the kill that each was on the wire at.

    One after the other is asked for, so it is the last one that a dead worker had asked for, and a
    kill takes one at most. The simulator may take up a request after its sender's death.
    """
    allowed: dict[int, Kill] = {}
    answers = sorted(begun)
    for kill in kills:
        before = [answer for answer in answers if begun[answer] < kill.until]
        if before and before[-1] in missing and kill.at - begun[before[-1]] < WIRE_MAX_S:
            allowed.setdefault(before[-1], kill)
    return allowed


def _when(begun: float, kill: Kill) -> str:
    seconds = kill.at - begun
    return f"{abs(seconds):.3f} s {'before' if seconds >= 0 else 'after'} a kill"


def _books(side: Side, finder: _Finder) -> None:
    """The worker's own books, and the provider's on the limits."""
    books = side.books
    known, final, pending = (books.get(key, 0) for key in ("known", "final", "pending"))
    if (known, final, pending) != (len(side.lives), len(side.lives), 0):
        finder.note(
            "wrong",
            f"{side.name}: {len(side.lives)} sent, the books have {known} known, {final} final,"
            f" {pending} pending",
        )
    for key in ("refused", "incidents", "unlisted"):
        if books.get(key):
            finder.note("wrong", f"{side.name}: {books[key]} {key}")
    for text in side.violations:
        finder.note("limit", f"{side.name}: {text}")
    for key in ("strayed", "leaked"):
        if side.counts.get(key):
            finder.note("wrong", f"{side.name}: {side.counts[key]} requests {key} elsewhere")


def _of(line: Line) -> str:
    return f"{line.account} {line.key}"
