"""Counters and log events: free when nobody listens.

Counters are plain integers in a dictionary, keyed by name and account. Events go to the logger
`dlr_engine`, which is left as the embedding program has set it up: nothing here adds a handler or
sets a level.
"""

from __future__ import annotations

import logging
import traceback
from collections import deque

log = logging.getLogger("dlr_engine")

# What the live view shows of the latest events.
EVENTS_MAX = 100


class Telemetry:
    """The counters of one engine."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self.events: deque[tuple[str, str]] = deque(maxlen=EVENTS_MAX)

    def count(self, name: str, account: str, by: int = 1) -> None:
        key = (name, account)
        self.counts[key] = self.counts.get(key, 0) + by

    def of(self, name: str, account: str) -> int:
        return self.counts.get((name, account), 0)

    def total(self, name: str) -> int:
        return sum(n for (counted, _), n in self.counts.items() if counted == name)

    def event(self, level: int, subject: str, text: str) -> None:
        """Say what happened, where, and what to do. `text` holds no secret and no URL."""
        self.events.append((subject, text))
        log.log(level, "%s: %s", subject, text)

    def debug(self, error: BaseException) -> None:
        """The stack of a programming fault, by places alone, for whoever mends it."""
        frames = traceback.extract_tb(error.__traceback__)
        places = " <- ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        log.debug("%s at %s", type(error).__name__, places)
