"""The sinks with a server of their own, through the suite that everybody's sink has to pass.

It runs against the real servers (`tests/services.py`); a `Case` says how a sink's place is made,
read back, and cut off.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from engine.testing import ServerSinkSuite
from tests.conformance.messages import MESSAGES
from tests.conformance.places import Case, Place, batch, number, record
from tests.conformance.receivers import RECEIVERS

CASES: list[Case] = [*MESSAGES, *RECEIVERS]


class TestServiceSinks(ServerSinkSuite):
    @pytest.fixture(params=CASES, ids=lambda case: case.id)
    def case(self, request: pytest.FixtureRequest) -> Case:
        found: Case = request.param
        return found


@pytest.mark.parametrize(
    "case", [found for found in CASES if found.envelope], ids=lambda case: case.id
)
def test_as_cloudevents(case: Case) -> None:
    async def check(place: Place) -> None:
        sink = case.make(place, envelope="cloudevents")
        await sink.open()
        await sink.write(batch(0, 100))
        await sink.close()
        found: list[dict[str, Any]] = await place.read()
        assert [number(each["data"]) for each in found] == list(range(100))
        for each in found:
            event = JSONFormat().read(CloudEvent, json.dumps(each))
            assert event.get_id() == each["data"]["event_id"]
            assert event.get_type() == "dlr.report.delivered"
            assert event.get_data() == json.loads(record(number(each["data"])))

    case.run(check)
