"""A stand-in for each test that wants one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import pytest

from tests.integration.standin import Standin

_context = ssl.create_default_context()


@pytest.fixture(autouse=True)
def one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the system's certificates anew for each engine would take most of the time."""
    monkeypatch.setattr(ssl, "create_default_context", lambda: _context)


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as made:
        yield made
