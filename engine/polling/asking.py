"""One question: limit -> request -> fetch -> records -> reports, committed as they come.

The last piece of an answer is handed back uncommitted, so that the caller can commit it in one
transaction with what it means for the schedule: the cursor never moves without the reports, and
the reports of a one-time answer are durable before the next request goes out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
import msgspec

from engine.books.committing import LAST_COMMIT_S, Committer
from engine.books.intake import Intake, Taken
from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.core.contracts import Head, Kind, Outcome, Poll, Request, Verb
from engine.core.errors import StoreError
from engine.core.redact import Redactor
from engine.core.work import Committed, Page
from engine.limits.limiter import AccountLimiter, Slot
from engine.network.transport import (
    Answer,
    Fetch,
    Timeout,
    Timeouts,
    Transport,
    TransportError,
    Withheld,
)
from engine.polling.heads import asked_to_wait_s, login_refused, not_followed, redirected
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

# Reports that wait in memory before they are committed. A one-time answer is one transaction
# unless it is far larger than any limit that can be asked for.
CHUNK_REPORTS = 1000
CHUNK_REPORTS_ONE_TIME = 5000

REDIRECTS_MAX = 3

# Of an answer that goes on and on without a report in it, the rest is read in no hurry, and of
# many such answers one piece after the other: at full speed one endless body would take the
# processor from all accounts until its deadline, and fifty in no hurry a quarter of it.
BARREN_MAX = 1 << 20
BARREN_PAUSE_S = 0.02

LOGIN_BODY_MAX = 64 * 1024


class Reply(Taken, gc=False, kw_only=True):
    """What one question brought. `page` is the last piece, still to be committed."""

    outcome: Outcome
    began_ms: int
    records: int = 0  # committed already, in earlier pieces
    opened_ms: tuple[int, int] | None = None  # where these have open messages that are new
    retry_after_s: float | None = None
    timed_out: bool = False
    judged: bool = False  # the account has been told of the failure
    withheld: bool = False  # it was not put: the account is not to be asked at present

    def note(self, done: Committed) -> None:
        """A piece was committed."""
        self.records += done.records
        self.opened_ms = joined(self.opened_ms, done.opened_ms)

    def emptied(self, page: Page) -> Reply:
        """The same, once its page has been committed: as if it had been the last."""
        return msgspec.structs.replace(self, outcome=Outcome(), page=page)

    @property
    def failed(self) -> bool:
        """Whether the account has to wait before it is asked again."""
        return self.outcome.verb in (Verb.RETRY, Verb.PAUSE)

    @property
    def answered(self) -> bool:
        """Whether the provider has dealt with the question, be it with a refusal of its content."""
        return self.outcome.verb in (Verb.DONE, Verb.MORE, Verb.ABSENT, Verb.SPLIT)


class Asker:
    """Asks one account's questions, one answer at a time each, inside its limits."""

    def __init__(
        self,
        account: AccountConfig,
        *,
        store: Store,
        transport: Transport,
        limiter: AccountLimiter,
        telemetry: Telemetry,
        clock: Clock,
        rand: random.Random,
        redactor: Redactor | None,
        unhurried: anyio.Lock,
    ) -> None:
        """`unhurried` is the turn of all accounts' barren answers."""
        self.account = account
        self.provider = account.provider
        self.traits = account.provider.traits
        self.store = store
        self.limiter = limiter
        self.telemetry = telemetry
        self.clock = clock
        self.rand = rand
        self.shut: Callable[[], str | None] = lambda: None  # why nothing may be asked at present
        # Asked when a request is about to go out. What waited for its connection meanwhile, or for
        # the store, goes by what holds at that moment, not by when it got its place.
        self.may_send: Callable[[], bool] = lambda: True
        self.paused: Callable[[], bool] = lambda: False
        # Waits for a place in the limits; None: it is not worth waiting for.
        self.place: Callable[[], Awaitable[Slot | None]] = limiter.slot
        self._transport = transport
        self._unhurried = unhurried
        self._timeouts = Timeouts(
            account.request.timeout_s, account.request.total_timeout_s, account.request.body_max
        )
        self._headers = tuple((k, v.reveal()) for k, v in account.headers.items())
        self._committer = Committer(account, store, telemetry, clock, redactor)
        self._intake = Intake(account, self._committer, telemetry)
        self.on_failure: Callable[[Reply], None] = lambda reply: None
        self._token: str | None = None
        self._token_age = 0
        self._login = anyio.Lock()
        self._logins = 0  # tries
        self._refusal: tuple[Outcome, float | None] = (Outcome(), None)  # what the last came to
        self._kept: dict[int, Slot] = {}  # by the task that has the answer: at most one a task
        self._chunk_max = CHUNK_REPORTS_ONE_TIME if self.traits.one_time else CHUNK_REPORTS

    def on_records(self, act: Callable[[], None]) -> None:
        """What to do when there is more in the log."""
        self._committer.on_records = act

    def page(self) -> Page:
        return self._committer.page()

    def distrust_times(self) -> None:
        """See `Committer.distrust_times`."""
        self._committer.distrust_times()

    async def commit(self, page: Page) -> Committed:
        """Make a page durable; only then may a one-time provider be asked again."""
        try:
            return await self._committer.commit(page)
        finally:
            self.release()

    def release(self) -> None:
        """Give back the place of this task's one-time answer: it is durable, or there is none.

        Never another task's: what that has read may still wait for the store.
        """
        if self._kept and (kept := self._kept.pop(_this_task(), None)) is not None:
            kept.release()

    async def ask(self, poll: Poll, slot: Slot | None = None) -> Reply:
        """Ask, following redirects on the same origin and logging in where that is needed.

        `slot` is a place in the limits that the caller holds already. Never raises for what a
        provider does: that is an outcome.
        """
        if self.provider.login() is not None and self._token is None:
            seen = self._token_age, self._logins
            refused = await self._log_in(poll, seen, slot, self.clock.now_ms())
            slot = None
            if refused is not None:
                self._judge(poll, refused)
                return refused
        reply = await self._ask_logged_in(poll, slot)
        self._judge(poll, reply)
        if reply.failed and not reply.withheld:
            self.telemetry.count("failures", self.account.name)
        return reply

    def _judge(self, poll: Poll, reply: Reply) -> None:
        """Let the account feel a failure, once. A probe's is only told to who asked, unless the
        provider wants to be left alone: that is meant for the whole account."""
        felt = poll.kind is not Kind.PROBE or reply.outcome.hold
        if reply.failed and not reply.judged and not reply.withheld and felt:
            reply.judged = True
            self.on_failure(reply)

    async def _ask_logged_in(self, poll: Poll, slot: Slot | None) -> Reply:
        """Ask; where the token has run out, log in and ask once more."""
        seen = self._token_age, self._logins
        reply = await self._once(poll, slot)
        if reply.outcome.verb is Verb.LOGIN:
            # Failures of what was asked together are one: this one has begun with the question.
            refused = await self._log_in(poll, seen, None, reply.began_ms)
            if refused is not None:
                return refused
            reply = await self._once(poll, None)
            if reply.outcome.verb is Verb.LOGIN:
                cause = "a fresh token is refused: " + reply.outcome.cause
                reply.outcome = Outcome(verb=Verb.PAUSE, cause=cause)
        return reply

    def _may_send(self, poll: Poll) -> bool:
        """Whether this may go out now. A probe is asked to find out whether a pause can end."""
        paused = poll.kind is not Kind.PROBE and self.paused()
        return self.may_send() and not paused and not self.limiter.hold_s()

    def _failed(
        self, outcome: Outcome, retry_after: float | None = None, *, began_ms: int | None = None
    ) -> Reply:
        return Reply(
            outcome=outcome,
            page=self.page(),
            began_ms=self.clock.now_ms() if began_ms is None else began_ms,
            retry_after_s=retry_after,
        )

    async def _once(self, poll: Poll, slot: Slot | None) -> Reply:
        request = self.provider.request(poll, self._token)
        if self._headers:
            request = msgspec.structs.replace(request, headers=(*self._headers, *request.headers))
        for _ in range(REDIRECTS_MAX + 1):
            reply, target = await self._send(poll, request, slot)
            slot = None
            if target is None:
                return reply
            request = msgspec.structs.replace(request, url=target, params=())
        reply.outcome = Outcome(verb=Verb.RETRY, cause=f"more than {REDIRECTS_MAX} redirects")
        return reply

    async def _send(
        self, poll: Poll, request: Request, slot: Slot | None
    ) -> tuple[Reply, str | None]:
        """One request, and where a redirect on the same origin leads."""
        self.release()
        slot = slot or await self.place()
        if slot is None:
            return self._left(), None
        reply = self._failed(Outcome())
        if poll.from_ms is not None and poll.to_ms is not None:
            reply.page.span = (poll.from_ms, poll.to_ms)
        whole = False
        try:
            async with self._fetch(poll, request, slot) as answer:
                slot.answered()
                head = answer.head
                reply.page.observed_ms = self.clock.now_ms()
                reply.retry_after_s = asked_to_wait_s(head, reply.page.observed_ms)
                if 300 <= head.status < 400:
                    target = redirected(self.account.base_url, request, head)
                    if target is None:
                        reply.outcome = not_followed(request, head)
                    return reply, target
                await self._read(poll, answer, reply)
                whole = self.traits.one_time
        except TransportError as error:
            if not error.sent:
                slot.unused()
            reply.withheld = isinstance(error, Withheld)
            reply.timed_out = isinstance(error, Timeout) and error.sent
            reply.outcome = Outcome(verb=Verb.RETRY, cause=error.cause)
        finally:
            self._judge(poll, reply)  # before the place is free: whoever waits for it is held, too
            if whole:  # nothing more is asked before this is durable
                self._kept[_this_task()] = slot
            else:
                slot.release()
        return reply, None

    def _fetch(self, poll: Poll, request: Request, slot: Slot) -> Fetch:
        self.telemetry.count("requests", self.account.name)
        may_send = partial(self._may_send, poll)
        return self._transport.fetch(
            self.account.base_url, request, self._timeouts, slot.sent, may_send
        )

    def _left(self, cause: str = "it is to wait for long") -> Reply:
        """The question was not put."""
        reply = self._failed(Outcome(verb=Verb.RETRY, cause=cause))
        reply.withheld = True
        return reply

    async def _read(self, poll: Poll, answer: Answer, reply: Reply) -> None:
        """Feed the body to the provider's reader, committing every full piece."""
        digestion = self._intake.begin(poll, answer.head, reply)
        cut: TransportError | None = None
        barren = 0  # bytes since something was found in them
        try:
            async for chunk in answer.chunks():
                found = reply.reports + reply.flaws
                digestion.feed(chunk)
                barren = barren + len(chunk) if reply.reports + reply.flaws == found else 0
                if barren > BARREN_MAX:
                    async with self._unhurried:
                        await self.clock.sleep(BARREN_PAUSE_S)
                if len(reply.page.reports) >= self._chunk_max or reply.page.flaws:
                    await self._commit_piece(poll, reply)
        except TransportError as error:
            cut = error
        except BaseException:
            # Stopped in the middle: what came whole is kept, a one-time provider has it no more.
            with anyio.move_on_after(LAST_COMMIT_S, shield=True), suppress(StoreError):
                digestion.close(cut=True)
                await self._commit_piece(poll, reply)
            raise
        outcome = digestion.close(cut=cut is not None)
        if cut is not None:
            reply.timed_out = isinstance(cut, Timeout)
            if outcome.verb in (Verb.DONE, Verb.MORE, Verb.ABSENT, Verb.RETRY):
                outcome = Outcome(verb=Verb.RETRY, cause=cut.cause)
        reply.outcome = outcome

    async def _commit_piece(self, poll: Poll, reply: Reply) -> None:
        done = Committed()
        if poll.kind is not Kind.PROBE:  # that is never stored, however much it shows
            done = await self.commit(reply.page)
        span = reply.page.span
        reply.page = self.page()  # only now: what is not durable must not be forgotten
        reply.page.span = span
        reply.note(done)

    async def _log_in(
        self, poll: Poll, seen: tuple[int, int], slot: Slot | None, began_ms: int
    ) -> Reply | None:
        """Get a token, one request however many want it. None: there is one now.

        `seen` is the token's age and the tries of when the question was asked: whatever login came
        to since then counts for it, too.
        """
        if slot is not None and self._login.locked():
            slot.unused()  # whoever logs in may be waiting for this very place
            slot = None
        async with self._login:
            if self._token_age == seen[0] and self._logins == seen[1]:
                slot = slot or await self.place()
                return await self._try_login(poll, slot, began_ms) if slot else self._left()
            if slot is not None:
                slot.unused()
                slot.release()
            if self._token_age != seen[0]:  # somebody else was first
                return None
            # Whoever was first was refused, for all; that is one failure.
            return self._failed(*self._refusal, began_ms=began_ms)

    async def _try_login(self, poll: Poll, slot: Slot, began_ms: int) -> Reply | None:
        try:
            head, body, error = await self._fetch_login(poll, slot)
            if isinstance(error, Withheld):  # that is no try: the next one finds out by itself
                return self._left(error.cause)
            self._logins += 1
            token = self.provider.token(head, body) if head is not None else None
            if token is not None:
                self._committer.learn(token)
                self._token = token
                self._token_age += 1
                return None
            if head is not None:
                wait_s = asked_to_wait_s(head, self.clock.now_ms())
                self._refusal = login_refused(head), wait_s
            else:
                cause = f"the login: {error.cause}" if error is not None else ""
                self._refusal = Outcome(verb=Verb.RETRY, cause=cause), None
            refused = self._failed(*self._refusal, began_ms=began_ms)
            self._judge(poll, refused)  # before the place is free, as in `_send`
            return refused
        finally:
            slot.release()

    async def _fetch_login(
        self, poll: Poll, slot: Slot
    ) -> tuple[Head | None, bytes, TransportError | None]:
        request = self.provider.login()
        assert request is not None
        try:
            async with self._fetch(poll, request, slot) as answer:
                slot.answered()
                body = b""
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > LOGIN_BODY_MAX:
                        break
                return answer.head, body, None
        except TransportError as error:
            if not error.sent:
                slot.unused()
            return None, b"", error


def _this_task() -> int:
    return id(asyncio.current_task())


def joined(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    """The span that holds both."""
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])
