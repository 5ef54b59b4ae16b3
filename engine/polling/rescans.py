"""Windows that are read again while something in them may still change."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.core.contracts import Kind
from engine.core.reading import Reading
from engine.core.schedule import Ladder
from engine.core.work import Expire, Work
from engine.polling.asking import Asker
from engine.polling.windowed import Stand, Visit, WindowReader
from engine.stores.settling import SHORT_WAITS_MS
from engine.stores.transaction import Transaction


class _Kept(msgspec.Struct, kw_only=True):
    """A group of windows, and how far it is read."""

    from_ms: int
    to_ms: int
    began_ms: int
    stand: Stand

    def covers(self, work: Work) -> bool:
        return self.from_ms <= int(work.data["from"]) and int(work.data["to"]) <= self.to_ms


class Rescans:
    """The rescans of one account."""

    def __init__(self, asker: Asker, reader: WindowReader, ladder: Ladder) -> None:
        self._asker = asker
        self._account = asker.account
        self._traits = asker.traits
        self._reader = reader
        self._rescans = ladder
        self._began_ms = asker.clock.now_ms()
        self._kept: _Kept | None = None  # what the visit before has left in the middle

    async def visit(self, works: Sequence[Work]) -> Visit:
        """Read windows again: neighbours as one, those with nothing open not at all."""
        visit = Visit()
        visit.left = loud = await self._loud(works)
        for half, group in self._groups(loud):
            kept = half or self._begin(group)
            reading = kept.stand.reading
            visit.failed = await self._reader.read(
                kept.stand, Kind.WINDOW, None, visit, lambda page: None
            )
            if visit.failed is not None or reading.spans:  # or stopped in the middle: still due
                self._kept = kept
                break
            await self._answer(group, kept)
            visit.left = [work for work in visit.left if work not in group]
            if self._reader.halts:
                break
        return visit

    async def _loud(self, works: Sequence[Work]) -> list[Work]:
        """Those with something open; the others step over this rung."""
        found = await self._asker.store.read(lambda tx: [self._is_loud(tx, one) for one in works])
        quiet = [work for work, is_open in zip(works, found, strict=True) if not is_open]
        if quiet:
            await self._step_over(quiet)
        return [work for work, is_open in zip(works, found, strict=True) if is_open]

    def _is_loud(self, tx: Transaction, work: Work) -> bool:
        """One that was due when this process began may have been half read by the one before: what
        was open in it was stored, and an entry further on, that had come up late, was not."""
        from_ms, to_ms = work.data["from"], work.data["to"] - 1
        return work.due_ms <= self._began_ms or bool(
            tx.open_in_span(self._account.name, from_ms, to_ms, pending=False, limit=1)
        )

    async def _step_over(self, quiet: Sequence[Work]) -> None:
        """They are forgotten once no late entry can open them any more. Looked at once more, in one
        with that: what has come up in one by another way meanwhile counts on it."""
        now_ms = self._asker.clock.now_ms()
        overlap_ms = round(self._account.overlap_s * 1000)
        steps = [(work, self._step(work, now_ms)) for work in quiet]

        def step(tx: Transaction) -> None:
            over: list[int] = []
            later: list[Work] = []
            for work, due_ms in steps:
                if self._is_loud(tx, work):
                    continue  # still due
                if due_ms is None or now_ms > work.start_ms + overlap_ms:
                    over.append(work.id or 0)
                else:
                    later.append(msgspec.structs.replace(work, due_ms=due_ms))
            tx.drop_works(over)
            tx.move_works(later)

        await self._asker.store.write(step, lazy=True)

    def _groups(self, works: Sequence[Work]) -> list[tuple[_Kept | None, list[Work]]]:
        """Neighbours together, as long as a window may be; first those that are half read."""
        groups: list[tuple[_Kept | None, list[Work]]] = []
        kept, self._kept = self._kept, None
        rest = sorted(works, key=lambda work: int(work.data["from"]))
        if kept is not None and kept.stand.holds(self._asker.clock.now_ms()):
            half = [work for work in rest if kept.covers(work)]
            rest = [work for work in rest if not kept.covers(work)]
            if half:
                groups.append((kept, half))
        group: list[Work] = []
        for work in rest:
            if group and self._joins(group, work):
                group.append(work)
            else:
                group = [work]
                groups.append((None, group))
        return groups

    def _joins(self, group: Sequence[Work], work: Work) -> bool:
        joined_ms = _to_ms([*group, work]) - int(group[0].data["from"])
        near = int(work.data["from"]) <= _to_ms(group)
        return near and joined_ms <= self._traits.window_max_ms

    def _begin(self, group: Sequence[Work]) -> _Kept:
        from_ms, to_ms = int(group[0].data["from"]), _to_ms(group)
        stand = Stand(reading=Reading.of(from_ms, to_ms, self._traits))
        began_ms = self._asker.clock.now_ms()
        return _Kept(from_ms=from_ms, to_ms=to_ms, began_ms=began_ms, stand=stand)

    def _step(self, work: Work, now_ms: int) -> int | None:
        """Mark the rungs due by `now_ms` as answered; when the next one is due."""
        work.answered_ms = max(work.answered_ms, self._rescans.reached_ms(work.start_ms, now_ms))
        return self._rescans.next_due_ms(work.start_ms, work.answered_ms, self._asker.rand.random())

    async def _answer(self, group: Sequence[Work], kept: _Kept) -> None:
        page = self._asker.page()
        over: list[Work] = []
        for work in group:
            due_ms = self._step(work, kept.began_ms)
            if due_ms is None and kept.stand.doubts:
                due_ms = self._once_more_ms(work)
            if due_ms is None:
                over.append(work)
            else:
                work.due_ms = due_ms
                page.put = [*page.put, work]
        await self._asker.commit(page)
        for work in over:
            await self.expire(work)

    def _once_more_ms(self, work: Work) -> int | None:
        """When a window whose last reading was visibly not whole is read again before its verdicts:
        what could not be read may be the end of one that is still pending. None: not again."""
        tries = int(work.data.get("short", 0))
        if tries == len(SHORT_WAITS_MS):
            return None
        work.data = work.data | {"short": tries + 1}
        return self._asker.clock.now_ms() + SHORT_WAITS_MS[tries]

    async def expire(self, work: Work) -> None:
        """The last rescan has passed: verdicts for what is pending, and with the last of them the
        window is over."""
        assert work.id is not None
        while True:
            page = self._asker.page()
            page.expire = Expire(from_ms=work.data["from"], to_ms=work.data["to"] - 1)
            page.drop = [work.id]
            done = await self._asker.commit(page)
            if not done.remaining:
                break


def _to_ms(group: Sequence[Work]) -> int:
    return max(int(work.data["to"]) for work in group)
