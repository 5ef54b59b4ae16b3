"""Each sink beside its bare client library doing the same: `sinks`.

Both get the same records in the same batches, one batch at a time, and wait for the same
acknowledgements; they take turns, in processes of their own, each with an empty place. Time begins
when the connection is there. A sink that reaches less than `RATIO` of the library is a fault.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any

import msgspec

from benchmarks.harness import Row, child, hwm_kib, median
from engine.core.contracts import Batch
from engine.core.report import Report, encode
from engine.core.state import State

RATIO = 0.7

Place = Callable[[], AbstractContextManager[dict[str, Any] | None]]
Write = Callable[[Sequence[bytes]], Awaitable[None]]
Bare = Callable[[dict[str, Any]], AbstractAsyncContextManager[Write]]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A sink and what stands beside it."""

    sink: str  # "module:Class"
    bare: str  # "module:function", a `Bare`: from the sink's options to a function that writes
    place: Place  # the options for an empty place; None: its server is not here
    batch: int = 1000


def pairs() -> dict[str, Pair]:
    """By the sink's name."""
    from benchmarks import brokers, tables

    return {**tables.PAIRS, **brokers.PAIRS}


def run(size: int, runs: int) -> list[Row]:
    """A row for each sink: the medians, and their ratio."""
    return [_beside(name, pair, size, runs) for name, pair in pairs().items()]


def _beside(name: str, pair: Pair, size: int, runs: int) -> Row:
    done: dict[str, list[dict[str, Any]]] = {"sink": [], "bare-sink": []}
    for _ in range(runs):
        for job, found in done.items():
            with pair.place() as options:
                if options is None:
                    return Row(name=name, values={"records": 0})
                spec = {"options": options, "size": size, "batch": pair.batch}
                spec |= {"sink": pair.sink, "bare": pair.bare}
                found.append(child(job, spec))
    ours, bare = done["sink"], done["bare-sink"]
    ratio = median([b["seconds"] / o["seconds"] for o, b in zip(ours, bare, strict=True)])
    values: dict[str, float | int | str] = {
        "records": size,
        "batch": pair.batch,
        "sink/s": size / median([one["seconds"] for one in ours]),
        "bare/s": size / median([one["seconds"] for one in bare]),
        "ratio": ratio,
        "CPU us/record": median([one["cpu_s"] for one in ours]) / size * 1e6,
        "bare CPU": median([one["cpu_s"] for one in bare]) / size * 1e6,
    }
    faults = [f"less than {RATIO} of the bare library"] if ratio < RATIO else []
    return Row(name=name, values=values, faults=faults)


async def sink(spec: dict[str, Any]) -> dict[str, Any]:
    """A run of the sink, in this process."""
    made = _named(spec["sink"])
    options = msgspec.convert(
        spec["options"], made.Options, dec_hook=lambda kind, value: kind(value)
    )
    under_test = made(options)
    await under_test.open()
    found = await _timed(lambda lines: under_test.write(Batch(lines)), spec)
    await under_test.close()
    return found


async def bare(spec: dict[str, Any]) -> dict[str, Any]:
    """A run of the library alone, in this process."""
    alone: Bare = _named(spec["bare"])
    async with alone(spec["options"]) as write:
        return await _timed(write, spec)


async def _timed(write: Write, spec: dict[str, Any]) -> dict[str, Any]:
    lines = [_record(n) for n in range(spec["size"])]
    batch: int = spec["batch"]
    batches = [lines[start : start + batch] for start in range(0, len(lines), batch)]
    began, cpu = time.perf_counter(), time.process_time()
    for some in batches:
        await write(some)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "peak_kib": hwm_kib(),
    }


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _record(n: int) -> bytes:
    """As an SMS provider's report becomes one; about 900 bytes."""
    return encode(
        Report(
            event_id=f"{n * 2654435761 % 2**64:032x}",
            account="infobip-1",
            provider="infobip",
            message_id=f"{n:08x}-7822-4e72-9c27-{n:012x}",
            revision=1 + n % 3,
            reference=f"order-{n}",
            batch_id=f"BULK-{n // 1000}",
            sender="SHOP",
            recipient=f"4179{n:07d}",
            msisdn=f"4179{n:07d}",
            state=State.DELIVERED,
            final=True,
            provider_status="DELIVERED_TO_HANDSET",
            provider_status_text="Message delivered to handset",
            sent_at="2026-11-09T17:00:00.000Z",
            done_at="2026-11-09T17:00:05.120Z",
            observed_at="2026-11-09T17:00:06.500Z",
            parts=1,
            price="0.01",
            currency="EUR",
            mcc_mnc="22801",
            extra={"status": {"groupId": 3, "groupName": "DELIVERED", "id": 5}, "callback": None},
        )
    )
