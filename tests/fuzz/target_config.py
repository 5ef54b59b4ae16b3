"""The configuration: any file gives a Config or one line a fault, and never a secret's value."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from atexit import register
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

from engine import registry
from engine.config import Config, describe, load, parse
from engine.core.errors import ConfigError
from tests.fuzz.draw import Draw, damaged

LENGTH = 160
WORDS = (
    b"[[accounts]]\n", b"[store]\n", b"[[sinks]]\n", b"name=", b"provider='bulksms'\n", b"[", b"]",
    b"limits={requests=1,per='1s'}\n", b"base_url='http://x'\n", b'"', b"'''", b"{", b"}", b"=",
    b"\n", b"#", b"password='x'\n", b"type='jsonl'\n", b"1979-05-27T07:32:00Z", b"inf", b"\xff",
)  # fmt: skip

MARK = "Zq7Secret4"
SECRET = "secret"
FAULT_MAX = 1000

# Keys by table, each with what may be right for it; everything else is drawn beside that.
DURATIONS: tuple[Any, ...] = (
    "1s",
    "250ms",
    "1.5s",
    "2d",
    5,
    0.25,
    0,
    "0s",
    "36501d",
    "1 s",
    "soon",
)
SIZES: tuple[Any, ...] = ("64kB", "1MiB", 1000, 0, "9e9")
TIMES: tuple[Any, ...] = (
    "2026-11-01T00:00:00Z", "2026-11-01", 1_780_000_000, datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 1), date(2026, 1, 1), time(1, 2),  # noqa: DTZ001 - one without an offset
)  # fmt: skip
NAMES: tuple[Any, ...] = ("a", "b", "a b", "", "x" * 65)
FLAGS: tuple[Any, ...] = (True, False, 1)
LIMITS: dict[str, Any] = {
    "requests": (1, 10, 0), "per": DURATIONS, "slack": DURATIONS, "concurrency": (1, 4, 0),
    "group": NAMES,
}  # fmt: skip
ACCOUNT: dict[str, Any] = {
    "name": NAMES, "provider": ("bulksms", "infobip", "avaamo", "messangi", "x"),
    "base_url": ("http://x", "https://x.example/eapi/", "ftp://x", "http://u:p@x", "http://[", "x"),
    "username": ("john", "", "a:b"), "password": SECRET, "api_key": SECRET, "access_token": SECRET,
    "authorization": SECRET, "push_secret": SECRET, "agent_id": (5157, "x", " ", 1.5),
    "optional_fields": (["body"], ["completed_time", "credits"], ["x"], ["body", "body"], []),
    "method": ("GET", "POST", "PUT"), "limit": (1, 1000, 1001), "drain": FLAGS,
    "per_page": (1, 101),
    "path": ("/sms/1/reports", "x", "/a?b"), "channel": ("sms", "fax"), "pretty": FLAGS,
    "channels": (["S", "E"], ["X"], []), "login_url": ("https://x/login", "x"),
    "filters": ({}, {"status": "failed"}, {"statos": "x"}, {"status": 1}),
    "headers": {"Authorization": SECRET, "X-A": SECRET, "bad name": SECRET, "x-a": SECRET},
    "limits": {**LIMITS, "also": ([], [{"requests": 1, "per": "1d"}], [{"per": 1}], [1])},
    "schedule": {
        "ladder": (["1s", "5s"], ["5s", "1s"], [], [0], "1s", ["x"]), "from": ("sent", "previous"),
        "jitter": (0, 0.1, 2, math.nan), "give_up": DURATIONS, "interval": DURATIONS,
        "idle_interval": DURATIONS, "rescan": (["5m"], [], [0]),
    },
    "request": {"timeout": DURATIONS, "total_timeout": DURATIONS, "max_body": SIZES},
    "content": FLAGS, "timezone": ("UTC", "Europe/Madrid", "../x", "Nowhere", ""), "start": TIMES,
    "lookback": DURATIONS, "end": TIMES, "overlap": DURATIONS, "ca_file": ("no.pem", ""),
}  # fmt: skip
HTTP: dict[str, Any] = {
    "listen": ("127.0.0.1:0", "[::1]:80", "h:65536", ":1", "u@h:1", "1.2.3:4"),
    "token": SECRET,
}
SINK: dict[str, Any] = {
    "name": NAMES, "type": ("jsonl", "stdout", "sqlite", "kafka", "x"),
    "path": ("out.jsonl", "", "a\0b"), "rotate": ("day", "1MiB", "x"), "compress": ("gzip", "x"),
    "table_prefix": ("t_", "a b"), "accounts": (["a"], ["c"], []), "start": ("oldest", "now", "x"),
    "states": (["delivered"], ["x"], []),
    "batch": {"records": (1, 0), "bytes": SIZES, "wait": DURATIONS},
}  # fmt: skip
STORE: dict[str, Any] = {"url": "url", "retention": DURATIONS, "log_retention": DURATIONS}
URLS = (
    "sqlite:///s.db", "memory://", f"postgresql://u:{MARK}@h/d", f"sqlite://{MARK}", MARK,
    {"env": "URL"}, {"file": "none"}, [MARK],
)  # fmt: skip
SECRETS: tuple[Any, ...] = (
    MARK, MARK, {"env": "MARK"}, {"env": "NONE"}, {"file": "token"}, {"file": "none"}, [MARK],
    {"value": MARK}, "", {"env": "EMPTY"}, MARK + "\n", {"env": 1}, {"file": "token", "x": MARK},
)  # fmt: skip
ENV = {"MARK": MARK, "EMPTY": "", "URL": f"mysql://u:{MARK}@h"}
STRANGE: tuple[Any, ...] = (
    None, -1, 2**70, 1e308, math.inf, math.nan, "", "\n", "\x1b[31m", "é", "x" * 300, [], {}, [[1]],
    {"a": {"b": 1}}, True, "\u2028",
)  # fmt: skip
GOOD: dict[str, tuple[str, ...]] = {
    "bulksms": ("username", "password"), "infobip": ("api_key",),
    "avaamo": ("agent_id", "access_token"), "messangi": (),
}  # fmt: skip


@cache
def _folder() -> Path:
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "token").write_text(MARK + "\n")
    return folder


def seeds() -> Iterator[bytes]:
    example = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    yield b"\x00" + example.split("```toml\n", 1)[1].split("```", 1)[0].encode()
    for mode in (1, 2, 3):
        yield bytes([mode, 0, *range(150)])
        yield bytes([mode, 2, *range(250, 60, -2)])


def check(data: bytes) -> None:
    draw = Draw(data)
    mode = draw.byte() % 4
    folder = _folder()
    if mode == 0:
        raw = draw.rest()
        secret = MARK.encode() in raw and b"#" in raw  # as text it is anything, not a secret
        _loaded(folder, raw, secret=not secret and MARK.encode() not in raw)
        return
    tables = _tables(draw, loose=mode == 3)
    config, faults = _outcome(lambda: parse(tables, base=folder, env=ENV, **_plugins()))
    _clean(config, faults, "configuration")
    written = _toml(tables)
    if written is not None and mode != 1:
        again, also = _loaded(folder, written.encode(), secret=True)
        bare = [fault.removeprefix("configuration") for fault in faults]
        assert bare == [fault.removeprefix("engine.toml") for fault in also]
        if config is not None:
            assert again is not None
            assert describe(again) == describe(config)
            assert [a.schedule for a in again.accounts] == [a.schedule for a in config.accounts]
            assert [a.limits for a in again.accounts] == [a.limits for a in config.accounts]
        if draw.chance(4):
            _loaded(folder, damaged(draw, written.encode(), WORDS), secret=False)


def _plugins() -> dict[str, Any]:
    return {"providers": registry.providers(), "sinks": registry.sinks()}


def _outcome(read: Any) -> tuple[Config | None, tuple[str, ...]]:
    try:
        return read(), ()
    except ConfigError as error:
        return None, error.faults


def _loaded(folder: Path, raw: bytes, *, secret: bool) -> tuple[Config | None, tuple[str, ...]]:
    path = folder / "engine.toml"
    path.write_bytes(raw)
    config, faults = _outcome(lambda: load(path, env=ENV, **_plugins()))
    _clean(config, faults, "engine.toml", secret=secret)
    return config, faults


def _clean(
    config: Config | None, faults: tuple[str, ...], source: str, *, secret: bool = True
) -> None:
    """Faults are lines fit for a terminal; what is shown of a Config has no secret in it."""
    assert (config is None) == bool(faults)
    assert len(faults) == len(set(faults))
    for fault in faults:
        assert fault.startswith(source)
        assert fault.isprintable()
        assert len(fault) < FAULT_MAX
        assert not secret or MARK not in fault
    if config is not None:
        shown = "\n".join(describe(config)) + repr(config)
        assert not secret or MARK not in shown


def _tables(draw: Draw, *, loose: bool) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    if draw.flag():
        tables["store"] = _table(draw, STORE, 3, loose=loose)
    if draw.flag():
        tables["http"] = _table(draw, HTTP, 2, loose=loose)
    if draw.chance(6):
        tables[draw.pick(("shutdown_grace", "http", "acounts", "x y"))] = draw.pick(DURATIONS)
    tables["accounts"] = [_account(draw, loose=loose) for _ in range(1 + draw.below(2))]
    if draw.flag():
        sink = {"name": "s", "type": "jsonl", "path": "x.jsonl"}
        tables["sinks"] = [sink | _table(draw, SINK, 4, loose=loose)]
    return tables


def _account(draw: Draw, *, loose: bool) -> dict[str, Any]:
    """One that would do, and a few keys over it."""
    provider = draw.pick(tuple(GOOD))
    account: dict[str, Any] = {"name": draw.pick(("a", "b")), "provider": provider}
    account["base_url"] = "http://x"
    for key in GOOD[provider]:
        account[key] = MARK if ACCOUNT[key] == SECRET else ACCOUNT[key][0]
    account |= _table(draw, ACCOUNT, 5, loose=loose)
    if loose and draw.chance(4):
        account.pop(draw.pick(tuple(account)))
    return account


def _table(draw: Draw, keys: Mapping[str, Any], most: int, *, loose: bool) -> dict[str, Any]:
    table = {}
    for key in [draw.pick(tuple(keys)) for _ in range(draw.below(most + 1))]:
        fitting = keys[key]
        if loose and draw.chance(5) and fitting not in (SECRET, "url"):
            value = draw.pick(STRANGE)
        elif isinstance(fitting, dict):
            value = _table(draw, fitting, 3, loose=loose)
        elif fitting == SECRET:
            value = draw.pick(SECRETS)
        elif fitting == "url":
            value = draw.pick(URLS)
        else:
            # The first ones are right: mostly these.
            value = fitting[draw.below(len(fitting)) // (1 + draw.below(3))]
        table[key if not (loose and draw.chance(12)) else key[:-1] + draw.text(3)] = value
    return table


def _toml(value: Any, *, top: bool = True) -> str | None:
    """The tables as TOML, all of it inline; None where it holds what TOML cannot say."""
    if isinstance(value, Mapping):
        pairs = [(json.dumps(key), _toml(each, top=False)) for key, each in value.items()]
        if any(each is None for _, each in pairs):
            return None
        if top:
            return "".join(f"{key} = {each}\n" for key, each in pairs)
        return "{" + ", ".join(f"{key} = {each}" for key, each in pairs) + "}"
    if isinstance(value, list):
        parts = [_toml(each, top=False) for each in value]
        return None if any(part is None for part in parts) else f"[{', '.join(map(str, parts))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    return None if value is None else str(value.isoformat())
