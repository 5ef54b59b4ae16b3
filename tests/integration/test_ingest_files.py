"""Exported files of all kinds: bad rows, persons in them, gzip, pipes, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from engine.cli import progress
from tests.integration.exports import NUMBER, configure, ingest, item, stats
from tests.integration.folder import finished, worker
from tests.integration.harness import lines, until
from tests.integration.test_redacted_accounts import kept
from tests.unit.test_provider_messangi_export import exported

MAIL = "ann.o'nymous@example.com"


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
    """And what it had taken stays: here of a pipe that gives nothing for long."""
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
    with anyio.fail_after(20):
        assert await process.wait() == 0
        said = b"".join([piece async for piece in process.stderr]).decode()
    assert "stopped within /dev/stdin: run the same command again to go on" in said
    assert "not yet stored" not in said


async def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """It stands beside what is set aside, as it can be shown."""
    configure(tmp_path, "http://127.0.0.1:9")
    name = os.fsdecode(b"log-\xff.csv")
    (tmp_path / name).write_bytes(exported(item(0), {**item(1), "channel": "?"}, item(2)))
    status, out, err = await ingest(tmp_path, name)
    assert (status, err) == (0, "")
    assert "log-\\udcff.csv: 3 rows: 2 new records, 1 set aside" in out
    options = ("replay", "--config", "engine.toml", "--list")
    _, out, _ = await finished(tmp_path, *(sys.executable, "-m", "engine", *options))
    assert "log-\\udcff.csv: line 3" in out


def test_how_far_it_is_in_a_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_S", 0.0)
    with caplog.at_level("INFO", "dlr_engine"):
        for total, words in ((200.0, "log.csv"), (0, "stdin, 50 bytes"), (20.0, "")):
            with progress.shown("omni", total, quiet=True) as tell:
                tell(50, words)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["omni: 25 %, log.csv", "omni: stdin, 50 bytes", "omni: 100 %"]


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
