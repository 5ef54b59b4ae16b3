"""Providers and sinks by name: entry points, and the built-in ones from a table.

A name is cheap and a module is not, so nothing is imported before it is asked for: a worker with
one provider and one sink loads these two. The table makes the built-in ones work from a source tree
that was never installed; an entry point of the same name goes before it, so that a distribution may
bring its own. A module that cannot be imported is a fault of the configuration that names it,
never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from engine.core.contracts import Provider, Sink
from engine.core.errors import ConfigError

P = TypeVar("P")

PROVIDERS = "dlr_engine.providers"
SINKS = "dlr_engine.sinks"

_BUILT_IN = {
    PROVIDERS: {
        "bulksms": "engine.providers.bulksms:BulkSMS",
        "infobip": "engine.providers.infobip:Infobip",
        "avaamo": "engine.providers.avaamo:Avaamo",
        "messangi": "engine.providers.messangi:Messangi",
    },
    SINKS: {
        "jsonl": "engine.sinks.jsonl:JsonlSink",
        "stdout": "engine.sinks.stdout:StdoutSink",
        "sqlite": "engine.sinks.sqlite:SqliteSink",
        "postgres": "engine.sinks.postgres:PostgresSink",
        "parquet": "engine.sinks.parquet:ParquetSink",
        "webhook": "engine.sinks.webhook:WebhookSink",
        "amqp": "engine.sinks.amqp:AmqpSink",
        "kafka": "engine.sinks.kafka:KafkaSink",
        "nats": "engine.sinks.nats:NatsSink",
        "redis": "engine.sinks.redis:RedisSink",
    },
}

# The sinks that need an extra, by what the extra installs.
_EXTRAS = {
    "postgres": "asyncpg",
    "parquet": "pyarrow",
    "webhook": "aiolimiter",
    "kafka": "confluent-kafka",
    "nats": "nats-py",
    "redis": "redis",
    "amqp": "aio-pika",
}


class Registry(Mapping[str, type[P]], Generic[P]):
    """Classes by name, each imported when it is first asked for.

    Asking for one that is listed and cannot be loaded raises ConfigError; one that is not listed
    raises KeyError, as a mapping does.
    """

    def __init__(self, what: str, places: Mapping[str, str]) -> None:
        self._what = what
        self._places = dict(places)  # name -> "module:Class"
        self._loaded: dict[str, type[P]] = {}

    def __getitem__(self, name: str) -> type[P]:
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._places[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def find(self, name: str) -> type[P]:
        """The class of that name. Raises ConfigError also where there is none."""
        if name not in self._places:
            there = ", ".join(sorted(self._places)) or "none"
            raise ConfigError([f"unknown {self._what} {name[:64]!r} (this build has {there})"])
        return self[name]

    def _load(self, name: str, place: str) -> type[P]:
        module, _, attribute = place.partition(":")
        try:
            found: object = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            # A plug-in's module may raise anything at all while it is imported.
            raise ConfigError([f"{self._what} {name!r} {self._why(name, error)}"]) from error
        if not isinstance(found, type):
            raise ConfigError([f"{self._what} {name!r} cannot be loaded: {place} is no class"])
        return found

    def _why(self, name: str, error: Exception) -> str:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and self._what == "sink" and name in _EXTRAS:
            return f"needs {_EXTRAS[name]}: pip install dlr-engine[{name}]"
        if missing is not None:
            return f"cannot be loaded: there is no module {missing!r}"
        return f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def providers() -> Registry[Provider]:
    """The providers there are."""
    return _providers()


def sinks() -> Registry[Sink]:
    """The sinks there are."""
    return _sinks()


def find_provider(name: str) -> type[Provider]:
    return providers().find(name)


def find_sink(name: str) -> type[Sink]:
    return sinks().find(name)


@cache
def _providers() -> Registry[Provider]:
    return Registry("provider", _places(PROVIDERS, entry_points(group=PROVIDERS)))


@cache
def _sinks() -> Registry[Sink]:
    return Registry("sink", _places(SINKS, entry_points(group=SINKS)))


def _places(group: str, points: Iterable[EntryPoint]) -> dict[str, str]:
    """The built-in names, and over them what is installed."""
    places = dict(_BUILT_IN[group])
    for point in points:
        places[point.name] = point.value.partition("[")[0].strip()
    return places
