"""The postgres sink's own matters, against a real server: tables, values, rights, other workers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.core.report import FIELDS, Report, encode
from engine.core.secret import Secret
from engine.core.state import State
from engine.sinks import postgres
from engine.sinks.postgres import PostgresOptions, PostgresSink
from tests.conformance.places import PASSWORD, fresh
from tests.conformance.receivers import DATABASE, as_record, too_long_for_an_index
from tests.integration.harness import until
from tests.services import HOST, require

Database = asyncpg.Connection


def record(event: str, revision: int = 1, **more: Any) -> bytes:
    fields = {
        "event_id": event, "account": "a", "provider": "p", "message_id": "m",
        "revision": revision, "state": State.ENROUTE, "final": False,
        "observed_at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    return encode(Report(**{**fields, **more}))


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    """The test's own hand in the database; `schema` is its schema."""
    connection = await asyncpg.connect(DATABASE.format(*require("postgres")))
    schema = fresh()
    await connection.execute(f"CREATE SCHEMA {schema}; SET search_path TO {schema}")
    yield connection
    await connection.execute(f"DROP SCHEMA {schema} CASCADE")
    await connection.close()


@pytest.fixture
async def schema(database: Database) -> str:
    found: str = await database.fetchval("SELECT current_schema()")
    return found


def make(schema: str, user: str = "postgres", **options: Any) -> PostgresSink:
    url = f"postgresql://{user}:{PASSWORD}@{HOST}/test"
    return PostgresSink(PostgresOptions(**{"url": Secret(url), "schema": schema, **options}))


async def stored(sink: PostgresSink, *lines: bytes) -> dict[int, str]:
    """What was refused of a batch."""
    try:
        await sink.write(Batch(lines))
    except PartialWrite as error:
        return error.rejected
    return {}


# Values


async def test_columns_hold_what_the_record_says(database: Database, schema: str) -> None:
    sink = make(schema, table_prefix="dlr_")
    whole = record(
        "e1", error_permanent=True, parts=2, price="0.010", sent_at="2025-12-31T23:59:59.999Z",
        extra={"big": 2**80, "é": [None]},
    )  # fmt: skip
    await sink.write(Batch([whole, record("e2", message_id="n")]))
    await sink.close()
    first, second = await database.fetch("SELECT * FROM dlr_reports ORDER BY event_id")
    assert tuple(first.keys()) == FIELDS
    assert as_record(first) == json.loads(whole)
    assert second["sent_at"] is None
    types = dict(
        await database.fetch(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = $1 AND table_name = 'dlr_messages'", schema,
        )
    )  # fmt: skip
    assert {name: kind for name, kind in types.items() if kind != "text"} == {
        "revision": "bigint", "parts": "bigint", "final": "boolean", "error_permanent": "boolean",
        "sent_at": "timestamp with time zone", "done_at": "timestamp with time zone",
        "observed_at": "timestamp with time zone",
    }  # fmt: skip


async def test_messages_holds_the_newest_of_each(database: Database, schema: str) -> None:
    sink = make(schema)
    await stored(sink, record("e2", 2), record("e1", 1), record("e3", 1, direction="mo"))
    await stored(sink, record("e1", 1), record("f1", 1, message_id="n"))
    await stored(sink, record("e5", 5, state=State.READ), record("e4", 4))
    await sink.close()
    rows = await database.fetch("SELECT message_id, direction, event_id, state FROM messages")
    assert sorted(map(tuple, rows)) == [
        ("m", "mo", "e3", "enroute"), ("m", "mt", "e5", "read"), ("n", "mt", "f1", "enroute"),
    ]  # fmt: skip
    assert await database.fetchval("SELECT count(*) FROM reports") == 6


async def test_a_nul_is_replaced_where_text_cannot_hold_it(database: Database, schema: str) -> None:
    sink = make(schema)
    nul = record("e1", message_id="m\0", content="\0", subject="\\u0000", extra={"k\0": "\0"})
    assert await stored(sink, nul, record("e2")) == {}
    await sink.close()
    row = as_record(await database.fetchrow("SELECT * FROM reports WHERE event_id = 'e1'"))
    assert (row["message_id"], row["content"], row["subject"]) == ("m\ufffd", "\ufffd", "\\u0000")
    assert row["extra"] == {"k\0": "\0"}


async def test_what_can_never_be_taken_costs_itself_alone(database: Database, schema: str) -> None:
    sink = make(schema)
    await sink.open()
    await database.execute(
        "ALTER TABLE reports ADD CONSTRAINT theirs CHECK (reference <> 'ours alone')"
    )
    lines = [record(f"e{n}", message_id=f"m{n}") for n in range(20)]
    lines[3] = too_long_for_an_index(3)
    lines[4] = b"no record"
    lines[19] = record("e19", reference="ours alone")
    assert await stored(sink, *lines) == {
        3: "PostgreSQL cannot take it: a value is too long for an index (54000, reports_message)",
        4: "not a record: JSON is malformed: invalid character (byte 4)",
        19: "PostgreSQL cannot take it: a constraint of the table refuses it (23514, theirs)",
    }
    await sink.close()
    assert await database.fetchval("SELECT count(*) FROM reports") == 17
    assert await database.fetchval("SELECT count(*) FROM messages") == 17


async def test_a_database_in_another_encoding() -> None:
    host, port = require("postgres")
    database = await asyncpg.connect(DATABASE.format(host, port))
    name = fresh()
    await database.execute(
        f"CREATE DATABASE {name} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    try:
        sink = make("public", url=Secret(f"postgresql://postgres@{host}/{name}"))
        bad = await stored(sink, record("e1", sender="é"), record("e2", sender="я"), record("e3"))
        await sink.close()
        assert bad == {
            1: "PostgreSQL cannot take it: the database's encoding has no such character (22P05)"
        }
    finally:
        await database.execute(f"DROP DATABASE {name}")
        await database.close()


# Tables


async def test_tables_that_are_not_its_own_are_left_alone(database: Database, schema: str) -> None:
    await database.execute("CREATE TABLE messages (id serial, body text)")
    with pytest.raises(SinkError, match="a table of this name is not ours; set table_prefix"):
        await make(schema).open()
    columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = $1"
    assert await database.fetchval(columns, schema) == 2
    sink = make(schema, table_prefix="dlr_")
    await sink.open()
    await sink.close()
    assert await database.fetchval("SELECT count(*) FROM dlr_messages") == 0


async def test_a_table_without_its_key_is_not_its_own(database: Database, schema: str) -> None:
    sink = make(schema)
    await sink.open()
    await database.execute("ALTER TABLE messages DROP CONSTRAINT messages_pkey")
    with pytest.raises(SinkError, match=r"not ours; set table_prefix \(42P10\)"):
        await sink.write(Batch([record("e1")]))
    await sink.close()
    assert await database.fetchval("SELECT count(*) FROM reports") == 0


async def test_columns_of_a_later_release_are_added(database: Database, schema: str) -> None:
    sink = make(schema)
    await stored(sink, record("e1"))
    await sink.close()
    await database.execute("ALTER TABLE reports DROP subject, ADD mine int DEFAULT 7")
    sink = make(schema)
    await stored(sink, record("e2", subject="s", message_id="n"))
    await sink.close()
    rows = await database.fetch("SELECT event_id, subject, mine FROM reports ORDER BY event_id")
    assert list(map(tuple, rows)) == [("e1", None, 7), ("e2", "s", 7)]


async def test_a_schema_that_is_missing_is_made(database: Database, schema: str) -> None:
    odd = f'{schema} "odd"'
    sink = make(odd)
    try:
        await stored(sink, record("e1"))
        found = await database.fetchval(f'SELECT count(*) FROM "{schema} ""odd""".reports')
        assert found == 1
    finally:
        await sink.close()
        await database.execute(f'DROP SCHEMA "{schema} ""odd""" CASCADE')


async def test_workers_that_start_together_make_the_tables_once(
    database: Database, schema: str
) -> None:
    sinks = [make(schema) for _ in range(6)]
    await asyncio.gather(*(sink.open() for sink in sinks))
    await asyncio.gather(*(sink.close() for sink in sinks))
    assert await database.fetchval("SELECT count(*) FROM reports") == 0


# The server, and others at it


async def test_a_connection_that_the_server_ends(database: Database, schema: str) -> None:
    sink = make(schema)
    await stored(sink, record("e1"))
    end = "SELECT pg_terminate_backend($1, 5000)"
    assert await database.fetchval(end, sink._line.held.get_server_pid())
    await until(sink._line.held.is_closed)
    assert await stored(sink, record("e2")) == {}  # idle, it does no harm
    async with database.transaction():
        await database.execute("LOCK TABLE reports")
        writing = asyncio.create_task(stored(sink, record("e3")))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
        for _ in range(500):
            await asyncio.sleep(0.01)
            if await database.fetchval(waits, sink._line.held.get_server_pid()):
                break
        assert await database.fetchval(end, sink._line.held.get_server_pid())
        with pytest.raises(SinkError, match=r"the (server is stopping|connection was lost)"):
            await writing
    assert await stored(sink, record("e3")) == {}
    await sink.close()
    assert await database.fetchval("SELECT count(*) FROM reports") == 3


async def test_two_workers_with_the_same_records(database: Database, schema: str) -> None:
    lines = [record(f"e{n}", n % 7, message_id=f"m{n // 7}") for n in range(700)]
    sinks = [make(schema), make(schema)]

    async def work(sink: PostgresSink, seed: int) -> None:
        for turn in range(8):
            shuffled = lines.copy()
            random.Random(seed * 100 + turn).shuffle(shuffled)
            await sink.write(Batch(shuffled))

    await asyncio.gather(*(work(sink, seed) for seed, sink in enumerate(sinks)))
    await asyncio.gather(*(sink.close() for sink in sinks))
    assert await database.fetchval("SELECT count(*) FROM reports") == 700
    revisions = await database.fetch("SELECT DISTINCT revision FROM messages")
    assert [row[0] for row in revisions] == [6]


async def test_rows_that_somebody_holds(
    database: Database, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_S", 0.2)
    sink = make(schema)
    await stored(sink, record("e1"))
    async with database.transaction():
        await database.execute("LOCK TABLE reports")
        with pytest.raises(SinkError, match="rows are locked by another program"):
            await sink.write(Batch([record("e2")]))
    assert await stored(sink, record("e2")) == {}
    await sink.close()


async def test_what_rights_it_needs(database: Database, schema: str) -> None:
    role = fresh("dlr_role")
    await database.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}")
    try:
        sink = make(schema, user=role)
        with pytest.raises(SinkError, match="rights are missing; grant CREATE on the schema"):
            await sink.open()
        owner = make(schema)
        await owner.open()
        await owner.close()
        with pytest.raises(SinkError, match="rights are missing"):
            await sink.write(Batch([record("e1")]))
        await database.execute(
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        )
        assert await stored(sink, record("e1")) == {}
        await sink.close()
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("default_transaction_read_only=on", "the server is read-only"),
        ("synchronous_commit=off", ""),
    ],
)
async def test_settings_of_the_server(schema: str, setting: str, cause: str) -> None:
    url = f"postgresql://postgres@{HOST}/test?{setting}"
    sink = make(schema, url=Secret(url))
    if cause:
        with pytest.raises(SinkError, match=cause):
            await sink.open()
    else:
        await sink.open()
        assert await sink._line.held.fetchval("SHOW synchronous_commit") == "on"
    await sink.close()


@pytest.mark.parametrize(
    ("rest", "cause"),
    [
        ("127.0.0.1:1/test", "connection refused"),
        ("host.invalid/test", "DNS: no such host"),
        ("127.0.0.1/no_such_database", r"there is no such database \(3D000\)"),
        ("127.0.0.1/test?sslmode=require", "cannot connect, or the server has no TLS"),
        ("127.0.0.1:port/test", "the url cannot be used; look at each part of it"),
        ("127.0.0.1/test?sslmode=odd", "the url cannot be used; look at each part of it"),
    ],
)
async def test_no_error_holds_a_part_of_the_url(rest: str, cause: str) -> None:
    require("postgres")
    sink = make("public", url=Secret(f"postgresql://postgres:{PASSWORD}@{rest}"))
    with pytest.raises(SinkError, match=f"^cannot write to PostgreSQL: {cause}$") as caught:
        await sink.open()
    assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_user_that_is_refused() -> None:
    require("postgres")
    sink = make("public", user=fresh("nobody"))
    with pytest.raises(SinkError, match=r"the server refuses the user or the password \(28000\)"):
        await sink.open()


# Options


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": Secret("mysql://h/d")},
        {"schema": ""},
        {"schema": "a\0"},
        {"schema": "é" * 32},
        {"table_prefix": "A"},
        {"table_prefix": "1a"},
        {"table_prefix": "a;"},
        {"table_prefix": "a" * 41},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    key = next(iter(wrong))
    with pytest.raises(ValueError, match=f"^{key}: expected"):
        PostgresOptions(**{"url": Secret("postgres://h/d"), **wrong})


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": Secret("postgres://h/d"), "prefix": ""}, PostgresOptions)
