"""A simulator of the four providers: for trying things out, for tests and for benchmarks.

It stands alone: nothing of the engine is imported here, and so the engine can be held against it.
"""

from __future__ import annotations

from engine.sim.command import engine_toml, serve
from engine.sim.messages import Given, Message, Sent, Transition, Truth
from engine.sim.meter import Violation
from engine.sim.profile import (
    AccountProfile,
    Delays,
    Fault,
    Generate,
    Limits,
    Mix,
    Profile,
    Window,
)
from engine.sim.server import Counts, Simulator

__all__ = [
    "AccountProfile",
    "Counts",
    "Delays",
    "Fault",
    "Generate",
    "Given",
    "Limits",
    "Message",
    "Mix",
    "Profile",
    "Sent",
    "Simulator",
    "Transition",
    "Truth",
    "Violation",
    "Window",
    "engine_toml",
    "serve",
]
