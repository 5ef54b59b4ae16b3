"""A stand-in for each test that wants one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.standin import Standin


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
