"""`scripts/chaos [--minutes M] [--seed S]`: a fleet, harmed from outside, and what became of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.harm import KINDS, Chaos
from tests.chaos.verdict import Verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=KINDS,
        metavar="KIND,…",
        help=f"of {', '.join(KINDS)}; without kill, not one report may be missing",
    )
    args = parser.parse_args()
    if unknown := set(args.only) - set(KINDS):
        parser.error(f"there is no harm {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="dlr-chaos-") as folder:
        verdict: Verdict = asyncio.run(
            Chaos(
                Path(folder),
                seed=args.seed,
                seconds=args.minutes * 60,
                say=print,
                kinds=args.only,
            ).run()
        )
        print(verdict)
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
