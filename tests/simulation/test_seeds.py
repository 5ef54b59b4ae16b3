"""The simulation in CI: seeds in blocks, repeatability, and a crash at every single step."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.drawing import small
from tests.simulation.run import Run, failure, play
from tests.simulation.scenario import Crash, Scenario

ROOT = Path(__file__).parents[2]
SEEDS = 300
BLOCK = 25
# Of the first 100,000: those that showed a fault of the engine or of what was expected of it.
FOUND = (
    1330, 2334, 2721, 3316, 5419, 7879, 9198, 11258, 11614, 17202, 17253,
    41638, 46928, 48150, 51029, 63832, 64709, 64736, 70504, 71797, 72013, 78685, 94841, 98859,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What the engine says of the faults on purpose would bury what matters."""
    logger = logging.getLogger("dlr_engine")
    before, logger.level = logger.level, logging.CRITICAL
    yield
    logger.level = before
    gc.collect()  # what dead processes leave ends here, not in the middle of another test


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BLOCK))
def test_seeds(first: int) -> None:
    outcomes = [play(seed) for seed in range(first, first + BLOCK)]
    failed = [failure(outcome) for outcome in outcomes if outcome.violation is not None]
    assert not failed, "\n".join(failed)
    assert all(outcome.records for outcome in outcomes), "a run without a record proves nothing"


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_have_found_something(seed: int) -> None:
    outcome = play(seed)
    assert outcome.violation is None, failure(outcome)


def test_a_seed_is_the_same_run_every_time() -> None:
    """Also in another process, where objects lie elsewhere and strings hash otherwise."""
    seeds = range(1, 9)
    here = [play(seed).digest for seed in seeds]
    assert len(set(here)) == len(here)
    code = f"from tests.simulation.run import play; print(*[play(n).digest for n in {list(seeds)}])"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONHASHSEED": hash_seed,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == here


@pytest.mark.parametrize("provider", ["bulksms", "infobip", "infobip by id", "avaamo", "messangi"])
def test_a_crash_at_every_step(provider: str) -> None:
    """A small run is killed before each of its steps, and goes on with the next life."""
    whole = Run(provider, small(provider)).play()
    assert whole.violation is None, str(whole.violation)
    for step in range(1, whole.steps):
        scenario: Scenario = small(provider)
        scenario.crashes = [Crash(step=step, down_s=0.12)]
        outcome = Run(provider, scenario).play()
        assert outcome.violation is None, f"killed before step {step}: {outcome.violation}"
        assert outcome.lives == 2
