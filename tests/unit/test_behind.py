"""Pages of a window are committed behind the next question, and the cursor behind all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import pytest

from engine.core.errors import StoreError
from engine.core.schedule import Ladder
from engine.core.work import Work
from engine.polling.behind import BEHIND_MAX
from engine.polling.feeds import Feed
from engine.polling.windowed import WindowReader
from engine.stores.memory import MemoryStore
from engine.stores.transaction import Transaction
from tests.unit.parts import T0, Parts, feed_work

T = TypeVar("T")

PAGES = 3 * BEHIND_MAX
LIMITS = {"requests": 1000, "per": "1s", "concurrency": 1}


def page(number: int, pages: int = PAGES) -> tuple[int, dict[str, Any]]:
    entry = {"uuid": f"m{number}", "created_at": T0 / 1000 - 30, "sms_status": "sent"}
    return 200, {
        "current_page": number, "per_page": 1, "total_entries": pages, "total_pages": pages,
        "entries": [entry],
    }  # fmt: skip


class HeldStore(MemoryStore):
    """Writes nothing until `go`; `writes` are the transactions that were made. `fails` from the
    so-maniest on."""

    def __init__(self, fails: int | None = None) -> None:
        super().__init__()
        self.go = anyio.Event()
        self.writes = self.tries = 0
        self._fails = fails

    async def write(self, job: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        self.tries += 1
        await self.go.wait()
        self.writes += 1
        if self._fails is not None and self.writes > self._fails:
            raise StoreError("the disk is gone")
        return await super().write(job, lazy=lazy)


class Reading:
    """A feed of some pages that is read over a store which is held."""

    def __init__(self, parts: Parts, store: HeldStore, work: Work) -> None:
        self.parts, self.store, self.work = parts, store, work
        self.error: StoreError | None = None
        self._feed = Feed(parts.asker, WindowReader(parts.asker), Ladder.of(()))

    async def run(self) -> None:
        try:
            visit = await self._feed.advance(self.work, None)
        except StoreError as error:
            self.error = error
        else:
            assert visit.records == len(self.parts.network.asked)

    async def asked(self) -> int:
        """How many questions go out before one waits for the store."""
        before = -1
        while len(self.parts.network.asked) != before:
            before = len(self.parts.network.asked)
            await anyio.sleep(0.1)
        return before

    async def stored(self) -> tuple[int, int | None]:
        """The messages that are known, and where the feed stands."""
        tallies = await self.store.read(lambda tx: tx.tallies())
        found = await self.store.read(lambda tx: tx.work(self.work.id or 0))
        assert found is not None
        return tallies.get("a", {}).get("known", 0), found.data.get("cursor")


async def begun(parts: Parts, store: HeldStore) -> Reading:
    work = await MemoryStore.write(store, lambda tx: tx.put_works([feed_work(parts.clock)]))
    return Reading(parts, store, work[0])


def over(store: HeldStore, pages: int = PAGES) -> Parts:
    answers = [page(number, pages) for number in range(1, pages + 1)]
    parts = Parts("avaamo", *answers, per_page=1, limits=LIMITS)
    parts.store._store = store
    return parts


async def test_the_next_page_is_asked_for_while_the_last_ones_are_committed() -> None:
    """So many and no more wait for the store, and they need few transactions then."""
    store = HeldStore()
    async with over(store) as parts:
        reading = await begun(parts, store)
        async with anyio.create_task_group() as group:
            group.start_soon(reading.run)
            assert await reading.asked() == BEHIND_MAX + 1
            assert await reading.stored() == (0, None)
            store.go.set()
        known, cursor = await reading.stored()
        assert known == PAGES
        assert cursor is not None
        assert len(parts.network.asked) == PAGES
        assert store.writes < PAGES


async def test_the_page_that_moves_the_cursor_waits_for_those_before_it() -> None:
    store = HeldStore()
    async with over(store, pages=3) as parts:
        reading = await begun(parts, store)
        async with anyio.create_task_group() as group:
            group.start_soon(reading.run)
            assert await reading.asked() == 3
            assert store.tries == 1, "the first page's; it takes the second along next"
            store.go.set()
        known, cursor = await reading.stored()
        assert known == 3
        assert cursor is not None


@pytest.mark.parametrize("fails", [0, 1, 2])
async def test_the_cursor_stays_where_a_page_was_not_stored(fails: int) -> None:
    store = HeldStore(fails)
    async with over(store) as parts:
        reading = await begun(parts, store)
        async with anyio.create_task_group() as group:
            group.start_soon(reading.run)
            await reading.asked()
            store.go.set()
        assert reading.error is not None
        known, cursor = await reading.stored()
        assert known < PAGES
        assert cursor is None
