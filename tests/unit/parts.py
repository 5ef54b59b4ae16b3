"""One account's parts against a scripted provider, with a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import orjson

import engine
from engine.core.contracts import Head, Kind, Poll, Request
from engine.core.work import Work
from engine.limits.limiter import Limiter
from engine.network.transport import Timeouts, Transport, Withheld
from engine.polling.asking import Asker
from engine.stores.memory import MemoryStore
from engine.stores.patient import PatientStore
from engine.telemetry import Telemetry

T0 = 1_780_000_000_000
REPORT = {
    "results": [
        {
            "messageId": "m1", "to": "447700900001", "sentAt": "2026-05-28T20:26:40.000+0000",
            "doneAt": "2026-05-28T20:26:41.000+0000",
            "status": {"groupId": 3, "groupName": "DELIVERED", "id": 5, "name": "DELIVERED"},
        }
    ]
}  # fmt: skip
EMPTY = {"current_page": 1, "per_page": 100, "total_entries": 0, "total_pages": 1, "entries": []}
ACCOUNTS: dict[str, dict[str, Any]] = {
    "infobip": {"api_key": "key"},
    "avaamo": {"agent_id": 1, "access_token": "token", "lookback": "60s", "overlap": "1s"},
    "bulksms": {"username": "u", "password": "word"},
    "messangi": {"login_url": "http://p/login", "username": "u", "password": "wrong-word"},
}


class HandClock:
    """Stands still until it is moved; who sleeps moves it."""

    def __init__(self) -> None:
        self.ms = T0

    def now_ms(self) -> int:
        return self.ms

    def monotonic(self) -> float:
        return self.ms / 1000

    def boot(self) -> tuple[str, float] | None:
        return None

    async def sleep(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        await anyio.lowlevel.checkpoint()


class Said:
    def __init__(self, status: int, body: bytes) -> None:
        kind = "text/html" if body.startswith(b"<") else "application/json"
        self.head = Head(status, {"content-type": kind})
        self.received_bytes = len(body)
        self._body = body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


class Scripted(Transport):
    """Gives one answer after the other, the last one for ever; `asked` are the requests that went
    out. While there is an event in `unconnected`, the next question waits for it before it does."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.asked: list[Request] = []
        self.unconnected: list[anyio.Event] = []
        self._answers = list(answers)

    @asynccontextmanager
    async def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[Any]:
        if self.unconnected:
            await self.unconnected.pop(0).wait()
        if not may_send():
            raise Withheld("withheld", sent=False)
        self.asked.append(request)
        if on_sent is not None:
            on_sent()
        await anyio.sleep(0.01)
        status, body = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        yield Said(status, body if isinstance(body, bytes) else orjson.dumps(body))


class Parts:
    """An account's asker, with what it is made of."""

    def __init__(
        self,
        provider: str,
        *answers: tuple[int, Any],
        unhurried: anyio.Lock | None = None,
        **keys: Any,
    ) -> None:
        entry = {"name": "a", "provider": provider, "base_url": "http://p"}
        data = {"accounts": [{**entry, **ACCOUNTS[provider], **keys}]}
        self.account = engine.configure(data).accounts[0]
        self.clock = HandClock()
        self.tables = MemoryStore()
        self.network = Scripted(*answers)
        limits = self.account.limits
        limiter = Limiter(limits.rates, monotonic=self.clock.monotonic)
        self.limiter = limiter.for_account(limits.concurrency, "a")
        self.store = PatientStore(self.tables, Telemetry(), self.clock)
        self.asker = Asker(
            self.account, store=self.store, transport=self.network, limiter=self.limiter,
            telemetry=Telemetry(), clock=self.clock, rand=random.Random(1), redactor=None,
            unhurried=unhurried or anyio.Lock(),
        )  # fmt: skip

    async def __aenter__(self) -> Parts:
        await self.store.open(own=True)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.store.close()

    def poll(self, **fields: Any) -> Poll:
        return Poll(kind=Kind.FEED, now_ms=self.clock.now_ms(), **fields)

    async def put(self, work: Work) -> Work:
        return (await self.store.write(lambda tx: tx.put_works([work])))[0]

    async def states(self) -> list[tuple[str, str, str | None]]:
        def read(tx: Any) -> list[tuple[str, str, str | None]]:
            found = tx.find_messages("message_id", "m1", 10)
            return [(m.message_id, m.state.value, m.verdict) for m in found]

        return await self.store.read(read)


def feed_work(clock: HandClock, **fields: Any) -> Work:
    return Work(account="a", kind=Kind.FEED, key="", due_ms=clock.ms, start_ms=clock.ms, **fields)
