"""Configuration: defaults, every fault in its words, all faults at once, secrets nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import pytest
import trustme

from engine import config
from engine.core.contracts import Batch, Context, Limit, Traits
from engine.core.errors import ConfigError
from engine.core.secret import Secret
from engine.core.state import State

HIDDEN = "hunter2-hunter2"


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    DURATIONS: ClassVar[frozenset[str]] = frozenset({"patience"})
    SIZES: ClassVar[frozenset[str]] = frozenset({"room"})
    TIMES: ClassVar[frozenset[str]] = frozenset({"since"})

    username: str
    password: Secret
    page_size: int = 100
    ratio: float = 1.0
    pretty: bool = True
    method: Literal["GET", "POST"] = "GET"
    fields: tuple[str, ...] = ()
    tags: list[str] = []
    filters: dict[str, str] = {}
    keys: dict[str, Secret] = {}
    agent: int | str | None = None
    cert: Path | None = None
    patience: float = 1.0
    room: int = 1
    since: int | None = None


class FakeProvider:
    name: ClassVar[str] = "fake"
    Options: ClassVar[type[msgspec.Struct]] = FakeOptions

    def __init__(self, options: FakeOptions, context: Context) -> None:
        faults = []
        if options.page_size > 1000:
            faults.append(f"page_size: expected at most 1000, got {options.page_size}")
        if options.username == "root":
            faults.append(f"root may not, with {options.password.reveal()}")
        if faults:
            raise ValueError("\n".join(faults))
        self.context = context
        self.traits = Traits(
            feed="windowed",
            asks=frozenset({"batch"}),
            limits=(Limit(3, 1.0), Limit(100, 60.0)),
            concurrency=2,
            ladder_s=(300.0, 1800.0),
            rescan_s=(60.0,),
            interval_s=10.0,
            idle_interval_s=300.0,
        )


class FakeSinkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    path: Path
    url: Secret | None = None
    rotate: str | int | None = None


class FakeSink:
    name: ClassVar[str] = "file"
    Options: ClassVar[type[msgspec.Struct]] = FakeSinkOptions

    def __init__(self, options: FakeSinkOptions) -> None:
        if options.rotate == "never":
            raise ValueError("rotate: expected a day")

    async def open(self) -> None: ...

    async def write(self, batch: Batch) -> None: ...

    async def close(self) -> None: ...


PROVIDERS: Any = {"fake": FakeProvider}
SINKS: Any = {"file": FakeSink}


def account(**keys: Any) -> dict[str, Any]:
    whole = {
        "name": "a",
        "provider": "fake",
        "base_url": "https://api.example.com/x/",
        "username": "john",
        "password": HIDDEN,
    }
    return {key: value for key, value in (whole | keys).items() if value is not None}


def parse(data: Any, base: Path = Path("/etc/dlr"), **keys: Any) -> config.Config:
    keys = {"env": {}} | keys
    return config.parse(
        data, source="engine.toml", base=base, providers=PROVIDERS, sinks=SINKS, **keys
    )


def faults(data: Any, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(data, **keys)
    for line in caught.value.faults:
        assert line.startswith("engine.toml: ")
        assert len(line.splitlines()) == 1
        assert HIDDEN not in line
    return [line.removeprefix("engine.toml: ") for line in caught.value.faults]


def test_defaults_come_from_the_provider_and_the_contract() -> None:
    found = parse({"accounts": [account()]})
    assert found.shutdown_grace_s == 10
    assert (found.store.scheme, found.store.path) == ("sqlite", Path("/etc/dlr/state.db"))
    assert (found.store.retention_s, found.store.log_retention_s) == (30 * 86400, 86400)
    assert found.sinks == ()
    (one,) = found.accounts
    assert one.base_url == "https://api.example.com/x"
    assert [(r.requests, r.per_s, r.slack_s) for r in one.limits.rates] == [
        (3, 1.0, 0.005),
        (100, 60.0, 0.3),
    ]
    assert one.limits.concurrency == 2
    schedule = one.schedule
    assert (schedule.ladder_s, schedule.from_previous, schedule.jitter) == ((300, 1800), False, 0)
    assert (schedule.interval_s, schedule.idle_interval_s, schedule.rescan_s) == (10, 300, (60,))
    assert schedule.give_up_s == 2 * 86400
    request = one.request
    assert (request.timeout_s, request.total_timeout_s, request.body_max) == (30, 600, 1 << 30)
    assert (one.start_ms, one.lookback_s, one.end_ms, one.overlap_s) == (None, 604800, None, 600)
    assert (one.timezone, one.content, one.headers) == ("UTC", False, {})
    assert found.account("a") is one
    assert found.account("b") is None


def test_everything_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file\r\n")
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "engine.toml").write_text("""
shutdown_grace = "3s"
[store]
url = "memory://"
retention = "2d"
log_retention = 60
[[accounts]]
name = "a"
provider = "fake"
base_url = "http://127.0.0.1:8080"
username = "john"
password = { file = "token" }
page_size = 7
ratio = 2
pretty = false
method = "POST"
fields = ["x"]
tags = ["y"]
filters = { status = "failed" }
keys = { k = { env = "K" } }
agent = 5157
cert = "ca.pem"
patience = "250ms"
room = "1KiB"
since = 1970-01-01T00:00:01Z
content = true
timezone = "Europe/Madrid"
headers = { Authorization = { env = "AUTH" } }
push_secret = "p"
start = 2026-11-01T00:00:00Z
end = "2026-11-02T00:00:00+01:00"
overlap = "1m"
ca_file = "ca.pem"
request = { timeout = "3s", total_timeout = "1m", max_body = "1MiB" }
[accounts.limits]
requests = 10
per = "1s"
concurrency = 4
slack = "20ms"
also = [{ requests = 9, per = "1m" }]
[accounts.schedule]
ladder = ["0s", "5m"]
from = "previous"
jitter = 0.1
give_up = "1d"
interval = "1m"
idle_interval = "2m"
rescan = []
[[sinks]]
name = "s"
type = "file"
path = "out.jsonl"
url = { env = "K" }
accounts = ["a"]
states = ["delivered"]
start = "now"
batch = { records = 5, bytes = "2MiB", wait = "1s" }
""")
    found = config.load(
        tmp_path / "engine.toml",
        providers=PROVIDERS,
        sinks=SINKS,
        env={"K": "key", "AUTH": "Basic x"},
    )
    assert (found.store.scheme, found.store.path) == ("memory", None)
    (one,), (sink,) = found.accounts, found.sinks
    options = one.options
    assert options.password.reveal() == "from a file"
    assert options.keys["k"].reveal() == "key"
    assert (options.cert, one.ca_file) == (tmp_path / "ca.pem", tmp_path / "ca.pem")
    assert (options.patience, options.room, options.since) == (0.25, 1024, 1000)
    assert (options.agent, options.fields, options.tags) == (5157, ("x",), ["y"])
    assert one.limits == config.LimitsConfig(
        rates=(config.Rate(10, 1.0, 0.02), config.Rate(9, 60.0, 0.02)), concurrency=4
    )
    assert one.schedule.ladder_s == (0.0, 300.0)
    assert one.schedule.from_previous
    assert one.schedule.rescan_s == ()
    assert one.headers["Authorization"].reveal() == "Basic x"
    assert str(one.provider.context.timezone) == "Europe/Madrid"  # type: ignore[attr-defined]
    assert (one.lookback_s, one.end_ms) == (None, 1793574000000)
    assert sink.sink.path == tmp_path / "out.jsonl"
    assert (sink.accounts, sink.states, sink.start) == (("a",), {State.DELIVERED}, "now")
    assert sink.batch == config.BatchConfig(records=5, bytes=2 << 20, wait_s=1.0)
    assert isinstance(sink.build(), FakeSink)
    text = repr(found) + "\n".join(config.describe(found))
    for value in ("from a file", "key'", "Basic x"):
        assert value not in text


def test_all_faults_at_once() -> None:
    lines = faults(
        {
            "shutdown_grace": "soon",
            "stor": {},
            "accounts": [
                account(password=None, pasword=HIDDEN, page_size=5000, limits={"per": "soon"}),
                account(name="b c", provider="fak", timezone="Mars/Base"),
            ],
            "sinks": [{"name": "s", "type": "kafka", "states": ["lost"]}],
        }
    )
    assert lines == [
        'shutdown_grace: expected a duration such as "1s", got "soon"',
        "accounts[0].password: missing",
        "accounts[0].page_size: expected at most 1000, got 5000",
        'accounts[0].limits.per: expected a duration such as "1s", got "soon"',
        'accounts[0].limits.requests: missing; "per" needs it',
        'accounts[0].pasword: unknown key; did you mean "password"?',
        'accounts[1].name: expected 1 to 64 of A-Z a-z 0-9 "." "_" "-", got "b c"',
        'accounts[1].provider: unknown provider "fak"; did you mean "fake"? (this build has fake)',
        'accounts[1].timezone: expected a time zone such as "Europe/Madrid", got "Mars/Base"',
        'sinks[0].type: unknown sink "kafka" (this build has file)',
        'sinks[0].states[0]: expected one of "unknown", "accepted", "enroute", "delivered",'
        ' "read", "undeliverable", "expired", "deleted", "rejected", got "lost"',
        'stor: unknown key; did you mean "store"?',
    ]


def test_store_paths_and_schemes(tmp_path: Path) -> None:
    def store(url: Any, **keys: Any) -> config.StoreConfig:
        return parse({"store": {"url": url}, "accounts": [account()]}, tmp_path, **keys).store

    assert store("sqlite:///a/state.db").path == tmp_path / "a" / "state.db"
    assert store("sqlite:////var/state.db").path == Path("/var/state.db")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "url").write_text("sqlite:///state.db\n")
    assert store({"file": "deep/url"}).path == tmp_path / "deep" / "state.db"
    for scheme in ("postgresql", "postgres"):
        found = store(f"{scheme}://u:{HIDDEN}@h/db?search_path=dlr")
        assert (found.scheme, found.path, found.shown) == ("postgresql", None, "postgresql://***")
        kept = {"store": {"url": f"{scheme}://u:{HIDDEN}@h/db"}, "accounts": [account()]}
        assert config.describe(parse(kept, tmp_path))[0].startswith("store: postgresql://***; ")
        assert HIDDEN not in repr(found)


@pytest.mark.parametrize(
    ("listen", "place"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:80", ("localhost", 80)),
        ("dlr-1.example.com:65535", ("dlr-1.example.com", 65535)),
    ],
)
def test_http_says_where_to_listen(listen: str, place: tuple[str, int]) -> None:
    found = parse({"accounts": [account()], "http": {"listen": listen}}).http
    assert found is not None
    assert ((found.host, found.port), found.shown, found.token) == (place, listen, None)


def test_http_has_a_place_by_default_and_absent_there_is_none() -> None:
    found = parse({"accounts": [account()], "http": {"token": HIDDEN}})
    assert found.http is not None
    assert found.http.shown == "127.0.0.1:9464"
    assert found.http.token is not None
    assert found.http.token.reveal() == HIDDEN
    assert HIDDEN not in repr(found)
    assert parse({"accounts": [account()]}).http is None


@pytest.mark.parametrize(
    "listen",
    ["9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "1.2.3:80", "::1:80",
     "[::1]", "[1.2.3.4]:80", "a b:80", "http://x:80", "u@h:80", "-a:1", "", 9464, ["x:1"]],
)  # fmt: skip
def test_http_says_what_is_no_place(listen: Any) -> None:
    (found,) = faults({"accounts": [account()], "http": {"listen": listen}})
    assert found.startswith('http.listen: expected a host and a port such as "127.0.0.1:9464"')


def test_http_faults() -> None:
    assert faults({"accounts": [account()], "http": {"lisen": "x", "token": [HIDDEN]}}) == [
        "http.token: expected a string, { env = … } or { file = … }",
        'http.lisen: unknown key; did you mean "listen"?',
    ]
    assert faults({"accounts": [account()], "http": HIDDEN}) == ["http: expected a table"]
    assert faults({"accounts": [account()], "http": {"token": ""}}) == ["http.token: is empty"]


def test_no_accounts_and_wrong_shapes() -> None:
    assert faults({}) == ["accounts: there is none; at least one is needed"]
    assert faults({"accounts": {}})[0].startswith("accounts: expected [[accounts]], an array")
    assert faults({"accounts": [5]})[0] == "accounts[0]: expected a table"
    assert faults([])[0] == "expected a table"
    assert faults({"accounts": [account()], "store": HIDDEN}) == ["store: expected a table"]


def test_names_are_unique() -> None:
    sink = {"name": "s", "type": "file", "path": "x"}
    assert faults({"accounts": [account(), account()], "sinks": [sink, sink]}) == [
        'accounts[1].name: "a" is the name of accounts[0] already',
        'sinks[1].name: "s" is the name of sinks[0] already',
    ]


def test_a_group_shares_what_is_stated() -> None:
    stated = {"requests": 7, "per": "1s", "group": "g"}
    found = parse(
        {
            "accounts": [
                account(limits={"group": "g", "concurrency": 1}),
                account(name="b", limits=stated),
                account(name="c", limits={"group": "h"}),
            ]
        }
    )
    first, second, third = (one.limits for one in found.accounts)
    assert first == second
    assert first.rates == (config.Rate.of(7, 1.0),)
    assert first.concurrency == 1
    assert [rate.requests for rate in third.rates] == [3, 100]
    assert faults(
        {
            "accounts": [
                account(limits=stated),
                account(name="b", limits=stated | {"requests": 8}),
            ]
        }
    ) == [
        'accounts[1].limits: group "g" has other limits at accounts[0].limits;'
        " accounts of a group state equal ones or none"
    ]


def test_limits_fall_back_key_by_key() -> None:
    def rates(limits: dict[str, Any]) -> list[tuple[int, float, float]]:
        (one,) = parse({"accounts": [account(limits=limits)]}).accounts
        return [(rate.requests, rate.per_s, rate.slack_s) for rate in one.limits.rates]

    assert rates({"slack": "50ms"}) == [(3, 1.0, 0.05), (100, 60.0, 0.05)]
    assert rates({"requests": 5, "per": "1h"}) == [(5, 3600.0, 18.0)]
    assert rates({"also": [{"requests": 1, "per": 5}]})[-1] == (1, 5.0, 0.025)
    assert rates({"concurrency": 9}) == [(3, 1.0, 0.005), (100, 60.0, 0.3)]


def test_idle_interval_follows_the_interval_that_is_given() -> None:
    def spans(schedule: dict[str, Any]) -> tuple[float, float]:
        (one,) = parse({"accounts": [account(schedule=schedule)]}).accounts
        return one.schedule.interval_s, one.schedule.idle_interval_s

    assert spans({}) == (10, 300)
    assert spans({"interval": "20s"}) == (20, 20)
    assert spans({"idle_interval": "20s"}) == (10, 20)
    assert spans({"interval": "10ms", "idle_interval": "1s"}) == (0.01, 1)
