"""Ladders: a rung is never early, never too late, none is left out, and the walk ends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from engine.core.schedule import NEVER_MS, Ladder
from tests.fuzz.draw import Draw

LENGTH = 128
WORDS = ()


def seeds() -> Iterator[bytes]:
    yield bytes([3, 0, 128, 5, *range(1, 60)])
    yield bytes([7, 1, 255, 0, *range(200, 90, -2)])


def check(data: bytes) -> None:
    draw = Draw(data)
    count, gaps = 1 + draw.below(9), draw.flag()
    jitter = draw.byte() / 255
    give_up_s = draw.whole(2) / 8
    steps = [draw.whole(1 + draw.below(4)) / 1000 + 0.001 for _ in range(count)]
    if draw.flag():
        steps[0] = 0.0
    offsets_s = list(accumulate(steps))
    ladder = Ladder.of(steps if gaps else offsets_s, gaps=gaps, jitter=jitter, give_up_s=give_up_s)
    offsets = [round(s * 1000) for s in offsets_s]
    assert list(ladder.offsets_ms) == offsets
    assert all(one < other for one, other in pairwise(offsets))
    assert ladder.last_ms == offsets[-1]
    start = draw.whole(6)
    _walk(draw, ladder, start, offsets, jitter)
    end = start + offsets[-1] + round(give_up_s * 1000)
    assert ladder.given_up(start, end)
    assert not ladder.given_up(start, end - 1)


def _walk(draw: Draw, ladder: Ladder, start: int, offsets: list[int], jitter: float) -> None:
    """Polls at or after what is due, until there is no rung left; each answers what has passed."""
    answered, now, polls = NEVER_MS, 0, 0
    while True:
        chance = draw.byte() / 256
        due = ladder.next_due_ms(start, answered, chance)
        ahead = [offset for offset in offsets if offset > answered]
        if due is None:
            assert not ahead
            assert ladder.gap_ms(answered) == 0
            return
        before = max((offset for offset in offsets if offset <= answered), default=0)
        assert start + ahead[0] <= due <= start + ahead[0] + (ahead[0] - before) * jitter
        assert ladder.gap_ms(answered) == (ahead[1] - ahead[0] if ahead[1:] else ahead[0])
        assert ladder.reached_ms(start, start + ahead[0] - 1) == max(
            (offset for offset in offsets if offset < ahead[0]), default=NEVER_MS
        )
        now = max(now, due) + draw.whole(draw.below(4))
        reached = ladder.reached_ms(start, now)
        assert reached == max(offset for offset in offsets if start + offset <= now)
        answered, polls = reached, polls + 1
        assert polls <= len(offsets)
