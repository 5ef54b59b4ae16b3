"""One harmless question to every account, inside its limits: what `check --connect` asks.

Where no worker runs, the question takes its place in the limit's durable state, so that a worker
that starts right after knows of it. Where one runs, it is asked to put the question itself: only
one process can keep a limit. What an answer held is never committed; a probe asks for nothing
that could be lost.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import msgspec
import orjson

from engine.books.redacting import redactors
from engine.core.contracts import Kind, Poll
from engine.limits.kept import KeptLimits
from engine.limits.limiter import AccountLimiter
from engine.machine.clock import RealClock
from engine.network.transport import Transport
from engine.polling.asking import Asker, Reply
from engine.stores.transaction import Question
from engine.telemetry import Telemetry

from .orders import WORKER_MAX_S, ask_all
from .owning import Opened, opened

if TYPE_CHECKING:
    from engine.config.model import AccountConfig, Config
    from engine.core.redact import Redactor
    from engine.stores.transaction import Store, Transaction

HOLD_MAX_S = 60.0
GRACE_S = 15.0  # beyond the request's own limits: for a place in the limit


class Verdict(msgspec.Struct, frozen=True):
    """How one account answered."""

    account: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"account {self.account}: {'ok, ' if self.ok else 'FAILED: '}{self.text}"


async def probe_all(config: Config) -> AsyncIterator[bool]:
    """Ask every account and print how it answered; yields whether it passed."""
    async with opened(config) as found:
        verdicts = await (_directly if found.owned else _through_worker)(config, found)
    for verdict in verdicts:
        print(verdict, flush=True)
        yield verdict.ok


# Through a running worker


async def _through_worker(config: Config, opened: Opened) -> list[Verdict]:
    names = [account.name for account in config.accounts]
    found = await ask_all(opened.store, "probe", [(name, Question()) for name in names])
    return [_verdict(name, answer) for name, answer in zip(names, found, strict=True)]


def _verdict(account: str, answer: bytes | None) -> Verdict:
    if answer is None:
        late = f"the running worker did not answer within {WORKER_MAX_S:g} s"
        return Verdict(account, False, late)
    said: dict[str, Any] = orjson.loads(answer)
    ok, cause = bool(said.get("ok")), str(said.get("cause") or "")
    return Verdict(
        account, ok, "answered the running worker" if ok else cause or "no proper answer"
    )


# On our own


async def _directly(config: Config, opened: Opened) -> list[Verdict]:
    found: dict[str, Verdict] = {}
    store = opened.store
    limits = KeptLimits(store, RealClock())
    limits.wall = opened.wall or limits.wall
    try:
        redacting = await redactors(config, store)
        await limits.open(config.accounts)
        async with anyio.create_task_group() as group:

            async def ask(account: AccountConfig) -> None:
                own, redactor = limits.for_account(account), redacting.get(account.name)
                found[account.name] = await _ask(account, store, own, redactor)

            for account in config.accounts:
                group.start_soon(ask, account)
    finally:
        with anyio.CancelScope(shield=True):
            passed = [name for name, verdict in found.items() if verdict.ok]
            await store.write(lambda tx: _forgive(tx, passed))
            await limits.close()
    return [found[account.name] for account in config.accounts]


def _forgive(tx: Transaction, names: list[str]) -> None:
    """The credentials are right: a pause that the last worker left is over."""
    for name in names:
        tx.drop_note(name, "status")


async def _ask(
    account: AccountConfig, store: Store, own: AccountLimiter, redactor: Redactor | None
) -> Verdict:
    if own.hold_s() > HOLD_MAX_S:
        text = f"not asked: its provider wants no request for another {own.hold_s():.0f} s"
        return Verdict(account.name, False, text)
    transport = Transport(ca_file=str(account.ca_file) if account.ca_file is not None else None)
    try:
        await transport.open()
    except OSError as error:
        return Verdict(account.name, False, f"ca_file: {error.strerror or type(error).__name__}")
    clock = RealClock()
    asker = Asker(
        account,
        store=store,
        transport=transport,
        limiter=own,
        telemetry=Telemetry(),
        clock=clock,
        rand=random.Random(),
        redactor=redactor,
        unhurried=anyio.Lock(),
    )
    poll = Poll(kind=Kind.PROBE, now_ms=clock.now_ms(), nonce=str(uuid4()))
    limit_s = HOLD_MAX_S + account.request.total_timeout_s + GRACE_S
    try:
        with anyio.move_on_after(limit_s):
            began = time.monotonic()
            reply = await asker.ask(poll)
            return _judged(account, reply, time.monotonic() - began)
    finally:
        await transport.close()
    return Verdict(account.name, False, f"no place in its limits or no answer in {limit_s:g} s")


def _judged(account: AccountConfig, reply: Reply, took_s: float) -> Verdict:
    if not reply.answered:
        return Verdict(account.name, False, reply.outcome.cause or "no proper answer")
    return Verdict(account.name, True, f"answered in {max(1, round(took_s * 1000))} ms")
