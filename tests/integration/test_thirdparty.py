"""Plug-ins by others: installed as they would be, found by their entry points, put through the
suites that `engine.testing` has for them, and run by a worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("dlr-tidewire", "dlr-linepost")
TIMEOUT_S = 300
RECEIPTS = [
    [{"ref": f"t{n}", "to": f"4477009000{n:02}", "code": code} for n, code in enumerate("QSDUXRZ")],
    [{"ref": "t0", "to": "447700900000", "code": "D", "at": 1_700_000_000, "cell": 7}, {"to": 1}],
]
CONFIG = """\
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "tide"
provider = "tidewire"
base_url = "http://127.0.0.1:{http}"
user = "john"
password = "hunter2-hunter2"
schedule = {{ interval = "100ms" }}

[[sinks]]
name = "post"
type = "linepost"
host = "127.0.0.1"
port = {post}
key = {{ env = "LINEPOST_KEY" }}
batch = {{ wait = "10ms" }}

[[sinks]]
name = "archive"
type = "jsonl"
path = "reports.jsonl"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages installed in it, without the network."""
    target = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        source = tmp_path_factory.mktemp("source") / name  # building leaves files behind
        shutil.copytree(ROOT / "tests" / "thirdparty" / name, source)
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
        install = ("-m", "pip", "install", *quiet, "--no-index", "--target", str(target))
        done = run(target, *install, str(source))
        assert done.returncode == 0, done.stderr
    return target


def run(
    site: Path, *args: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd or site, env={**os.environ, **paths, **env},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "least"), [*zip(PACKAGES, (11, 14), strict=True)])
def test_their_own_tests_pass(site: Path, tmp_path: Path, name: str, least: int) -> None:
    """In a project of their own, where nothing of this one's settings holds."""
    for file in (ROOT / "tests" / "thirdparty" / name).glob("test_*.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    done = run(site, "-m", "pytest", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= least
    assert "skipped" not in done.stdout


def test_they_are_typed(tmp_path: Path) -> None:
    """What is public is typed enough to be checked against."""
    for name in PACKAGES:
        for file in (ROOT / "tests" / "thirdparty" / name).glob("*.py"):
            shutil.copy(file, tmp_path)
    command = ("-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), ".")
    done = run(tmp_path, *command, cwd=tmp_path, MYPYPATH=str(ROOT))
    assert done.returncode == 0, done.stdout


def test_a_plugin_that_breaks_its_word_fails(site: Path, tmp_path: Path) -> None:
    """The suites are no formality: a sink that drops records, a provider that loses its place."""
    (tmp_path / "test_broken.py").write_text(BROKEN)
    done = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio",
               cwd=tmp_path)  # fmt: skip
    failed = set(re.findall(r"FAILED test_broken\.py::(\w+::\w+)", done.stdout))
    assert failed >= {
        "TestSink::test_accepts_all_in_order",
        "TestSink::test_the_same_batch_twice",
        "TestSink::test_down_and_back",
        "TestSink::test_a_part_is_refused_and_the_rest_is_taken",
        "TestSink::test_many_records_in_bounded_memory",
        "TestProvider::test_chunks_do_not_matter",
        "TestProvider::test_its_reports_are_sound",
        "TestProvider::test_statuses_are_told_apart",
        "TestProvider::test_records_with_odd_values_do_not_make_it_raise",
    }, done.stdout[-3000:]


BROKEN = """
from contextlib import asynccontextmanager

import msgspec
import pytest

from dlr_tidewire import Tidewire
from engine import Kind, Outcome, Poll, State
from engine.testing import Answer, ProviderCase, ProviderSuite, SinkCase, SinkSuite, record


class Place:
    def __init__(self):
        self.options, self.lines = {}, []

    async def read(self):
        return [msgspec.json.decode(line) for line in self.lines]

    async def cut(self): ...

    async def mend(self): ...


PLACE = []


class Forgetful:
    name = "forgetful"

    class Options(msgspec.Struct, frozen=True):
        pass

    def __init__(self, options): ...

    async def open(self): ...

    async def write(self, batch):
        PLACE[-1].lines += batch.lines[:-1]

    async def close(self): ...


@asynccontextmanager
async def place():
    PLACE.append(Place())
    yield PLACE[-1]


class TestSink(SinkSuite):
    @pytest.fixture
    def case(self):
        return SinkCase(Forgetful, place, refuses=lambda n: record(n, subject="no"))


class Reader:
    def __init__(self, sound):
        self._sound, self.parser, self._fed = sound, sound.parser, 0

    def reports(self, records):
        self._fed += 1
        found = self._sound.reports(records)
        assert all(isinstance(one["ref"], str) for one in records)
        return [msgspec.structs.replace(one, done_at="yesterday", message_id=f"{self._fed}")
                for one in found]

    def take_flaws(self):
        return self._sound.take_flaws()

    def outcome(self):
        return Outcome()


class Careless(Tidewire):
    def reader(self, poll, head):
        return Reader(super().reader(poll, head))


FEED = Poll(kind=Kind.FEED, now_ms=0)
BODY = b'{"receipts": [{"ref": "t1", "code": "D"}, {"ref": "t2", "code": "D"}]}'


class TestProvider(ProviderSuite):
    @pytest.fixture
    def case(self):
        answer = Answer(FEED, BODY, [{"state": State.DELIVERED}] * 2)
        return ProviderCase(Careless, {"user": "j", "password": "p"}, [answer])
"""


# With a worker


class Provider(BaseHTTPRequestHandler):
    """Tidewire itself: each receipt is given once."""

    pages: list[list[dict[str, Any]]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        page = self.pages.pop(0) if self.pages else []
        body = json.dumps({"receipts": page, "more": bool(self.pages)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class Post(StreamRequestHandler):
    """A line post server, which does not like what has expired until it is told to."""

    taken: list[dict[str, Any]]
    keys: set[str]
    refuse: set[str]

    def handle(self) -> None:
        while key := self.rfile.readline():
            self.keys.add(key.decode().strip())
            records = [json.loads(self.rfile.readline()) for _ in range(int(self.rfile.readline()))]
            bad = [n for n, one in enumerate(records) if one["state"] in self.refuse]
            self.taken += [one for n, one in enumerate(records) if n not in bad]
            answer = f"no {' '.join(map(str, bad))}" if bad else "ok"
            self.wfile.write(f"{answer}\n".encode())


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[type[Provider], type[Post]]]:
    provider = type("Tide", (Provider,), {"pages": [*RECEIPTS], "asked": []})
    post = type("Lines", (Post,), {"taken": [], "keys": set(), "refuse": {"expired"}})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), provider) as http,
        ThreadingTCPServer(("127.0.0.1", 0), post) as tcp,
    ):
        for server in (http, tcp):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        ports = {"http": http.server_address[1], "post": tcp.server_address[1]}
        (tmp_path / "engine.toml").write_text(CONFIG.format(**ports))
        yield provider, post
        http.shutdown()
        tcp.shutdown()


def test_a_worker_runs_them(
    site: Path, tmp_path: Path, servers: tuple[type[Provider], type[Post]]
) -> None:
    provider, post = servers

    def dlr(*words: str, status: int = 0) -> str:
        head, *rest = words
        args = ("-m", "engine", head, "--config", "engine.toml", *rest)
        done = run(site, *args, cwd=tmp_path, LINEPOST_KEY="the-key-of-the-post")
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "the-key-of-the-post" not in done.stdout + done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        return done.stdout

    assert "tidewire" in dlr("check")
    dlr("run", "--until-idle", "--idle-timeout", "20s")
    assert post.keys == {"the-key-of-the-post"}
    assert all("max=500 Basic " in one for one in provider.asked)
    archive = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_bytes().splitlines()]
    assert len(archive) == 8
    assert post.taken == [one for one in archive if one["state"] != "expired"]
    newest = {one["message_id"]: one for one in archive}
    assert newest["t0"]["state"] == "delivered"
    assert newest["t0"]["done_at"] == "2023-11-14T22:13:20.000Z"
    assert newest["t0"]["extra"] == {"cell": 7}
    assert newest["t6"]["state"] == "unknown"
    stats = json.loads(dlr("stats", "--json"))
    account = stats["accounts"]["tide"]
    assert (account["known"], account["set_aside"], account["refused"]) == (7, 1, 1)
    assert account["balanced"]
    (letter,) = json.loads(dlr("dead-letter", "list", "--json"))["letters"]
    assert (letter["message_id"], letter["cause"]) == ("t4", "the server does not take it")
    post.refuse.clear()
    assert dlr("dead-letter", "retry") == "sink post: 1 taken, 0 refused again\n"
    assert {one["event_id"] for one in post.taken} == {one["event_id"] for one in archive}
