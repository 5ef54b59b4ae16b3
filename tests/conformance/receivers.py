"""The places of the sinks `postgres` and `webhook`, for the suite over sinks with a server."""

from __future__ import annotations

import base64
import json
import random
import string
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from engine.core.rows import COLUMNS
from tests.conformance.places import PASSWORD, Case, Place, Record, fresh, record
from tests.services import HOST, Line, require, require_package

SOON = 100_000  # bytes: less than a batch of 1,000 records
DATABASE = "postgresql://postgres@{}:{}/test"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
REFUSED = "refuse this one"


class OnALine:
    """The line's part of a place."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def cut(self) -> None:
        await self._line.cut()

    async def mend(self) -> None:
        await self._line.mend()

    async def cut_soon(self) -> None:
        self._line.cut_after(SOON)

    async def hang(self) -> None:
        self._line.hang()


# postgres


class Tables(OnALine):
    """A schema."""

    def __init__(self, line: Line, database: asyncpg.Connection, schema: str) -> None:
        super().__init__(line)
        self._database, self._schema = database, schema
        url = f"postgresql://postgres:{PASSWORD}@{HOST}:{line.port}/test"
        self.options: dict[str, Any] = {"url": url, "schema": schema}

    async def read(self) -> list[Record]:
        """A table has no order of its own: by number."""
        there = "SELECT to_regclass($1) IS NOT NULL"
        if not await self._database.fetchval(there, f"{self._schema}.reports"):
            return []
        rows = await self._database.fetch(f"SELECT * FROM {self._schema}.reports ORDER BY event_id")
        newest: dict[str, tuple[int, str]] = {}
        for row in rows:
            found = (row["revision"], row["event_id"])
            newest[row["message_id"]] = max(newest.get(row["message_id"], found), found)
        kept = await self._database.fetch(f"SELECT event_id FROM {self._schema}.messages")
        assert {row[0] for row in kept} == {event for _, event in newest.values()}
        return [as_record(row) for row in rows]


def as_record(row: asyncpg.Record) -> Record:
    found = {field: row[field] for field in COLUMNS}
    for field, value in found.items():
        if isinstance(value, datetime):
            found[field] = value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**found, "extra": json.loads(found["extra"])}


@asynccontextmanager
async def tables() -> AsyncIterator[Place]:
    require_package("asyncpg", "postgres")
    host, port = require("postgres")
    database = await asyncpg.connect(DATABASE.format(host, port))
    schema = fresh()
    try:
        async with Line(host, port) as line:
            yield Tables(line, database, schema)
    finally:
        await database.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await database.close()


def too_long_for_an_index(n: int) -> bytes:
    letters = random.Random(n).choices(string.ascii_letters + string.digits, k=5000)
    return record(n, message_id="".join(letters))


# webhook


class Receiver(OnALine):
    """A receiver that checks each signature and keeps what it was sent, on disk."""

    def __init__(self, line: Line, file: Any) -> None:
        super().__init__(line)
        self._file = file
        url = f"http://john:{PASSWORD}@{HOST}:{line.port}/hook?token={PASSWORD}"
        self.options: dict[str, Any] = {"url": url, "secret": SECRET, "headers": {"X-A": "b"}}

    async def read(self) -> list[Record]:
        self._file.seek(0)
        return [each for line in self._file for each in json.loads(line)]

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            Webhook(SECRET).verify(body, dict(request.headers))
        except WebhookVerificationError:
            return web.Response(status=401)
        if REFUSED in body.decode():
            return web.Response(status=422, text=f"no: {PASSWORD}")
        self._file.write(body.replace(b"\n", b" ") + b"\n")
        return web.Response()


@asynccontextmanager
async def receiver() -> AsyncIterator[Place]:
    require_package("aiolimiter", "webhook")
    app = web.Application(client_max_size=64 << 20)
    place: list[Receiver] = []

    async def take(request: web.Request) -> web.Response:
        return await place[0].take(request)

    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    with tempfile.TemporaryFile() as file:
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, 0).start()
            async with Line(HOST, runner.addresses[0][1]) as line:
                place.append(Receiver(line, file))
                yield place[0]
        finally:
            await runner.cleanup()


RECEIVERS = [
    Case(
        "engine.sinks.postgres:PostgresSink", tables, "postgres", once=True,
        refuses=too_long_for_an_index, patience="engine.sinks.postgres.COMMAND_S",
    ),
    Case(
        "engine.sinks.webhook:WebhookSink", receiver, "webhook", envelope=True,
        refuses=lambda n: record(n, subject=REFUSED), patience="engine.targets.endpoint.PATIENCE_S",
    ),
]  # fmt: skip
