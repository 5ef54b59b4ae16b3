"""What the tests of Avaamo share: an agent's messages, and a period of them read to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.harness import avaamo, read_to_end
from tests.integration.standin import Answer, Asked, Standin, json_of

BEGIN = 1_717_200_000  # 2024-06-01T00:00:00Z
HOUR = {"start": "2024-06-01T00:00:00Z", "end": "2024-06-01T01:00:00Z"}


def entry(uuid: str, created: float, status: str = "delivered", **more: Any) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "from_phone": "+15005550006",
        "to_phone": "+1(415) 555-2671",
        "message": "secret words",
        "created_at": created,
        "sms_status": status,
        **more,
    }


class Report:
    """An agent's messages, read as the page says; subclasses lie in one way each."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self.entries = list(entries)

    def __call__(self, asked: Asked) -> Answer:
        begin, end = (float(asked.query[f"{which}_timetoken"]) for which in ("from", "to"))
        size, page = int(asked.query["per_page"]), int(asked.query["page"])
        found = sorted(
            (one for one in self.entries if begin <= one["created_at"] <= end),
            key=lambda one: -one["created_at"],
        )
        return self.give(found, page, size)

    def give(self, found: list[dict[str, Any]], page: int, size: int) -> Answer:
        return self.page(found[(page - 1) * size : page * size], page, size, len(found))

    def page(self, rows: list[dict[str, Any]], page: int, size: int, total: int) -> Answer:
        return json_of({
            "current_page": page, "per_page": size, "total_entries": total,
            "total_pages": -(-total // size), "time_token": time.time(), "entries": rows,
        })  # fmt: skip


def hourly(count: int) -> list[dict[str, Any]]:
    return [entry(f"u{n:03d}", BEGIN + 1 + n * 3500 / count) for n in range(count)]


async def read_once(
    folder: Path, standin: Standin, answer: Callable[[Asked], Answer], **keys: Any
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read the hour to its end; the records, and the troubles."""
    return await read_to_end(folder, avaamo(standin.answer("bot", answer), **{**HOUR, **keys}))


def each_once(records: list[dict[str, Any]], count: int) -> None:
    assert sorted(record["message_id"] for record in records) == [f"u{n:03d}" for n in range(count)]
