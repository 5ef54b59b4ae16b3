"""What the suites over sinks with a server of their own need of each: its `Place`.

A place is a table, stream, topic or queue that is made for one test under a name of its own, and
removed afterwards. `CASES` in `tests/conformance/test_service_sinks.py` lists them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from engine.core.secret import Secret
from engine.testing import ServerSinkPlace, SinkCase
from engine.testing.records import Record, batch, number, numbers, record

__all__ = ["Case", "Place", "Record", "batch", "fresh", "number", "numbers", "record", "secret"]

PASSWORD = "hunter2-and-more"  # no error may hold it

Place = ServerSinkPlace


@dataclass(frozen=True)
class Case(SinkCase[Any]):
    """A sink with a server, under test."""

    envelope: bool = False  # takes `envelope = "cloudevents"`
    hides: tuple[str, ...] = (PASSWORD, "127.0.0.1")


def fresh(prefix: str = "dlr_test") -> str:
    """A name that nobody else has; letters, digits and _ alone."""
    return f"{prefix}_{uuid.uuid4().hex[:12]}"


def secret(text: str) -> Secret:
    return Secret(text)
