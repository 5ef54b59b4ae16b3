"""The providers that are built in, through the suite that everybody's provider has to pass.

The answers are those that the providers' own pages print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.core.contracts import Kind, Poll, Verb
from engine.core.state import State
from engine.testing import Answer, ProviderCase, ProviderSuite

SAMPLES = Path(__file__).parents[1] / "samples"
NOW_MS = 1_700_000_000_000
BATCH = Poll(kind=Kind.BATCH, now_ms=NOW_MS, batch_id="4711")
FEED = Poll(kind=Kind.FEED, now_ms=NOW_MS)
PUSH = Poll(kind=Kind.PUSH, now_ms=NOW_MS)
WINDOW = Poll(kind=Kind.FEED, now_ms=NOW_MS, from_ms=NOW_MS - 60_000, to_ms=NOW_MS)
TO = "4479000000"


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def told(*facts: tuple[str | None, State, str], **more: Any) -> list[dict[str, Any]]:
    """By report: the recipient, its state, the provider's own word for it."""
    return [
        {"recipient": recipient, "state": state, "provider_status": status, **more}
        for recipient, state, status in facts
    ]


ROWS = told(
    (f"{TO}01", State.DELIVERED, "11"),
    (f"{TO}02", State.ACCEPTED, "0"),
    (f"{TO}03", State.EXPIRED, "53"),
    batch_id="4711",
)
MORE_ROWS = told(
    (f"{TO}01", State.DELIVERED, "11"),
    (f"{TO}02", State.ENROUTE, "12"),
    (f"{TO}03", State.EXPIRED, "53"),
    batch_id="4711",
)
TORN = b"0|Returns to follow\n\n447900000001|11\nnot a row\n447900000003|53\n"
MLOG = [
    ("sms", State.ENROUTE, "11111"), ("email", State.READ, "14145"),
    ("push", State.ENROUTE, "15158"), ("whatsapp", State.READ, "12151"),
    ("rcs", State.ENROUTE, "14320"),
]  # fmt: skip
CASES = [
    ProviderCase(
        "engine.providers.bulksms:BulkSMS",
        {"username": "john", "password": "hunter2-hunter2"},
        [
            Answer(BATCH, sample("bulksms/success.txt"), ROWS),
            Answer(BATCH, sample("bulksms/auth_failure.txt"), [], verb=Verb.PAUSE),
            Answer(BATCH, TORN, [ROWS[0], ROWS[2]], flaws=1),
            Answer(
                PUSH,
                b"msisdn=447900000001&batch_id=4711&status=11&completed_time=24-01-31+13%3A45%3A00"
                b"&source_id=order-17&msg_id=5",
                told(
                    (f"{TO}01", State.DELIVERED, "11"),
                    batch_id="4711",
                    message_id="4711:447900000001",
                    reference="order-17",
                    done_at="2024-01-31T13:45:00.000Z",
                    extra={"msg_id": "5"},
                ),
            ),
            Answer(PUSH, b"msisdn=x&status=11", [], flaws=1),
            Answer(PUSH, b"", []),
        ],
        "bulksms",
    ),
    ProviderCase(
        "engine.providers.bulksms:BulkSMS",
        {
            "username": "john", "password": "hunter2-hunter2",
            "optional_fields": ["completed_time", "credits", "source_id"],
        },
        [Answer(BATCH, sample("bulksms/with_optional_fields.txt"), MORE_ROWS)],
        "bulksms-fields",
    ),
    ProviderCase(
        "engine.providers.infobip:Infobip",
        {"api_key": "a-key-of-infobip"},
        [
            Answer(
                FEED,
                sample("infobip/report_v1.json"),
                [
                    {"message_id": "MESSAGE-ID-123-xyz", "state": State.DELIVERED, "final": True},
                    {
                        "message_id": "12db39c3-7822-4e72-a3ec-c87442c0ffc5",
                        "done_at": "2019-11-09T17:00:00.000Z",
                        "price": "0.01",
                    },
                ],
            ),
            Answer(FEED, b'{"results": [{"to": 1}, {"messageId": "m", "status": {"groupId": 4}}]}',
                   [{"message_id": "m", "state": State.EXPIRED}], flaws=1),
            Answer(FEED, b'{"results": []}', []),
            Answer(
                PUSH,
                b'{"results": [{"messageId": "m1", "status": {"groupId": 3, "name": "D"}},'
                b' {"messageId": "m2", "seenAt": "2026-11-30T12:00:00.000+0000"},'
                b' {"messageId": "m3", "receivedAt": "2026-11-30T12:00:00.000+0000"}]}',
                [
                    {"message_id": "m1", "state": State.DELIVERED},
                    {
                        "message_id": "m2",
                        "state": State.READ,
                        "done_at": "2026-11-30T12:00:00.000Z",
                    },
                ],
                flaws=1,
            ),
        ],
        "infobip",
    ),
    ProviderCase(
        "engine.providers.avaamo:Avaamo",
        {"agent_id": 5157, "access_token": "a-token-of-avaamo"},
        [Answer(WINDOW, sample("avaamo/report.json"),
                [{"state": State.ENROUTE}, {"state": State.REJECTED, "final": True}])],
        "avaamo",
    ),
    *(
        ProviderCase(
            "engine.providers.messangi:Messangi",
            {"headers": {"Authorization": "Bearer a-token-of-messangi"}, "pretty": pretty},
            [
                Answer(
                    WINDOW,
                    sample(f"messangi/mlog_{name}.json"),
                    [
                        {"channel": channel, "state": state, "campaign_id": campaign}
                        for channel, state, campaign in MLOG
                    ],
                )
            ],
            f"messangi-{name}",
        )
        for name, pretty in (("pretty", True), ("letters", False))
    ),
]  # fmt: skip


class TestProviders(ProviderSuite):
    @pytest.fixture(params=CASES, ids=lambda case: case.id)
    def case(self, request: pytest.FixtureRequest) -> ProviderCase:
        found: ProviderCase = request.param
        return found
