"""`scripts/chaos [--minutes M] [--seed S]`: a fleet, harmed from outside, and what became of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.harm import Chaos
from tests.chaos.verdict import Verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dlr-chaos-") as folder:
        verdict: Verdict = asyncio.run(
            Chaos(Path(folder), seed=args.seed, seconds=args.minutes * 60, say=print).run()
        )
        print(verdict)
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
