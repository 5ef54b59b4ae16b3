"""A stand-in for each test that wants one."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.integration.standin import Standin

_make: Callable[..., ssl.SSLContext] = ssl.create_default_context
_context = _make()


@pytest.fixture(autouse=True)
def one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the system's certificates anew for each engine would take most of the time."""

    def made(*, cafile: str | None = None) -> ssl.SSLContext:
        return _context if cafile is None else _make(cafile=cafile)

    monkeypatch.setattr(ssl, "create_default_context", made)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command line that a test runs in this process sets up logging for good."""
    logger = logging.getLogger("dlr_engine")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as made:
        yield made
