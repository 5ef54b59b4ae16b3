"""Which report wins: random histories beside the rule as the contract words it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.core.contracts import Traits
from engine.core.reconcile import Fold, Known, fold, verdict
from engine.core.report import Report, decode
from engine.core.state import Standing, State, wins
from engine.core.units import iso
from tests.fuzz.draw import Draw

LENGTH = 100
WORDS = ()

ORDER = ("unknown", "accepted", "enroute", "end", "delivered", "read")
ENDS = ("undeliverable", "expired", "deleted", "rejected")
# Codes, the state that each stands for, whether it is listed, and whether nothing more is expected.
CODES = (
    ("0", "accepted", True, False), ("10", "enroute", True, False), ("60", "enroute", True, False),
    ("11", "delivered", True, True), ("R", "read", True, True), ("PUSH", "enroute", True, True),
    ("53", "expired", True, True), ("29", "deleted", True, True), ("31", "rejected", True, True),
    ("70", "unknown", True, False), ("98", "unknown", False, False),
    ("99", "unknown", False, False), ("50", "undeliverable", True, True),
)  # fmt: skip
TIMES_MS = (None, None, 1_000, 2_000, 3_000, 4_000)
ACCOUNT, MESSAGE = "acct", "4711:447700900001"


def seeds() -> Iterator[bytes]:
    yield bytes(range(1, 80))
    yield bytes(range(250, 100, -3))


def check(data: bytes) -> None:
    draw = Draw(data)
    if draw.chance(4):
        _orders(draw)
        return
    traits = Traits(
        feed=draw.pick((None, "windowed", "drained")),
        dated=draw.flag(),
        channel=draw.pick(("sms", "email")),
    )
    known = Known(account=ACCOUNT, message_id=MESSAGE)
    told = Told(dated=traits.dated)
    identities: set[str] = set()
    for now in range(draw.below(12)):
        if known.revision and not known.final and draw.chance(6):
            report, listed = verdict(known, channel=traits.channel), True
            if known.verdict is not None:
                continue
        elif not known.revision and draw.chance(8):
            report, listed = verdict(known, channel=traits.channel), True
        else:
            code, state, listed, final = draw.pick(CODES)
            report = _report(draw, traits, code, state, final=final)
        fact = _fact(report)
        before = known.revision, known.state, known.record
        done = fold(known, report, provider="p", traits=traits, observed_ms=now, listed=listed)
        assert told.tell(fact, listed=listed) == _verb(done)
        if done.record:
            assert known.revision == before[0] + 1
            _recorded(done.record, known, told, identities)
        else:
            assert (known.revision, known.state, known.record) == before
        assert (known.state, known.final, known.provider_status) == told.standing()
        assert known.open == (
            not known.final
            or (traits.feed, traits.channel, known.state) == ("windowed", "email", "delivered")
        )


def _report(draw: Draw, traits: Traits, code: str, state: str, *, final: bool) -> Report:
    time = draw.pick(TIMES_MS)
    return Report(
        channel=traits.channel,
        message_id=MESSAGE,
        state=State(state),
        final=final,
        provider_status=code,
        error_code=draw.pick((None, None, None, "E1")),
        done_at=None if time is None else iso(time),
    )


def _fact(report: Report) -> dict[str, Any]:
    names = ("state", "final", "verdict", "provider_status", "error_code", "done_at")
    return {name: getattr(report, name) for name in names}


def _verb(done: Fold) -> str:
    assert not (done.record and done.lost)
    return "record" if done.record else "lost" if done.lost else "repeat"


def _recorded(record: bytes, known: Known, told: Told, identities: set[str]) -> None:
    report = decode(record)
    assert report.revision == known.revision
    assert report.event_id == told.identity
    assert report.event_id not in identities
    identities.add(report.event_id)
    assert report.account == ACCOUNT
    assert msgspec.json.decode(record)["state"] == known.state.value


class Told:
    """What a message stands at after what was told of it, by the contract's own words."""

    def __init__(self, *, dated: bool) -> None:
        self.dated = dated
        self.now: dict[str, Any] | None = None
        self.time: str | None = None  # the latest status time of what stands
        self.entered: dict[tuple[Any, ...], int] = {}
        self.identity = ""
        self.past: list[dict[str, Any]] = []  # recorded before, or lost
        self.facts: set[tuple[Any, ...]] = set()  # by their own time, where there is one

    def standing(self) -> tuple[Any, ...]:
        if self.now is None:
            return "unknown", False, None
        return self.now["state"], self.now["final"], self.now["provider_status"]

    def tell(self, fact: dict[str, Any], *, listed: bool) -> str:
        """`record`, `lost` or `repeat`."""
        now, key = self.now, _status(fact)
        timed = (*key, fact["done_at"])
        is_timed = self.dated and fact["done_at"] is not None
        if now is not None and fact["verdict"] is None:
            same = ("state", "provider_status", "error_code")
            if all(now[name] == fact[name] for name in same):
                self._later(fact, timed)
                return "repeat"
            won = self._wins(fact, listed=listed)
            if is_timed and timed in self.facts:
                return "repeat"
            if not won:
                if not is_timed and any(_alike(fact, other) for other in self.past):
                    return "repeat"
                self.past.append(fact)
                self.facts.add(timed)
                return "lost"
        elif now is not None and is_timed and timed in self.facts:
            return "repeat"
        if now is not None:
            self.past.append(now)
        self.facts.add(timed)
        self.entered[key] = self.entered.get(key, 0) + 1
        self.now, self.time = fact, fact["done_at"]
        at = _epoch_ms(fact["done_at"]) if is_timed else self.entered[key]
        array = [ACCOUNT, MESSAGE, "mt", *key, at]
        written = json.dumps(array, separators=(",", ":")).encode()
        self.identity = hashlib.blake2b(written, digest_size=16).hexdigest()
        return "record"

    def _later(self, fact: dict[str, Any], timed: tuple[Any, ...]) -> None:
        """The same again with a later time: that time stands, and this was told."""
        later = fact["done_at"]
        if later is not None and (self.time is None or later > self.time):
            self.time = later
            if self.dated:
                self.facts.add((fact["provider_status"], fact["error_code"], None, later))

    def _wins(self, fact: dict[str, Any], *, listed: bool) -> bool:
        assert self.now is not None
        old_final = self.now["final"] and self.now["verdict"] is None
        if self.now["state"] == "read" or (old_final and not fact["final"]):
            return False
        if not listed:
            return not old_final
        if self.time is not None and fact["done_at"] is not None and self.time != fact["done_at"]:
            return bool(fact["done_at"] > self.time)
        return _rank(fact["state"]) >= _rank(self.now["state"])


def _status(fact: dict[str, Any]) -> tuple[Any, ...]:
    return fact["provider_status"], fact["error_code"], fact["verdict"]


def _alike(fact: dict[str, Any], other: dict[str, Any]) -> bool:
    names = ("provider_status", "error_code", "done_at")
    return other["verdict"] is None and all(fact[name] == other[name] for name in names)


def _rank(state: str) -> int:
    return ORDER.index("end" if state in ENDS else state)


def _epoch_ms(text: str) -> int:
    """All times here are within the first ten seconds of 1970."""
    return int(text[18]) * 1000


def _orders(draw: Draw) -> None:
    """Where the rule gives one winner, it is that one in whatever order the reports come."""
    timed = draw.flag()
    states = [s for s in State if s is not State.READ and (not timed or _rank(s) >= 3)]
    drawn = [draw.pick(states) for _ in range(2 + draw.below(5))]
    reports = [
        Standing(state, final=_rank(state) >= 3, status_ms=at if timed else None)
        for at, state in enumerate(drawn)
    ]
    winners = []
    for _ in range(2):
        left = list(reports)
        standing = left.pop(draw.below(len(left)))
        while left:
            new = left.pop(draw.below(len(left)))
            if wins(new, standing):
                standing = new
        winners.append(standing)
    if timed:
        assert winners == [reports[-1]] * 2
    else:
        assert {_rank(one.state) for one in winners} == {max(map(_rank, drawn))}
