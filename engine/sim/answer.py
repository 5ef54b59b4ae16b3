"""What goes in and out of a provider's handler: a call, and the answer to it.

Handlers are plain functions from one to the other; the wire, with its faults, is elsewhere.
Nothing here may know a provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

from engine.sim.messages import Given


@dataclass(slots=True, frozen=True)
class Call:
    """A request without its transport."""

    method: str
    path: str
    """What stands behind the account's prefix."""
    query: Mapping[str, str]
    """The query's parameters, and a form's."""
    headers: Mapping[str, str]
    now: float
    number: int
    body: bytes = b""


@dataclass(slots=True)
class Answer:
    """A response before it meets the wire."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] | None = None
    """Instead of a body: one that is made while it is written."""
    reports: int = 0
    ledger: list[tuple[int, Given]] = field(default_factory=list)
    """One-time reports, each with where in the body it ends."""

    shortened: bool = False
    """The body is not all there was to say, though its length is told truly."""

    def settle(self, written: int) -> None:
        """So many bytes of the body went out."""
        whole = written >= len(self.body) and not self.shortened
        for end, given in self.ledger:
            given.on_wire = end <= written
            given.whole = whole


def json_answer(status: int, value: object) -> Answer:
    """An answer with this value as its body."""
    return Answer(status, orjson.dumps(value))
