"""The command line where little is as usual around it: streams, locales, signals at odd moments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_cli import BULK, cli

# Nothing in here asks anybody: what is tracked is due in an hour.
QUIET = BULK.partition("limits =")[0] + 'schedule = { ladder = ["1h"] }\n'
PATIENCE_S = 90
STEERS = "a\x1b[31m\nb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engine.toml").write_text(QUIET)
    return tmp_path


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "engine", *words]


def redirected(folder: Path, how: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command whose streams the shell has set up as `how` says."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {how}', "sh", *program(*words)],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_worker_needs_no_standard_streams(folder: Path, how: str) -> None:
    done = redirected(folder, how, "run", "--config", "engine.toml", "--once")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_printed_is_a_failure_and_told(folder: Path) -> None:
    for words in (("--version",), ("check", "--config", "engine.toml")):
        done = redirected(folder, ">&-", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "dlr-engine: cannot write to standard output: Bad file descriptor\n"


def test_nothing_is_written_into_the_place_of_a_closed_output(tmp_path: Path) -> None:
    code = (
        "import os; from engine.cli import streams; streams.settle(); kept = open('x', 'w')\n"
        "try: os.write(1, b'lost')\n"
        "except OSError as error: os.write(2, os.strerror(error.errno).encode())"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code],
        cwd=tmp_path, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.stderr.startswith(b"Bad file descriptor")
    assert (tmp_path / "x").read_bytes() == b""


def test_the_status_is_the_same_where_nobody_reads_the_faults(folder: Path) -> None:
    (folder / "engine.toml").write_text(BULK.replace("requests = 5", "requests = 0"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        words = program("check", "--config", "engine.toml")
        assert subprocess.run(words, cwd=folder, stderr=writer, check=False).returncode == 2
    finally:
        os.close(writer)


def test_a_locale_without_the_characters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track = ("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", "1")
    assert cli(*track, "--reference", "Zürich €", cwd=folder).returncode == 0
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for command in ("run", "track", "show"):
        assert cli(command, "--help", cwd=folder).returncode == 0
    show = ("show", "--config", "engine.toml", "--batch-id", "1")
    assert r"Z\xfcrich \u20ac" in cli(*show, cwd=folder).stdout
    done = subprocess.run(
        program(*show, "--json"), cwd=folder, capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert json.loads(done.stdout)[0]["reference"] == "Zürich €"


def test_what_a_provider_says_steers_no_terminal(folder: Path) -> None:
    track = ("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", STEERS)
    words = ("--recipients", "447700900001", "--reference", STEERS)
    assert cli(*track, *words, cwd=folder).returncode == 0
    shown = cli("show", "--config", "engine.toml", "--reference", STEERS, cwd=folder).stdout
    assert "\x1b" not in shown
    assert r"reference:  a\x1b[31m\nb" in shown
    found = cli("show", "--config", "engine.toml", "--batch-id", STEERS, "--json", cwd=folder)
    assert json.loads(found.stdout)[0]["reference"] == STEERS


@pytest.mark.parametrize("word", [b"a\xff", b" "])
def test_an_id_that_is_no_text(folder: Path, word: bytes) -> None:
    show = [os.fsencode(one) for one in program("show", "--config", "engine.toml")]
    done = subprocess.run([*show, word], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"expected a text" in done.stderr


def test_words_are_read_without_the_blanks_around_them(folder: Path) -> None:
    track = ("track", "--config", "engine.toml", "--account", "bulk-eu", "--batch-id", " 1 ")
    words = ("--recipients", " 447700900001 ", "--reference", " r ")
    assert cli(*track, *words, cwd=folder).returncode == 0
    done = cli("show", "--config", "engine.toml", "--reference", "r", "--json", cwd=folder)
    assert json.loads(done.stdout)[0]["message_id"] == "1:447700900001"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_has_not_begun_ends_as_it_is_asked_to(folder: Path, number: int) -> None:
    os.mkfifo(folder / "slow.toml")
    process = subprocess.Popen(
        program("run", "--config", "slow.toml"), cwd=folder, stderr=subprocess.PIPE
    )
    with (folder / "slow.toml").open("w"):  # opened once the other end is: it reads, and waits
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    with process.stderr as said:
        assert said.read() == b""


def test_idle_is_found_without_any_patience(folder: Path) -> None:
    words = ("run", "--config", "engine.toml", "--until-idle", "--idle-timeout", "0")
    done = cli(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "does not answer" not in done.stderr
