"""A canary as every secret, through every way of failing: it comes out nowhere.

In one file, since tracebacks with all locals are looked through, and the frames of this file, which
knows the secrets, are left out of them.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import rich.pretty
import rich.traceback
from anyio import to_thread
from rich.console import Console

import engine
from engine.cli import main
from engine.worker import Engine
from tests.integration.canary import (
    KINDS,
    MARK,
    MODES,
    SECRETS,
    Parrot,
    leaks,
    secret,
    spellings,
    wordy,
)
from tests.integration.harness import hasty, infobip, until
from tests.integration.standin import Standin
from tests.integration.webbing import asking

FREE = {"requests": 1000, "per": "1s"}
QUICK = {"timeout": "700ms", "total_timeout": "2s"}
FEED = {"interval": "150ms", "idle_interval": "150ms", "rescan": []}


def account(kind: str, mode: str, base: str, folder: Path) -> dict[str, Any]:
    """An account with its secrets in the file, in the environment or in a file of their own."""
    keys, own = KINDS[kind]
    table: dict[str, Any] = {
        "name": f"{kind}-{mode}", "base_url": f"{base}/{kind}/{mode}", "limits": FREE,
        "request": QUICK, "push_secret": secret("push"), **keys,
    }  # fmt: skip
    table["schedule"] = {"ladder": ["0s", "100ms"]} if kind.startswith("bulk") else FEED
    for n, (key, value) in enumerate(own.items()):
        if key == "token":
            table["login_url"] = f"{base}/{kind}/{mode}/login"
            continue
        given: Any = value
        if n + len(mode) % 3 == 1:
            name = f"SECRET_{kind}_{key}".upper().replace("-", "_").replace(".", "_")
            os.environ[name] = value
            given = {"env": name}
        elif len(mode) % 3 == 2:
            (folder / f"{kind}.{key}.secret").write_text(value)
            given = {"file": f"{kind}.{key}.secret"}
        part, _, inner = key.partition(".")
        table[part] = {inner: given} if inner else given
    return table


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def configured(folder: Path, tables: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    os.environ["STORE_URL"] = f"sqlite:///{MARK}-place/state.db"
    return {
        "store": {"url": {"env": "STORE_URL"}}, "accounts": tables,
        "redact_key": secret("redact"),
        "http": {"listen": "127.0.0.1:0", "token": wordy("port")},
        "sinks": [
            {"name": "lines", "type": "jsonl", "path": "out/r.jsonl", "batch": {"wait": "10ms"}},
            {"name": "db", "type": "sqlite", "path": "out/r.db", "batch": {"wait": "10ms"}},
        ],
        **more,
    }  # fmt: skip


def everywhere(parrot: Parrot, modes: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    return [account(kind, mode, parrot.base, folder) for kind in KINDS for mode in modes]


def nowhere(folder: Path) -> list[dict[str, Any]]:
    """Providers that cannot be reached: no name, no listener, no TLS."""
    places = {
        "dns": "http://no-such-host.invalid", "refused": "http://127.0.0.1:9",
        "tls": "https://127.0.0.1:9",
    }  # fmt: skip
    return [account(kind, mode, base, folder) for kind in KINDS for mode, base in places.items()]


def written(folder: Path) -> dict[str, bytes]:
    """Everything that the engine has left, by file."""
    return {
        str(path.relative_to(folder)).replace(MARK, "*"): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".toml", ".secret")
    }


class Everything(logging.Handler):
    """Log records whole: message, arguments, and the exceptions with all that led to them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said += [record.getMessage(), repr(record.args), repr(record.__dict__)]
        if record.exc_info and record.exc_info[1] is not None:
            self.said.append(shown(record.exc_info[1]))


def shown(error: BaseException) -> str:
    """An exception as the most talkative of tracebacks prints it, locals and causes included."""
    out = io.StringIO()
    console = Console(file=out, width=400)
    console.print(
        rich.traceback.Traceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True, locals_max_length=1000,
            locals_max_string=100_000, suppress=[__file__],
        )
    )  # fmt: skip
    plain = "".join(traceback.TracebackException.from_exception(
        error, capture_locals=True, limit=-50
    ).format(chain=True))  # fmt: skip
    return out.getvalue() + "".join(plain) + repr(error.args)


@pytest.fixture
def overheard() -> Iterator[Everything]:
    root, handler = logging.getLogger(), Everything()
    levels = {name: logging.getLogger(name).level for name in ("", "dlr_engine", "asyncio")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def test_embedded(tmp_path: Path, overheard: Everything) -> None:
    """All accounts with all ways of failing at once, in the program's own loop."""
    async with Parrot({kind: _known_to(kind) for kind in KINDS}) as parrot:
        tables = everywhere(parrot, MODES, tmp_path) + nowhere(tmp_path)
        config = engine.configure(configured(tmp_path, tables), base=tmp_path)
        async with hasty(config) as poller:
            for table in tables:
                if table["provider"] == "bulksms":
                    await poller.track(table["name"], batch_id="1", recipients=["447700900001"])
            wanted = {(kind, mode) for kind in KINDS for mode in MODES}
            await until(lambda: wanted <= parrot.asked, 60, str(wanted - parrot.asked))
            failing = [p.health for p in poller.pollers.values()]
            await until(lambda: sum(bool(h.failing or h.paused) for h in failing) > 100, 60)
            status = [poller.status(table["name"]) for table in tables]
            pages = await _pages(poller, tables)
            counts, events = dict(poller.telemetry.counts), list(poller.telemetry.events)
            troubles = await poller.store.read(lambda tx: tx.troubles(None, 10_000))
    assert parrot.heard >= SECRETS.keys(), SECRETS.keys() - parrot.heard
    outputs = written(tmp_path)
    outputs["log"] = "\n".join(overheard.said).encode()
    outputs["status"] = repr((status, counts, events, troubles)).encode()
    outputs["pages"] = pages
    outputs["config"] = repr(config).encode() + _pretty(config)
    for name, output in outputs.items():
        assert not leaks(output, SECRETS), name
    assert len(troubles) > 50
    assert {trouble.account for trouble in troubles if b"***" in trouble.raw}
    said = [json.loads(line) for line in (tmp_path / "out/r.jsonl").read_bytes().splitlines()]
    masked = {record["account"].removesuffix("-records") for record in said if "***" in str(record)}
    assert masked >= KINDS.keys()


async def _pages(poller: Engine, tables: list[dict[str, Any]]) -> bytes:
    """All that the port says, while every account is in trouble, to who may ask and who may not."""
    assert poller.surface is not None
    said = []
    async with asking(f"http://127.0.0.1:{poller.surface.port.address[1]}") as web:
        paths = ["/", "/live.json", "/metrics", "/healthz", "/readyz", "/nothing"]
        for table in tables:
            name, wrong = table["name"], quote(secret("push")[:-1], safe="")
            paths.append(f"/push/{name}/{wrong}")
            paths.append(f"/push/{name}/{quote(secret('push'), safe='')}?x=1")
            paths.append(f"/v1/messages/{name}/1:447700900001")
        for path in paths:
            said.append(await web.ask(path))
            bearer = {"Authorization": f"Bearer {wordy('port')}"}
            said.append(await web.ask(path, headers=bearer))
    assert {status for status, _, _ in said} >= {200, 401, 404}
    return repr(said).encode()


def _known_to(kind: str) -> dict[str, str]:
    own = dict(KINDS[kind][1])
    return own | {"api_key": wordy("key2")} if kind == "info-extra" else own


def _pretty(value: object) -> bytes:
    return rich.pretty.pretty_repr(value, max_width=200, expand_all=True).encode()


async def test_worker_and_commands(tmp_path: Path) -> None:
    """The same as a worker's process, in asyncio's debug mode, and the commands beside it."""
    async with Parrot({kind: _known_to(kind) for kind in KINDS}) as parrot:
        tables = everywhere(parrot, MODES, tmp_path) + nowhere(tmp_path)
        for table in tables:
            table["request"] = {"timeout": "3s", "total_timeout": "10s"}
        file = tmp_path / "engine.toml"
        file.write_text(_toml(configured(tmp_path, tables)))
        outputs: dict[str, bytes] = {}

        async def run(name: str, *words: str, statuses: tuple[int, ...] = (0,)) -> None:
            done = await to_thread.run_sync(_command, file, words)
            outputs[name] = done.stdout + done.stderr
            assert done.returncode in statuses, (name, done.stderr[-2000:])
            assert b"Traceback" not in done.stderr, name

        await run("check", "check")
        for kind in ("bulk-get", "bulk-post"):
            for mode in ("records", "text", "500"):
                words = ["track", "--account", f"{kind}-{mode}", "--batch-id", "1"]
                await run(f"track {kind} {mode}", *words, "--recipients", "447700900001")
        await run("run", "run", "--once", "--verbose", statuses=(1,))
        await run("connect", "check", "--connect", "--verbose", statuses=(0, 1))
        await run("stats", "stats")
        await run("stats --json", "stats", "--json")
        await run("show", "show", "--recipient", "447700900001", "--json")
    feeds = {(kind, mode) for kind in KINDS for mode in MODES if not kind.startswith("bulk")}
    assert parrot.asked >= feeds
    assert b"WARNING" in outputs["run"]
    assert b"FAILED" in outputs["connect"]
    assert b"***" in outputs["check"]
    for name, output in (outputs | written(tmp_path)).items():
        assert not leaks(output, SECRETS), name


def _command(file: Path, words: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "always"}
    command = [
        sys.executable, "-X", "dev", "-m", "engine", words[0], "--config", str(file), *words[1:],
    ]  # fmt: skip
    return subprocess.run(command, env=env, capture_output=True, timeout=300)


def _toml(data: dict[str, Any]) -> str:
    """TOML of what these configurations hold; a JSON string or array is TOML, too."""

    def value(each: Any) -> str:
        if isinstance(each, dict):
            return "{ " + ", ".join(f"{k} = {value(v)}" for k, v in each.items()) + " }"
        return json.dumps(each)

    lines = [f"{k} = {value(v)}" for k, v in data.items() if k not in ("accounts", "sinks")]
    for kind in ("accounts", "sinks"):
        for table in data[kind]:
            lines.append(f"[[{kind}]]")
            lines += [f"{key} = {value(each)}" for key, each in table.items()]
    return "\n".join(lines) + "\n"


FAULTS: list[dict[str, Any]] = [
    {"acount": 1},
    {"accounts": [{"name": "a", "provider": "bulksms"}]},
    {"sinks": [{"name": "s", "type": "nothing", "url": {"env": "SINK_URL"}}]},
    {"sinks": [{"name": "s", "type": "jsonl", "path": "x", "url": f"https://u:{MARK}@h"}]},
    {"sinks": [{"name": "s", "type": "kafka", "url": f"https://u:{MARK}@h"}]},
    {"store": {"url": f"postgresql://user:{MARK}@host:port/db"}},
    {"store": {"url": f"sqlite://{MARK}/"}},
    {"store": {"url": [MARK]}},
    {"store": MARK},
    {"redact_key": MARK},
    {"redact_key": [MARK]},
]
WRONG: list[dict[str, Any]] = [
    {"password": [MARK]}, {"password": {"env": "NOT_THERE", "file": MARK}}, {"pasword": MARK},
    {"headers": {"X": [MARK]}}, {"headers": {"X": f"{MARK}\n"}}, {"headers": MARK},
    {"headers": [MARK]}, {"base_url": f"https://u:{MARK}@h"}, {"base_url": f"https://h/?k={MARK}"},
    {"username": ""}, {"optional_fields": ["no"]}, {"push_secret": {"what": MARK}},
    {"ca_file": "none.pem"}, {"limits": {"per": "soon"}},
]  # fmt: skip


@pytest.mark.parametrize("fault", [*FAULTS, *({"account": wrong} for wrong in WRONG)], ids=str)
def test_a_wrong_configuration(
    tmp_path: Path, fault: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the faults nor the error's own traceback hold what was configured."""
    os.environ["SINK_URL"] = f"https://{MARK}"
    good = account("bulk-get", "500", "https://h.example", tmp_path)
    data = configured(tmp_path, [good | fault.get("account", {})])
    data |= {key: value for key, value in fault.items() if key != "account"}
    file = tmp_path / "engine.toml"
    file.write_text(_toml(data))
    with pytest.raises(engine.ConfigError) as caught:
        engine.open(file)
    assert not leaks(_of_the_engine(caught.value), SECRETS)
    with pytest.raises(engine.ConfigError) as caught:
        engine.configure(data, base=tmp_path)
    assert not leaks(_of_the_engine(caught.value), SECRETS)
    assert main(["check", "--config", str(file)]) == 2
    printed = capsys.readouterr()
    assert not leaks((printed.out + printed.err).encode(), SECRETS)


def _of_the_engine(error: BaseException) -> bytes:
    """The exception as it is printed, without the frames of this test, which know the secrets."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    return shown(error.with_traceback(frame)).encode()


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(f'password = "{MARK}"\nx = {MARK}\n')
    with pytest.raises(engine.ConfigError) as caught:
        engine.open(file)
    assert not leaks(_of_the_engine(caught.value), SECRETS)


async def test_a_store_that_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overheard: Everything
) -> None:
    """Its place came from the environment, so it is a secret like any other."""
    data = configured(tmp_path, [account("info-key", "500", "http://127.0.0.1:9", tmp_path)])
    file = tmp_path / "engine.toml"
    file.write_text(_toml(data))
    place = tmp_path / f"{MARK}-place"
    said = []
    async with engine.open(file):  # it belongs to a worker
        said.append(await _opened(file))
        for words in (["stats"], ["check"], ["check", "--connect"], ["run", "--once"]):
            await to_thread.run_sync(main, [words[0], "--config", str(file), *words[1:]])
    (place / "state.db").write_bytes(b"no database, not at all" * 100)
    said.append(await _opened(file))
    (place / "state.db").unlink()
    (place / "state.db").mkdir()
    said.append(await _opened(file))
    (place / "state.db").rmdir()
    main(["stats", "--config", str(file)])
    (place / "state.db.lock").unlink()
    (place / "state.db.lock").mkdir()
    said.append(await _opened(file))
    printed = capsys.readouterr()
    outputs = [*said, printed.out.encode(), printed.err.encode(), *map(str.encode, overheard.said)]
    for output in outputs:
        assert not leaks(output, SECRETS), output[-3000:]


async def _opened(file: Path) -> bytes:
    with pytest.raises(engine.StoreError) as caught:
        async with engine.open(file):
            pass
    return str(caught.value).encode()


async def test_what_a_sink_says(tmp_path: Path, overheard: Everything) -> None:
    """A sink of one's own may put its URL, password and all, into its error."""
    url = f"https://john:{MARK}-sink@h.example/?k={MARK}"

    class Options(msgspec.Struct):
        url: engine.Secret

    class Loud:
        name = "loud"

        def __init__(self, options: Options) -> None:
            self._url = options.url.reveal()

        async def open(self) -> None:
            raise engine.SinkError(f"cannot reach {self._url}")

        async def write(self, batch: engine.Batch) -> None:
            raise AssertionError

        async def close(self) -> None:
            raise OSError(5, f"no {self._url}")

    Loud.Options = Options  # type: ignore[attr-defined]
    from engine.config import parse
    from engine.registry import providers

    data = configured(tmp_path, [account("info-key", "500", "http://127.0.0.1:9", tmp_path)])
    data["sinks"] = [{"name": "loud", "type": "loud", "url": url}]
    loud: Any = {"loud": Loud}
    config = parse(data, providers=providers(), sinks=loud, base=tmp_path)
    async with hasty(config) as poller:
        health = poller.dispatchers[0].health
        await until(lambda: health.failing, 10)
        assert health.failing == "cannot reach ***"
    assert not leaks("\n".join(overheard.said).encode(), SECRETS)


# The type


def test_no_rendering_of_a_secret_shows_it(tmp_path: Path) -> None:
    hidden = engine.Secret(secret("type"))
    data = configured(tmp_path, [account("bulk-get", "500", "https://h.example", tmp_path)])
    config = engine.configure(data, base=tmp_path)
    for value in (hidden, config, config.accounts[0], config.accounts[0].options, config.store):
        renderings = [
            repr(value), str(value), f"{value}", f"{value!r:>9}", f"{value} {value!r}",
            repr([value]), _pretty(value).decode(), json.dumps({"x": value}, default=str),
            repr(copy.copy(value)), str(getattr(value, "__dict__", "")),
        ]  # fmt: skip
        for rendering in renderings:
            assert MARK not in rendering
    assert f"{hidden:>5}" == repr(hidden) == "***"
    assert copy.deepcopy(hidden) == hidden
    assert copy.deepcopy(config.accounts[0].options) == config.accounts[0].options


@pytest.mark.parametrize(
    "give", [pickle.dumps, msgspec.json.encode, msgspec.to_builtins, lambda s: s.__getstate__()]
)
def test_a_secret_is_written_nowhere(give: Any) -> None:
    with pytest.raises(TypeError) as caught:
        give(engine.Secret(secret("type")))
    assert MARK not in str(caught.value)


async def test_what_a_sink_refuses_for_good(
    tmp_path: Path,
    overheard: Everything,
    standin: Standin,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A dead letter's cause is what a server said: it may have said all that it was told."""
    token = secret("sink")

    class Options(msgspec.Struct):
        token: engine.Secret

    class Talkative:
        name = "talkative"

        def __init__(self, options: Options) -> None:
            self._said = spellings(options.token.reveal())
            self._next = 0

        async def open(self) -> None: ...

        async def write(self, batch: engine.Batch) -> None:
            rejected = {}
            for index in range(len(batch.lines)):
                said = self._said[self._next % len(self._said)]
                self._next += 1
                rejected[index] = f"no {said} {'x' * 480} {said}"  # the cut falls into the second
            raise engine.PartialWrite(rejected)

        async def close(self) -> None: ...

    Talkative.Options = Options  # type: ignore[attr-defined]
    sinks: Any = {"talkative": Talkative}
    monkeypatch.setattr("engine.registry.sinks", lambda: sinks)
    ways = len(spellings(token))
    body = json.dumps({"results": [{"messageId": f"m{n}", "status": {"groupId": 3}}
                                   for n in range(ways)]}).encode()  # fmt: skip
    feed = infobip(standin.answer("info", [body, b'{"results":[]}']))
    data = configured(tmp_path, [feed])
    data["sinks"] = [{"name": "out", "type": "talkative", "token": token}]
    file = tmp_path / "engine.toml"
    file.write_text(_toml(data))
    secrets = {"sink": token}
    async with engine.open(file) as poller:
        await until(lambda: poller.telemetry.of("dead_letters", "out") == ways, 10)
        for words in (["dead-letter", "list"], ["dead-letter", "list", "--json"],
                      ["dead-letter", "retry"], ["dead-letter", "list"], ["sinks", "list"],
                      ["sinks", "list", "--json"], ["stats", "--json"]):  # fmt: skip
            command = [words[0], "--config", str(file), *words[1:]]
            assert await to_thread.run_sync(main, command) == 0, words
        letters = await poller.store.read(lambda tx: tx.dead_letters("out", 0, 999, bytes_max=9**9))
    assert len(letters) == ways
    assert all("***" in letter.cause and letter.times == 2 for letter in letters)
    printed = capsys.readouterr()
    outputs = {"out": printed.out.encode(), "err": printed.err.encode(), **written(tmp_path)}
    outputs["log"] = "\n".join(overheard.said).encode()
    for name, output in outputs.items():
        assert not leaks(output, secrets), name
