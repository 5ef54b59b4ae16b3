"""Whether the simulation finds bugs: each patch in `bugs/` is one, and the seeds must catch it.

A patch is applied to a copy of the engine, which is then played from the first seed on until one
fails. Its head says what the bug is, by which invariants it may be seen, and with which seed to
begin, so that the others are only played when that one has stopped to see it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted((Path(__file__).parent / "bugs").glob("*.patch"))
SEEDS = "1-300"
TIMEOUT_S = 600


def _play(copy: Path, seeds: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", seeds, "--first"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _copy(to: Path) -> Path:
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "engine", to / "engine", ignore=unwanted)
    simulation = to / "tests" / "simulation"
    shutil.copytree(ROOT / "tests" / "simulation", simulation, ignore=unwanted)
    return to


def test_there_are_enough_bugs() -> None:
    assert len(PATCHES) >= 21


def test_the_engine_as_it_is_passes(tmp_path: Path) -> None:
    status, said = _play(_copy(tmp_path), "1-10")
    assert status == 0, said


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_bug_is_caught(patch: Path, tmp_path: Path) -> None:
    head = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    seen_by = re.search(r"(?m)^Seen by: (.+)$", head)
    first = re.search(r"(?m)^Seed: (\d+)$", head)
    assert seen_by is not None, "the head of a patch names the invariants that see it"
    copy = _copy(tmp_path)
    applied = subprocess.run(
        ["patch", "-p1", "--forward", "--fuzz=2", "-i", str(patch)],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert applied.returncode == 0, f"{patch.name} does not fit any more: {applied.stdout}"
    status, said = _play(copy, first[1]) if first is not None else (0, "")
    if status == 0:
        status, said = _play(copy, SEEDS)
    found = re.search(r"(?m)^seed (\d+) FAILED: ([a-z-]+): (.*)$", said)
    assert found is not None, f"{patch.name} was not seen by seeds {SEEDS}: {said[-2000:]}"
    assert found[2] in seen_by[1], f"seen by {found[2]}: {found[3]}"
    assert "python -m tests.simulation --seed" in said
    print(f"{patch.stem}: seed {found[1]}, {found[2]}")
