"""The loops beside the engine: aiohttp, uvloop and orjson, a JSON line a record, no state.

They remember nothing, and nothing of them is durable: what they cost is what asking and parsing
cost whoever writes them by hand. With `mapped` they write the contract's fields, as far as a short
table goes (`by_hand.py`); without, what the provider gave.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Iterable, Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from benchmarks import by_hand

Of = Callable[[dict[str, Any]], dict[str, Any]]
BUFFER = 1 << 20


async def drain(spec: dict[str, Any]) -> int:
    """One-time pages, account beside account, until an empty one."""
    of = by_hand.infobip if spec["mapped"] else None
    with _file(spec) as file:
        async with aiohttp.ClientSession() as session:
            counts = await asyncio.gather(*(_drain(session, url, file, of) for url in spec["urls"]))
    return sum(counts)


async def _drain(
    session: aiohttp.ClientSession, url: str, file: BufferedWriter, of: Of | None
) -> int:
    count = 0
    while True:
        async with session.get(f"{url}/sms/1/reports", params={"limit": "1000"}) as answer:
            records = orjson.loads(await answer.read())["results"]
        if not records:
            return count
        count += _write(file, map(of, records) if of else records)


async def pages(spec: dict[str, Any]) -> int:
    """Numbered pages, one after the other, up to the last."""
    of = by_hand.avaamo if spec["mapped"] else None
    with _file(spec) as file:
        async with aiohttp.ClientSession() as session:
            counts = await asyncio.gather(*(_pages(session, url, file, of) for url in spec["urls"]))
    return sum(counts)


async def _pages(
    session: aiohttp.ClientSession, url: str, file: BufferedWriter, of: Of | None
) -> int:
    count = 0
    path = f"{url}/api/v1/agents/5157/sms/report.json"
    for page in itertools.count(1):
        async with session.get(path, params={"page": str(page), "per_page": "100"}) as answer:
            body = orjson.loads(await answer.read())
        count += _write(file, map(of, body["entries"]) if of else body["entries"])
        if page >= body["total_pages"]:
            break
    return count


async def polls(spec: dict[str, Any]) -> int:
    """A batch after the other, so many at once."""
    numbers = iter(range(spec["first"], spec["first"] + spec["count"]))
    of = by_hand.bulksms if spec["mapped"] else None
    trusted = ssl.create_default_context(cafile=spec["ca_file"]) if spec["ca_file"] else True
    with _file(spec) as file:
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with aiohttp.ClientSession(connector=connector) as session:
            workers = (_poll(session, spec["urls"][0], numbers, file, of) for _ in range(16))
            counts = await asyncio.gather(*workers)
    return sum(counts)


async def _poll(
    session: aiohttp.ClientSession,
    url: str,
    numbers: Iterator[int],
    file: BufferedWriter,
    of: Of | None,
) -> int:
    count = 0
    path = f"{url}/status_reports/get_report/2/2.0"
    for number in numbers:
        params = {
            "username": "john",
            "password": "3f9c1e7ab2d84c60-a51fd07be9c2463d",
            "batch_id": str(number),
        }
        async with session.get(path, params=params) as answer:
            text = (await answer.read()).decode()
        head, _, *rows = text.rstrip("\n").split("\n")
        if head.startswith("0|"):
            records = [{"batch_id": number, "row": row.split("|")} for row in rows]
            count += _write(file, map(of, records) if of else records)
    return count


def _write(file: BufferedWriter, records: Iterable[Any]) -> int:
    count = 0
    for count, record in enumerate(records, 1):  # noqa: B007 - the count is what is wanted
        file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return count


def _file(spec: dict[str, Any]) -> BufferedWriter:
    return (Path(spec["base"]) / "bare.jsonl").open("wb", buffering=BUFFER)
