"""Making pages durable: one report that cannot be recorded takes no other along.

What waits for a passing trouble of the store is `stores.patient`; here is what can be wrong with a
page itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from urllib.parse import quote

import msgspec

from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.core.contracts import Flaw
from engine.core.report import Report
from engine.core.secret import Secret
from engine.core.work import Committed, Page
from engine.stores.ledger import commit
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

# Values nested deeper than this are left out where a report is kept as a set-aside piece.
DEPTH_MAX = 64


class Committer:
    """Commits the pages of one account."""

    def __init__(
        self, account: AccountConfig, store: Store, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._account = account
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._secrets = tuple(_secrets(account))

    def page(self) -> Page:
        return Page(
            account=self._account.name,
            provider=self._account.provider.name,
            traits=self._account.provider.traits,
            observed_ms=self._clock.now_ms(),
        )

    async def commit(self, page: Page) -> Committed:
        """Make a page durable. A report that cannot be recorded does not take others along."""
        try:
            done = await self._store_page(page)
        except Exception as fault:
            if not page.reports:
                raise
            page = await self._salvage(page, fault)
            done = await self._store_page(page)
        self._count(page, done)
        return done

    async def _store_page(self, page: Page) -> Committed:
        return await self._store.write(lambda tx: commit(tx, page))

    async def _salvage(self, page: Page, fault: Exception) -> Page:
        """Commit the reports one by one and set aside those that cannot be. Returns the rest of
        the page, which moves the schedule."""
        flaws = list(page.flaws)
        for index, report in enumerate(page.reports):
            single = self.page()
            single.span = page.span
            single.reports = [report]
            single.unlisted = frozenset({0}) if index in page.unlisted else frozenset()
            raw = _pruned_json(report)
            try:
                self._count(single, await self._store_page(single))
            except Exception as error:
                cause = f"cannot be recorded ({type(error).__name__})"
                flaws.append(self.redacted(Flaw(cause, f"report {index + 1}", raw)))
        self._telemetry.event(
            logging.ERROR,
            self._account.name,
            f"a report could not be recorded ({type(fault).__name__}) and was set aside; the"
            " others went through",
        )
        return msgspec.structs.replace(page, reports=[], unlisted=frozenset(), flaws=flaws)

    def _count(self, page: Page, done: Committed) -> None:
        name = self._account.name
        for counter, n in (
            ("records", done.records),
            ("repeated", done.repeated),
            ("superseded", done.lost),
            ("verdicts", done.verdicts),
            ("set_aside", len(page.flaws)),
            ("incidents", len(page.incidents)),
            ("unlisted", len(page.unlisted)),
        ):
            if n:
                self._telemetry.count(counter, name, n)

    def redacted(self, flaw: Flaw) -> Flaw:
        """An answer may repeat what was asked, a password included."""
        raw = flaw.raw
        for secret in self._secrets:
            raw = raw.replace(secret, b"***")
        return flaw if raw is flaw.raw else msgspec.structs.replace(flaw, raw=raw)


def _pruned_json(report: Report) -> bytes:
    """A report as JSON, whatever is in it: what is nested too deep for that becomes null."""

    def prune(value: object, depth: int) -> object:
        if isinstance(value, dict):
            return {k: prune(v, depth + 1) for k, v in value.items()} if depth < DEPTH_MAX else None
        if isinstance(value, list):
            return [prune(v, depth + 1) for v in value] if depth < DEPTH_MAX else None
        return value

    return msgspec.json.encode(prune(msgspec.structs.asdict(report), 0))


def _secrets(account: AccountConfig) -> Iterator[bytes]:
    """An account's secrets as they may come back in an answer."""
    options = msgspec.structs.asdict(account.options)
    for value in (*options.values(), *account.headers.values()):
        if isinstance(value, Secret) and value.reveal():
            yield value.reveal().encode()
            yield quote(value.reveal(), safe="").encode()
