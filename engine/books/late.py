"""A one-time answer whose account went to another worker before it was stored.

The provider has it no more, and under the old lease it cannot be written. What was read goes whole
into the account's inbox, with the question and whatever could not be read of it, and whoever holds
the account now takes it as it takes a replayed piece: what it knows already is a repetition, and
what it has heard since stands.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec

from engine.config.model import AccountConfig, tracking_ladder
from engine.core.contracts import Flaw, Form, Head, Kind, Poll
from engine.core.report import Report
from engine.core.work import Asked, Committed, Page
from engine.stores.kept import read_asked, write_asked
from engine.stores.ledger import REPLAY, commit
from engine.stores.transaction import InboxItem, Transaction

KIND = "late"


class Late(msgspec.Struct, kw_only=True):
    """What was read of an answer, as it stands in the inbox."""

    observed_ms: int
    reports: list[Report]
    unlisted: list[int] = []
    flaws: list[Flaw] = []
    flaws_beyond: int = 0
    asked: bytes | None = None

    @classmethod
    def of(cls, page: Page, **more: Any) -> Self:
        """What was read, of a page. `more`: what else stands in the item, by its field."""
        return cls(
            observed_ms=page.observed_ms,
            reports=page.reports,
            unlisted=sorted(page.unlisted),
            flaws=page.flaws,
            flaws_beyond=page.flaws_beyond,
            asked=write_asked(page.asked),
            **more,
        )


def late_answer(page: Page, now_ms: int) -> InboxItem | None:
    """What is to be handed over of a page; None where the provider can be asked again."""
    if not page.once or not (page.reports or page.flaws):
        return None
    return late_item(page, now_ms)


def late_item(page: Page, now_ms: int) -> InboxItem:
    """A page's reports, and what could not be read, for whoever has the account."""
    payload = msgspec.msgpack.encode(Late.of(page))
    return InboxItem(account=page.account, kind=KIND, payload=payload, at_ms=now_ms)


def check(item: InboxItem) -> None:
    """Raises ValueError where it is none."""
    msgspec.msgpack.decode(item.payload, type=Late)


def take_late(
    tx: Transaction, account: AccountConfig, item: InboxItem, *, apart: bool
) -> Committed:
    """Into the books, under the time at which it was read. `apart`: something in the inbox cannot
    be recorded; its reports are set aside, where `replay` reads them one by one."""
    late = msgspec.msgpack.decode(item.payload, type=Late)
    return commit(tx, page_of(late, account, apart=apart))


def page_of(late: Late, account: AccountConfig, *, apart: bool) -> Page:
    """What was read, to be committed; `apart` as in `take_late`."""
    if apart:
        late.flaws += [
            Flaw("cannot be recorded", f"report {n}", msgspec.json.encode(one), form=Form.REPORT)
            for n, one in enumerate(late.reports, 1)
        ]
        late.reports, late.unlisted = [], []
    return Page(
        account=account.name,
        provider=account.provider.name,
        traits=account.provider.traits,
        observed_ms=late.observed_ms,
        ladder=tracking_ladder(account),
        reports=late.reports,
        unlisted=frozenset(late.unlisted),
        source=REPLAY,
        asked=_asked(late.asked) or _assumed(late),
        flaws=late.flaws,
        flaws_beyond=late.flaws_beyond,
    )


def _asked(raw: bytes | None) -> Asked | None:
    return None if raw is None else read_asked(raw)


def _assumed(late: Late) -> Asked:
    """Where all of an answer could be read, nobody has kept the question: for whatever was new."""
    return Asked(poll=Poll(kind=Kind.FEED, now_ms=late.observed_ms), head=Head(200, {}))
