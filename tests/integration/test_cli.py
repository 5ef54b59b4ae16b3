"""The command line by itself: words, faults, exit statuses, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BULK = """\
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "bulk-eu"
provider = "bulksms"
base_url = "http://127.0.0.1:9/bulk"
username = "john"
password = "hunter2-hunter2"
limits = { requests = 5, per = "1s" }

[[accounts]]
name = "omni"
provider = "messangi"
base_url = "http://127.0.0.1:9/omni"
headers = { Authorization = "Bearer very-secret-token" }

[[sinks]]
name = "archive"
type = "jsonl"
path = "reports.jsonl"
"""


def cli(*args: str, cwd: Path, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engine.toml").write_text(BULK)
    return tmp_path


def test_help_names_every_command(tmp_path: Path) -> None:
    done = cli("--help", cwd=tmp_path)
    assert done.returncode == 0
    words = (
        "run",
        "check",
        "track",
        "backfill",
        "ingest",
        "show",
        "stats",
        "replay",
        "dead-letter",
        "sinks",
    )
    for command in (*words, "simulate", "demo"):
        assert f"    {command} " in done.stdout
        assert "examples:" in cli(command, "--help", cwd=tmp_path).stdout
    assert "dlr-engine demo" in done.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from engine.cli import main; main(['--help']);"
        "print([m for m in ('aiohttp', 'anyio', 'rich', 'msgspec') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("dance",),
        ("run",),
        ("run", "--config", "engine.toml", "--once", "--until-idle"),
        ("run", "--config", "engine.toml", "--idle-timeout", "5m"),
        ("run", "--config", "engine.toml", "--until-idle", "--idle-timeout", "soon"),
        ("run", "--config", "missing.toml"),
        ("show", "--config", "engine.toml"),
        ("show", "--config", "engine.toml", "id", "--recipient", "1"),
        ("track", "--config", "engine.toml", "--account", "bulk-eu"),
        ("track", "--config", "engine.toml", "--account", "nobody", "--batch-id", "1"),
        ("track", "--config", "engine.toml", "--account", "omni", "--message-id", "1"),
        ("track", "--config", "engine.toml", "--account", "bulk-eu", "--message-id", "1"),
        (
            *("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", "1"),
            *("--sent-at", "2026-11-21T12:00:00"),
        ),
        (
            *("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", "1"),
            *("--recipient", "447700900001"),
        ),
        ("simulate", "--port", "99999"),
        ("simulate", "--profile", "missing.toml"),
        ("demo", "--messages", "none"),
    ],
)
def test_a_wrong_command_line_exits_2_with_lines_and_no_traceback(
    folder: Path, args: tuple[str, ...]
) -> None:
    done = cli(*args, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert 1 <= len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert not (folder / "state.db").exists()


def test_every_configuration_fault_is_named_at_once(folder: Path) -> None:
    text = BULK.replace('per = "1s"', 'per = "soon"').replace("username", "user_name")
    (folder / "engine.toml").write_text(text)
    done = cli("check", "--config", "engine.toml", cwd=folder)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any("accounts[0].limits.per: expected a duration" in line for line in lines)
    assert any("user_name" in line for line in lines)
    assert "hunter2" not in done.stderr


def test_check_says_what_would_run_and_what_the_limits_carry(folder: Path) -> None:
    done = cli("check", "--config", "engine.toml", cwd=folder)
    assert done.returncode == 0
    assert (
        "account bulk-eu: 61,000 batches a day at 7 rungs need 4.9/s; the limit allows 5/s"
        in done.stdout
    )
    assert "account omni: a feed every 1m at 60/h" in done.stdout
    assert "hunter2" not in done.stdout
    assert "very-secret" not in done.stdout
    assert not (folder / "state.db").exists()


def test_check_warns_of_a_feed_that_is_faster_than_the_limit(folder: Path) -> None:
    (folder / "engine.toml").write_text(
        BULK.replace('token" }', 'token" }\nschedule = { interval = "100ms" }')
    )
    done = cli("check", "--config", "engine.toml", cwd=folder)
    assert "more than the limit allows: lengthen schedule.interval" in done.stdout


def test_check_connect_fails_with_one_line_each(folder: Path) -> None:
    (folder / "engine.toml").write_text(BULK.replace('"reports.jsonl"', '"engine.toml/x.jsonl"'))
    done = cli("check", "--config", "engine.toml", "--connect", cwd=folder)
    assert done.returncode == 1
    assert "account bulk-eu: FAILED: connection refused" in done.stdout
    assert "account omni: FAILED: connection refused" in done.stdout
    assert "sink archive: FAILED: " in done.stdout
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_a_memory_store_cannot_be_tracked_into(folder: Path) -> None:
    (folder / "engine.toml").write_text(BULK.replace("sqlite:///state.db", "memory://"))
    done = cli(
        *("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", "1"),
        cwd=folder,
    )
    assert done.returncode == 2
    assert "memory://" in done.stderr


def test_stats_and_show_make_no_store(folder: Path) -> None:
    stats = cli("stats", "--config", "engine.toml", "--json", cwd=folder)
    assert stats.returncode == 0
    assert "does not exist yet" in stats.stderr
    assert '"known": 0' in stats.stdout
    shown = cli("show", "--config", "engine.toml", "4711:1", "--json", cwd=folder)
    assert (shown.returncode, shown.stdout.strip()) == (1, "[]")
    assert len(shown.stderr.splitlines()) == 1
    assert not (folder / "state.db").exists()


@pytest.mark.parametrize(
    ("name", "text", "faults"),
    [
        ("a.csv", "batch_id,recipent\n1,2\n", ['line 1: unknown column "recipent", did you mean']),
        ("b.csv", "batch_id,recipient\n1,2,3\n,4\n", ["line 2: has 3 cells", "line 3: expected"]),
        ("c.csv", "batch_id,sent_at\n1,2026-11-21T12:00:00\n", ["line 2: sent_at: expected"]),
        ("d.csv", "", ["line 1: expected a header row"]),
        ("e.jsonl", '{"batch_id": "1"}\nnot json\n[1]\n', ["line 2: is not", "line 3: expected"]),
        ("f.jsonl", '{"batch_id": "1", "message_id": "2"}\n', ["line 1: expected", "not both"]),
        ("h.jsonl", '{"batch_id": "\\ud800"}\n', ["line 1: batch_id: is not Unicode text"]),
        ("i.csv", "batch_id,sent_at\n1,a\x9bb\u2028\n", [r'got "a\x9bb\u2028"']),
        ("j.csv", "batch_id,message_id\n1,\n,m\n", ["j.csv: line 3: bulk-eu: bulksms takes batch"]),
        ("g.txt", "x", ["expected a .csv or .jsonl file"]),
    ],
)
def test_a_faulty_file_is_refused_whole(
    folder: Path, name: str, text: str, faults: list[str]
) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    done = cli(
        *("track", "--config", "engine.toml", "--account", "bulk-eu", "--file", name), cwd=folder
    )
    assert done.returncode == 2
    for fault in faults:
        assert fault in done.stderr
    assert "Traceback" not in done.stderr
    stats = cli("stats", "--config", "engine.toml", "--json", cwd=folder)
    assert '"known": 0' in stats.stdout
