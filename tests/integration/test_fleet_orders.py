"""What is asked of the sinks of a running fleet, whose accounts are spread over its workers."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import orjson
import pytest

from tests.integration.harness import patiently, until
from tests.integration.receiver import WEBHOOK, Receiver, receiver
from tests.integration.standin import Standin
from tests.integration.test_infobip import page, report
from tests.integration.test_workers import ENGINE, PATIENCE_S, database, said

__all__ = ["database", "receiver"]

ACCOUNTS = 4


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    db = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await db.fetch(query)]
    finally:
        await db.close()


class Fleet:
    """Two workers, four accounts, and the commands beside them."""

    def __init__(self, folder: Path, store: str, standin: Standin, receiver: Receiver) -> None:
        self.config = str(folder / "engine.toml")
        self._receiver = receiver
        self.batch = '{ wait = "10ms" }'
        self._head = f'[store]\nurl = "{store}"\n'
        for n in range(ACCOUNTS):
            url = standin.answer(f"i{n}", [page(report(f"m{n}")), b'{"results":[]}'])
            self._head += (
                f'[[accounts]]\nname = "i{n}"\nprovider = "infobip"\nbase_url = "{url}"\n'
                'api_key = "k"\nschedule = { interval = "100ms", idle_interval = "100ms" }\n'
                'limits = { requests = 100, per = "1s" }\n'
            )

    @asynccontextmanager
    async def run(self, *sinks: str) -> AsyncIterator[None]:
        """Run the workers with these sinks, the accounts shared out between them."""
        self.configure(*sinks)
        command = [*ENGINE, "run", "--config", self.config, "--workers", "2", "--quiet"]
        parent = await anyio.open_process(command, stdout=None, stderr=None)
        try:
            await patiently(self._holders, 2, PATIENCE_S)
            yield
        finally:
            parent.send_signal(signal.SIGTERM)
            await parent.wait()
        assert parent.returncode == 0

    def configure(self, *sinks: str) -> None:
        parts = [
            WEBHOOK.format(name=name, url=self._receiver.url).replace(
                '{ wait = "10ms" }', self.batch
            )
            for name in sinks
        ]
        Path(self.config).write_text("".join([self._head, *parts]))

    async def _holders(self) -> int:
        """How many workers have accounts, once each account is somebody's."""
        accounts = (await self.told("stats"))["accounts"].values()
        holders = [one["lease"]["worker"] if one["lease"] else None for one in accounts]
        return 0 if None in holders else len(set(holders))

    async def retrying(self, database: str) -> int:
        """The process that is offering dead letters: the one of which the receiver holds a call."""
        query = "SELECT pid FROM worker JOIN lease ON worker.id = worker WHERE account = 'i0'"
        return int((await rows(database, query))[0][0])

    async def letters(self) -> dict[str, int]:
        """Dead letters by sink."""
        listed = (await self.told("dead-letter", "list"))["sinks"]
        return {one["sink"]: one["letters"] for one in listed}

    async def told(self, *words: str) -> Any:
        head, *rest = words
        done = await said(head, "--config", self.config, *rest, "--json")
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return orjson.loads(done.stdout)


@pytest.fixture
def fleet(tmp_path: Path, database: str, standin: Standin, receiver: Receiver) -> Fleet:
    return Fleet(tmp_path, database, standin, receiver)


async def test_sinks_of_a_fleet_obey_for_the_accounts_of_all_workers(
    fleet: Fleet, receiver: Receiver
) -> None:
    """Each answers in its own time: one that went round until its time was up would fail here."""
    receiver.refuse = {"delivered"}
    async with fleet.run("crm", "old"):
        await patiently(fleet.letters, {"crm": ACCOUNTS, "old": ACCOUNTS}, PATIENCE_S)
        (done,) = (await fleet.told("dead-letter", "retry", "--sink", "crm"))["sinks"]
        assert (done["accepted"], done["refused"], done["left"]) == (0, ACCOUNTS, 0)
        shown = (await fleet.told("dead-letter", "list", "--sink", "crm"))["letters"]
        assert [one["times"] for one in shown] == [2] * ACCOUNTS
        receiver.refuse = set()
        (done,) = (await fleet.told("dead-letter", "retry", "--sink", "crm"))["sinks"]
        assert (done["accepted"], done["refused"], done["left"]) == (ACCOUNTS, 0, 0)
        assert await fleet.letters() == {"old": ACCOUNTS}
        assert len(receiver.taken) == ACCOUNTS
        told = await fleet.told("sinks", "rewind", "--sink", "crm", "--to", "start")
        assert told["again"] == {f"i{n}": 1 for n in range(ACCOUNTS)}
        await until(lambda: len(receiver.taken) == 2 * ACCOUNTS, PATIENCE_S)
        rows = {one["sink"]: one["state"] for one in (await fleet.told("sinks", "list"))["sinks"]}
        assert rows == {"crm": "ok", "old": "ok"}
    async with fleet.run("crm"):
        gone = await fleet.told("sinks", "forget", "--sink", "old")
        assert gone == {"sink": "old", "accounts": ACCOUNTS, "dead_letters": ACCOUNTS}
        assert [one["sink"] for one in (await fleet.told("sinks", "list"))["sinks"]] == ["crm"]
    fleet.configure()  # and no worker runs
    gone = await fleet.told("sinks", "forget", "--sink", "crm")
    assert gone == {"sink": "crm", "accounts": ACCOUNTS, "dead_letters": 0}


@asynccontextmanager
async def a_retry_in_hand(fleet: Fleet, receiver: Receiver, database: str) -> AsyncIterator[int]:
    """Within the block a worker waits for the receiver with a dead letter in hand: its process.

    The receiver answers at the block's end, and whoever does it: the order is done then.
    """
    await patiently(fleet.letters, {"crm": ACCOUNTS}, PATIENCE_S)
    receiver.refuse, receiver.hold = set(), anyio.Event()
    outcome: list[Any] = []

    async def retry() -> None:
        outcome.append(await fleet.told("dead-letter", "retry", "--sink", "crm"))

    async with anyio.create_task_group() as group:
        group.start_soon(retry)
        await until(lambda: bool(receiver.taken), PATIENCE_S)
        yield await fleet.retrying(database)
        receiver.hold.set()
        receiver.hold = None
    (done,) = outcome[0]["sinks"]
    assert (done["accepted"], done["refused"], done["left"]) == (ACCOUNTS, 0, 0)
    assert await fleet.letters() == {}
    assert await rows(database, "SELECT count(*) FROM inbox") == [(0,)]


async def test_an_order_that_an_ending_worker_has_begun_is_ended_by_another(
    fleet: Fleet, receiver: Receiver, database: str
) -> None:
    receiver.refuse = {"delivered"}
    fleet.batch = '{ wait = "10ms", records = 1 }'
    async with fleet.run("crm"):
        async with a_retry_in_hand(fleet, receiver, database) as process:
            os.kill(process, signal.SIGTERM)
            await anyio.sleep(1)  # it ends by now; else it just goes on with the next letter
        assert len(receiver.taken) == ACCOUNTS  # each was offered once


async def test_an_order_in_the_hands_of_a_killed_worker_is_done_by_the_next(
    fleet: Fleet, receiver: Receiver, database: str
) -> None:
    receiver.refuse = {"delivered"}
    async with fleet.run("crm"):
        async with a_retry_in_hand(fleet, receiver, database) as process:
            os.kill(process, signal.SIGKILL)
        taken = Counter(record["event_id"] for record in receiver.taken)
        assert len(taken) == ACCOUNTS
        assert await rows(database, "SELECT count(*) FROM note WHERE name LIKE 'retry%'") == [(0,)]
