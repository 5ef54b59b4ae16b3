"""`dlr-engine replay`, with a worker in a process of its own and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anyio

from tests.integration.folder import PATIENCE_S
from tests.integration.harness import lines, until
from tests.integration.standin import Standin
from tests.integration.test_replay import EMPTY, answer

ACME = """
from engine.providers.infobip import Infobip
from engine.providers.infobip_quick import AtOnce

MENDED = {mended}

class Acme(Infobip):
    name = "acme"

    def reader(self, poll, head):
        reader = super().reader(poll, head)
        sound = reader.reports
        def reports(records):
            if not MENDED and any(record["messageId"] == "m1" for record in records):
                raise KeyError("a field that was always there")
            return sound(records)
        reader.reports = reports
        return reader
"""

CONFIG = """
[[accounts]]
name = "info"
provider = "acme"
base_url = "{url}"
api_key = "k3y-canary"
limits = {{ requests = 1000, per = "1s" }}
schedule = {{ interval = "50ms", idle_interval = "100ms" }}

[[sinks]]
name = "lines"
type = "jsonl"
path = "r.jsonl"
"""


def acme(folder: Path, *, mended: bool) -> None:
    (folder / "acme.py").write_text(ACME.format(mended=mended))
    info = folder / "acme-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dlr_engine.providers]\nacme = acme:Acme\n")


def command(folder: Path, *args: str) -> list[str]:
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); from engine.cli import main"
    code = f"{start}; sys.exit(main({[*args, '--config', str(folder / 'engine.toml')]!r}))"
    return [sys.executable, "-B", "-c", code]


async def said(folder: Path, *args: str) -> str:
    done = await anyio.run_process(command(folder, *args), check=True, stderr=subprocess.STDOUT)
    return done.stdout.decode()


async def test_the_command_with_and_without_a_worker(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("info", [answer("m0", "m1", "m2"), EMPTY])
    (tmp_path / "engine.toml").write_text(CONFIG.format(url=url))
    acme(tmp_path, mended=False)
    async with await anyio.open_process(
        command(tmp_path, "run", "-q"), stdout=None, stderr=subprocess.DEVNULL
    ) as worker:
        try:
            await until(lambda: len(lines(tmp_path)) == 2, PATIENCE_S)
            told = await said(tmp_path, "replay")  # the worker still has the bug
            assert told.splitlines()[-1].split()[-5:] == ["1", "0", "0", "0", "1"]
            listed = json.loads(await said(tmp_path, "replay", "--list", "--json"))
        finally:
            worker.terminate()
    (piece,) = listed
    assert (piece["account"], piece["position"]) == ("info", "poll: record 2")
    assert piece["raw"].startswith('{"messageId":"m1",')
    acme(tmp_path, mended=True)
    dry = await said(tmp_path, "replay", "--dry-run")  # nobody runs
    assert dry.splitlines()[-2].split()[-5:] == ["1", "1", "1", "0", "0"]
    async with await anyio.open_process(
        command(tmp_path, "run", "-q"), stdout=None, stderr=subprocess.DEVNULL
    ) as worker:
        try:
            await until(lambda: len(standin.asked["info"]) > 5, PATIENCE_S)
            told = await said(tmp_path, "replay", "--account", "info", "--json")
            assert [(line["digested"], line["new"]) for line in json.loads(told)] == [(1, 1)]
            await until(lambda: len(lines(tmp_path)) == 3, PATIENCE_S)
        finally:
            worker.terminate()
    assert {one["message_id"] for one in lines(tmp_path)} == {"m0", "m1", "m2"}
    nothing = await said(tmp_path, "replay", "--list")
    assert nothing.strip() == "nothing is set aside that could be read again"
