"""Every fault of an account, a sink and a store, in its words; and no other error than these."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config import HIDDEN, account, faults, parse

from engine import config
from engine.core.errors import ConfigError


def fault(**keys: Any) -> str:
    (line,) = faults({"accounts": [account(**keys)]})
    return line.removeprefix("accounts[0].")


def sink_fault(**keys: Any) -> str:
    sink = {"name": "s", "type": "file", "path": "x"} | keys
    (line,) = faults({"accounts": [account()], "sinks": [sink]})
    return line.removeprefix("sinks[0].")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"username": 5}, "username: expected a string, got 5"),
        ({"page_size": "x"}, 'page_size: expected an integer, got "x"'),
        ({"page_size": True}, "page_size: expected an integer, got true"),
        ({"page_size": 2**70}, f"page_size: expected at most {2**63 - 1}, got a number that is"),
        ({"ratio": float("nan")}, "ratio: expected a finite number, got nan"),
        ({"pretty": "yes"}, 'pretty: expected true or false, got "yes"'),
        ({"method": "PUT"}, 'method: expected one of "GET", "POST", got "PUT"'),
        ({"fields": "x"}, 'fields: expected an array, got "x"'),
        ({"fields": ["x", 1]}, "fields[1]: expected a string, got 1"),
        ({"filters": {"a": 1}}, "filters.a: expected a string, got 1"),
        ({"filters": []}, "filters: expected a table, got an array"),
        ({"keys": HIDDEN}, "keys: expected a table"),
        ({"keys": {"k": [HIDDEN]}}, "keys.k: expected a string, { env = … } or { file = … }"),
        ({"agent": 1.5}, "agent: expected an integer or a string, got 1.5"),
        ({"cert": 5}, "cert: expected a path, got 5"),
        ({"patience": "soon"}, 'patience: expected a duration such as "1s", got "soon"'),
        ({"room": "big"}, 'room: expected a size such as "1MiB", got "big"'),
        ({"since": "now"}, "since: expected a time with an offset"),
        ({"password": 5}, "password: expected a string, { env = … } or { file = … }"),
        ({"password": ""}, "password: is empty"),
        ({"password": {"env": "NO"}}, "password: the environment variable NO is not set"),
        ({"password": {"file": "no"}}, 'password: the file "no" cannot be read: No such file'),
        ({"password": {"file": "no", "env": "NO"}}, "password: expected a string, { env"),
        ({"password": {"value": HIDDEN}}, "password: expected a string, { env"),
        ({"username": "root"}, "accounts[0]: root may not, with ***"),
        ({"zzz": HIDDEN}, "zzz: unknown key; the nearest known key is "),
        ({"a\nb": 1}, '"a\\nb": unknown key'),
        ({"name": None}, "name: missing"),
        ({"provider": "bulksms"}, 'provider: "bulksms" is not part of this build'),
        ({"provider": None}, "provider: missing"),
        ({"name": "."}, 'name: expected 1 to 64 of A-Z a-z 0-9 "." "_" "-", got "."'),
        ({"name": ".."}, 'name: expected 1 to 64 of A-Z a-z 0-9 "." "_" "-", got ".."'),
        ({"base_url": None}, "base_url: missing"),
        ({"base_url": "ftp://x"}, 'base_url: expected a URL such as "https://api.example.com", go'),
        ({"base_url": "https://"}, "base_url: expected a URL such as"),
        ({"base_url": "https://x:99999"}, "base_url: expected a URL such as"),
        ({"base_url": f"https://u:{HIDDEN}@x"}, "base_url: expected a URL such as"),
        ({"base_url": f"https://x?key={HIDDEN}"}, "base_url: expected a URL such as"),
        ({"content": "yes"}, 'content: expected true or false, got "yes"'),
        ({"timezone": "../etc"}, "timezone: expected a time zone such as"),
        ({"headers": HIDDEN}, "headers: expected a table"),
        ({"headers": {"a b": "x"}}, 'headers."a b": is no name of a header'),
        ({"headers": {"Content-length": "1"}}, "headers.Content-length: is not for you to set"),
        ({"headers": {"Range": "bytes=0-5"}}, "headers.Range: is not for you to set"),
        ({"headers": {"A": "x", "a": "y"}}, "headers.a: is there twice"),
        ({"headers": {"A": f"{HIDDEN}\r\nB: c"}}, "headers.A: holds characters that a header"),
        ({"headers": {"A": 5}}, "headers.A: expected a string, { env = … } or { file = … }"),
        ({"push_secret": 5}, "push_secret: expected a string, { env = … } or { file = … }"),
        ({"ca_file": "no.pem"}, "ca_file: there is no such file"),
        ({"ca_file": "x" * 300}, "ca_file: there is no such file"),
        ({"start": "2026-11-01T00:00:00"}, "start: expected a time with an offset, such as"),
        ({"start": 5, "lookback": "1d"}, 'lookback: goes not together with "start"'),
        ({"start": 5, "end": 5}, 'end: expected a time after "start"'),
        ({"start": float("inf")}, "start: expected a time with an offset, such as"),
        ({"lookback": "40000d"}, 'lookback: expected at most "36500d", got "40000d"'),
        ({"lookback": "9" * 400 + "d"}, 'lookback: expected a duration such as "1s", got "999'),
        ({"overlap": -1}, 'overlap: expected a duration such as "1s", got -1'),
        ({"limits": {"requests": 5}}, 'limits.per: missing; "requests" needs it'),
        ({"limits": {"requests": 0, "per": "1s"}}, "limits.requests: expected at least 1, got 0"),
        ({"limits": {"requests": 1, "per": 0}}, 'limits.per: expected at least "1ms", got 0'),
        ({"limits": {"concurrency": 0}}, "limits.concurrency: expected at least 1, got 0"),
        ({"limits": {"also": [{"per": 1}]}}, 'limits.also[0].requests: missing; "per" needs it'),
        ({"limits": {"also": [5]}}, "limits.also[0]: expected a table"),
        ({"limits": {"request": 5}}, 'limits.request: unknown key; did you mean "requests"?'),
        ({"limits": 5}, "limits: expected a table, got 5"),
        ({"schedule": {"ladder": []}}, "schedule.ladder: expected at least one duration"),
        ({"schedule": {"ladder": ["5m", "1m"]}}, "schedule.ladder: expected durations that asc"),
        ({"schedule": {"ladder": ["5m", "5m"]}}, "schedule.ladder: expected durations that asc"),
        ({"schedule": {"ladder": "5m"}}, 'schedule.ladder: expected an array of durations, got "'),
        ({"schedule": {"ladder": ["x"]}}, "schedule.ladder[0]: expected a duration such as"),
        (
            {"schedule": {"ladder": ["5m", 0], "from": "previous"}},
            "schedule.ladder: expected gaps of at least a millisecond",
        ),
        ({"schedule": {"rescan": ["5m", "1m"]}}, "schedule.rescan: expected durations that asc"),
        ({"schedule": {"from": "now"}}, 'schedule.from: expected "sent" or "previous", got "now"'),
        ({"schedule": {"jitter": 2}}, "schedule.jitter: expected a number from 0 to 1, got 2"),
        ({"schedule": {"interval": 0}}, 'schedule.interval: expected at least "10ms", got 0'),
        (
            {"schedule": {"interval": "1m", "idle_interval": "1s"}},
            "schedule.idle_interval: expected at least the interval",
        ),
        ({"request": {"timeout": 0}}, 'request.timeout: expected at least "1ms", got 0'),
        ({"request": {"max_body": 0}}, "request.max_body: expected at least 1 bytes, got 0"),
        ({"request": {"max_bdy": 0}}, 'request.max_bdy: unknown key; did you mean "max_body"?'),
    ],
)
def test_account_faults(keys: dict[str, Any], line: str) -> None:
    found = fault(**keys)
    assert found.startswith(line)
    assert len(found) < 400


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"type": "fil"}, 'type: unknown sink "fil"; did you mean "file"? (this build has file)'),
        ({"accounts": ["b"]}, 'accounts[0]: there is no account "b"'),
        ({"accounts": []}, "accounts: is empty"),
        ({"states": []}, "states: is empty"),
        ({"states": "read"}, 'states: expected an array of states, got "read"'),
        ({"start": "first"}, 'start: expected "oldest" or "now", got "first"'),
        ({"batch": {"records": 0}}, "batch.records: expected at least 1, got 0"),
        ({"batch": {"wiat": 0}}, 'batch.wiat: unknown key; did you mean "wait"?'),
        ({"rotate": "never"}, "rotate: expected a day"),
        ({"rotate": 1.5}, "rotate: expected a string or an integer, got 1.5"),
        ({"url": [HIDDEN]}, "url: expected a string, { env = … } or { file = … }"),
        ({"paht": "x"}, 'paht: unknown key; did you mean "path"?'),
    ],
)
def test_sink_faults(keys: dict[str, Any], line: str) -> None:
    assert sink_fault(**keys).startswith(line)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (f"mysql://u:{HIDDEN}@h/db", "store.url: this build has the stores memory, postgresql, sq"),
        (f"{HIDDEN}", "store.url: this build has the stores memory, postgresql, sqlite"),
        (f"postgresql://u:{HIDDEN}@h", "store.url: expected postgresql://user@host/database"),
        (f"postgres://u:{HIDDEN}@h:x/db", "store.url: expected postgresql://user@host/database"),
        (f"postgresql://u:{HIDDEN}@[h/db", "store.url: expected postgresql://user@host/database"),
        ("sqlite://state.db", "store.url: expected sqlite:///file"),
        ("sqlite:///", "store.url: expected sqlite:///file"),
        ("sqlite:///:memory:", "store.url: a store in memory is written memory://"),
        ("memory://x", "store.url: expected memory:// with nothing behind it"),
        (5, "store.url: expected a string, { env = … } or { file = … }"),
    ],
)
def test_store_faults(url: Any, line: str) -> None:
    (found,) = faults({"store": {"url": url}, "accounts": [account()]})
    assert found.startswith(line)


WORDS = (
    "accounts sinks store http listen token shutdown_grace url name provider base_url limits"
    " requests per also schedule ladder rescan interval idle_interval from jitter request"
    " max_body headers start end lookback timezone username password keys cert type path states"
    " batch env file group"
)
KEYS = st.sampled_from(WORDS.split()) | st.text(max_size=5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.datetimes()
    | st.sampled_from(["fake", "file", "a", "1s", "5m", "https://x", "sqlite:///x", "delivered"])
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(NESTED, st.dictionaries(KEYS, NESTED, max_size=6), st.dictionaries(KEYS, NESTED, max_size=6))
def test_nothing_but_a_configuration_error(anything: Any, some: Any, more: Any) -> None:
    sink = {"name": "s", "type": "file", "path": "x"}
    for data in (anything, {"accounts": [account() | some], "sinks": [sink | more], "store": some}):
        try:
            config.describe(parse(data))
        except ConfigError as error:
            check(error)


def check(error: ConfigError) -> None:
    assert error.faults
    for line in error.faults:
        line.encode()
        assert len(line.splitlines()) == 1
        assert len(line) < 1000
