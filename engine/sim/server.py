"""The simulator: each account of a profile behind a prefix of one local server.

An independent oracle: it shares no line with the engine it is held against, so that a
misreading of a provider's page would have to be made twice to go unseen. It must never import
the engine's providers or its core.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType

import msgspec
from aiohttp import web

from engine.sim import avaamo, bulksms, faults, infobip, messangi
from engine.sim.account import Account, Seen
from engine.sim.answer import Answer, Call
from engine.sim.control import mount
from engine.sim.messages import Given, Message, Sent, Truth
from engine.sim.meter import Violation
from engine.sim.profile import FAULT_KINDS, AccountProfile, Fault, Profile
from engine.sim.wire import deliver, spoil

MAX_REQUEST = 1 << 20
"""Bytes of a request's body."""
SHUTDOWN = 0.2
"""Seconds that answers on their way have at the end."""
_PROVIDERS: dict[str, ModuleType] = {
    "bulksms": bulksms,
    "infobip": infobip,
    "avaamo": avaamo,
    "messangi": messangi,
}


@dataclass(slots=True, frozen=True)
class Counts:
    """What one account has seen so far."""

    requests: int
    statuses: dict[str, int]
    """By HTTP status; "reset", "cut" … where there was no whole response."""
    faults: dict[str, int]
    violations: int
    rate_violations: int
    concurrency_violations: int
    max_concurrent: int
    worst_window: int
    messages: int
    given: int
    """Rows, entries, items and reports handed out, repetitions counted."""
    waiting: int
    """Of a one-time feed: due, and not given yet."""
    lapsed: int
    """Of a one-time feed: never fetched within its horizon."""
    bytes: int
    logins: int
    unauthorized: int
    throttled: int
    strayed: int
    """Redirects to another origin that were followed."""
    leaked: int
    """… with a credential."""


class Simulator:
    """Serves the accounts of a profile; everything it shows is derived from the clock."""

    def __init__(
        self,
        profile: Profile,
        *,
        clock: Callable[[], float] = time.time,
        rand: random.Random | None = None,
    ) -> None:
        self.profile = profile
        self.base_url = ""
        self._clock = clock
        now = clock()
        self.accounts = {p.name: Account(p, now, _dice(p, rand)) for p in profile.accounts}
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; the base URL. An account lives at {base}/{its name}."""
        app = web.Application(client_max_size=MAX_REQUEST)
        mount(app, self)
        app.router.add_route("*", "/{account}/{tail:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        self._runner = runner
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            await self.stop()
            raise
        self.base_url = f"http://{host}:{runner.addresses[0][1]}"
        return self.base_url

    async def stop(self) -> None:
        """Close the port and every connection. Counters and truth stay readable."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Simulator:
        if self._runner is None:
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def url(self, account: str) -> str:
        """The base_url of an account."""
        return f"{self.base_url}/{self._account(account).profile.name}"

    # -- what a sender does, and what a test asks ------------------------------------------

    def send(
        self,
        account: str,
        n: int | None = None,
        recipients: Sequence[str] | None = None,
        *,
        batch: str | None = None,
        channel: str | None = None,
        direction: str = "O",
        sent_at: float | None = None,
        reference: str | None = None,
        plan: Sequence[tuple[float, str]] | None = None,
    ) -> Sent:
        """Send n messages, or one to each recipient.

        `plan` fixes their lives: (seconds after sending, status), unscaled; without it the
        profile's mix decides.
        """
        if n is not None and recipients is not None and n != len(recipients):
            raise ValueError("n and recipients do not agree")
        to: Sequence[str] | int = recipients if recipients is not None else 1 if n is None else n
        return self._account(account).send(
            self._clock(),
            to,
            batch=batch,
            channel=channel,
            direction=direction,
            sent_at=sent_at,
            reference=reference,
            plan=plan,
        )

    def script(self, account: str, kinds: Iterable[str | Fault]) -> None:
        """Let the account's next requests meet these faults, after those it has already."""
        made = [Fault(kind=k) if isinstance(k, str) else k for k in kinds]
        for fault in made:
            if fault.kind not in FAULT_KINDS:
                raise ValueError(f"no such fault: {fault.kind!r}")
        self._account(account).script.extend(made)

    def fail(self, account: str, odds: Mapping[str, float]) -> None:
        """From now on the account's requests meet faults by these odds; none of them: it is well.

        What is left of the account's script comes first.
        """
        changed = msgspec.structs.replace(self._account(account).profile, odds=dict(odds))
        if faults := Profile([changed]).faults():
            raise ValueError("; ".join(faults))
        self._account(account).odds = dict(odds)

    def truth(self, account: str) -> list[Truth]:
        """Every message there is by now, with its whole life and its end."""
        return [Truth.of(message) for message in self.messages(account)]

    def messages(self, account: str) -> list[Message]:
        """The messages themselves; Message.at(t) says what was true of one when."""
        held = self._account(account)
        held.grow(self._clock())
        return list(held.messages)

    def given(self, account: str) -> list[Given]:
        """The ledger of a one-time feed: what was handed out, and how far it came."""
        return list(self._account(account).given)

    def requests(self, account: str) -> list[Seen]:
        """The latest requests, oldest first."""
        return list(self._account(account).seen)

    def violations(self, account: str) -> list[Violation]:
        """Each time a limit was exceeded."""
        return list(self._account(account).meter.violations)

    def counts(self, account: str) -> Counts:
        """All counters of an account."""
        held = self._account(account)
        now = self._clock()
        held.grow(now)
        tally, meter = held.tally, held.meter
        return Counts(
            requests=tally.requests,
            statuses=dict(tally.statuses),
            faults=dict(tally.faults),
            violations=meter.rate_violations + meter.concurrency_violations,
            rate_violations=meter.rate_violations,
            concurrency_violations=meter.concurrency_violations,
            max_concurrent=meter.max_concurrent,
            worst_window=meter.worst_window,
            messages=len(held.messages),
            given=tally.given,
            waiting=held.waiting(now),
            lapsed=tally.lapsed,
            bytes=tally.bytes,
            logins=tally.logins,
            unauthorized=tally.unauthorized,
            throttled=tally.throttled,
            strayed=tally.strayed,
            leaked=tally.leaked,
        )

    def _account(self, name: str) -> Account:
        try:
            return self.accounts[name]
        except KeyError:
            raise ValueError(f"no such account: {name!r}") from None

    # -- serving ---------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        account = self.accounts.get(request.match_info["account"])
        if account is None:
            raise web.HTTPNotFound
        now = self._clock()
        wait = account.meter.arrive(now)
        try:
            return await self._exchange(request, account, now, wait)
        finally:
            account.meter.leave()

    async def _exchange(
        self, request: web.Request, account: Account, now: float, wait: float | None
    ) -> web.StreamResponse:
        fault = self.admit(account, wait)
        number, profile = account.tally.requests, account.profile
        call = await _call(request, account, now, number)
        kind = fault.kind if fault is not None else None
        account.seen.append(Seen(now, call.method, call.path, call.query, kind))
        if profile.latency or profile.latency_jitter:
            pause = profile.latency + account.rand.random() * profile.latency_jitter
            await asyncio.sleep(pause)
        answer = self.respond(account, call, wait, fault)
        delivery = await deliver(request, answer, fault, profile.gzip)
        book(account, answer, delivery.written, delivery.sent, delivery.broken)
        return delivery.response

    # The provider without a wire: what the server below, and a simulated network, put around it.

    def admit(self, account: Account, wait: float | None) -> Fault | None:
        """Count a request that has arrived; the fault it meets. `wait` is the meter's word."""
        account.tally.requests += 1
        return faults.choose(account) if wait is None else None

    def respond(
        self, account: Account, call: Call, wait: float | None, fault: Fault | None
    ) -> Answer:
        """The answer to an admitted request: throttled, a refusal, or the provider's own."""
        account.grow(call.now)
        if wait is not None:
            answer = self._throttled(account, call, wait)
        else:
            answer = self._answer(account, call, fault)
        if fault is not None:
            account.tally.faults[fault.kind] += 1
        return answer

    def _throttled(self, account: Account, call: Call, wait: float) -> Answer:
        account.tally.throttled += 1
        provider = _PROVIDERS[account.profile.provider]
        answer: Answer = provider.refuse(account, call, 429, faults.words("429"))
        value = account.meter.retry_after(call.now, wait)
        if value is not None:
            answer.headers["Retry-After"] = value
        return answer

    def _answer(self, account: Account, call: Call, fault: Fault | None) -> Answer:
        provider = _PROVIDERS[account.profile.provider]
        if fault is not None:
            if fault.kind in faults.BROKEN:
                return Answer(200, b"{")
            if faults.refuses(fault):
                status = int(fault.kind)
                refusal = provider.refuse(account, call, status, faults.words(fault.kind))
                return faults.instead(account, call, fault, "", refusal)
            if fault.kind in ("html", "redirect", "redirect_away") or fault.kind[:5] == "error":
                away = self._elsewhere(account)
                return faults.instead(account, call, fault, away, Answer(500))
        answer: Answer
        if any(call.headers.get(k) != v for k, v in account.profile.headers.items()):
            account.tally.unauthorized += 1
            answer = provider.refuse(account, call, 401, "Unauthorized")
        else:
            answer = provider.handle(account, call)
        if fault is not None and fault.kind in faults.SPOILED:
            answer = spoil(answer, fault)
        return answer

    def _elsewhere(self, account: Account) -> str:
        """The same server under another name: another origin, where we see what is sent."""
        here, port = self.base_url.removeprefix("http://").rsplit(":", 1)
        other = "127.0.0.1" if here == "localhost" else "localhost"
        return f"http://{other}:{port}/_sim/away/{account.profile.name}"


async def _call(request: web.Request, account: Account, now: float, number: int) -> Call:
    query = dict(request.query)
    body = b""
    if request.body_exists:
        body = await request.read()
        if request.content_type == "application/x-www-form-urlencoded":
            form = await request.post()
            query |= {k: v for k, v in form.items() if isinstance(v, str)}
    return Call(
        method=request.method,
        path=request.path[len(account.profile.name) + 1 :],
        query=query,
        headers=request.headers,
        now=now,
        number=number,
        body=body,
    )


def book(account: Account, answer: Answer, written: int, sent: int, broken: str | None) -> None:
    """What really went out goes into the books: of the plain body, and of the wire's bytes."""
    answer.settle(written)
    tally = account.tally
    tally.statuses[broken or str(answer.status)] += 1
    tally.bytes += sent
    tally.given += answer.reports


def _dice(profile: AccountProfile, rand: random.Random | None) -> random.Random:
    """Each account has dice of its own, so that one's traffic does not change another's."""
    if rand is not None:
        return random.Random(rand.random())
    if profile.seed is not None:
        return random.Random(f"{profile.seed}:{profile.name}")
    return random.Random()
