"""The loops beside the engine: aiohttp, uvloop and orjson, a JSON line a record, no state.

They neither map nor remember anything, and nothing of them is durable: what they cost is what
asking and parsing cost whoever writes them by hand.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

import aiohttp
import orjson

BUFFER = 1 << 20


async def drain(spec: dict[str, Any]) -> int:
    """One-time pages, account beside account, until an empty one."""
    with _file(spec) as file:
        async with aiohttp.ClientSession() as session:
            counts = await asyncio.gather(*(_drain(session, url, file) for url in spec["urls"]))
    return sum(counts)


async def _drain(session: aiohttp.ClientSession, url: str, file: BufferedWriter) -> int:
    count = 0
    while True:
        async with session.get(f"{url}/sms/1/reports", params={"limit": "1000"}) as answer:
            records = orjson.loads(await answer.read())["results"]
        if not records:
            return count
        count += _write(file, records)


async def pages(spec: dict[str, Any]) -> int:
    """Numbered pages, one after the other, up to the last."""
    with _file(spec) as file:
        async with aiohttp.ClientSession() as session:
            counts = await asyncio.gather(*(_pages(session, url, file) for url in spec["urls"]))
    return sum(counts)


async def _pages(session: aiohttp.ClientSession, url: str, file: BufferedWriter) -> int:
    count = 0
    path = f"{url}/api/v1/agents/5157/sms/report.json"
    for page in itertools.count(1):
        async with session.get(path, params={"page": str(page), "per_page": "100"}) as answer:
            body = orjson.loads(await answer.read())
        count += _write(file, body["entries"])
        if page >= body["total_pages"]:
            break
    return count


async def polls(spec: dict[str, Any]) -> int:
    """A batch after the other, so many at once."""
    numbers = iter(range(spec["first"], spec["first"] + spec["count"]))
    with _file(spec) as file:
        async with aiohttp.ClientSession() as session:
            workers = (_poll(session, spec["urls"][0], numbers, file) for _ in range(16))
            counts = await asyncio.gather(*workers)
    return sum(counts)


async def _poll(
    session: aiohttp.ClientSession, url: str, numbers: Iterator[int], file: BufferedWriter
) -> int:
    count = 0
    path = f"{url}/status_reports/get_report/2/2.0"
    for number in numbers:
        params = {"username": "john", "password": "benchmark", "batch_id": str(number)}
        async with session.get(path, params=params) as answer:
            text = (await answer.read()).decode()
        head, _, *rows = text.rstrip("\n").split("\n")
        if head.startswith("0|"):
            fields = (row.split("|") for row in rows)
            count += _write(file, [{"batch_id": number, "row": row} for row in fields])
    return count


def _write(file: BufferedWriter, records: list[Any]) -> int:
    for record in records:
        file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return len(records)


def _file(spec: dict[str, Any]) -> BufferedWriter:
    return (Path(spec["base"]) / "bare.jsonl").open("wb", buffering=BUFFER)
