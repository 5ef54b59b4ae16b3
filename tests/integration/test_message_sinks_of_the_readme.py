"""README's kafka, nats, redis and amqp, as they stand there, behind a running engine."""

from __future__ import annotations

import tomllib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.idle import until_idle
from tests.conformance.messages import amqp_queue, kafka_topic, nats_stream, redis_stream
from tests.integration.harness import bulksms, configured, hasty
from tests.integration.standin import Standin

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PLACES = {"kafka": kafka_topic, "nats": nats_stream, "redis": redis_stream, "amqp": amqp_queue}
ROWS = 30


def sinks() -> list[dict[str, Any]]:
    start = README.index('[[sinks]]\nname = "stream"')
    found: list[dict[str, Any]] = tomllib.loads(README[start : README.index("```", start)])["sinks"]
    return found


async def test_all_four_at_once(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"4477009000{n:02d}|11\n" for n in range(ROWS))
    url = standin.answer("bulk", [f"0|Returns to follow\n\n{rows}"])
    async with AsyncExitStack() as stack:
        places: dict[str, Any] = {}
        configs = []
        for sink in sinks():
            kind = sink["type"]
            places[kind] = place = await stack.enter_async_context(PLACES[kind]())
            # The servers and the names of this test in the place of README's.
            ours = {key: value for key, value in place.options.items() if key != "options"}
            where = {**ours, "subject": f"{ours.get('stream')}.{{account}}.{{state}}"}
            if kind == "amqp":
                monkeypatch.setenv("AMQP_URL", ours["url"].reveal())
                where = {**where, "routing_key": place.queue.name, "url": sink["url"]}
            elif "url" in where:
                where["url"] = where["url"].reveal()
            known = {key: where[key] for key in where if key in sink}
            configs.append({**sink, **known, "batch": {"wait": "50ms"}})
        account = bulksms(url, schedule={"ladder": ["0s"]})
        async with hasty(configured(tmp_path, account, sinks=configs)) as poller:
            await poller.track("bulk", batch_id="1")
            assert await until_idle(poller, 30) == []
        found = {kind: await place.read() for kind, place in places.items()}
    found["amqp"] = [event["data"] for event in found["amqp"]]
    assert len({record["event_id"] for record in found["redis"]}) == ROWS
    assert all(records == found["redis"] for records in found.values())
