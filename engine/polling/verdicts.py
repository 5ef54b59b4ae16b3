"""What an answer means for tracked work; and verdicts for what is not asked for by its id, given
when its feed will tell nothing more."""

from __future__ import annotations

from engine.core.contracts import Kind, Verb
from engine.core.schedule import Ladder
from engine.core.work import NEVER_DUE_MS, Page, Settle, Work
from engine.polling.asking import Asker, Reply

# A verdict that waits for the feed is looked at again after this at the earliest.
LOOK_AGAIN_MIN_MS = 100

# One that waits for a drained feed is looked at when that was read, and after this at the latest.
UNREAD_LOOK_MS = 60_000


class Verdicts:
    """Of one account."""

    def __init__(self, asker: Asker, ladder: Ladder) -> None:
        self._asker = asker
        self._ladder = ladder
        self._waiting: set[int] = set()

    def settle(self, work: Work, asked_ms: int, reply: Reply) -> Settle:
        """A rung was answered, or given up."""
        absent = reply.outcome.verb is Verb.ABSENT
        return Settle(
            work=work,
            ladder=self._ladder,
            now_ms=asked_ms,
            code=reply.outcome.code if absent else None,
            text=reply.outcome.cause if absent else None,
            chance=self._asker.rand.random(),
        )

    def waits(self, work: Work, read_ms: int | None, since_ms: int, *, well: bool) -> bool:
        """Whether a drained feed was not read to its end since then, or fails: what has been
        waiting at the provider, or is being read, goes first. The work stays due as it is."""
        if self._asker.traits.feed != "drained":
            return False
        if well and read_ms is not None and read_ms >= since_ms:
            return False
        self._waiting.add(work.id or 0)
        return True

    def take_waiting(self) -> set[int]:
        """The works that have waited for the feed."""
        waiting, self._waiting = self._waiting, set()
        return waiting

    async def page(self, work: Work) -> Page:
        """What to commit at the end of a tracked item's ladder: its verdict, or a later time."""
        page = self._asker.page()
        now_ms = page.observed_ms
        pause_ms = max(round(self._asker.account.schedule.interval_s * 1000), LOOK_AGAIN_MIN_MS)
        later_ms = None
        if self._asker.traits.feed == "windowed":
            later_ms = await self._told_ms(work, now_ms, pause_ms)
        if later_ms is None:
            page.settle = Settle(work=work, ladder=self._ladder, now_ms=now_ms, over=True)
        else:
            work.due_ms = later_ms
            page.put = [work]
        return page

    async def _told_ms(self, work: Work, now_ms: int, pause_ms: int) -> int | None:
        """When a window that is still to be read will have told; None: there is none."""
        name = work.account
        feed, windows, found = await self._asker.store.read(
            lambda tx: (
                tx.find_works(name, Kind.FEED, [""]),
                tx.find_works(name, Kind.WINDOW, None),
                tx.messages(name, [(work.key, "mt")]),
            )
        )
        # Windows are in the provider's time, and by that it may be elsewhere than by the sender's.
        placed = [known.placed_ms for known in found.values() if known.placed_ms is not None]
        sent_ms = placed[0] if placed else work.start_ms
        covering = [w.due_ms for w in windows if w.data["from"] <= sent_ms < w.data["to"]]
        if covering:
            return max(now_ms, *covering) + pause_ms
        ended = bool(feed) and feed[0].due_ms >= NEVER_DUE_MS
        if feed and not ended and int(feed[0].data.get("cursor", 0)) <= sent_ms:
            return now_ms + pause_ms
        return None
