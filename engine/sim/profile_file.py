"""A profile from a TOML file, with every fault at once.

msgspec stops at the first fault; who writes a file wants to see all of them. So the tables are
walked here, key by key, and each value is converted on its own. It must never guess: an unknown
key is a fault that names the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from engine.sim.profile import AccountProfile, Profile

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read(path: Path) -> Profile:
    """The profile in this file; ValueError with one line for each fault."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: no TOML: {error}") from None
    faults: list[str] = []
    unknown = [key for key in table if key != "accounts"]
    faults += [f"{key}: unknown key, did you mean 'accounts'?" for key in unknown]
    rows = table.get("accounts")
    accounts: list[AccountProfile] = []
    if not isinstance(rows, list) or not rows:
        faults.append("accounts: expected [[accounts]] tables")
        rows = []
    for n, row in enumerate(rows):
        made = _struct(AccountProfile, row, f"accounts[{n}]", faults)
        if made is not None:
            accounts.append(made)
    if not faults:
        try:
            return Profile(accounts)
        except ValueError as error:
            faults = str(error).splitlines()
    raise ValueError("\n".join(f"{path.name}: {fault}" for fault in faults))


def _struct(kind: type[Any], table: object, where: str, faults: list[str]) -> Any:
    """An instance of this Struct, or None and what was wrong."""
    if not isinstance(table, dict):
        faults.append(f"{where}: expected a table, got {table!r}")
        return None
    before = len(faults)
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            faults.append(f"{where}.{key}: unknown key, did you mean {near[0]!r}?")
            continue
        values[key] = _value(hints[key], value, f"{where}.{key}", faults)
    faults.extend(
        f"{where}.{field.name}: is missing"
        for field in msgspec.structs.fields(kind)
        if field.required and field.name not in table
    )
    return kind(**values) if len(faults) == before else None


def _value(hint: Any, value: object, where: str, faults: list[str]) -> Any:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _struct(hint, value, where, faults)
    inner = _list_of_structs(hint)
    if inner is not None and isinstance(value, list):
        return [
            v if isinstance(v, str) else _struct(inner, v, f"{where}[{n}]", faults)
            for n, v in enumerate(value)
        ]
    if _is_duration(hint) and isinstance(value, str):
        seconds = _DURATION.fullmatch(value)
        if seconds is None:
            faults.append(f'{where}: expected a duration such as "1s", got {value!r}')
            return None
        value = float(seconds[1]) * _UNIT[seconds[2]]
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        faults.append(f"{where}: {error}, got {value!r}")
        return None


def _list_of_structs(hint: Any) -> type[Any] | None:
    if get_origin(hint) is not list:
        return None
    (item,) = get_args(hint)
    for one in (item, *get_args(item)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _is_duration(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return any((getattr(m, "extra", None) or {}).get("duration") for m in hint.__metadata__)
    return any(_is_duration(part) for part in get_args(hint))
