"""Ladders: when a tracked batch, message or window is asked for next.

What is stored of an item is the last answered *offset*, not the index of a rung, so that an edited
ladder still fits the items that are already under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec

NEVER_MS = -1  # no rung has been answered


class Ladder(msgspec.Struct, frozen=True):
    """Offsets from a start, in ms, ascending; how far a rung may be late; when to give up."""

    offsets_ms: tuple[int, ...]
    jitter: float = 0.0  # share of the gap before a rung by which it may be delayed
    give_up_ms: int = 0  # after the last rung, for one that fails

    @staticmethod
    def of(
        offsets_s: Sequence[float], *, gaps: bool = False, jitter: float = 0.0, give_up_s: float = 0
    ) -> Ladder:
        """`gaps`: the numbers are distances between rungs instead of offsets from the start."""
        offsets = list(accumulate(offsets_s)) if gaps else list(offsets_s)
        return Ladder(tuple(round(s * 1000) for s in offsets), jitter, round(give_up_s * 1000))

    def next_due_ms(self, start_ms: int, answered_ms: int, chance: float) -> int | None:
        """When the rung after `answered_ms` is due; None: there is none. `chance` in [0, 1)."""
        before = 0
        for offset in self.offsets_ms:
            if offset > answered_ms:
                return start_ms + offset + int((offset - before) * self.jitter * chance)
            before = offset
        return None

    def reached_ms(self, start_ms: int, now_ms: int) -> int:
        """The offset that a poll at `now_ms` answers: the highest rung due by then."""
        passed = [offset for offset in self.offsets_ms if start_ms + offset <= now_ms]
        return passed[-1] if passed else NEVER_MS

    def gap_ms(self, answered_ms: int) -> int:
        """The distance between the rung after `answered_ms` and the one after that."""
        ahead = [offset for offset in self.offsets_ms if offset > answered_ms][:2]
        if len(ahead) == 2:
            return ahead[1] - ahead[0]
        return ahead[0] if ahead else 0

    @property
    def before_last_ms(self) -> int:
        """The offset before the last rung; NEVER_MS where there is none."""
        return self.offsets_ms[-2] if len(self.offsets_ms) > 1 else NEVER_MS

    @property
    def last_ms(self) -> int:
        return self.offsets_ms[-1] if self.offsets_ms else 0

    def given_up(self, start_ms: int, now_ms: int) -> bool:
        return now_ms >= start_ms + self.last_ms + self.give_up_ms
