"""A sink under test: how it is made, and the place that it writes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, Generic, Protocol, TypeVar

import anyio

from engine.config.model import SinkConfig
from engine.config.reader import Faults, Reading, Section
from engine.config.sinks import read_sinks
from engine.core.contracts import Batch, Sink
from engine.core.errors import PartialWrite, SinkError
from engine.core.secret import Secret, secrets_in

from .records import Record

# How long a test waits for what has to come.
PATIENCE_S = 60.0


class SinkPlace(Protocol):
    """Where a sink under test writes to, and the hand that looks into it and takes it away."""

    options: dict[str, Any]  # the sink's own keys, as the configuration would have them

    async def read(self) -> list[Record]:
        """All that is there, in the order in which it was written, read without the sink's help."""
        ...

    async def cut(self) -> None:
        """Nothing can be written any more, until `mend`."""
        ...

    async def mend(self) -> None: ...


P = TypeVar("P", bound=SinkPlace)


@dataclass(frozen=True)
class SinkCase(Generic[P]):
    """A sink under test.

    `sink`: its class, or "module:Class". `place`: makes a fresh place that goes with the block.
    """

    sink: type[Sink] | str
    place: Callable[[], AbstractAsyncContextManager[P]]
    id: str = ""
    whole: bool = True  # it keeps all of a record; else `read` gives at least each `event_id`
    once: bool = False  # a repeated batch leaves no repeated record
    refuses: Callable[[int], bytes] | None = None  # a record that it can never take, as numbered
    long: int = 3_000_000  # characters that a record may hold
    keeps: int | None = None  # records after which `read` is due, and gives what is new; None: all
    patience: str | None = None  # "module.NAME" of how long the sink waits for a server that hangs
    resends: bool = False  # its client library sends again by itself after a cut
    memory_max: int = 64 << 20  # bytes that 100,000 records may take, client library included
    hides: tuple[str, ...] = ()  # what no error may hold, besides the secrets in its options

    def config(self, place: P, **more: Any) -> SinkConfig:
        """What the configuration would make of its keys. Raises ConfigError."""
        found = self.sink
        if isinstance(found, str):
            module, _, name = found.partition(":")
            found = getattr(import_module(module), name)
        keys = {key: _plain(value) for key, value in {**place.options, **more}.items()}
        faults = Faults("the case")
        table = {"sinks": [{"name": "out", "type": "sink", **keys}]}
        section = Section(table, "", Reading(faults, Path(), {}))
        parsed = read_sinks(section, {"sink": found}, frozenset())
        faults.raise_any()
        return parsed[0]

    def make(self, place: P, **more: Any) -> Sink:
        """A new sink, not yet open; `more` of its keys."""
        return self.config(place, **more).build()

    def run(self, check: Callable[[P], Awaitable[None]]) -> None:
        """Run a check on a fresh place, in an event loop of its own."""

        async def main() -> None:
            async with self.place() as place:
                await check(place)

        anyio.run(main)

    def tells_no_secret(self, place: P, error: BaseException) -> bool:
        """Whether an error is fit for a log: no URL, no secret."""
        told = f"{error} {error!r} {error.__cause__!r}"
        secrets = (word for word in secrets_in(self.config(place).sink) if len(word) > 3)
        hidden = ("://", *self.hides, *secrets)
        return not any(word in told for word in hidden)


async def persist(sink: Sink, work: Batch) -> int:
    """Offer a batch until it is taken, as the dispatcher does; how often that failed."""
    return await _persist(partial(sink.write, work))


async def open_patiently(sink: Sink) -> None:
    await _persist(sink.open)


async def _persist(act: Callable[[], Awaitable[None]]) -> int:
    failures = 0
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await act()
            except PartialWrite:
                raise
            except SinkError:
                failures += 1
                await anyio.sleep(0.05)
            else:
                return failures


def _plain(value: Any) -> Any:
    """A key's value as TOML has it."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value
