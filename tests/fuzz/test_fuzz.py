"""A short run of every target with a fixed seed, and every input that once showed a defect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.targets import ROOT, SHARES, found_cases, target

INPUTS = 6500  # in all
RUN_MAX_S = 300  # on a machine that is busy with other things


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of each target."""
    if find_spec("atheris") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("atheris is not installed, and here every target has to run")
        pytest.skip("atheris is not installed: pip install .[fuzz] (Linux on x86-64)")
    out = tmp_path_factory.mktemp("fuzz") / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", "--equal", "--inputs", str(INPUTS)),
            *("--seed", "1", "--found", str(out.parent / "found"), "--json", str(out)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RUN_MAX_S,
        check=False,
    )
    assert out.exists(), done.stderr
    print(done.stdout, done.stderr)
    return {row["target"]: row for row in json.loads(out.read_text())}


@pytest.mark.parametrize("name", SHARES)
def test_a_short_run(name: str, rows: dict[str, Any]) -> None:
    row = rows[name]
    assert row["found"] == []
    assert not row["failed"]
    assert row["inputs"] >= INPUTS // len(SHARES)
    assert row["covered"] > 0


@pytest.mark.parametrize("name", SHARES)
def test_the_first_inputs(name: str) -> None:
    aim = target(name)
    for seed in aim.seeds():
        aim.check(seed)


@pytest.mark.parametrize(
    ("name", "path"), found_cases(), ids=lambda value: getattr(value, "name", value)
)
def test_a_found_case(name: str, path: Path) -> None:
    target(name).check(path.read_bytes())
