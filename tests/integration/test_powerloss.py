"""Power loss: only what was synced is on the disk, and of the rest anything may be.

The real store on the real SQLite tells each write and sync of its files. From that the disk is
made again as a power cut may have left it at any moment, opened, and compared with what had been
acknowledged by then: a one-time provider that is asked again has been told so.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import anyio.lowlevel
import msgspec
import pytest

import engine
from benchmarks.vfs import Unavailable, watched
from engine.core.contracts import Batch
from engine.sinks.jsonl import JsonlSink
from engine.stores.sqlite import SqliteStore
from tests.integration.harness import BATCH, bulksms, configured, hasty, infobip, until
from tests.integration.standin import Asked, Standin, json_of

SECTOR = 512
PAGES = 12
PER_PAGE = 15
STATUS = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
Event = tuple[str, str, int, bytes]


class Trace:
    """What happened, in its order: writes and syncs of files, and what is told of outside."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def tell(self, what: str, file: str, at: int, data: bytes) -> None:
        with self._lock:
            self.events.append((what, os.path.basename(file), at, data))

    def mark(self, what: str, number: int, data: bytes = b"") -> None:
        self.tell(what, "", number, data)

    def marks(self, what: str) -> Iterator[tuple[int, int, bytes]]:
        """Where it was, its number and what it said."""
        for place, (kind, _, number, data) in enumerate(self.events):
            if kind == what:
                yield place, number, data

    @contextmanager
    def watching(self) -> Iterator[None]:
        try:
            with watched(self.tell):
                yield
        except Unavailable as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"the library behind sqlite3 cannot be watched: {error}")


class Disk:
    """The files as a power cut leaves them: what was synced, and any part of what was not."""

    def __init__(self, events: list[Event]) -> None:
        self.synced: dict[str, bytearray] = {}
        self.pending: dict[str, list[Event]] = {}
        for event in events:
            what, file, _, _ = event
            if what == "sync":
                content = self.synced.setdefault(file, bytearray())
                for done in self.pending.pop(file, []):
                    _apply(content, done)
            elif what == "delete":
                self.synced.pop(file, None)
                self.pending.pop(file, None)
            elif what in ("write", "truncate"):
                self.pending.setdefault(file, []).append(event)

    def leave(self, folder: Path, how: str, dice: random.Random) -> None:
        """Write the files. `how`: of what was not synced none, all, any writes, or any sectors."""
        folder.mkdir()
        for file in {*self.synced, *self.pending}:
            content = bytearray(self.synced.get(file, b""))
            for event in self.pending.get(file, []):
                for part in _sectors(event) if how == "torn" else [event]:
                    if how == "all" or (how != "none" and dice.random() < 0.5):
                        _apply(content, part)
            if not file.endswith("-shm"):
                (folder / file).write_bytes(content)


def _apply(content: bytearray, event: Event) -> None:
    what, _, at, data = event
    if what == "truncate":
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


def _sectors(event: Event) -> Iterator[Event]:
    what, file, at, data = event
    start = 0
    while what == "write" and start < len(data):
        stop = min(len(data), (at + start) // SECTOR * SECTOR + SECTOR - at)
        yield what, file, at + start, data[start:stop]
        start = stop
    if what != "write":
        yield event


def page(number: int) -> bytes:
    ids = range(number * PER_PAGE, (number + 1) * PER_PAGE) if number < PAGES else range(0)
    return json_of({
        "results": [
            {"messageId": f"m{n}", "to": f"4479{n:08}", "status": STATUS, "callbackData": "x" * 99}
            for n in ids
        ]
    })  # fmt: skip


async def live(
    folder: Path, standin: Standin, trace: Trace, level: str, *, drains: bool = True
) -> None:
    """A one-time account (with `drains`) and one that is asked again and again, and a sink."""

    def one_time(asked: Asked) -> bytes:
        trace.mark("asked", asked.number)
        return page(asked.number - 1)

    def repeated(asked: Asked) -> bytes:
        code = 10 if asked.number // 4 % 2 else 12  # on its way, and never final
        return b"0|x\n\n" + b"".join(b"4479%08d|%d\n" % (n, code) for n in range(9))

    accounts = [
        infobip(standin.answer("info", one_time), limit=PER_PAGE, schedule={"interval": "20ms"}),
        bulksms(
            standin.answer("bulk", repeated),
            schedule={"ladder": [f"{n * 25}ms" for n in range(40)], "give_up": "5s"},
        ),
    ]
    sinks = [{"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH}]
    config = configured(folder, *accounts[not drains :], sinks=sinks)
    store = msgspec.structs.replace(config.store, synchronous=level)
    config = msgspec.structs.replace(config, store=store)
    with trace.watching():
        async with hasty(config) as poller:
            for batch in range(4):
                await poller.track("bulk", batch_id=str(batch))
            if drains:
                await until(lambda: len(standin.asked["info"]) > PAGES + 2, 30)
            await until(lambda: len(standin.asked["bulk"]) > 30, 30)


async def known(folder: Path) -> tuple[set[str], dict[str, int]]:
    """What the store in a folder knows: messages, and the revision of each."""
    store = SqliteStore(folder / "state.db")
    await store.open(own=True)
    try:
        found: dict[str, int] = {}
        for account in ("info", "bulk"):
            ids = [(f"m{n}", "mt") for n in range(PAGES * PER_PAGE)]
            ids += [(f"{b}:4479{n:08}", "mt") for b in range(4) for n in range(9)]
            messages = await store.read(lambda tx, a=account, i=ids: tx.messages(a, i))
            found |= {key[0]: one.revision for key, one in messages.items()}
        return set(found), found
    finally:
        await store.close()


HOWS = ("none", "all", "some", "torn")


async def missing(trace: Trace, folder: Path, hows: tuple[str, ...]) -> int:
    """One-time reports that had been acknowledged and are not there after a power cut."""
    dice = random.Random(5)
    lost = cuts = 0
    for place, number, _ in trace.marks("asked"):
        told = {f"m{n}" for n in range(min(number - 1, PAGES) * PER_PAGE)}
        disk = Disk(trace.events[:place])
        for how in hows:
            cuts += 1
            disk.leave(folder / f"{place}-{how}", how, dice)
            lost += len(told - (await known(folder / f"{place}-{how}"))[0])
    assert cuts > PAGES * len(hows)
    return lost


@pytest.mark.parametrize("level", ["full", "normal"])
async def test_a_one_time_answer_survives_a_power_cut(
    tmp_path: Path, standin: Standin, level: str
) -> None:
    trace = Trace()
    (tmp_path / "live").mkdir()
    await live(tmp_path / "live", standin, trace, level)
    assert await missing(trace, tmp_path, HOWS) == 0
    # And the order itself: between two requests the WAL was synced, after the last write to it.
    places = [place for place, _, _ in trace.marks("asked")][: PAGES + 1]
    for before, after in pairwise(places):
        between = [event[0] for event in trace.events[before:after] if event[1] == "state.db-wal"]
        assert "sync" in between


async def test_off_gives_that_up(tmp_path: Path, standin: Standin) -> None:
    """The same test sees a loss where there is one."""
    trace = Trace()
    (tmp_path / "live").mkdir()
    await live(tmp_path / "live", standin, trace, "off")
    assert await missing(trace, tmp_path, ("none",)) > 0


@pytest.mark.parametrize("level", ["full", "normal"])
async def test_a_sink_never_knows_what_the_store_forgets(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Else a revision would be given twice, for two things."""
    trace = Trace()
    write = JsonlSink.write

    async def told(self: JsonlSink, batch: Batch) -> None:
        for report in batch.reports():
            trace.mark("given", report.revision, report.message_id.encode())
        await write(self, batch)

    monkeypatch.setattr(JsonlSink, "write", told)
    (tmp_path / "live").mkdir()
    await live(tmp_path / "live", standin, trace, level, drains=False)
    given: dict[str, int] = {}
    dice = random.Random(5)
    marks = list(trace.marks("given"))
    assert len(marks) > 60
    for index, (place, revision, message_id) in enumerate(marks):
        given[message_id.decode()] = revision
        if index % 7 == 0 or index + 1 == len(marks):
            folder = tmp_path / str(place)
            Disk(trace.events[:place]).leave(folder, "none", dice)
            stored = (await known(folder))[1]
            assert {k for k, v in given.items() if stored.get(k, 0) < v} == set()
    synced = sum(what == "sync" for what, _, _, _ in trace.events)
    assert synced > 0
    await anyio.lowlevel.checkpoint()


def syncs(trace: Trace) -> int:
    return sum(what == "sync" for what, _, _, _ in trace.events)


async def test_normal_syncs_less(tmp_path: Path, standin: Standin) -> None:
    """Of an account that can be read again no commit needs a sync, until a sink is given it."""

    async def of(level: str) -> tuple[int, int]:
        trace = Trace()
        (tmp_path / level).mkdir()
        store = SqliteStore(tmp_path / level / "state.db", level)
        with trace.watching():
            await store.open(own=True)
            await store.write(lambda tx: tx.put_note("a", "first", b"x"))  # the WAL's header, too
            before = syncs(trace)
            for n in range(20):
                await store.write(lambda tx, n=n: tx.put_note("a", f"n{n}", b"x"), lazy=True)
            lazy = syncs(trace) - before
            await store.sync()
            await store.sync()
            after = syncs(trace) - before - lazy
            await store.close()
        return lazy, after

    assert await of("full") == (20, 0)
    assert await of("normal") == (0, 1)
    assert await of("off") == (0, 0)


def test_the_level_is_a_key_and_off_is_said_loudly(tmp_path: Path) -> None:
    from engine.config import describe

    def told(**store: str) -> str:
        account = infobip("http://127.0.0.1:1")
        data = {"store": {"url": "sqlite:///state.db", **store}, "accounts": [account]}
        return "\n".join(describe(engine.configure(data, base=tmp_path)))

    assert "power cut" not in told()
    assert "synchronous = normal" in told(synchronous="normal")
    assert 'WARNING: synchronous = "off": a power cut' in told(synchronous="off")
    with pytest.raises(engine.ConfigError, match='one of "full", "normal", "off"'):
        told(synchronous="extra")
