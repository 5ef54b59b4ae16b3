"""A short storm over a fleet: `scripts/chaos` for as long as a test may take."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.harm import KINDS, Chaos

SECONDS = 1.0  # then the round that has begun is ended: each kind of harm comes up once


async def test_a_fleet_in_a_short_storm(tmp_path: Path) -> None:
    said: list[str] = []
    chaos = Chaos(tmp_path, seed=5, seconds=SECONDS, say=said.append)
    verdict = await chaos.run()
    assert verdict.good, "\n".join([*said, str(verdict)])
    assert set(chaos.harms) == set(KINDS)
