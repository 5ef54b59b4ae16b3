"""The log's bound and the disk's floor: who waits, who goes on, and that all arrives."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine import chores
from engine.core.work import LogRow
from engine.idle import until_done, until_idle
from engine.stores.memory import MemoryStore
from engine.stores.sqlite import SqliteStore
from engine.worker import Engine
from tests.integration.harness import (
    BATCH,
    STORES,
    Hasty,
    avaamo,
    bulksms,
    configured,
    infobip,
    lines,
    patiently,
    until,
)
from tests.integration.standin import Asked, Standin, json_of
from tests.integration.test_sinks_end_to_end import with_toy

LOG_MAX = 400_000
HEAD = "0|Returns to follow\n\n"
ROOMY = (1 << 40, 0, 1 << 39)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "ROOM_S", 0.02)


class World:
    """Three accounts that never run dry; a dead sink, a healthy one; and a disk in the hand."""

    def __init__(self, folder: Path, standin: Standin, url: str, **store: Any) -> None:
        self.free = ROOMY
        self.dry = False
        self._numbers = count()
        ladder = {"ladder": [f"{n * 40}ms" for n in range(100)], "give_up": "5s"}
        accounts = [
            bulksms(standin.answer("bulk", self._rows), schedule=ladder),
            avaamo(standin.answer("bot", self._entries)),
            infobip(standin.answer("info", self._reports)),
        ]
        table = {"url": url, "log_max": LOG_MAX, "min_free_disk": 1 << 20, **store}
        sinks = [{"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH}]
        config = configured(folder, *accounts, store=table, sinks=sinks, shutdown_grace="2s")
        self.config, self.toy = with_toy(config)
        self.toy.dead = True

    def engine(self, **keys: Any) -> Engine:
        return Engine(self.config, rand=Hasty(), disk_usage=lambda _: self.free, **keys)

    def _rows(self, asked: Asked) -> str:
        batch = asked.query["batch_id"]
        code = ("0", "10", "63", "12")[next(self._numbers) % 4]
        return "".join([HEAD, *(f"4479{batch:>04}{n:04}|{code}\n" for n in range(10))])

    def _entries(self, asked: Asked) -> bytes:
        end = float(asked.query["to_timetoken"])
        rows = [
            {"uuid": f"u{next(self._numbers)}", "from_phone": "+1", "to_phone": "+14155550100",
             "created_at": end, "sms_status": "delivered"}
            for _ in range(0 if self.dry else 10)
        ]  # fmt: skip
        return json_of(
            {"current_page": 1, "per_page": 100, "total_entries": len(rows), "total_pages": 1,
             "entries": rows}
        )  # fmt: skip

    def _reports(self, asked: Asked) -> bytes:
        status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
        ids = [f"m{next(self._numbers)}" for _ in range(0 if self.dry else 10)]
        results = [{"messageId": one, "to": "447900000001", "status": status} for one in ids]
        return json_of({"results": results})


async def follow(poller: Engine, *names: str, more: int = 5) -> dict[str, int]:
    """Wait until these accounts have been asked `more` times; how often each was meanwhile."""
    before = {name: poller.telemetry.of("requests", name) for name in poller.pollers}

    def asked() -> dict[str, int]:
        return {name: poller.telemetry.of("requests", name) - n for name, n in before.items()}

    await until(lambda: all(asked()[name] >= more for name in names), 10)
    return asked()


def said(caplog: pytest.LogCaptureFixture, subject: str) -> list[str]:
    texts = [record.getMessage() for record in caplog.records if record.name == "dlr_engine"]
    return [text for text in texts if text.startswith(f"{subject}: ")]


@pytest.mark.parametrize("url", STORES)
async def test_a_dead_sink_stops_what_can_be_read_again(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    world = World(tmp_path, standin, url)
    caplog.set_level("INFO", "dlr_engine")
    async with world.engine() as poller:
        for n in range(5):
            numbers = [f"4479{n:04}{k:04}" for k in range(10)]
            await poller.track("bulk", batch_id=str(n), recipients=numbers)
        await until(lambda: poller.room.shut("bulk"), 20, "the bound was never reached")
        await until(lambda: not standin.running["bulk"] and not standin.running["bot"])
        asked = await follow(poller, "info", more=10)
        assert asked["bulk"] == asked["bot"] == 0
        (loud,) = said(caplog, "log")
        assert "sink toy is" in loud
        assert "store.log_max is 391 KiB" in loud, "the bound is named"
        await until(lambda: poller.status("bulk")["waits"])
        assert poller.status("bulk")["waits"].endswith("behind")
        assert poller.status("info")["waits"] is None
        world.dry = True  # or the one-time feed would never be through
        stuck: list[str] = []

        async def subjects() -> list[str]:
            stuck[:] = await until_idle(poller, 0.3)
            return [line.partition(": ")[0] for line in stuck]

        # More than once, since a busy machine's store may not answer within so short a time.
        await patiently(subjects, ["account bulk", "account bot", "sink toy"])
        assert "waits: " in stuck[0]
        assert "sink toy is" in stuck[0]

        world.toy.dead = False
        await follow(poller, "bulk", "bot", "info")
        await until(lambda: len(world.toy.taken) >= len(lines(tmp_path)) > 100, 20)
        assert said(caplog, "log")[1] == "log: polling goes on: the sinks have caught up"
    assert poller.telemetry.total("log_full") >= 1
    archived = sorted(one["event_id"] for one in lines(tmp_path))
    assert sorted(one["event_id"] for one in world.toy.taken) == archived
    assert len(set(archived)) == len(archived)


@pytest.mark.parametrize("url", STORES)
async def test_the_bound_holds_after_a_restart(tmp_path: Path, standin: Standin, url: str) -> None:
    world = World(tmp_path, standin, url)
    store = None if url.startswith("sqlite") else MemoryStore()
    async with world.engine(store=store) as poller:
        await until(lambda: poller.room.shut("bot"), 20)
        waited = poller.room.waiting_bytes
    asked = len(standin.asked["bot"])
    async with world.engine(store=store) as poller:
        assert poller.room.shut("bot"), "known before the first poll"
        assert poller.room.waiting_bytes >= waited
        await follow(poller, "info")
    assert len(standin.asked["bot"]) == asked


async def test_once_names_what_waits(tmp_path: Path, standin: Standin) -> None:
    world = World(tmp_path, standin, STORES[0])
    async with world.engine() as poller:
        await until(lambda: poller.room.shut("bot"), 20)
    world.dry = True
    async with world.engine(once=True) as poller:
        stuck = await until_done(poller)
    assert any(line.startswith("account bot: ") and "waits: " in line for line in stuck), stuck


async def test_a_disk_below_its_floor_stops_all(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, standin, STORES[0], log_max=1 << 30)
    world.toy.dead = False
    caplog.set_level("INFO", "dlr_engine")
    async with world.engine() as poller:
        await follow(poller, "bot", "info")
        world.free = (1 << 40, 0, 1000)
        await until(lambda: poller.room.shut("info"))
        await until(lambda: not standin.running["info"] and not standin.running["bot"])
        asked = (len(standin.asked["info"]), len(standin.asked["bot"]))
        await anyio.sleep(0.5)
        assert (len(standin.asked["info"]), len(standin.asked["bot"])) == asked
        (loud,) = said(caplog, "disk")
        assert "store.min_free_disk is 1 MiB" in loud
        bounds = {"bot": (0, 1)}
        with anyio.fail_after(10):  # what all have acknowledged goes at once
            while any(start < end for start, end in bounds.values()):
                bounds = await poller.store.read(lambda tx: tx.log_bounds())
        world.free = ROOMY
        await follow(poller, "bot", "info")
        assert len(said(caplog, "disk")) == 2


async def test_what_was_pruned_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.open(own=True)
    seq = 1

    async def fill() -> None:
        nonlocal seq
        for _ in range(20):
            row = LogRow(seq=seq, at_ms=1, states=b"\x01", body=os.urandom(100_000))
            replaced = {seq: 1}  # no message needs it
            await store.write(
                lambda tx, row=row, replaced=replaced: tx.append_log("a", [row], replaced)
            )
            seq += 1

    async def pages() -> int:
        with closing(sqlite3.connect(path)) as db:
            return int(db.execute("PRAGMA page_count").fetchone()[0])

    await fill()
    full = await pages()
    before = await store.read(lambda tx: tx.reusable_bytes())
    await store.write(lambda tx: tx.drop_log("a", seq, 2, 100))
    freed = await store.read(lambda tx: tx.reusable_bytes()) - before
    assert freed > 1_900_000
    await fill()
    assert await pages() == full, "the file did not grow"
    await store.close()


async def test_a_store_of_the_first_schema_learns_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    schema = resources.files("engine.stores") / "schema" / "sqlite-0001.sql"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema.read_text("utf-8"))
        db.executescript("PRAGMA user_version = 1")
        for name, first in (("a", 3), ("b", 1)):
            (number,) = db.execute(
                "INSERT INTO account (name, log_start, log_next) VALUES (?, ?, ?) RETURNING id",
                (name, first, first + 3),
            ).fetchone()
            db.execute("INSERT INTO place VALUES ('s', ?, ?, 0)", (number, first + 1))
            for n in range(3):
                row = (number << 40 | first + n, 1, b"\x01", b"x" * 10 ** (n + 1))
                db.execute("INSERT INTO log VALUES (?, ?, ?, ?)", row)
        db.commit()
    store = SqliteStore(path)
    await store.open(own=True)
    assert await store.read(lambda tx: tx.backlog()) == {"s": {"a": 1100, "b": 1100}}
    row = LogRow(seq=6, at_ms=1, states=b"\x01", body=b"y" * 5)
    await store.write(lambda tx: tx.append_log("a", [row]))
    assert await store.read(lambda tx: tx.backlog()) == {"s": {"a": 1105, "b": 1100}}
    found = await store.read(lambda tx: tx.log_rows("b", 1, 9, bytes_max=9999))
    assert [(one.seq, one.body) for one in found] == [(n, b"x" * 10**n) for n in (1, 2, 3)]
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(log)")]
    assert columns[-1] == "body", "what stands behind it costs a walk through it"


async def test_a_file_system_that_does_not_tell_its_size_is_no_reason_to_end(
    tmp_path: Path, standin: Standin
) -> None:
    def silent(_folder: Path) -> tuple[int, int, int]:
        raise OSError(errno.ENOSYS, "not implemented")

    account = bulksms(standin.answer("bulk", [HEAD + "447900000000|11\n"]))
    config = configured(tmp_path, account)
    async with Engine(config, rand=Hasty(), disk_usage=silent) as poller:
        await poller.track("bulk", batch_id="1", recipients=["447900000000"])
        await until(lambda: lines(tmp_path))
        assert poller.pollers["bulk"].waits is None
