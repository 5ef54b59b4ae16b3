"""The line to PostgreSQL is lost in the middle of a commit: of each message of it, either way.

A commit of everything that a page can hold is cut after so many bytes, and so on from its first
byte to its last; whoever made it waits, as a worker does. At the end the tables themselves say
whether each page is there, whole, and once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
import zstandard

from engine.core.contracts import Flaw, Kind, Traits
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.work import Page, Work
from engine.stores import ledger
from engine.stores.patient import PatientStore
from engine.stores.postgres import PostgresStore
from engine.stores.transaction import Transaction
from engine.telemetry import Telemetry
from tests.services import HOST, PIECE, Line, own_schema, require
from tests.unit.postgres_parts import Quick

T0 = 1_700_000_000_000
DRAINED = Traits(feed="drained", one_time=True, dated=True)
NEW, OLD = 60, 40  # of a page: messages heard of first, and those whose state is another one
CUTS_MAX = 45  # each way
WAYS = ("there", "back")


class Parting(Line):
    """A line that can be lost after a byte: what came before gets through, nothing after it."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.heard: dict[str, bytes] = dict.fromkeys(WAYS, b"")
        self.part: tuple[str, int] | None = None  # the way, and the bytes of it that are left

    async def _move(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counted: bool
    ) -> None:
        way = "there" if counted else "back"
        with contextlib.suppress(OSError):
            while piece := await source.read(PIECE):
                self.heard[way] += piece
                if self.part is not None and self.part[0] == way:
                    left = self.part[1]
                    if len(piece) > left:
                        self.part = None
                        target.write(piece[:left])
                        await target.drain()
                        target.close()
                        await asyncio.sleep(0.002)  # until it is read
                        self._end()
                        break
                    self.part = (way, left - len(piece))
                target.write(piece)
                await target.drain()
        target.transport.abort()
        self._ends.discard(target)


def edges(said: bytes) -> list[int]:
    """Where to lose the line: before each message, within its head, and within what it holds."""
    found, at = {0}, 0
    while at < len(said):
        size = 1 + int.from_bytes(said[at + 1 : at + 5], "big")
        found.update((at + 3, at + size // 2, at + size - 1, at + size))
        at += size
    assert at == len(said)
    cuts = sorted(cut for cut in found if cut < len(said))
    step = -(-len(cuts) // CUTS_MAX)
    return sorted({*cuts[::step], *cuts[-8:]})  # the last is the commit itself


def name(page: int, n: int) -> str:
    return f"m{page:05d}-{n:03d}"


def page(number: int) -> Page:
    """One that says something new of the page before, too; as many bytes as any other."""
    reports = [
        Report(message_id=name(number, n), state=State.ENROUTE, final=False, provider_status="1")
        for n in range(NEW)
    ]
    reports += [
        Report(message_id=name(number - 1, n), state=State.DELIVERED, final=True)
        for n in range(OLD)
    ]
    due_ms = T0 + number
    feed = Work(account="a", kind=Kind.FEED, key="", due_ms=due_ms, start_ms=due_ms)
    return Page(
        account="a", provider="p", traits=DRAINED, observed_ms=due_ms, reports=reports, put=[feed],
        flaws=[Flaw("a cause", f"row {number:05d}", b"%05d" % number)],
    )  # fmt: skip


class Books:
    """Pages that were committed, one after the other, through a line."""

    def __init__(self, store: PatientStore) -> None:
        self.pages = 0
        self._store = store

    async def commit(self) -> None:
        number = self.pages = self.pages + 1

        def job(tx: Transaction) -> int:
            tx.put_note("a", "last", b"%05d" % number)
            return ledger.commit(tx, page(number)).records

        assert await self._store.write(job) == NEW + OLD


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with own_schema() as found:
        yield found


@pytest.mark.parametrize("way", WAYS)
async def test_a_commit_is_whole_and_once_wherever_the_line_is_lost(
    url: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.stores.postgres.WRITERS", 1)
    lost = 0
    async with Parting(HOST, require("postgres")[1]) as line:
        bare = PostgresStore(Secret(url.replace(":5432", f":{line.port}")))
        store = PatientStore(bare, Telemetry(), Quick())
        await store.open(own=True)
        books = Books(store)
        try:
            for _ in range(3):  # by then all statements are prepared, and a page says the same
                await books.commit()
            line.heard = dict.fromkeys(WAYS, b"")
            await books.commit()
            cuts = edges(line.heard[way])
            for cut in cuts:
                line.part = (way, cut)
                await books.commit()
                lost += line.part is None
                line.part = None
                await books.commit()
        finally:
            await store.close()
    assert lost >= len(cuts) - 2
    await judge(url, books.pages)


async def judge(url: str, pages: int) -> None:
    """By the tables alone."""
    db = await asyncpg.connect(url)
    try:
        rows = await db.fetch("SELECT message_id, revision, state FROM message ORDER BY message_id")
        wanted = {name(0, n): (1, "delivered") for n in range(OLD)}
        for number in range(1, pages + 1):
            wanted |= {name(number, n): (1, "enroute") for n in range(NEW)}
            if number < pages:
                wanted |= {name(number, n): (2, "delivered") for n in range(OLD)}
        assert [tuple(row) for row in rows] == [(one, *wanted[one]) for one in sorted(wanted)]
        told = await log(db)
        assert len(told) == len(set(told)) == pages * (NEW + OLD)
        revisions = {(one, n) for one, (last, _) in wanted.items() for n in range(1, last + 1)}
        assert set(told) == revisions
        tallies = {row[0]: row[1] for row in await db.fetch("SELECT name, n FROM tally")}
        assert tallies["known"] == len(wanted)
        assert tallies["records"] == len(told)
        assert tallies["known"] == tallies["final"] + tallies["pending"]
        assert tallies["set_aside"] == pages
        assert await db.fetchval("SELECT value FROM note WHERE name = 'last'") == b"%05d" % pages
        assert [row[0] for row in await db.fetch("SELECT due_ms FROM work")] == [T0 + pages]
        aside = await db.fetch("SELECT times FROM trouble WHERE kind = 'set_aside'")
        assert [row["times"] for row in aside] == [1] * pages
    finally:
        await db.close()


async def log(db: Any) -> list[tuple[str, int]]:
    """The records of the log, whose rows have no gap."""
    rows = await db.fetch("SELECT seq, body FROM log WHERE account = 'a' ORDER BY seq")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    head = await db.fetchval("SELECT log_next FROM account WHERE name = 'a'")
    assert head == len(rows) + 1
    unpacker = zstandard.ZstdDecompressor()
    records = [
        msgspec.json.decode(line)
        for row in rows
        for line in unpacker.decompress(row["body"]).split(b"\n")
    ]
    return [(record["message_id"], record["revision"]) for record in records]
