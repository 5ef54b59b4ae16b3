"""Where an incident is said to be."""

from __future__ import annotations

from engine.core.work import Incident
from engine.stores.kept import incident_identity


def test_an_incident_of_no_window_names_none() -> None:
    """`stats` says "no position" of it, where it said "None-None"."""
    assert incident_identity(Incident(kind="total_ignored", text="of every window")) == ""
    gap = Incident(kind="short_window", text="a gap", from_ms=0, to_ms=9, channel="S")
    assert incident_identity(gap) == "0-9 S"
