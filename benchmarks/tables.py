"""The sinks `postgres`, `webhook` and `parquet` beside asyncpg, aiohttp and pyarrow.

The bare side is what whoever writes it by hand would write, no more: orjson for the records, the
same statements in the same transaction, the same signature, the same fsync and rename.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import folder, server
from benchmarks.sinks import Pair, Write
from engine.core.rows import COLUMNS
from engine.core.secret import Secret
from engine.sinks.parquet import SCHEMA
from engine.sinks.postgres import PostgresOptions, PostgresSink

POSTGRES = os.environ.get("DLR_BENCH_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
SECRET = "whsec_" + b64encode(bytes(range(32))).decode()
FILE_BATCH = 20_000

_TIMES = ("sent_at", "done_at", "observed_at")


def _row(line: bytes) -> dict[str, Any]:
    record: dict[str, Any] = orjson.loads(line)
    for field in _TIMES:
        if record[field] is not None:
            record[field] = datetime.fromisoformat(record[field])
    record["extra"] = orjson.dumps(record["extra"]).decode()
    return record


# postgres


@contextmanager
def schema() -> Iterator[dict[str, Any] | None]:
    """A schema of its own, gone afterwards."""
    where = urlsplit(POSTGRES)
    try:
        socket.create_connection((where.hostname or "", where.port or 5432), 5).close()
    except OSError:
        yield None
        return
    name = f"dlr_bench_{uuid.uuid4().hex[:12]}"
    yield {"url": POSTGRES, "schema": name}

    async def drop() -> None:
        database = await asyncpg.connect(POSTGRES)
        await database.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        await database.close()

    asyncio.run(drop())


_FIELDS = ", ".join(COLUMNS)
_KEY = "account, message_id, direction"
_NEWER = ", ".join(f"{field} = excluded.{field}" for field in COLUMNS)


@asynccontextmanager
async def asyncpg_alone(options: dict[str, Any]) -> AsyncIterator[Write]:
    """Into the same tables, which the sink has made."""
    sink = PostgresSink(PostgresOptions(url=Secret(options["url"]), schema=options["schema"]))
    await sink.open()
    await sink.close()
    database = await asyncpg.connect(options["url"])
    await database.execute(f"SET search_path TO {options['schema']}")
    await database.execute("CREATE TEMP TABLE new (LIKE reports) ON COMMIT DELETE ROWS")

    async def write(lines: Sequence[bytes]) -> None:
        rows = [tuple(_row(line).values()) for line in lines]
        async with database.transaction():
            await database.copy_records_to_table("new", records=rows, columns=COLUMNS)
            await database.execute(
                f"INSERT INTO reports ({_FIELDS}) SELECT {_FIELDS} FROM new ORDER BY event_id"
                f" ON CONFLICT (event_id) DO NOTHING"
            )
            await database.execute(
                f"INSERT INTO messages AS m ({_FIELDS}) SELECT DISTINCT ON ({_KEY}) {_FIELDS}"
                f" FROM new ORDER BY {_KEY}, revision DESC ON CONFLICT ({_KEY})"
                f" DO UPDATE SET {_NEWER} WHERE excluded.revision > m.revision"
            )

    yield write
    await database.close()


# webhook


@contextmanager
def receiver() -> Iterator[dict[str, Any] | None]:
    with server("hook", {}) as url:
        yield {"url": url, "secret": SECRET}


@asynccontextmanager
async def aiohttp_alone(options: dict[str, Any]) -> AsyncIterator[Write]:
    key = b64decode(options["secret"][6:])

    async with aiohttp.ClientSession() as session:

        async def write(lines: Sequence[bytes]) -> None:
            body = b"[" + b",".join(lines) + b"]"
            mark, at = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
            signed = hmac.digest(key, f"{mark}.{at}.".encode() + body, "sha256")
            headers = {
                "Content-Type": "application/json",
                "webhook-id": mark,
                "webhook-timestamp": at,
                "webhook-signature": f"v1,{b64encode(signed).decode()}",
            }
            async with session.post(options["url"], data=body, headers=headers) as answer:
                await answer.read()
                answer.raise_for_status()

        yield write


# parquet


@contextmanager
def days() -> Iterator[dict[str, Any] | None]:
    with folder() as base:
        yield {"path": str(base)}


@asynccontextmanager
async def pyarrow_alone(options: dict[str, Any]) -> AsyncIterator[Write]:
    path = Path(options["path"]) / "day=2026-11-09"
    path.mkdir()

    def save(lines: Sequence[bytes]) -> None:
        table = pa.Table.from_pylist(list(map(_row, lines)), schema=SCHEMA)
        name = uuid.uuid4().hex
        with open(path / f".{name}", "wb") as file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path / f".{name}", path / f"{name}.parquet")

    async def write(lines: Sequence[bytes]) -> None:
        await asyncio.to_thread(save, lines)

    yield write


PAIRS = {
    "postgres": Pair(
        sink="engine.sinks.postgres:PostgresSink",
        bare="benchmarks.tables:asyncpg_alone",
        place=schema,
    ),
    "webhook": Pair(
        sink="engine.sinks.webhook:WebhookSink",
        bare="benchmarks.tables:aiohttp_alone",
        place=receiver,
    ),
    "parquet": Pair(
        sink="engine.sinks.parquet:ParquetSink",
        bare="benchmarks.tables:pyarrow_alone",
        place=days,
        batch=FILE_BATCH,
    ),
}
