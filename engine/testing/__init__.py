"""Conformance suites for plug-ins: what the author of a provider or of a sink runs with pytest.

    import pytest
    from engine.testing import SinkCase, SinkSuite

    class TestMySink(SinkSuite):
        @pytest.fixture
        def case(self) -> SinkCase:
            return SinkCase(MySink, my_place)

The tests are plain functions that bring their own event loop, so they need no plug-in of pytest's.
The engine's own providers and sinks are put through the same suites.
"""

from __future__ import annotations

from .provider_case import Answer, ProviderCase
from .providers import ProviderSuite
from .records import batch, number, numbers, record
from .servers import ServerSinkPlace, ServerSinkSuite
from .sink_case import SinkCase, SinkPlace
from .sinks import SinkSuite

__all__ = [
    "Answer",
    "ProviderCase",
    "ProviderSuite",
    "ServerSinkPlace",
    "ServerSinkSuite",
    "SinkCase",
    "SinkPlace",
    "SinkSuite",
    "batch",
    "number",
    "numbers",
    "record",
]
