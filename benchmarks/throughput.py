"""The engine beside loops written by hand: `throughput`, `avaamo-pages`, `bulksms-polls`.

The engine keeps durable state, knows what it has seen, obeys a limit and syncs what it writes; the
loops do none of that. Their runs take turns, and only the ratio of a turn's runs means something:
the medians of the ratios are what is shown. The server alone is asked by a client that looks at
nothing, so that one sees that it is not what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trustme

from benchmarks import ladder
from benchmarks.harness import (
    PATIENCE_S,
    SECRET,
    Row,
    child,
    config,
    folder,
    infobip,
    median,
    server,
)
from benchmarks.shapes import SHAPES, compare

ACCOUNTS = tuple(f"account-{n}" for n in range(8))
PAGE = 1000
AVAAMO_PAGE = 100
FIRST = 1_000_000
CONCURRENCY = 16

Done = dict[str, Any]


class Work(msgspec.Struct, kw_only=True):
    """What engine and loops are given to do. `urls(turn)`: where the accounts are in that turn."""

    style: str
    shape: dict[str, Any]
    count: int
    loop: str
    urls: Callable[[str], list[str]]
    accounts: Callable[[list[str]], list[dict[str, Any]]]
    blind: dict[str, Any]
    track: dict[str, Any] | None = None
    ca_file: str | None = None


def infobip_pages(size: int, runs: int) -> list[Row]:
    """One-time pages of 1,000 over eight accounts."""
    with one_time(size) as work:
        return beside(work, runs)


@contextmanager
def one_time(size: int) -> Iterator[Work]:
    pages = max(1, size // PAGE // len(ACCOUNTS))
    shape = {"accounts": ACCOUNTS, "size": PAGE, "pages": pages}
    with server("pages", {"style": "infobip", **shape}) as url:
        paths = [f"/blind/{name}/" for _ in range(pages) for name in ACCOUNTS]
        yield Work(
            style="infobip",
            shape=shape,
            count=pages * PAGE * len(ACCOUNTS),
            loop="bare-infobip",
            urls=lambda turn: [f"{url}/{turn}/{name}" for name in ACCOUNTS],
            accounts=lambda urls: [
                infobip(name, at) for name, at in zip(ACCOUNTS, urls, strict=True)
            ],
            blind={"url": url, "paths": paths, "connections": len(ACCOUNTS)},
        )


def avaamo_pages(size: int, runs: int) -> list[Row]:
    """One window of one account, in pages of 100."""
    pages = max(1, size // AVAAMO_PAGE)
    shape = {"accounts": ["bot"], "size": AVAAMO_PAGE, "pages": pages, "start_s": int(time.time())}
    with server("pages", {"style": "avaamo", **shape}) as url:
        paths = [f"/blind/bot/?page={n + 1}" for n in range(pages)]
        work = Work(
            style="avaamo",
            shape=shape,
            count=pages * AVAAMO_PAGE,
            loop="bare-avaamo",
            urls=lambda turn: [f"{url}/{turn}/bot"],
            accounts=lambda urls: [_avaamo(urls[0])],
            blind={"url": url, "paths": paths, "connections": 1},
        )
        return beside(work, runs)


def bulksms_polls(size: int, runs: int) -> list[Row]:
    """Batches of one recipient, sixteen asked for at once."""
    return _polls(size, runs, {}, None)


def bulksms_tls(size: int, runs: int) -> list[Row]:
    """The same over TLS, which is what providers speak."""
    with folder() as base:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(base / "ca.pem"))
        issued = authority.issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(str(base / "server.pem"))
        spec = {"certificate": str(base / "server.pem")}
        return _polls(size, runs, spec, str(base / "ca.pem"))


def _polls(size: int, runs: int, spec: dict[str, Any], ca_file: str | None) -> list[Row]:
    with server("polls", spec) as url:
        path = "/status_reports/get_report/2/2.0?batch_id="
        work = Work(
            style="bulksms",
            shape={"account": "bulk", "first": FIRST},
            count=size,
            loop="bare-bulksms",
            urls=lambda turn: [url],
            accounts=lambda urls: [bulksms(urls[0], ca_file)],
            blind={
                "url": url, "path": path, "first": FIRST, "count": size, "connections": CONCURRENCY,
            },
            track=batches(size),
            ca_file=ca_file,
        )  # fmt: skip
        return beside(work, runs)


def _avaamo(url: str) -> dict[str, Any]:
    return {
        "name": "bot",
        "provider": "avaamo",
        "base_url": url,
        "agent_id": 5157,
        "access_token": SECRET,
        "lookback": "1h",
        "limits": {"requests": 100_000, "per": "1s"},
        "schedule": {"interval": "1h", "idle_interval": "1h", "rescan": []},
    }


def bulksms(url: str, ca_file: str | None = None) -> dict[str, Any]:
    trust = {"ca_file": ca_file} if ca_file else {}
    return trust | {
        "name": "bulk",
        "provider": "bulksms",
        "base_url": url,
        "username": "john",
        "password": SECRET,
        "limits": {"requests": 100_000, "per": "1s", "concurrency": CONCURRENCY},
        "schedule": {"ladder": [f"{ladder.RUNG_S:g}s", "1d"], "jitter": 0},
    }


def batches(count: int, rate: float | None = None) -> dict[str, Any]:
    """Tracked by the engine that asks for them; they are due a moment later, all at once or so
    many a second."""
    return {
        "account": "bulk",
        "first": FIRST,
        "count": count,
        "rate": rate,
        "rung_s": ladder.RUNG_S,
        "lead_s": ladder.LEAD_S + ladder.LEAD_EACH_S * count,
    }


def beside(work: Work, runs: int) -> list[Row]:
    """Engine and loops in turns; a row for each, and one for the server alone."""
    done: dict[str, list[Done]] = {"engine": [], "bare loop": [], "bare loop, mapped": []}
    faults: dict[str, list[str]] = {name: [] for name in done}
    for turn in range(runs):
        for name, taken in done.items():
            run = ours if name == "engine" else by_hand
            measured, found = run(work, f"{name}-{turn}".replace(" ", "-").replace(",", ""))
            taken.append(measured)
            faults[name] += found
    rows = [_row(name, taken, work, done["bare loop"]) for name, taken in done.items()]
    for row in rows:
        row.faults = faults[row.name]
    return [*rows, alone(work)]


def by_hand(work: Work, turn: str) -> tuple[Done, list[str]]:
    """A bare loop's run; `stored_s` is when it was through."""
    with folder() as base:
        spec = {
            "base": str(base),
            "urls": work.urls(turn),
            "ca_file": work.ca_file,
            "mapped": "mapped" in turn,
            **(work.track or {}),
        }
        measured = child(work.loop, spec)
    measured["stored_s"] = measured["seconds"]
    if measured["records"] != work.count:
        return measured, [f"expected {work.count} records, got {measured['records']}"]
    return measured, []


def ours(work: Work, turn: str, every: int = 0) -> tuple[Done, list[str]]:
    """The engine's run, its records compared with what they have to be."""
    with folder() as base:
        spec = {
            "config": config(work.accounts(work.urls(turn))),
            "base": str(base),
            "expected": work.count,
            "patience_s": PATIENCE_S,
            "track": work.track,
            "every": every or work.count,
        }
        measured = child("engine", spec)
        measured["sink_bytes"] = (base / "reports.jsonl").stat().st_size
        measured["state_bytes"] = sum(file.stat().st_size for file in base.glob("state.db*"))
        return measured, _compared(work, measured, base / "reports.jsonl")


def _compared(work: Work, measured: Done, path: Path) -> list[str]:
    shape = dict(work.shape)
    if work.track:
        rung_ms = round(work.track["rung_s"] * 1000)
        shape["sent_ms"] = [at_ms - rung_ms for at_ms in measured["due_ms"]]
    return compare(path, SHAPES[work.style](shape))


def alone(work: Work) -> Row:
    """The server and a client that looks at nothing."""
    done = child("blind", {**work.blind, "ca_file": work.ca_file})
    values: dict[str, float | int | str] = {
        "records": work.count,
        "records/s": work.count / done["seconds"],
    }
    return Row(name="server alone", values=values)


def _row(name: str, done: Sequence[Done], work: Work, bare: Sequence[Done]) -> Row:
    def ratio(key: str) -> float:
        return median([b[key] / o[key] for o, b in zip(done, bare, strict=True)])

    count = work.count
    values: dict[str, float | int | str] = {
        "records": count,
        "records/s": count / median([one["stored_s"] for one in done]),
        "ratio": ratio("stored_s"),
        "until ended, s": median([one["ended_s"] for one in done]),
        "ended ratio": ratio("ended_s"),
        "CPU us/record": median([one["cpu_s"] for one in done]) / count * 1e6,
        "CPU ratio": ratio("cpu_s"),
        "peak MiB": median([one["peak_kib"] for one in done]) / 1024,
    }
    return Row(name=name, values=values)
