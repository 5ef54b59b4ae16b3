"""Past periods, read beside the ordinary feed: slice by slice, each as long as a window may be.

A slice is read as the feed reads its own, and its rescans are the same; the feed's cursor has no
part in it. How far a period is read is in its work, with every span that ends; so that a restart,
or the same order once more, goes on from there.
"""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from engine.books.periods import end_period
from engine.core.contracts import Kind
from engine.core.reading import SHORT_WINDOW, Reading
from engine.core.schedule import Ladder
from engine.core.work import Page, Work
from engine.polling.asking import Asker, joined
from engine.polling.windowed import ServerClock, Stand, Visit, WindowReader, window_of


class _Kept(msgspec.Struct, kw_only=True):
    """A slice whose reading has ended in the middle."""

    work_id: int
    stand: Stand
    data: dict[str, Any]  # the slice's plan
    stored: dict[str, Any]  # the work's data when the visit ended


class Backfills:
    """The past periods of one account, one at a time."""

    def __init__(self, asker: Asker, reader: WindowReader, rescans: Ladder) -> None:
        """`reader` is for these alone: what it finds out of a span is of that span."""
        self._asker = asker
        self._account = asker.account
        self._traits = asker.traits
        self._reader = reader
        self._rescans = rescans
        self._turn = anyio.Lock(fast_acquire=True)
        self._kept: _Kept | None = None
        self._at: int | None = None  # the work that is being read
        self._uncounted: dict[int, int] = {}  # by work: records since its data was last stored
        self._stopped = False

    def stop(self) -> None:
        """What is being read ends with its next answer, and nothing more is."""
        self._stopped = self._reader.stopping = True

    def over(self, works: list[int]) -> None:
        """These have ended by another hand."""
        if self._at in works:
            self._reader.stopping = True

    async def advance(self, work: Work) -> Visit | None:
        """Read on, to the end of a slice at most. None: the period is over, or was stopped."""
        assert work.id is not None
        work_id = work.id
        async with self._turn:
            self._at, self._reader.stopping = work_id, self._stopped
            try:
                stored = await self._asker.store.read(lambda tx: tx.work(work_id))
                if stored is None:
                    self._uncounted.pop(work_id, None)
                    return None
                work.data = stored.data
                if int(work.data["cursor"]) >= int(work.data["to"]):
                    await self._end(work)
                    return None
                return await self._read(work, work_id)
            finally:
                self._at = None

    async def _end(self, work: Work) -> None:
        now_ms = self._asker.clock.now_ms()
        data = dict(work.data)
        data["records"] = int(data.get("records", 0)) + self._uncounted.pop(work.id or 0, 0)
        over = msgspec.structs.replace(work, data=data)
        await self._asker.store.write(lambda tx: end_period(tx, over, now_ms))

    async def _read(self, work: Work, work_id: int) -> Visit:
        kept, self._kept = self._kept, None
        data, visit = dict(work.data), Visit()
        holds = (
            kept is not None
            and kept.work_id == work_id
            and kept.stored == data
            and kept.stand.holds(self._asker.clock.now_ms())
        )
        if holds and kept is not None:
            data, stand = kept.data, kept.stand
        else:
            stand = self._begin(data)
        reading = stand.reading
        counted = 0

        def moved(page: Page) -> None:
            nonlocal counted
            opened = joined(data.get("opened"), visit.opened_ms)
            data["opened"] = None if opened is None else list(opened)  # as it is read again
            gaps = sum(one.kind == SHORT_WINDOW for one in page.incidents)
            data["incidents"] = int(data.get("incidents", 0)) + gaps
            data["records"] = int(data.get("records", 0)) + visit.records - counted
            data["records"] += self._uncounted.pop(work_id, 0)
            counted = visit.records
            data["spans"] = reading.dump()
            data["shown"] = stand.server.first_ms
            work.due_ms = self._asker.clock.now_ms()
            if not reading.spans:
                self._finish(work, data, page, stand.server)
            page.put = [*page.put, work]
            work.data = dict(data)

        # A window that is read again is all that this is to a provider.
        visit.failed = await self._reader.read(stand, Kind.WINDOW, None, visit, moved)
        uncounted = self._uncounted.pop(work_id, 0) + visit.records - counted
        if uncounted and self._stopped:
            work.data = {**work.data, "records": int(work.data.get("records", 0)) + uncounted}
            await self._asker.store.write(lambda tx: tx.move_works([work]))
        elif uncounted:
            self._uncounted[work_id] = uncounted
        if reading.spans:
            self._kept = _Kept(work_id=work_id, stand=stand, data=data, stored=work.data)
            visit.more = visit.failed is None
        else:
            visit.more = work.due_ms <= self._asker.clock.now_ms()
        return visit

    def _begin(self, data: dict[str, Any]) -> Stand:
        """The slice in hand from its first span that is still to be read, or the next one."""
        if not data.get("spans"):
            cursor, to_ms = int(data["cursor"]), int(data["to"])
            data["end"] = min(cursor + self._traits.window_max_ms, to_ms)
            data["spans"] = Reading.of(cursor, data["end"], self._traits).dump()
        return Stand(reading=Reading.load(data["spans"]), server=ServerClock(data.get("shown")))

    def _finish(self, work: Work, data: dict[str, Any], page: Page, server: ServerClock) -> None:
        """A slice was read to its end: go on with the next, and plan its rescans."""
        cursor, end_ms, now_ms = int(data["cursor"]), int(data.pop("end")), work.due_ms
        # What the provider did not have yet by its own clock was not read.
        reached = max(cursor, min(end_ms, server.first_ms or end_ms))
        opened = data.pop("opened", None)
        del data["spans"], data["shown"]
        data["cursor"] = reached
        if reached < end_ms:
            work.due_ms = now_ms + round(self._account.schedule.interval_s * 1000)
        window = window_of(
            self._account.name,
            (cursor, reached),
            opened,
            self._rescans,
            now_ms,
            self._asker.rand.random,
        )
        if window is not None:
            page.put = [*page.put, window]
