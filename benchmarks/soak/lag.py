"""How far behind an account was: how long after it could be read its final states were recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from benchmarks.soak.evidence import Read

LAG_MAX_S = 90.0
"""The bound for `SHARE` of an account's final states. A minute is the longest backoff, and the
first pause of a provider that called a good password wrong (a fault); the rest is a worker that is
dead or stopped meanwhile, and has to come up. A feed that falls behind is late with most of them.
"""
SHARE = 0.99


class Lag(msgspec.Struct, frozen=True):
    """Of one account's final states: seconds after they should have been read."""

    account: str
    states: int
    p50: float
    p99: float
    most: float

    @property
    def is_behind(self) -> bool:
        return self.p99 > LAG_MAX_S

    def __str__(self) -> str:
        return (
            f"{self.account}: one in a hundred of {self.states:,} final states was recorded more"
            f" than {self.p99:.1f} s after it could be read, {LAG_MAX_S:g} s are allowed"
        )


def lags(reads: Iterable[Read]) -> list[Lag]:
    """Account by account, in the order in which they come up."""
    late: dict[str, list[float]] = defaultdict(list)
    for read in reads:
        if read.final:
            late[read.account].append(max(read.late_s, 0.0))
    return [
        Lag(account, len(seconds), share(seconds, 0.5), share(seconds, SHARE), max(seconds))
        for account, seconds in late.items()
    ]


def share(values: list[float], part: float) -> float:
    """The value that `part` of them do not exceed."""
    values.sort()
    return values[min(int(len(values) * part), len(values) - 1)]
