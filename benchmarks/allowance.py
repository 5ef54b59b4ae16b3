"""How much of the allowance a running engine uses: `python -m benchmarks.allowance`.

One worker, accounts with different limits, each with more polls due than its limit lets through for
as long as it is measured, by the server's clock. A place of a window can be used once in `per` at
best: the share is how often it is, over all places. The worst window is the largest number of
requests in any window of the limit's length: more than 100 % is a limit that was exceeded.

What is not the engine's doing is how late the machine lets it run: on one that is in use the same
places are used later. `tests/simulation/test_allowance.py` says the same without it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import SECRET, ask, folder, server

SPACING = 1_000_000  # batches of different accounts lie so far apart

Limit = tuple[int, float]

# An account, its limits, how many requests it may have in flight, and its group.
CASES: dict[str, tuple[list[Limit], int, str | None]] = {
    "5 in 11 s": ([(5, 11.0)], 1, None),
    "10 a second": ([(10, 1.0)], 2, None),
    "100 a second": ([(100, 1.0)], 10, None),
    "300 a minute, 20 a second": ([(300, 60.0), (20, 1.0)], 4, None),
    "30 in 3 s, one": ([(30, 3.0)], 4, "group"),
    "30 in 3 s, another": ([(30, 3.0)], 4, "group"),
    "1,000 a second": ([(1000, 1.0)], 64, None),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=66.0)
    options.add_argument("--only", help="the account of this name")
    chosen = options.parse_args()
    names = [name for name in CASES if chosen.only in (None, name)]
    with folder() as base, server("polls", {}) as url:
        _prepare(base, url, names, chosen.seconds)
        with _worker(base) as process:
            time.sleep(chosen.seconds)
            used_s = _processor_s(process.pid)
        asked = ask(f"{url}/_times")
    arrivals: dict[str, list[float]] = defaultdict(list)
    for batch, at in asked:
        name = names[int(batch) // SPACING - 1]
        arrivals[CASES[name][2] or name].append(at)
    print(f"{'limit':28} {'requests':>9} {'share':>7} {'worst window':>13}")
    for name, times in arrivals.items():
        member = next(one for one in names if name in (one, CASES[one][2]))
        for requests, per_s in CASES[member][0]:
            said = f"{name}: {requests:,} in {per_s:g} s"
            share, most = _share(times, requests, per_s), _worst(times, per_s) / requests
            print(f"{said:36} {len(times):9,} {share:7.2%} {most:13.1%}")
    print(f"{used_s:.2f} s of processor time")


def _prepare(base: Path, url: str, names: Sequence[str], seconds: float) -> None:
    parts = ['[store]\nurl = "sqlite:///state.db"', '[[sinks]]\nname = "out"\n'
             'type = "jsonl"\npath = "reports.jsonl"']  # fmt: skip
    for place, name in enumerate(names, 1):
        limits, concurrency, group = CASES[name]
        (requests, per_s), *also = limits
        further = ", ".join(f"{{ requests = {r}, per = {p} }}" for r, p in also)
        shared = f', group = "{group}"' if group else ""
        parts.append(
            f'[[accounts]]\nname = "a{place}"\nprovider = "bulksms"\nbase_url = "{url}/a{place}"\n'
            f'username = "john"\npassword = "{SECRET}"\nschedule = {{ ladder = ["0s"] }}\n'
            f"limits = {{ requests = {requests}, per = {per_s}, concurrency = {concurrency},"
            f" also = [{further}]{shared} }}"
        )
        enough = round(requests * (seconds / per_s + 2))
        batches = "\n".join(str(place * SPACING + n) for n in range(enough))
        (base / f"a{place}.csv").write_text(f"batch_id\n{batches}\n")
    (base / "engine.toml").write_text("\n\n".join(parts))
    for place, _ in enumerate(names, 1):
        file = str(base / f"a{place}.csv")
        track = _engine(base, "track", "--account", f"a{place}", "--file", file)
        subprocess.run(track, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _engine(base: Path, command: str, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "engine", command, "--config", str(base / "engine.toml"), *options,
    ]  # fmt: skip


@contextmanager
def _worker(base: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(_engine(base, "run", "--quiet"), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _share(times: Sequence[float], requests: int, per_s: float) -> float:
    rounds = [then - at for at, then in zip(times, times[requests:], strict=False)]
    return per_s * len(rounds) / sum(rounds) if rounds else 0.0


def _worst(times: Sequence[float], per_s: float) -> int:
    first = most = 0
    for place, when in enumerate(times):
        while when - times[first] >= per_s:
            first += 1
        most = max(most, place - first + 1)
    return most


if __name__ == "__main__":
    main()
