"""What the suite over sinks with a server of their own needs of each: its `Place`.

A place is a table, stream, topic or queue that is made for one test under a name of its own, and
removed afterwards. `CASES` in `tests/conformance/test_service_sinks.py` lists them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import msgspec

from engine.core.contracts import Batch, Sink
from engine.core.report import Report, encode
from engine.core.secret import Secret
from engine.core.state import State

Record = dict[str, Any]

PASSWORD = "hunter2-and-more"  # no error may hold it


class Place(Protocol):
    """Where a sink under test writes to, and the hand that looks into it and cuts its line."""

    options: dict[str, Any]  # for the sink: whatever is a `url` leads through a line

    async def read(self) -> list[Record]:
        """All that is there, oldest first, read past the line by the server's own client."""
        ...

    async def cut(self) -> None:
        """Nothing reaches the server any more, until `mend`."""
        ...

    async def mend(self) -> None: ...

    async def cut_soon(self) -> None:
        """The line is cut in the middle of what is written next, then works again at once."""
        ...

    async def hang(self) -> None:
        """The server is reached and does not answer any more, until `cut`."""
        ...


@dataclass(frozen=True)
class Case:
    """A sink under test."""

    id: str
    sink: str  # "module:Class", imported when the test begins
    place: Callable[[str], AbstractAsyncContextManager[Place]]  # skips where there is no server
    once: bool = False  # a repeated batch leaves no repeated record
    envelope: bool = False  # takes `envelope = "cloudevents"`
    refuses: Callable[[int], bytes] | None = None  # a record that it can never take, as numbered
    long: int = 3_000_000  # characters that a record may hold
    keeps: int | None = None  # records after which `read` is due, and gives what is new; None: all
    patience: str | None = None  # "module.NAME": how long the sink waits for a server that hangs

    def make(self, place: Place, **more: Any) -> Sink:
        module, _, name = self.sink.partition(":")
        made = getattr(import_module(module), name)
        options = msgspec.convert({**place.options, **more}, made.Options, dec_hook=_secret)
        sink: Sink = made(options)
        return sink


def _secret(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else kind(value)


def fresh(prefix: str = "dlr_test") -> str:
    """A name that nobody else has; letters, digits and _ alone."""
    return f"{prefix}_{uuid.uuid4().hex[:12]}"


def secret(text: str) -> Secret:
    return Secret(text)


def record(n: int, **more: Any) -> bytes:
    fields = {
        "event_id": f"{n:032x}", "account": "a", "provider": "p", "message_id": f"m{n}",
        "revision": 1, "state": State.DELIVERED, "final": True, "recipient": "447700900001",
        "observed_at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))


def batch(start: int, count: int) -> Batch:
    return Batch([record(n) for n in range(start, start + count)])


def number(found: Record) -> int:
    """The number that a record was made with."""
    return int(found["event_id"], 16)


def numbers(records: list[Record]) -> list[int]:
    return [number(found) for found in records]
