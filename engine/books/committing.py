"""Making pages durable: one report that cannot be recorded takes no other along.

What waits for a passing trouble of the store is `stores.patient`; here is what can be wrong with a
page itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import filterfalse
from typing import Any

import anyio
import msgspec
from anyio import get_cancelled_exc_class
from msgspec.structs import replace

from engine.books.late import late_answer
from engine.books.together import Together
from engine.config.model import AccountConfig, tracking_ladder
from engine.core.clock import Clock
from engine.core.contracts import Flaw, Form, Head, Outcome
from engine.core.errors import LeaseLost, StoreError
from engine.core.mask import Mask, Watch, by_chance
from engine.core.redact import NOBODY, Redactor
from engine.core.report import Report
from engine.core.secret import Secret, secrets_in
from engine.core.work import Asked, Committed, Page
from engine.stores.ledger import commit
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

# What is kept of an answer's headers, and which of them are not.
HEADERS_MAX = 64
HEADER_MAX = 1024
_PRIVATE = re.compile("auth|cookie|token|secret|session|key|sign|location", re.IGNORECASE)

# When the engine is stopped with an answer in hand: for the store to take it.
LAST_COMMIT_S = 5.0

# The note of an account's `timezone`, and what stands there once it was another one.
ZONE = "zone"
MOVED = b"moved"

# Values nested deeper than this are left out where a report is kept as a set-aside piece.
DEPTH_MAX = 64


class Committer:
    """Commits the pages of one account."""

    def __init__(
        self,
        account: AccountConfig,
        store: Store,
        telemetry: Telemetry,
        clock: Clock,
        redactor: Redactor | None,
    ) -> None:
        self._account = account
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._redactor = redactor
        self._ladder = tracking_ladder(account)
        known = (account.options, account.headers, account.push_secret)
        secrets = [secret for value in known for secret in secrets_in(value)]
        self._mask = Mask(secrets)  # for what is said
        self._data_mask = Mask(filterfalse(by_chance, secrets))  # for what was received
        self._traits = account.provider.traits
        self._together = Together(self._store_page)
        self.on_records: Callable[[], None] = lambda: None

    def distrust_times(self) -> None:
        """The account's times have moved, by another `timezone`: messages go by their ids alone."""
        self._traits = replace(self._traits, sent_at_stays=False)

    def page(self) -> Page:
        return Page(
            account=self._account.name,
            provider=self._account.provider.name,
            traits=self._traits,
            observed_ms=self._clock.now_ms(),
            ladder=self._ladder,
        )

    async def commit(self, page: Page) -> Committed:
        """Make a page durable. A report that cannot be recorded does not take others along."""
        if not page.changes:  # as after most failures
            return Committed()
        if page.flaws:
            page.asked = self._without_secrets(page.asked)
        try:
            done = await self._together.commit(page) if Together.takes(page) else None
            if done is None:
                done = await self._store_page(page)
        except StoreError:  # not the page's fault: the end has come
            self._tell_unstored(page)
            raise
        except LeaseLost:
            await self._hand_over(page)
            raise
        except get_cancelled_exc_class():
            await self._store_at_last(page)
            raise
        except Exception as fault:
            return await self._salvage(page, fault)
        self._count(page, done)
        return done

    async def take_pushed(self, page: Page) -> Committed:
        """The same for what was pushed: trouble is raised, since its sender tries again. Raises
        StoreError, LeaseLost."""
        if page.flaws:
            page.asked = self._without_secrets(page.asked)
        try:
            done = await self._store_page(page)
        except (StoreError, LeaseLost):
            raise
        except Exception as fault:
            return await self._salvage(page, fault)
        self._count(page, done)
        return done

    async def _hand_over(self, page: Page) -> None:
        """The account is another worker's: what a one-time provider gave goes to its inbox."""
        item = late_answer(page, self._clock.now_ms())
        if item is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._store.write(lambda tx: tx.put_inbox(item))
            except StoreError:
                self._tell_unstored(page)
                raise
        self._telemetry.count("handed_over", self._account.name)
        self._telemetry.event(
            logging.INFO,
            self._account.name,
            f"its lease was lost with an answer of {len(page.reports)} reports in hand: it waits"
            " in the inbox for the worker that has the account now",
        )

    async def _store_at_last(self, page: Page) -> None:
        """Cancelled while the store was slow or in trouble. A one-time provider has what is in
        it no more: once more, unhindered; if it was stored after all, that is a repetition."""
        if page.traits.one_time and (page.reports or page.flaws):
            with anyio.move_on_after(LAST_COMMIT_S, shield=True), suppress(StoreError):
                try:
                    await self._store_page(page)
                except LeaseLost:
                    await self._hand_over(page)
                return
        self._tell_unstored(page)

    def _tell_unstored(self, page: Page) -> None:
        if not page.reports:
            return
        once = "; the provider gives them once" if page.traits.one_time else ""
        self._telemetry.event(
            logging.ERROR,
            self._account.name,
            f"{len(page.reports)} reports were read and not yet stored when the worker ended{once}",
        )

    async def _store_page(self, page: Page) -> Committed:
        # What can be read again is not lost with a power cut: the cursor goes back as well.
        lazy = not page.once
        return await self._store.write(lambda tx: commit(tx, page), lazy=lazy)

    async def _store_and_count(self, page: Page) -> Committed:
        done = await self._store_page(page)
        self._count(page, done)
        return done

    async def _salvage(self, page: Page, fault: Exception) -> Committed:
        """Commit the reports one by one and set aside those that cannot be; then the rest of the
        page, which moves the schedule. Returns what became of that. Raises the fault where it is
        no report's."""
        if not page.reports:
            raise fault
        flaws = list(page.flaws)
        for index, report in enumerate(page.reports):
            single = self.page()
            single.span, single.source = page.span, page.source
            single.revisit_ms = page.revisit_ms
            single.reports = [report]
            single.unlisted = frozenset({0}) if index in page.unlisted else frozenset()
            single.marks = page.marks[index : index + 1] if page.marks is not None else None
            raw = _pruned_json(report)
            try:
                await self._store_and_count(single)
            except LeaseLost:
                await self._hand_over(page)
                raise
            except StoreError:
                raise
            except Exception as error:
                cause = f"cannot be recorded ({type(error).__name__})"
                flaw = Flaw(cause, f"report {index + 1}", raw, form=Form.REPORT)
                flaws.append(self.redacted(flaw))
        self._telemetry.event(
            logging.ERROR,
            self._account.name,
            f"a report could not be recorded ({type(fault).__name__}) and was set aside; the"
            " others went through",
        )
        asked = self._without_secrets(page.asked)
        rest = replace(page, reports=[], unlisted=frozenset(), flaws=flaws, asked=asked)
        return await self._store_and_count(rest)

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
        if done.records:
            self.on_records()

    # What must not be kept

    def learn(self, secret: str) -> None:
        """A secret that came while running: the token of a login."""
        self._mask.learn(secrets_in(Secret(secret)))
        self._data_mask.learn(filterfalse(by_chance, secrets_in(Secret(secret))))

    def watch(self) -> Watch:
        """Looks out for secrets in one answer."""
        return Watch(self._data_mask)

    @property
    def redacts(self) -> bool:
        """Whether records are changed before they are read."""
        return self._redactor is not None

    def records(self, records: Sequence[Any]) -> Sequence[Any]:
        """An answer's records as they are read: without the numbers that are to be redacted."""
        return records if self._redactor is None else self._redactor.records(records)

    def reports(self, reports: list[Report], watch: Watch) -> list[Report]:
        """Reports as they are kept. Secrets are looked for where the answer had one."""
        if self._redactor is not None:
            reports = [self._redactor.report(report) for report in reports]
        return [self._data_mask.report(report) for report in reports] if watch.seen else reports

    def words(self, outcome: Outcome) -> Outcome:
        """What the provider says of the question, which is logged and noted."""
        if not outcome.cause:
            return outcome
        cause = self._clean_cause(outcome.cause)
        if self._redactor is not None:
            cause = self._redactor.prose(cause)
        return outcome if cause == outcome.cause else replace(outcome, cause=cause)

    def redacted(self, flaw: Flaw, watch: Watch | None = None) -> Flaw:
        """A set-aside piece: an answer may repeat what was asked, a password included. `watch`
        has looked at all of it."""
        raw = self._data_mask.raw(flaw.raw, cut=flaw.truncated, watch=watch)
        cause = self._clean_cause(flaw.cause)
        if self._redactor is not None:
            raw = self._redactor.raw(raw, truncated=flaw.truncated)
            cause = self._redactor.prose(cause)
        return replace(flaw, cause=cause, raw=raw)

    def _clean_cause(self, cause: str) -> str:
        """It may end with what an answer begins with, and a secret be cut off in the quotation."""
        quote = cause[-1:] if cause.endswith(("'", '"')) else ""
        return self._mask.text(cause.removesuffix(quote), cut=True) + quote

    def _without_secrets(self, asked: Asked | None) -> Asked | None:
        """A question as it may be kept: of the answer's headers nothing that lets anybody in."""
        if asked is None:
            return None
        headers = {
            name: self._clean(value[:HEADER_MAX], cut=len(value) > HEADER_MAX)
            for name, value in list(asked.head.headers.items())[:HEADERS_MAX]
            if not _PRIVATE.search(name)
        }
        return replace(asked, head=Head(asked.head.status, headers))

    def _clean(self, text: str, *, cut: bool) -> str:
        text = self._mask.text(text, cut=cut)
        return text if self._redactor is None else self._redactor.text(text, NOBODY)


def _pruned_json(report: Report) -> bytes:
    """A report as JSON, whatever is in it: what is nested too deep for that becomes null."""

    def prune(value: object, depth: int) -> object:
        if isinstance(value, dict):
            return {k: prune(v, depth + 1) for k, v in value.items()} if depth < DEPTH_MAX else None
        if isinstance(value, list):
            return [prune(v, depth + 1) for v in value] if depth < DEPTH_MAX else None
        return value

    return msgspec.json.encode(prune(msgspec.structs.asdict(report), 0))
