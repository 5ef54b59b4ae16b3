"""Very many seeds, over all cores."""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
from collections import Counter

from tests.simulation.run import failure, play

BLOCK = 50  # seeds that one process plays at a time
TELL = 1000  # seeds between two lines of progress


def soak(seeds: range) -> int:
    """All of them, over all cores; failures as they come, a line of progress now and then."""
    began, failed, played = time.monotonic(), Counter[str](), 0
    blocks = [seeds[n : n + BLOCK] for n in range(0, len(seeds), BLOCK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for failures in pool.imap_unordered(_block, blocks):
            played += BLOCK
            for name, text in failures:
                failed[name] += 1
                print(text, flush=True)
            rate = played / (time.monotonic() - began)
            if played % TELL == 0:
                print(f"{played:,} of {len(seeds):,} seeds, {rate:.0f} a second", flush=True)
    took_s = time.monotonic() - began
    print(f"{len(seeds):,} seeds in {took_s:.0f} s: {sum(failed.values())} failed {dict(failed)}")
    return 1 if failed else 0


def _block(seeds: range) -> list[tuple[str, str]]:
    logging.getLogger("dlr_engine").setLevel(logging.CRITICAL)
    return [found for seed in seeds if (found := _seed(seed)) is not None]


def _seed(seed: int) -> tuple[str, str] | None:
    """The invariant that a seed has broken, and the words for it; the others are played on."""
    try:
        outcome = play(seed)
    except Exception as error:  # of the simulation itself: a failure like the others
        name = type(error).__name__
        return name, f"seed {seed} FAILED: {name}: {error}\n{traceback.format_exc()}"
    return None if outcome.violation is None else (outcome.violation.name, failure(outcome))
