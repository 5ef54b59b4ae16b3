"""What the sinks get: every record, in order, and none again without a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.stores.memory import MemoryStore
from tests.simulation.contract import Who, brief
from tests.simulation.scenario import Scenario
from tests.simulation.world import World


@dataclass
class Taken:
    """What one sink holds."""

    last: dict[Who, int] = field(default_factory=dict)
    when: dict[str, int] = field(default_factory=dict)  # event_id -> `troubles` at that time
    troubles: int = 0


class Deliveries:
    """The records of a run, and what each sink holds of them."""

    def __init__(self, world: World, scenario: Scenario, tables: MemoryStore) -> None:
        self.world = world
        self.scenario = scenario
        self.tables = tables._tables
        self.events: dict[str, tuple[str, int, int]] = {}  # event_id -> account, seq, index
        self._lines: dict[str, dict[str, Any]] = {}
        self._sinks = {sink.label: Taken() for sink in scenario.sinks}
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def died(self) -> None:
        """What was under way may come again."""
        for taken in self._sinks.values():
            taken.troubles += 1

    def logged(self, record: dict[str, Any], account: str, seq: int, index: int) -> None:
        """A record stands in the log."""
        event_id = record["event_id"]
        self.world.hold(
            "nothing-twice",
            event_id not in self.events,
            lambda: f"{event_id} of {brief(record)} again",
        )
        self.events[event_id] = (account, seq, index)
        self._lines[event_id] = record

    def offered(self, label: str, line: bytes) -> None:
        record = orjson.loads(line)
        place = self.events.get(record["event_id"])
        self.world.hold(
            "nothing-twice",
            place is not None and place[1:] >= self._place(label, place[0]),
            lambda: f"{label} is offered {brief(record)} again, at {place}",
        )

    def _place(self, label: str, account: str) -> tuple[int, int]:
        return self.tables.places.get((label, account), (1, 0))

    def took(self, label: str, line: bytes) -> None:
        record, taken = orjson.loads(line), self._sinks[label]
        who = (record["account"], record["message_id"], record["direction"])
        event_id, revision = record["event_id"], record["revision"]
        again = event_id in taken.when
        self.world.hold(
            "nothing-twice",
            not again or taken.when[event_id] < taken.troubles,
            lambda: f"{label} was given {brief(record)} again, for no reason",
        )
        self.world.hold(
            "revisions-in-order",
            again or revision > taken.last.get(who, 0),
            lambda: f"{label} was given #{revision} of {who} after #{taken.last[who]}",
        )
        taken.when[event_id] = taken.troubles
        taken.last[who] = max(revision, taken.last.get(who, 0))

    def failed(self, label: str) -> None:
        """A call of the sink has failed: what it took may come again."""
        self._sinks[label].troubles += 1

    def committed(self) -> None:
        """Positions may have moved."""
        for (sink, account), place in self.tables.places.items():
            before = self._places.get((sink, account), (1, 0))
            if place != before and sink in self._sinks:
                self._moved(sink, account, before, place)

    def _moved(
        self, label: str, account: str, before: tuple[int, int], place: tuple[int, int]
    ) -> None:
        """A sink's position passes only what it has taken, or does not want."""
        self._places[label, account] = place
        taken, wanted = self._sinks[label], self.scenario.wanted(label)
        seq, index = before
        while (seq, index) < place and (account, seq) in self.tables.log:
            lines = self.tables.log[account, seq].body.split(b"\n")
            stop = place[1] if seq == place[0] else len(lines)
            for line in lines[index:stop]:
                record = orjson.loads(line)
                self.world.hold(
                    "nothing-lost",
                    record["event_id"] in taken.when or not wanted(record),
                    lambda: f"{label} has moved past {brief(record)}, which it has not taken",
                )
            seq, index = seq + 1, 0

    def finish(self) -> None:
        """Every sink has got what it wants."""
        for label, taken in self._sinks.items():
            wanted = self.scenario.wanted(label)
            for event_id, record in self._lines.items():
                self.world.hold(
                    "nothing-lost",
                    event_id in taken.when or not wanted(record),
                    lambda: f"{label} has never got {brief(record)}",
                )
