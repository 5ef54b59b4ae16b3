"""Windows that are read again while something in them may still change."""

from __future__ import annotations

from collections.abc import Sequence

from engine.asking import Asker
from engine.core.contracts import Kind
from engine.core.reading import Reading
from engine.core.schedule import Ladder
from engine.core.work import Expire, Work
from engine.windowed import ServerClock, Visit, WindowReader


class Rescans:
    """The rescans of one account."""

    def __init__(self, asker: Asker, reader: WindowReader, ladder: Ladder) -> None:
        self._asker = asker
        self._account = asker.account
        self._traits = asker.traits
        self._reader = reader
        self._rescans = ladder

    async def visit(self, works: Sequence[Work]) -> Visit:
        """Read windows again: neighbours as one, those with nothing open not at all."""
        visit = Visit()
        visit.left = loud = await self._loud(works)
        for group in self._groups(loud):
            first, last = group[0], group[-1]
            reading = Reading.of(first.data["from"], last.data["to"], self._traits)
            began_ms = self._asker.clock.now_ms()
            visit.failed = await self._reader.read(
                reading, Kind.WINDOW, None, ServerClock(), visit, lambda page: None
            )
            if visit.failed is not None or reading.spans:  # or stopped in the middle: still due
                break
            await self._answer(group, began_ms)
            visit.left = [work for work in visit.left if work not in group]
            if self._reader.halts:
                break
        return visit

    async def _loud(self, works: Sequence[Work]) -> list[Work]:
        """Those with something open; the others step over this rung, and are forgotten once no
        late entry can open them any more."""
        name = self._account.name
        spans = [(work.data["from"], work.data["to"] - 1) for work in works]
        found = await self._asker.store.read(
            lambda tx: [
                bool(tx.open_in_span(name, from_ms, to_ms, pending=False, limit=1))
                for from_ms, to_ms in spans
            ]
        )
        quiet = [work for work, is_open in zip(works, found, strict=True) if not is_open]
        if quiet:
            now_ms = self._asker.clock.now_ms()
            overlap_ms = round(self._account.overlap_s * 1000)
            page = self._asker.page()
            for work in quiet:
                assert work.id is not None
                due_ms = self._step(work, now_ms)
                if due_ms is None or now_ms > work.start_ms + overlap_ms:
                    page.drop = [*page.drop, work.id]
                else:
                    work.due_ms = due_ms
                    page.put = [*page.put, work]
            await self._asker.commit(page)
        return [work for work, is_open in zip(works, found, strict=True) if is_open]

    def _groups(self, works: Sequence[Work]) -> list[list[Work]]:
        """Neighbours together, as long as a window may be."""
        groups: list[list[Work]] = []
        for work in sorted(works, key=lambda work: int(work.data["from"])):
            if groups:
                group = groups[-1]
                joined_ms = work.data["to"] - group[0].data["from"]
                if (
                    work.data["from"] <= group[-1].data["to"]
                    and joined_ms <= self._traits.window_max_ms
                ):
                    group.append(work)
                    continue
            groups.append([work])
        return groups

    def _step(self, work: Work, now_ms: int) -> int | None:
        """Mark the rungs due by `now_ms` as answered; when the next one is due."""
        work.answered_ms = max(work.answered_ms, self._rescans.reached_ms(work.start_ms, now_ms))
        return self._rescans.next_due_ms(work.start_ms, work.answered_ms, self._asker.rand.random())

    async def _answer(self, group: Sequence[Work], began_ms: int) -> None:
        page = self._asker.page()
        over: list[Work] = []
        for work in group:
            due_ms = self._step(work, began_ms)
            if due_ms is None:
                over.append(work)
            else:
                work.due_ms = due_ms
                page.put = [*page.put, work]
        await self._asker.commit(page)
        for work in over:
            await self.expire(work)

    async def expire(self, work: Work) -> None:
        """The last rescan has passed: verdicts for what is pending, then the window is over."""
        assert work.id is not None
        while True:
            page = self._asker.page()
            page.expire = Expire(from_ms=work.data["from"], to_ms=work.data["to"] - 1)
            done = await self._asker.commit(page)
            if not done.remaining:
                break
        page = self._asker.page()
        page.drop = [work.id]
        await self._asker.commit(page)
