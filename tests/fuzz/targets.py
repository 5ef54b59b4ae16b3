"""The table of targets: what each is called, where it is, and its share of a long run.

A target has `check(data)`, which raises for a case that must not be, `seeds()`, `WORDS` (what the
fuzzer may put in as a whole) and `LENGTH` (bytes of the longest input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "found"
RECORDED = Path(__file__).parent / "recorded.json"

# Of 10,000 inputs of a long run: what costs little is asked more often. The slowest stand first.
SHARES = {
    "json": 145,
    "config": 8,
    "messangi": 67,
    "avaamo": 67,
    "infobip": 67,
    "pipe": 240,
    "csv": 200,
    "bulksms": 145,
    "rules": 180,
    "track": 90,
    "inflate": 110,
    "ladder": 1300,
    "units": 2900,
    "retry_after": 4481,
}
_READERS = ("bulksms", "infobip", "avaamo", "messangi")


class Target(Protocol):
    """What stands behind a name."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    WORDS: tuple[bytes, ...]
    LENGTH: int


def target(name: str) -> Target:
    if name in _READERS:
        found: Target = getattr(import_module("tests.fuzz.target_readers"), name)
        return found
    module: object = import_module(f"tests.fuzz.target_{name}")
    return module  # type: ignore[return-value]


def found_cases() -> list[tuple[str, Path]]:
    """The inputs that once showed a defect, each with its target."""
    return sorted(
        (folder.name, path)
        for folder in FOUND.glob("*")
        if folder.name in SHARES
        for path in folder.iterdir()
    )
