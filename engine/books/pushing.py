"""Reports that a provider sends by itself, on the way of polled ones: reader, reports, commit.

Nobody sends them again once they were answered, so they are durable before that: by the worker
that has the account in one transaction, as a one-time answer is; by anybody else in the inbox,
from which that worker takes them. What cannot be read is set aside, and that is durable, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Self

from engine.books.committing import MOVED, ZONE, Committer
from engine.books.intake import ONE_TIME_MAX, Intake, Taken
from engine.books.late import late_item
from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.core.contracts import Flaw, Form, Head, Kind, Poll
from engine.core.errors import LeaseLost
from engine.core.reconcile import marks_of
from engine.core.redact import Redactor
from engine.core.report import encode
from engine.core.work import Committed, Page
from engine.parsing.form import FORM_MAX, completed
from engine.stores.ledger import PUSH
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

# A longer push is refused: what is set aside has to be kept whole.
PUSH_MAX = ONE_TIME_MAX

_DOUBLE = "its number stands in the batch more than once: which message is meant, a poll tells"


class Pusher:
    """Takes what is pushed to one account; `open` makes one."""

    def __init__(
        self,
        account: AccountConfig,
        store: Store,
        telemetry: Telemetry,
        clock: Clock,
        committer: Committer,
    ) -> None:
        self.account = account
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._committer = committer
        self._intake = Intake(account, committer, telemetry)

    @classmethod
    async def open(
        cls,
        account: AccountConfig,
        store: Store,
        telemetry: Telemetry,
        clock: Clock,
        redactors: Mapping[str, Redactor],
    ) -> Self:
        """Find out how the account's messages go. Raises StoreError."""
        committer = Committer(account, store, telemetry, clock, redactors.get(account.name))
        zones = await store.read(lambda tx: tx.notes(ZONE))
        if zones.get(account.name) == MOVED:
            committer.distrust_times()
        return cls(account, store, telemetry, clock, committer)

    async def read(self, pieces: AsyncIterator[bytes], query: bytes, content_type: str) -> Page:
        """What is to be kept of a push: of its body, and of its query where the body says nothing.
        Raises what `pieces` does."""
        page = self._committer.page()
        page.source = PUSH
        poll = Poll(kind=Kind.PUSH, now_ms=page.observed_ms)
        head = Head(200, {"content-type": content_type})
        digestion = self._intake.begin(poll, head, Taken(page=page))
        body = bytearray()  # its beginning: a form is no longer
        async for piece in pieces:
            digestion.feed(piece)
            if len(body) <= FORM_MAX:
                body += piece
        if query and not body.strip():
            digestion.feed(query)
        elif query and digestion.reads_form:
            digestion.feed(completed(bytes(body), query))
        digestion.close(cut=False)
        return page

    async def keep(self, page: Page, *, ours: bool) -> Committed | None:
        """Make it durable: in the books where the account is `ours`, else in the inbox. What has
        become of it, where that is known. Raises StoreError; then its sender tries again."""
        if page.traits.derives_ids and page.reports:
            await self._set_doubles_aside(page)
        if not (page.reports or page.flaws):
            return None
        count = len(page.reports)
        done = await self._commit(page) if ours else None
        if done is None:
            item = late_item(page, self._clock.now_ms())
            await self._store.write(lambda tx: tx.put_inbox(item))
        self._telemetry.count("pushed", self.account.name, count)
        return done

    async def _commit(self, page: Page) -> Committed | None:
        try:
            return await self._committer.take_pushed(page)
        except LeaseLost:  # it has gone to another worker, a moment ago
            return None

    async def _set_doubles_aside(self, page: Page) -> None:
        """Ids that follow from the batch number the messages to one recipient; a push does not. To
        guess would put one message's end on another."""
        name = self.account.name
        ids = [(f"{report.message_id}#2", "mt") for report in page.reports]
        marks = marks_of(page.reports, page.traits, [None] * len(ids))
        found = await self._store.read(lambda tx: tx.messages(name, ids, marks))
        doubled = [key in found for key in ids]
        if not any(doubled):
            return
        aside = [one for one, double in zip(page.reports, doubled, strict=True) if double]
        kept = [n for n, double in enumerate(doubled) if not double]
        page.unlisted = frozenset(new for new, n in enumerate(kept) if n in page.unlisted)
        page.reports = [page.reports[n] for n in kept]
        page.flaws = [
            *page.flaws,
            *(Flaw(_DOUBLE, "push", encode(report), form=Form.REPORT) for report in aside),
        ]
        page.asked = None  # to read these again would be to guess
