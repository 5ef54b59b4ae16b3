"""The `[[sinks]]` tables: where records go, which of them, and in what batches.

A sink is built once from its options to hear its objections and let go again: building is free,
opening is what touches the world, and that is the worker's to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.core.contracts import Sink
from engine.core.state import State

from . import values
from .accounts import plugin_class, unique_name
from .model import BatchConfig, SinkConfig
from .options import read_options
from .reader import Section


def read_sinks(
    top: Section, sinks: Mapping[str, type[Sink]], accounts: frozenset[str]
) -> tuple[SinkConfig, ...]:
    names: dict[str, str] = {}
    found: list[SinkConfig] = []
    for section in top.tables("sinks", "[[sinks]], an array of tables"):
        sink = _sink(section, sinks, accounts)
        unique_name(section, sink.name if sink else None, names)
        if sink is not None:
            found.append(sink)
    return tuple(found)


def _sink(
    section: Section, sinks: Mapping[str, type[Sink]], accounts: frozenset[str]
) -> SinkConfig | None:
    faults = len(section.faults)
    name = section.need("name", values.name, "")
    kind = section.need("type", values.text, "")
    cls = plugin_class(section, "type", "sink", kind, sinks) if kind else None
    chosen = _accounts(section, accounts)
    states = _states(section)
    start = section.take("start", values.Choice(("oldest", "now")), "oldest")
    timeout_s = section.take("timeout", values.Span(least_s=0.1), 300.0)
    batch = _batch(section.table("batch"), cls)
    made = None
    if cls is not None:
        made = read_options(cls.Options, section, cls)
        section.close()
    if cls is None or made is None or len(section.faults) > faults:
        return None
    return SinkConfig(
        name=name,
        type=kind,
        sink=made[0],
        sink_class=cls,
        accounts=chosen,
        states=states,
        start=start,
        timeout_s=timeout_s,
        batch=batch,
    )


def _accounts(section: Section, accounts: frozenset[str]) -> tuple[str, ...] | None:
    def known(value: object) -> str:
        if isinstance(value, str) and value in accounts:
            return value
        likely, close = values.nearest(value, accounts)
        hint = f'; did you mean "{values.printable(likely)}"?' if likely and close else ""
        raise ValueError(f"there is no account {values.shown(value)}{hint}")

    found = section.many("accounts", known, None, what="names of accounts")
    return None if found is None else tuple(dict.fromkeys(_some(section, "accounts", found)))


def _states(section: Section) -> frozenset[State] | None:
    def known(value: object) -> State:
        return State(values.Choice(tuple(State))(value))

    found = section.many("states", known, None, what="states")
    return None if found is None else frozenset(_some(section, "states", found))


def _some(section: Section, key: str, found: tuple[Any, ...]) -> tuple[Any, ...]:
    if not section.data[key]:
        section.fault(key, "is empty: the sink would get nothing; leave the key out for all")
    return found


def _batch(section: Section, cls: type[Sink] | None) -> BatchConfig:
    """What is given, else what the sink has as its own default, else everybody's."""
    default = BatchConfig(**getattr(cls, "BATCH", {}))
    found = BatchConfig(
        records=section.take("records", values.Whole(1, 1_000_000), default.records),
        bytes=section.take("bytes", values.Size(1), default.bytes),
        wait_s=section.take("wait", values.Span(), default.wait_s),
    )
    section.close()
    return found
