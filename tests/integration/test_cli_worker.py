"""The commands around a worker, as processes, against `dlr-engine simulate`."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cli import cli

PATIENCE_S = 60.0  # for what must come: a busy machine takes its time

PROFILE = """\
[[accounts]]
name = "bulk"
provider = "bulksms"
username = "john"
password = "hunter2-hunter2"
limits = { requests = 20, per = "1s", concurrency = 1 }
delays = { enroute = 0.1, final = 0.4, read = 0.2, late = 0.6 }
mix = { delivered = 1, undeliverable = 0, expired = 0, rejected = 0, never = 0, stuck = 0 }

[[accounts]]
name = "drained"
provider = "infobip"
api_key = "the-infobip-key"
limits = { requests = 20, per = "1s", concurrency = 1 }
delays = { enroute = 0.1, final = 0.4, read = 0.2, late = 0.6 }
mix = { delivered = 1, undeliverable = 0, expired = 0, rejected = 0, never = 0, stuck = 0 }
"""

CONFIG = """\
[store]
url = "sqlite:///state.db"

[[accounts]]
name = "bulk"
provider = "bulksms"
base_url = "{base}/bulk"
username = "john"
password = "{password}"
limits = {{ requests = 20, per = "1s", concurrency = 1 }}
schedule = {{ ladder = ["200ms", "700ms", "1.5s", "2.5s"] }}

[[accounts]]
name = "drained"
provider = "infobip"
base_url = "{base}/drained"
api_key = "the-infobip-key"
limits = {{ requests = 20, per = "1s", concurrency = 1 }}
schedule = {{ interval = "200ms", ladder = ["1s", "3s"] }}

[[sinks]]
name = "archive"
type = "{sink}"
{path}
"""


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "engine", *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("simulator")
    (folder / "profile.toml").write_text(PROFILE)
    process = start("simulate", "--port", "0", "--profile", "profile.toml", cwd=folder)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("simulator: http://"), line
    said = list(iter(process.stdout.readline, f"look: curl -s {line.split()[1]}/_sim/counts\n"))
    assert "[[accounts]]\n" in said
    yield line.split()[1]
    status, _, err = end(process, signal.SIGINT)
    assert status == 0, err


def send(base: str, account: str, n: int) -> dict[str, Any]:
    body = json.dumps({"account": account, "n": n}).encode()
    with urllib.request.urlopen(f"{base}/_sim/send", data=body, timeout=10) as answer:
        sent: dict[str, Any] = json.load(answer)
    return sent


def configure(
    folder: Path, base: str, *, password: str = "hunter2-hunter2", sink: str = "jsonl"
) -> None:
    path = 'path = "reports.jsonl"' if sink == "jsonl" else ""
    text = CONFIG.format(base=base, password=password, sink=sink, path=path)
    (folder / "engine.toml").write_text(text)


def known(folder: Path) -> dict[str, Any]:
    done = cli("stats", "--config", "engine.toml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    stats: dict[str, Any] = json.loads(done.stdout)
    return stats


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@contextmanager
def running(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = start("run", "--config", "engine.toml", *args, cwd=folder)
    try:
        until((folder / "state.db").exists)
        time.sleep(0.5)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_tracked_from_a_file_polled_until_idle_and_shown(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    sent = send(base, "bulk", 5)
    rows = [f"{sent['batch_id']},{r},order-{n}" for n, r in enumerate(sent["recipients"])]
    (tmp_path / "sent.csv").write_text("batch_id,recipient,reference\n" + "\n".join(rows) + "\n")
    options = ("--config", "engine.toml", "--account", "bulk", "--file", "sent.csv")
    tracked = cli("track", *options, cwd=tmp_path)
    assert tracked.returncode == 0, tracked.stderr
    assert "1 batch tracked, 1 of them new or grown" in tracked.stdout
    assert "1 batch tracked, 0 of them new" in cli("track", *options, cwd=tmp_path).stdout
    shown = cli("show", "--config", "engine.toml", "--reference", "order-0", cwd=tmp_path)
    assert "next poll:" in shown.stdout
    assert "nothing was heard of it yet" in shown.stdout

    done = cli("run", "--config", "engine.toml", "--until-idle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    finals = {r["message_id"]: r for r in lines if r["final"]}
    assert sorted(finals) == sorted(sent["message_ids"])
    assert {r["state"] for r in finals.values()} == {"delivered"}
    assert {r["reference"] for r in finals.values()} == {f"order-{n}" for n in range(5)}

    spelled = f"+{sent['recipients'][2][:2]} ({sent['recipients'][2][2:]})"
    shown = cli(
        *("show", "--config", "engine.toml", "--recipient", spelled, "--json"), cwd=tmp_path
    )
    (message,) = json.loads(shown.stdout)
    assert (message["state"], message["final"], message["tracked"]) == ("delivered", True, True)
    assert message["reference"] == "order-2"
    assert message["record"]["revision"] == message["revision"] == len(message["history"])
    assert message["history"][-1]["state"] == "delivered"
    text = cli(
        *("show", "--config", "engine.toml", "--batch-id", str(sent["batch_id"])), cwd=tmp_path
    )
    assert text.stdout.count("state:      delivered (final)") == 5

    stats = known(tmp_path)
    bulk = stats["accounts"]["bulk"]
    assert (bulk["known"], bulk["final"], bulk["pending"], bulk["balanced"]) == (5, 5, 0, True)
    assert bulk["states"] == {"delivered": 5}
    assert bulk["allows_per_s"] == 20
    assert stats["sinks"]["archive"]["behind"] == 0
    assert stats["sinks"]["archive"]["positions"]["bulk"][0] > 1
    told = cli("stats", "--config", "engine.toml", cwd=tmp_path).stdout
    assert "known 5 = final 5 + pending 0 (balanced)" in told


def test_a_recipient_twice_in_a_batch_is_two_messages(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    rows = [{"batch_id": 77, "recipients": ["447700900001", "447700900001"]}]
    rows += [{"batch_id": 78, "recipient": "447700900002", "sent_at": 1_760_000_000}]
    (tmp_path / "sent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli(
        *("track", "--config", "engine.toml", "--account", "bulk", "--file", "sent.jsonl"),
        cwd=tmp_path,
    )
    assert "2 batches tracked" in done.stdout
    assert known(tmp_path)["accounts"]["bulk"]["known"] == 3
    shown = cli(
        *("show", "--config", "engine.toml", "--recipient", "447700900001", "--json"), cwd=tmp_path
    )
    assert [m["message_id"] for m in json.loads(shown.stdout)] == [
        "77:447700900001",
        "77:447700900001#2",
    ]


def test_a_running_worker_takes_what_is_tracked_and_ends_cleanly(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    with running(tmp_path) as worker:
        second = cli("run", "--config", "engine.toml", cwd=tmp_path)
        assert second.returncode == 1
        assert "belongs to a worker that is running" in second.stderr
        assert len(second.stderr.splitlines()) == 1

        sent = send(base, "drained", 3)
        tracked = cli(
            *("track", "--config", "engine.toml", "--account", "drained", "--reference", "ref-1"),
            *("--message-id", sent["message_ids"][0], "--recipient", sent["recipients"][0]),
            cwd=tmp_path,
        )
        assert tracked.returncode == 0, tracked.stderr
        assert "1 message handed to the running worker" in tracked.stdout
        until(lambda: known(tmp_path)["accounts"]["drained"]["final"] == 3)
        shown = cli("show", "--config", "engine.toml", "--reference", "ref-1", cwd=tmp_path)
        assert sent["message_ids"][0] in shown.stdout
        status, out, err = end(worker)
    assert status == 0, err
    assert out == ""
    for line in err.splitlines():
        assert line[:4].isdigit()
        assert line.split()[1] in ("INFO", "WARNING", "ERROR")
    assert len((tmp_path / "reports.jsonl").read_text().splitlines()) >= 3


def test_once_does_what_is_due_and_names_what_would_not_go(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    assert cli("run", "--config", "engine.toml", "--once", cwd=tmp_path).returncode == 0
    configure(tmp_path, base, password="wrong-password")
    cli(
        *("track", "--config", "engine.toml", "--account", "bulk", "--batch-id", "1"),
        *("--sent-at", "1760000000"),
        cwd=tmp_path,
    )
    done = cli("run", "--config", "engine.toml", "--once", cwd=tmp_path)
    assert done.returncode == 1
    assert any(line.startswith("account bulk: ") for line in done.stderr.splitlines())
    done = cli(
        *("run", "--config", "engine.toml", "--until-idle", "--idle-timeout", "500ms", "-q"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert any(line.startswith("account bulk: ") for line in done.stderr.splitlines())
    assert "wrong-password" not in done.stderr
    told = cli("stats", "--config", "engine.toml", cwd=tmp_path).stdout
    assert "account bulk: paused: " in told


def test_records_on_stdout_are_alone_there(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base, sink="stdout")
    sent = send(base, "bulk", 2)
    recipients = ",".join(sent["recipients"])
    cli(
        *("track", "--config", "engine.toml", "--account", "bulk"),
        *("--batch-id", str(sent["batch_id"]), "--recipients", recipients),
        cwd=tmp_path,
    )
    done = cli("run", "--config", "engine.toml", "--until-idle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["message_id"] for r in records} >= set(sent["message_ids"])


def test_check_connect_asks_every_account_once(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    done = cli("check", "--config", "engine.toml", "--connect", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "account bulk: ok, answered in " in done.stdout
    assert "account drained: ok, answered in " in done.stdout
    assert "sink archive: ok" in done.stdout
    configure(tmp_path, base, password="wrong-password")
    done = cli("check", "--config", "engine.toml", "--connect", cwd=tmp_path)
    assert done.returncode == 1
    assert "account bulk: FAILED: " in done.stdout
    assert "account drained: ok" in done.stdout
    assert "wrong-password" not in done.stdout + done.stderr


def test_check_connect_goes_through_a_running_worker(tmp_path: Path, base: str) -> None:
    configure(tmp_path, base)
    with running(tmp_path) as worker:
        done = cli("check", "--config", "engine.toml", "--connect", cwd=tmp_path, timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "account bulk: ok, " in done.stdout
        assert end(worker, signal.SIGINT)[0] == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configure(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with running(tmp_path) as worker:
            silent.settimeout(PATIENCE_S)
            with silent.accept()[0]:  # a request is on its way, and nobody answers it
                worker.send_signal(signal.SIGTERM)
                assert worker.stderr is not None
                assert any("stopping" in line for line in iter(worker.stderr.readline, ""))
                time.sleep(1)
                assert worker.poll() is None  # it waits for the answer, as long as its grace
                status, _, _ = end(worker)
    assert status == 128 + signal.SIGTERM  # by the signal: its grace's end has another status
    assert known(tmp_path)["accounts"]["drained"]["balanced"] is True


def test_the_limits_were_kept(base: str) -> None:
    """By all the workers and checks above, as the simulator counted."""
    with urllib.request.urlopen(f"{base}/_sim/counts", timeout=10) as answer:
        counts = json.load(answer)
    assert counts["bulk"]["requests"] > 0
    assert {name: account["violations"] for name, account in counts.items()} == {
        "bulk": 0,
        "drained": 0,
    }


def test_demo_compares_and_can_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "demo-out").mkdir()
    (tmp_path / "demo-out" / "engine.toml").write_text("# mine\n")
    for _ in range(2):
        done = cli("demo", "--seconds", "5", "--messages", "100", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Compared:  nothing " in done.stdout
        assert "exceeded 0 times" in done.stdout
    assert (tmp_path / "demo-out" / "engine.toml").read_text() == "# mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-out", "demo-out-2"]
    command = next(line for line in done.stdout.splitlines() if "show --config" in line)
    recipient = command.split('"')[1]
    shown = cli(
        *("show", "--config", "demo-out-2/engine.toml", "--recipient", recipient), cwd=tmp_path
    )
    assert shown.returncode == 0
    assert "history, oldest first:" in shown.stdout


def test_demo_ends_at_once_when_asked(tmp_path: Path) -> None:
    """Long before its ten minutes are over: `end` does not wait for so long."""
    process = start("demo", "--seconds", "600", "--messages", "200", cwd=tmp_path)
    reports = tmp_path / "demo-out" / "reports.jsonl"
    until(lambda: reports.exists() and reports.stat().st_size > 0)  # it is in the middle of it
    status, out, err = end(process, signal.SIGINT)
    assert status == 0, out + err
    assert "messages were still under way" in out
