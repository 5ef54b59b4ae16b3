"""Exported files: by themselves, beside a running worker, killed, again; and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from engine.core.contracts import Kind
from engine.core.units import iso
from engine.sim import AccountProfile, Profile, Simulator
from tests.integration.folder import Done, finished, worker
from tests.integration.harness import balanced, lines, tallies, until
from tests.integration.test_redacted_accounts import kept
from tests.services import own_schema
from tests.unit.test_provider_messangi_export import exported

HOUR_S = 3600.0
MAIL = "ann.o'nymous@example.com"
NUMBER = "525512345678"

CONFIG = """
[store]
url = "{store}"

[[accounts]]
name = "omni"
provider = "messangi"
base_url = "{url}"
limits = {{ requests = 50, per = "1s", slack = "100ms" }}
lookback = "1s"
schedule = {{ interval = "100ms", idle_interval = "100ms", rescan = ["2s", "5s", "9s", "9m"] }}
{more}

[[accounts]]
name = "bot"
provider = "avaamo"
base_url = "http://127.0.0.1:9"
agent_id = 5157
access_token = "t"

[[sinks]]
name = "lines"
type = "jsonl"
path = "r.jsonl"
batch = {{ records = 400, wait = "20ms" }}
accounts = ["omni"]
"""


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    profile = AccountProfile(name="omni", provider="messangi")
    async with Simulator(Profile([profile])) as made:
        yield made


def configure(folder: Path, url: str, *, store: str = "sqlite:///state.db", more: str = "") -> None:
    text = CONFIG.format(url=url, store=store, more=more)
    (folder / "engine.toml").write_text(text)


async def ingest(folder: Path, *files: str, account: str = "omni") -> Done:
    options = ("ingest", "--config", "engine.toml", "--account", account, *files)
    return await finished(folder, *(sys.executable, "-m", "engine", *options))


async def mailed(sim: Simulator, folder: Path, name: str = "log.csv") -> bytes:
    """What the simulator exports of the last day, in a file."""
    now = time.time()
    window = {
        "from": iso(round((now - 24 * HOUR_S) * 1000)),
        "to": iso(round(now * 1000)),
    }
    order = {"emails": ["a@example.com"], "from": "b@example.com", "timezone": "GMT"}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{sim.url('omni')}/v3/mlog", params=window, json=order) as answer:
            assert answer.status == 200
        async with http.get(f"{sim.base_url}/_sim/mailed/omni") as answer:
            body = await answer.read()
    (folder / name).write_bytes(body)
    return body


def send(sim: Simulator, count: int, *plan: tuple[float, str], ago_s: float = HOUR_S) -> None:
    """In all channels, so long ago."""
    for n, channel in enumerate("SEPWR"):
        sent_at = time.time() - ago_s + n
        sim.send("omni", count, channel=channel, sent_at=sent_at, plan=plan)


def events(folder: Path) -> set[str]:
    found = [line["event_id"] for line in lines(folder)]
    assert len(found) == len(set(found))
    return set(found)


async def test_a_file_gives_what_a_poll_gives_and_no_record_twice(
    sim: Simulator, tmp_path: Path
) -> None:
    """The same messages under the same event_ids; a poll after the file is no news."""
    file, polled = tmp_path / "file", tmp_path / "polled"
    for folder in (file, polled):
        folder.mkdir()
        configure(folder, sim.url("omni"))
    send(sim, 40, (0, "SENT"), (1, "DELIVERED"))
    await mailed(sim, file)
    assert await ingest(file, "log.csv") == (0, "omni: log.csv: 200 rows: 200 new records\n", "")
    again = "omni: log.csv: 200 rows: 0 new records, 200 known already\n"
    assert await ingest(file, "log.csv") == (0, again, "")
    text = (polled / "engine.toml").read_text().replace('lookback = "1s"', 'lookback = "1d"')
    (polled / "engine.toml").write_text(text)
    async with worker(polled):
        await until(lambda: len(lines(polled)) >= 200, 20)
    (file / "engine.toml").write_text(text)
    async with worker(file) as engine:
        await until(lambda: engine.telemetry.of("repeated", "omni") >= 200, 20)
        await until(lambda: len(lines(file)) >= 200, 20)
        await balanced(engine)
    assert events(file) == events(polled)
    bare = ("observed_at", "content")
    both = [
        sorted(
            ({k: v for k, v in line.items() if k not in bare} for line in lines(folder)),
            key=lambda line: line["event_id"],
        )
        for folder in (file, polled)
    ]
    assert both[0] == both[1]


async def test_what_is_open_is_read_again(sim: Simulator, tmp_path: Path) -> None:
    """A message that comes up in a file gets the rescans of what comes up in a window."""
    configure(tmp_path, sim.url("omni"))
    send(sim, 3, (0, "SENT"), (HOUR_S + 4, "DELIVERED"))
    await mailed(sim, tmp_path)
    assert (await ingest(tmp_path, "log.csv"))[0] == 0
    async with worker(tmp_path) as engine:
        windows = await engine.store.read(lambda tx: tx.find_works("omni", Kind.WINDOW, None))
        assert 1 <= len(windows) <= 2  # by the day of sending, which may be yesterday's
        until_states = {"delivered", "enroute"}
        await until(lambda: {line["state"] for line in lines(tmp_path)} >= until_states, 20)
        await balanced(engine)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_beside_a_running_worker_it_is_the_worker_that_records(
    sim: Simulator, tmp_path: Path, kind: str
) -> None:
    """Portion by portion through its inbox; it does not get more than it takes."""
    if kind == "sqlite":
        await _beside(sim, tmp_path, "sqlite:///state.db")
        return
    async with own_schema() as url:
        await _beside(sim, tmp_path, url)


async def _beside(sim: Simulator, folder: Path, store: str) -> None:
    configure(folder, sim.url("omni"), store=store)
    send(sim, 1200, (0, "SENT"), (1, "READ"))
    await mailed(sim, folder)
    async with worker(folder) as engine:
        await until(lambda: "omni" in engine.pollers, 20)
        status, out, err = await ingest(folder, "log.csv", "log.csv")
        assert (status, err) == (0, "")
        first, second = out.splitlines()
        assert first == "omni: log.csv: 6,000 rows: 6,000 new records"
        assert second == "omni: log.csv: 6,000 rows: 0 new records, 6,000 known already"
        await until(lambda: engine.telemetry.of("written", "lines") >= 6000, 60)
        await balanced(engine)
        assert not await engine.store.read(lambda tx: tx.inbox_waits())
    assert len(events(folder)) == 6000


async def test_on_postgresql_where_no_worker_runs(sim: Simulator, tmp_path: Path) -> None:
    async with own_schema() as url:
        configure(tmp_path, sim.url("omni"), store=url)
        send(sim, 3, (0, "SENT"), (1, "DELIVERED"))
        await mailed(sim, tmp_path)
        for told in ("15 new records", "0 new records, 15 known already"):
            assert await ingest(tmp_path, "log.csv") == (
                0, f"omni: log.csv: 15 rows: {told}\n", ""
            )  # fmt: skip


DYING = """
import os, signal, sys
from engine.stores.sqlite import SqliteStore

left, write = {left}, SqliteStore.write

async def dying(self, job, *, lazy=False):
    global left
    left -= 1
    if left == 0 and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    done = await write(self, job, lazy=lazy)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

SqliteStore.write = dying
from engine.cli import main
sys.exit(main(["ingest", "--config", "engine.toml", "--account", "omni", "log.csv"]))
"""


@pytest.mark.parametrize("beside", [False, True])
async def test_killed_in_the_middle_and_run_again(
    sim: Simulator, tmp_path: Path, beside: bool
) -> None:
    """Nothing is lost and nothing is there twice, wherever it was."""
    rand = random.Random(3)
    configure(tmp_path, sim.url("omni"))
    send(sim, 1500, (0, "SENT"), (1, "READ"))
    await mailed(sim, tmp_path)

    async def kills() -> None:
        for before in (False, True, False, True):
            code = DYING.format(left=rand.randint(2, 7), before=before)
            assert (await finished(tmp_path, sys.executable, "-c", code))[0] == -signal.SIGKILL
        status, out, err = await ingest(tmp_path, "log.csv")
        assert (status, err) == (0, "")
        assert out.startswith("omni: log.csv: 7,500 rows: ")

    if not beside:
        await kills()
    async with worker(tmp_path) as engine:
        if beside:
            await kills()
        await until(lambda: engine.telemetry.of("written", "lines") >= 7500, 60)
        await balanced(engine)
        counts = (await tallies(engine))["omni"]
    assert (counts["known"], counts["records"]) == (7500, 7500)
    assert len(events(tmp_path)) == 7500
    assert {line["revision"] for line in lines(tmp_path)} == {1}


async def test_bad_rows_are_set_aside_and_can_be_replayed(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    good = [item(n) for n in range(5)]
    rows = exported(*good[:3], {**good[3], "channel": "?"}, good[4]).splitlines(keepends=True)
    (tmp_path / "a.csv").write_bytes(b"".join([*rows[:2], b'S,"open\n', *rows[2:], b"S,b\n"]))
    status, out, err = await ingest(tmp_path, "a.csv")
    assert (status, err) == (0, "")
    assert out == (
        "omni: a.csv: 7 rows: 4 new records, 3 set aside\n"
        "what was set aside: dlr-engine replay --config engine.toml --account omni --list\n"
    )
    told = await stats(tmp_path)
    found = {(one["cause"], one["position"].partition(",")[0]) for one in told["troubles"]}
    assert found == {
        ("a quote that is wrong or not closed", "file: a.csv: line 3"),
        ("unknown channel '?'", "file: a.csv: line 6"),
        ("2 cells where the header has 13", "file: a.csv: line 8"),
    }
    assert (await ingest(tmp_path, "a.csv"))[0] == 0
    assert (await stats(tmp_path))["accounts"]["omni"]["set_aside"] == 3
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:  # its channel gets a name
        raw, size = db.execute("SELECT raw, id FROM trouble WHERE cause LIKE 'unknown%'").fetchone()
        db.execute("UPDATE trouble SET raw = ? WHERE id = ?", (raw.replace(b'"?"', b'"S"'), size))
    command = (sys.executable, "-m", "engine", "replay", "--config", "engine.toml", "--json")
    replayed = {one["cause"]: one for one in json.loads((await finished(tmp_path, *command))[1])}
    assert replayed["unknown channel '?'"]["digested"] == 1
    assert sum(one["left"] for one in replayed.values()) == 2


def item(n: int, **keys: Any) -> dict[str, Any]:
    at = iso(1_760_000_000_000 + n)
    return {
        "channel": "S", "sender": "shop", "recipient": f"+{NUMBER}", "date": at, "direction": "O",
        "status": "DELIVRD", "statusdate": at, "content": f"call {NUMBER}", **keys,
    }  # fmt: skip


async def stats(folder: Path) -> dict[str, Any]:
    command = (sys.executable, "-m", "engine", "stats", "--config", "engine.toml", "--json")
    found: dict[str, Any] = json.loads((await finished(folder, *command))[1])
    return found


@pytest.mark.parametrize("beside", [False, True])
async def test_a_redacted_account_keeps_nobody(tmp_path: Path, beside: bool) -> None:
    """Neither records nor what was set aside, nor what waits in the inbox."""
    configure(tmp_path, "http://127.0.0.1:9", more='redact = ["recipient"]\ncontent = true')
    rows = exported(
        item(0),
        item(1, channel="E", recipient=MAIL),
        item(2, channel="?", recipient=MAIL, content=""),
    )
    source = tmp_path / "source"
    source.mkdir()
    broken = f'S,shop,{MAIL},"{MAIL}\n'.encode()
    (source / "a.csv").write_bytes(rows + b"E,shop," + MAIL.encode() + b"\n" + broken)
    if beside:
        async with worker(tmp_path):
            done = await ingest(tmp_path, "source/a.csv")
    else:
        done = await ingest(tmp_path, "source/a.csv")
    assert done[0] == 0, done[2]
    assert "2 new records, 3 set aside" in done[1]
    if not beside:
        async with worker(tmp_path):
            await until(lambda: len(lines(tmp_path)) >= 2, 10)
    assert {line["recipient"][:4] for line in lines(tmp_path)} == {"tel_", "adr_"}
    for name, raw in kept(tmp_path).items():
        for word in (NUMBER, NUMBER[2:], "nymous@", "nymous%40", "onymous"):
            assert name == "a.csv" or word.encode() not in raw.lower(), (name, word)


async def test_gzip_and_files_that_end_early(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    body = exported(*(item(n) for n in range(20_000)))
    packed = gzip.compress(body)
    (tmp_path / "a.csv.gz").write_bytes(packed[: len(packed) // 2])
    status, out, err = await ingest(tmp_path, "a.csv.gz")
    assert status == 1
    assert err == "a.csv.gz: its gzip is cut short; what came before is taken\n"
    part = int(out.split()[4].replace(",", ""))
    assert 5_000 < part < 15_000
    (tmp_path / "b.csv").write_bytes(
        gzip.compress(body[:1_000_000]) + gzip.compress(body[1_000_000:])
    )
    status, out, err = await ingest(tmp_path, "b.csv")
    assert (status, err) == (0, "")
    assert out.startswith(
        f"omni: b.csv: 20,000 rows: {20_000 - part:,} new records, {part:,} known"
    )


async def test_a_pipe(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "a.csv").write_bytes(exported(item(0), item(1)))
    words = f"cat a.csv | {sys.executable} -m engine ingest --config engine.toml --account omni"
    status, out, err = await finished(tmp_path, "sh", "-c", f"{words} /dev/stdin")
    assert (status, out, err) == (0, "omni: /dev/stdin: 2 rows: 2 new records\n", "")


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("x.csv", b"", "x.csv: empty"),
        ("x.csv", b"S,shop,+525512345678\n", "x.csv: its first row does not name the columns"),
        ("x.csv", b"PK\x03\x04", "x.csv: it is a ZIP archive"),
        ("x.csv", b"\x1f\x8bno gzip", "x.csv: its gzip is damaged"),
        ("x.csv", "Channel,Date\n".encode("utf-16"), "x.csv: it is UTF-16"),
        ("none.csv", b"", "x.csv: No such file"),
        (".", b"", "x.csv: is a folder"),
    ],
)  # fmt: skip
async def test_files_that_are_no_exports_are_refused_before_any_is_taken(
    tmp_path: Path, name: str, body: bytes, said: str
) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "good.csv").write_bytes(exported(item(0)))
    if name == "x.csv":
        (tmp_path / "x.csv").write_bytes(body)
    elif name == ".":
        (tmp_path / "x.csv").mkdir()
    status, out, err = await ingest(tmp_path, "good.csv", "x.csv")
    assert (status, out) == (2, "")
    assert said in err
    assert NUMBER not in err
    assert not (tmp_path / "state.db").exists()


async def test_accounts_that_take_no_files_and_stores_that_keep_none(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "a.csv").write_bytes(exported(item(0)))
    status, _, err = await ingest(tmp_path, "a.csv", account="bot")
    assert status == 2
    assert "bot: avaamo documents no file of reports that it exports" in err
    assert (await ingest(tmp_path, "a.csv", account="nobody"))[0] == 2
    configure(tmp_path, "http://127.0.0.1:9", store="memory://")
    status, _, err = await ingest(tmp_path, "a.csv")
    assert status == 2
    assert "memory:// lives inside the worker alone; what `ingest` put into it" in err


async def test_stopped_it_says_how_to_go_on(tmp_path: Path) -> None:
    """And what it had taken stays: here of a pipe that goes on and on."""
    configure(tmp_path, "http://127.0.0.1:9")
    options = ("ingest", "--config", "engine.toml", "--account", "omni", "/dev/stdin")
    process = await anyio.open_process(
        [sys.executable, "-m", "engine", *options], cwd=tmp_path, stdout=None
    )
    assert process.stdin is not None
    assert process.stderr is not None
    await process.stdin.send(exported(*(item(n) for n in range(5000))))

    def taken() -> bool:
        try:
            with closing(sqlite3.connect(f"file:{tmp_path}/state.db?mode=ro", uri=True)) as db:
                return bool(db.execute("SELECT n FROM tally WHERE name = 'records'").fetchall())
        except sqlite3.OperationalError:
            return False

    await until(taken, 20)
    process.send_signal(signal.SIGINT)
    await process.stdin.send(exported(item(6000)))
    with anyio.fail_after(20):
        assert await process.wait() == 0
        said = b"".join([piece async for piece in process.stderr]).decode()
    assert "stopped within /dev/stdin: run the same command again to go on" in said
    assert "not yet stored" not in said


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:9")
    (tmp_path / "a.csv").write_bytes(exported(*(item(n) for n in range(3000))))
    options = ("ingest", "--config", "engine.toml", "--account", "omni", "a.csv")
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", *options],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=end, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(end)
    out, _ = process.communicate(timeout=60)
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    assert "omni" in shown
    assert "100%" in shown
    assert out == b"omni: a.csv: 3,000 rows: 3,000 new records\n"
