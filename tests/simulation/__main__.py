"""python -m tests.simulation --seed N [--trace] | --seeds A-B: play seeds, say which failed."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.simulation.run import Outcome, failure, play
from tests.simulation.soak import soak


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play one seed")
    parser.add_argument("--seeds", help="play these, both included: 1-300")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--first", action="store_true", help="end with the first failure")
    parser.add_argument("--all-cores", action="store_true", help="in parallel, with progress")
    options = parser.parse_args(arguments)
    logging.getLogger("dlr_engine").setLevel(logging.DEBUG if options.trace else logging.CRITICAL)
    if options.trace:
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
    if options.seed is None and options.seeds is None:
        parser.error("--seed or --seeds is needed")
    low, _, high = (options.seeds or f"{options.seed}").partition("-")
    seeds = range(int(low), int(high or low) + 1)
    if options.all_cores:
        return soak(seeds)
    began, failed, played = time.monotonic(), 0, 0
    for seed in seeds:
        outcome = play(seed, tell=print if options.trace else None)
        played += 1
        if outcome.violation is not None:
            failed += 1
            print(failure(outcome))
            if options.first:
                break
        elif options.seed is not None:
            print(summary(outcome))
    took_s = time.monotonic() - began
    print(f"{played} seeds, {failed} failed, {took_s / played * 1000:.0f} ms a seed")
    return 1 if failed else 0


def summary(outcome: Outcome) -> str:
    return (
        f"seed {outcome.seed}: {outcome.seconds:.0f} s in {outcome.lives} lives,"
        f" {outcome.steps:,} steps, {outcome.requests} requests, {outcome.records} records;"
        f" digest {outcome.digest}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
