"""Configuration: a TOML file, or the same tables built in code, made into typed values.

Every fault is found in one pass and raised together, one line each, because whoever writes a
configuration wants one list and not a dialogue. It opens nothing but the file itself and the files
that hold secrets, and no fault, no `repr` and no description ever holds a secret's value.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.core.contracts import Provider, Sink
from engine.core.windows import Rate

from .accounts import read_accounts
from .describe import describe
from .http import read_http
from .model import (
    AccountConfig,
    BatchConfig,
    Config,
    HttpConfig,
    LimitsConfig,
    RequestConfig,
    ScheduleConfig,
    SinkConfig,
    StoreConfig,
)
from .reader import Faults, Reading, Section
from .sinks import read_sinks
from .store import STORE_SCHEMES, read_store
from .values import Span, printable

__all__ = [
    "STORE_SCHEMES",
    "AccountConfig",
    "BatchConfig",
    "Config",
    "HttpConfig",
    "LimitsConfig",
    "Rate",
    "RequestConfig",
    "ScheduleConfig",
    "SinkConfig",
    "StoreConfig",
    "describe",
    "load",
    "parse",
]

_FILE_MAX = 16 << 20  # no configuration is longer; a device or a log given by mistake is


def load(
    path: str | os.PathLike[str],
    *,
    providers: Mapping[str, type[Provider]],
    sinks: Mapping[str, type[Sink]],
    env: Mapping[str, str] | None = None,
    store_schemes: frozenset[str] = STORE_SCHEMES,
) -> Config:
    """The configuration in a file. Raises ConfigError with all of its faults."""
    file = Path(path)
    faults = Faults(file.name or str(file))
    plugins = Plugins(providers, sinks, store_schemes)
    tables = _tables(file, faults)
    found = _read(faults, tables, _folder(file, faults), env, plugins)
    del tables
    del env  # from here on a traceback with locals shows nothing that is secret
    faults.raise_any()
    assert found is not None
    return found


def parse(
    data: object,
    *,
    providers: Mapping[str, type[Provider]],
    sinks: Mapping[str, type[Sink]],
    source: str = "configuration",
    base: Path | None = None,
    env: Mapping[str, str] | None = None,
    store_schemes: frozenset[str] = STORE_SCHEMES,
) -> Config:
    """The configuration in tables such as TOML gives. `base`: what relative paths start from.

    Raises ConfigError with all faults, each behind `source`.
    """
    faults = Faults(source)
    plugins = Plugins(providers, sinks, store_schemes)
    found = _read(faults, data, base if base is not None else Path(), env, plugins)
    del data, env
    faults.raise_any()
    assert found is not None
    return found


class Plugins(msgspec.Struct, frozen=True):
    """What there is to be configured."""

    providers: Mapping[str, type[Provider]]
    sinks: Mapping[str, type[Sink]]
    store_schemes: frozenset[str]


def _read(
    faults: Faults, data: object, base: Path, env: Mapping[str, str] | None, plugins: Plugins
) -> Config | None:
    """Raises nothing: its frame knows the secrets, and an error would carry it along."""
    if len(faults):
        return None
    folder = base.absolute()
    reading = Reading(faults, folder, os.environ if env is None else env)
    if not isinstance(data, Mapping):
        faults.add("", "expected a table")
    top = Section(data if isinstance(data, Mapping) else {}, "", reading)
    grace_s = top.take("shutdown_grace", Span(), 10.0)
    redact_key = top.take("redact_key", reading.strong_secret, None)
    store = read_store(top.table("store", hidden=True), plugins.store_schemes)
    http = read_http(top.table("http", hidden=True)) if top.has("http") else None
    accounts, names = read_accounts(top, plugins.providers)
    targets = read_sinks(top, plugins.sinks, names)
    top.close()
    if len(faults):
        return None
    return Config(
        source=faults.source,
        base=folder,
        shutdown_grace_s=grace_s,
        redact_key=redact_key,
        store=store,
        http=http,
        accounts=accounts,
        sinks=targets,
    )


def _folder(file: Path, faults: Faults) -> Path:
    """Where relative paths start from."""
    try:
        return file.absolute().parent
    except OSError as error:  # the folder that we are in was removed
        faults.add("", f"cannot be read: {error.strerror or 'input/output error'}")
        return file.parent


def _tables(file: Path, faults: Faults) -> dict[str, Any]:
    """What the file holds; a fault and nothing where it cannot be read."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(_FILE_MAX + 1)
        if len(raw) > _FILE_MAX:
            faults.add("", f"is longer than {_FILE_MAX >> 20} MiB")
            return {}
        return tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        faults.add("", f"cannot be read: {error.strerror or 'input/output error'}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        faults.add("", f"is not UTF-8 (at line {line})")
    except tomllib.TOMLDecodeError as error:
        faults.add("", f"is not TOML: {_placed(error, raw)}")
    except ValueError:
        faults.add("", "cannot be read: a path or a number in it is out of range")
    except RecursionError:
        faults.add("", "is not TOML: it is nested too deeply")
    return {}


def _placed(error: tomllib.TOMLDecodeError, raw: bytes) -> str:
    """The parser's words with line and column, also where it only says that the file ended."""
    lines = raw.decode("utf-8-sig").split("\n")
    end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
    return printable(str(error).replace("(at end of document)", end), 300)
