"""Small answers of one account, committed together: many pages as one.

A rung's answer has a row or two, and nobody waits for it to be durable but its own next rung; a
page in the middle of a window is not waited for by the next one. By themselves each would cost a
transaction. While one commit is under way those that come meanwhile wait, and the next commit takes
them all. So the first waits for nothing, and the more there is to do the more goes into one
transaction, without a time of our own to wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate, takewhile
from typing import Final

from msgspec.structs import replace

from engine.core.work import Committed, Page

# Pages of one commit, and the reports of a page that is small enough for it.
TOGETHER_MAX = 64
SMALL_MAX = 100


class _Lead:
    """What whoever has waited longest is told when a commit has ended: it makes the next one."""


_LEAD: Final = _Lead()

Answer = Committed | _Lead | None


class _Turn:
    """A page that waits, and what becomes of it."""

    __slots__ = ("answer", "page")

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Together:
    """Takes the small pages of one account in turn."""

    def __init__(self, store: Callable[[Page], Awaitable[Committed]]) -> None:
        self._store = store
        self._waiting: list[_Turn] = []  # bounded by the polls in flight
        self._leading = False  # a commit is under way, or is about to be

    @staticmethod
    def takes(page: Page) -> bool:
        """Whether it is a rung's answer, or reports of a window, and nothing else; what is given
        once goes by itself."""
        beside = page.flaws or page.flaws_beyond or page.put or page.drop or page.replayed
        return (
            (page.settle is None) is not (page.span is None)
            and not page.traits.one_time
            and not (beside or page.incidents or page.expire or page.cover)
            and len(page.reports) <= SMALL_MAX
        )

    async def commit(self, page: Page) -> Committed | None:
        """What became of the page, once it is durable; counts stand with one page of a commit.

        None: those that were to go with it cannot be committed in one; it has to go by itself.
        Raises what the store raises where it goes alone.
        """
        turn = _Turn(page)
        self._waiting.append(turn)
        if self._leading:
            try:
                answer = await turn.answer
            except BaseException:
                self._give_up(turn)
                raise
            if not isinstance(answer, _Lead):
                return answer
        self._leading = True
        return await self._lead()

    async def _lead(self) -> Committed | None:
        span = self._waiting[0].page.span  # ours is the first
        alike = takewhile(lambda turn: turn.page.span == span, self._waiting[:TOGETHER_MAX])
        group = list(alike)
        del self._waiting[: len(group)]
        answers: list[Committed | None] = [None] * len(group)
        try:
            answers = _shared(await self._store(_joined(group)), group)
        except Exception:
            if len(group) == 1:
                raise
        finally:
            for turn, answer in zip(group, answers, strict=True):
                if not turn.answer.done():
                    turn.answer.set_result(answer)
            self._pass_on()
        return answers[0]

    def _pass_on(self) -> None:
        self._waiting = [turn for turn in self._waiting if not turn.answer.done()]
        self._leading = bool(self._waiting)
        if self._waiting:
            self._waiting[0].answer.set_result(_LEAD)

    def _give_up(self, turn: _Turn) -> None:
        """Whoever waited for it was cancelled, perhaps just as it was told to lead."""
        leads = turn.answer.done() and not turn.answer.cancelled()
        if turn in self._waiting:
            self._waiting.remove(turn)
            if leads:
                self._pass_on()


def _joined(group: Sequence[_Turn]) -> Page:
    """One page of all. It is as of when the last of them was read, a moment ago."""
    pages = [turn.page for turn in group]
    if len(pages) == 1:
        return pages[0]
    starts = accumulate((len(page.reports) for page in pages), initial=0)
    unlisted = (
        start + index for page, start in zip(pages, starts, strict=False) for index in page.unlisted
    )
    return replace(
        pages[0],
        observed_ms=max(page.observed_ms for page in pages),
        reports=[report for page in pages for report in page.reports],
        unlisted=frozenset(unlisted),
        together=[page.settle for page in pages[1:] if page.settle is not None],
    )


def _shared(done: Committed, group: Sequence[_Turn]) -> list[Committed | None]:
    """To each what became of its own work; the counts, and what else has ended, to the first."""
    if len(group) == 1:
        return [done]
    put = {work.id: work for work in done.put}
    ended = dict.fromkeys(done.ended)
    answers: list[Committed | None] = []
    for turn in group[1:]:
        settle = turn.page.settle
        asked = settle.work.id or 0 if settle is not None else 0
        own = Committed()
        if asked in put:
            own.put.append(put.pop(asked))
        if asked in ended:
            own.ended.append(asked)
            del ended[asked]
        answers.append(own)
    return [replace(done, put=list(put.values()), ended=list(ended)), *answers]
