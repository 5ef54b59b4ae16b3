"""dlr-engine: an asynchronous poller engine for delivery reports.

    import engine

    async with engine.open("engine.toml") as poller:
        await poller.track("bulk-eu", batch_id="4711", recipients=["447700900001"])
        async for report in poller.reports():
            ...

The names below are the public interface; everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from engine.config.model import Config
    from engine.core.contracts import (
        Batch,
        Context,
        Flaw,
        Head,
        Kind,
        Limit,
        Outcome,
        Parser,
        Poll,
        Provider,
        Reader,
        Request,
        Sink,
        Traits,
        Verb,
    )
    from engine.core.errors import ConfigError, EngineError, PartialWrite, SinkError, StoreError
    from engine.core.http import outcome_of_status
    from engine.core.report import Report, msisdn
    from engine.core.secret import Secret
    from engine.core.state import FINAL, State
    from engine.parsing.json_items import JsonItems
    from engine.parsing.pipe import PipeRows
    from engine.worker import Engine

__version__ = "0.1.0"

# Where each public name lives: loaded when it is asked for, so that importing is quick.
_HOMES = {
    "Batch": "engine.core.contracts",
    "Config": "engine.config.model",
    "ConfigError": "engine.core.errors",
    "Context": "engine.core.contracts",
    "Engine": "engine.worker",
    "EngineError": "engine.core.errors",
    "FINAL": "engine.core.state",
    "Flaw": "engine.core.contracts",
    "Head": "engine.core.contracts",
    "JsonItems": "engine.parsing.json_items",
    "Kind": "engine.core.contracts",
    "Limit": "engine.core.contracts",
    "Outcome": "engine.core.contracts",
    "Parser": "engine.core.contracts",
    "PartialWrite": "engine.core.errors",
    "PipeRows": "engine.parsing.pipe",
    "Poll": "engine.core.contracts",
    "Provider": "engine.core.contracts",
    "Reader": "engine.core.contracts",
    "Report": "engine.core.report",
    "Request": "engine.core.contracts",
    "Secret": "engine.core.secret",
    "Sink": "engine.core.contracts",
    "SinkError": "engine.core.errors",
    "State": "engine.core.state",
    "StoreError": "engine.core.errors",
    "Traits": "engine.core.contracts",
    "Verb": "engine.core.contracts",
    "msisdn": "engine.core.report",
    "outcome_of_status": "engine.core.http",
}

__all__ = [
    "FINAL",
    "Batch",
    "Config",
    "ConfigError",
    "Context",
    "Engine",
    "EngineError",
    "Flaw",
    "Head",
    "JsonItems",
    "Kind",
    "Limit",
    "Outcome",
    "Parser",
    "PartialWrite",
    "PipeRows",
    "Poll",
    "Provider",
    "Reader",
    "Report",
    "Request",
    "Secret",
    "Sink",
    "SinkError",
    "State",
    "StoreError",
    "Traits",
    "Verb",
    "configure",
    "msisdn",
    "open",
    "outcome_of_status",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(home), name)


def open(config: str | Path | Config) -> Engine:
    """An engine for `async with`. `config` is a file's path, or a Config built in code.

    Raises ConfigError, one line a fault; entering the block raises StoreBusy where another worker
    owns the store.
    """
    from engine.config import load
    from engine.config.model import Config
    from engine.registry import providers, sinks
    from engine.worker import Engine

    if not isinstance(config, Config):
        config = load(config, providers=providers(), sinks=sinks())
    return Engine(config)


def configure(data: dict[str, Any], *, base: str | Path = ".") -> Config:
    """A Config from what the TOML file would hold, as dictionaries and lists.

    Relative paths start from `base`. Raises ConfigError, one line a fault.
    """
    from pathlib import Path

    from engine.config import parse
    from engine.registry import providers, sinks

    plugins: dict[str, Any] = {"providers": providers(), "sinks": sinks()}
    try:
        return parse(data, base=Path(base), **plugins)
    finally:
        del data  # a traceback with locals must not show the secrets in it
