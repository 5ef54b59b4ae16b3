"""The provider against `engine.testing`: `python -m pytest` in this folder."""

import pytest
from dlr_tidewire import Tidewire

from engine import Kind, Poll, State, Verb
from engine.testing import Answer, ProviderCase, ProviderSuite

FEED = Poll(kind=Kind.FEED, now_ms=1_700_000_000_000)
TWO = b"""{"receipts": [
    {"ref": "t1", "to": "+44 7700 900001", "code": "D", "at": 1700000000, "tag": "order-17"},
    {"ref": "t2", "to": "447700900002", "code": "Z", "cell": {"id": 7}}
], "more": true}"""
TORN = b'{"receipts": [{"ref": "t1", "code": "Q"}, {"to": 5}, {"ref": "t3", "code": "X"}]}'


class TestTidewire(ProviderSuite):
    @pytest.fixture
    def case(self) -> ProviderCase:
        return ProviderCase(
            Tidewire,
            {"user": "john", "password": "hunter2-hunter2"},
            [
                Answer(
                    FEED,
                    TWO,
                    [
                        {
                            "message_id": "t1", "msisdn": "447700900001", "reference": "order-17",
                            "state": State.DELIVERED, "final": True,
                            "done_at": "2023-11-14T22:13:20.000Z", "extra": {},
                        },
                        {"message_id": "t2", "state": State.UNKNOWN, "extra": {"cell": {"id": 7}}},
                    ],
                    verb=Verb.MORE,
                ),
                Answer(FEED, TORN, [{"message_id": "t1"}, {"state": State.EXPIRED}], flaws=1),
                Answer(FEED, b'{"receipts": [], "more": false}', []),
            ],
        )  # fmt: skip
