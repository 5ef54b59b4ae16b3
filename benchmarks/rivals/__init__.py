"""`rivals`: the same one-time pages through dlt, singer-sdk, airbyte-cdk and Scrapy.

Each is set up as its documentation says, at its defaults, and writes JSON lines. It runs in a
process of its own and in a virtual environment of its own, so that no rival gets an older version
of something because of another, made on first use in `.rivals` from what the extra `rivals` says.
What each does of what the engine does stands beside its figure: they do other things, which are
not asked for here (schemas, destinations, crawling).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import Row, folder, lines, median, process
from benchmarks.throughput import Done, Work, alone, by_hand, one_time, ours

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
VENVS = ROOT / ".rivals"
STAMP = "installed"


class Rival(msgspec.Struct, frozen=True, kw_only=True):
    """A program of this folder, and what it does of what the engine does, as it is set up."""

    name: str
    package: str
    program: str
    limit: str
    state: str
    dedup: str
    durable: str
    resume: str
    key: str = "messageId"


DOES = ("limit", "state", "dedup", "durable", "resume")
ENGINE = dict(
    zip(DOES, ("every window", "each message", "by event_id", "before the next request", "exactly"),
        strict=True)
)  # fmt: skip
NOTHING = dict.fromkeys(DOES, "-")
RIVALS = (
    Rival(
        name="dlt rest_api",
        package="dlt",
        program="dlt_rest_api.py",
        limit="-",
        state="cursors",
        dedup="- (merge elsewhere)",
        durable="after the extract",
        resume="from the cursor",
        key="message_id",
    ),
    Rival(
        name="singer-sdk tap",
        package="singer-sdk",
        program="singer_tap.py",
        limit="-",
        state="bookmarks",
        dedup="-",
        durable="-",
        resume="from the bookmark",
    ),
    Rival(
        name="airbyte-cdk",
        package="airbyte-cdk",
        program="airbyte_declarative.py",
        limit="- (can: budget)",
        state="cursors",
        dedup="-",
        durable="-",
        resume="from the slice",
    ),
    Rival(
        name="Scrapy",
        package="scrapy",
        program="scrapy_spider.py",
        limit="- (can: delay)",
        state="-",
        dedup="of requests",
        durable="-",
        resume="- (can: JOBDIR)",
    ),
)


def run(size: int, runs: int) -> list[Row]:
    """All of them in turns; a row each, the engine and the bare loops among them."""
    pythons = {rival.name: environment(rival) for rival in RIVALS}
    with one_time(size) as work:
        done: dict[str, list[Done]] = {}
        faults: dict[str, list[str]] = {}
        for turn in range(runs):
            for name, (measured, found) in _turn(work, pythons, turn):
                done.setdefault(name, []).append(measured)
                faults.setdefault(name, []).extend(found)
        rows = [_row(name, taken, work, faults[name]) for name, taken in done.items()]
        rows += [
            Row(name=name, values={"not to be had": error})
            for name, error in pythons.items()
            if isinstance(error, str)
        ]
        return [*rows, alone(work)]


def _turn(
    work: Work, pythons: dict[str, Path | str], turn: int
) -> Iterator[tuple[str, tuple[Done, list[str]]]]:
    yield "engine", ours(work, f"engine-{turn}")
    yield "bare loop", by_hand(work, f"bare-{turn}")
    yield "bare loop, mapped", by_hand(work, f"mapped-{turn}")
    for n, rival in enumerate(RIVALS):
        interpreter = pythons[rival.name]
        if isinstance(interpreter, Path):
            yield rival.name, through(rival, interpreter, work, f"rival-{n}-{turn}")


def through(rival: Rival, interpreter: Path, work: Work, turn: str) -> tuple[Done, list[str]]:
    """A rival's run, and what is wrong with what it wrote."""
    with folder() as base:
        spec = {"base": str(base), "urls": work.urls(turn)}
        measured = process([str(interpreter), str(HERE / rival.program)], spec)
        given = [message for file in _files(base) for message in _messages(file, rival.key)]
    wanted = work.count
    if len(given) == wanted == len(set(given)):
        return measured, []
    return measured, [f"expected {wanted} records, got {len(given)}, {len(set(given))} different"]


def _files(base: Path) -> list[Path]:
    """What it wrote, without its own books."""
    out = base / "out"
    found = sorted((out if out.exists() else base).rglob("*.jsonl"))
    return [file for file in found if not file.parent.name.startswith("_")]


def _messages(file: Path, key: str) -> Iterator[str]:
    """The ids of the records, also where they are wrapped in messages of a protocol."""
    for line in lines(file):
        if line.get("type") == "RECORD":
            line = line["record"]["data"] if "emitted_at" in line["record"] else line["record"]
        if key in line:
            yield line[key]


def _row(name: str, done: list[Done], work: Work, faults: list[str]) -> Row:
    does = ENGINE if name == "engine" else NOTHING
    for rival in RIVALS:
        if rival.name == name:
            does = {key: getattr(rival, key) for key in DOES}
    seconds = median([one["ended_s"] for one in done])
    values: dict[str, float | int | str] = {
        "until ended/s": work.count / seconds,
        "CPU us/record": median([one["cpu_s"] for one in done]) / work.count * 1e6,
        "peak MiB": median([one["peak_kib"] for one in done]) / 1024,
        **does,
    }
    return Row(name=name, values=values, faults=faults)


# Environments


def python(rival: Rival) -> Path:
    return VENVS / rival.package / "bin" / "python"


def installed(rival: Rival) -> bool:
    stamp = VENVS / rival.package / STAMP
    return stamp.exists() and stamp.read_text(encoding="utf-8") == _requirement(rival.package)


def environment(rival: Rival) -> Path | str:
    """The interpreter that has the rival, made where it is missing; else why it cannot be had."""
    if installed(rival):
        return python(rival)
    wanted, at = _requirement(rival.package), VENVS / rival.package
    print(f"installing {wanted} into {at.relative_to(ROOT)}", file=sys.stderr)
    venv.create(at, clear=True, with_pip=True)
    pip = [str(python(rival)), "-m", "pip", "install", "-q", "--disable-pip-version-check", wanted]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    (at / STAMP).write_text(wanted, encoding="utf-8")
    return python(rival)


def _requirement(package: str) -> str:
    """As the extra `rivals` has it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras: dict[str, Any] = tomllib.load(file)["project"]["optional-dependencies"]
    for requirement in extras["rivals"]:
        if re.split(r"[<>=!~; \[]", requirement)[0] == package:
            return str(requirement)
    raise LookupError(f"{package} is not in the extra `rivals`")
