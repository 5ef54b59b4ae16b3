"""A store of each kind, for the suites over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.stores.transaction import Store
from tests.conformance.storing import DRIVERS


@pytest.fixture(params=DRIVERS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with DRIVERS[request.param](tmp_path) as opened:
        await opened.open(own=True)
        yield opened
        await opened.close()
