"""Between the engine and the simulated providers: what `engine.network.transport` offers.

A request is on its way for up to the limit's slack, an answer comes in pieces of any size. What a
process has put on the wire arrives also when the process is dead by then. Connections fail before
or after the request was sent, heads never come, bodies are cut, stall or drip.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from engine.core.contracts import Head, Request
from engine.network.failures import Cut, Timeouts, TooLarge, TransportError, Unreachable, Withheld
from engine.network.failures import Timeout as TimedOut
from engine.network.transport import Transport
from engine.sim.account import Account, Seen
from engine.sim.answer import Answer as Said
from engine.sim.answer import Call
from engine.sim.profile import Fault
from engine.sim.server import Simulator, book
from tests.simulation.world import Process


class Weather(msgspec.Struct, kw_only=True):
    """How often the network fails, as shares of the requests, until the world calms down."""

    unreachable: float = 0.0
    swallowed: float = 0.0  # sent, never arrived: reset or silence
    stalls: float = 0.0  # an answer stops coming, without an end
    resets: float = 0.0  # an answer's connection breaks at some byte
    latency_s: float = 0.02


class Exchange:
    """One request as the provider meets it, and how much of its answer the engine has read."""

    def __init__(self, host: Host, call: Call, process: Process) -> None:
        self.host = host
        self.call = call
        self.process = process
        self.began = process.world.now
        # By the engine's wall clock; the second is later where the question was perhaps put anew.
        self.asked_ms = self.maybe_ms = process.now_ms()
        self.head_at = 0.0
        self.arrived_at: float | None = None
        self.said: Said | None = None
        self.fault: Fault | None = None
        self.consumed = 0
        self.whole = False  # the engine has read the body to its proper end
        self.closed = False  # by the engine, or by its death
        self.left = False  # the provider has done with it

    def leave(self, broken: str | None = None) -> None:
        """The provider is done with it."""
        if self.arrived_at is None or self.left:
            return
        self.left = True
        self.host.account.meter.leave()
        if self.said is not None:
            book(self.host.account, self.said, self.consumed, self.consumed, broken)


class Host:
    """One simulated account behind the network."""

    def __init__(self, simulator: Simulator, name: str, clock: Callable[[], float], slack_s: float):
        self.simulator = simulator
        self.account: Account = simulator.accounts[name]
        self.name = name
        self.clock = clock
        self.slack_s = slack_s


class Watcher:
    """What looks on; the checks override it."""

    def puts(self, exchange: Exchange) -> None: ...
    def drops(self, exchange: Exchange) -> None: ...
    def starts(self, exchange: Exchange) -> None: ...
    def arrives(self, exchange: Exchange) -> None: ...
    def ends(self, exchange: Exchange) -> None: ...


class _Wire:
    """The engine's end of a connection: what has come in, and a bell."""

    def __init__(self) -> None:
        self.items: deque[Head | bytes | str] = deque()
        self.bell = asyncio.Event()

    def put(self, item: Head | bytes | str) -> None:
        self.items.append(item)
        self.bell.set()


class Answer:
    """As `engine.network.transport.Answer`: the head, and the body as it comes."""

    def __init__(self, head: Head, exchange: Exchange, wire: _Wire, timeouts: Timeouts) -> None:
        self.head = head
        self._exchange = exchange
        self._wire = wire
        self._timeouts = timeouts

    @property
    def received_bytes(self) -> int:
        return self._exchange.consumed

    async def chunks(self) -> AsyncIterator[bytes]:
        exchange, room = self._exchange, self._timeouts.body_max
        while True:
            item = await _next(exchange, self._wire, self._timeouts)
            if isinstance(item, bytes):
                if len(item) > room:
                    exchange.consumed += room
                    yield item[:room]
                    raise TooLarge("body too large", sent=True)
                room -= len(item)
                exchange.consumed += len(item)
                yield item
            elif item == "end":
                exchange.whole = True
                return
            else:
                raise Cut("body ended early", sent=True, received_bytes=exchange.consumed)


class Network(Transport):
    """`Transport` of one process."""

    def __init__(
        self, process: Process, hosts: Mapping[str, Host], weather: Weather, watcher: Watcher
    ) -> None:
        self._process = process
        self._world = process.world
        self._hosts = hosts
        self._weather = weather
        self._watcher = watcher
        self._rand = process.world.dice(f"network {process.number}")
        self._open: dict[Exchange, None] = {}

    async def open(self) -> None:
        self._process.check()

    async def close(self) -> None:
        self._process.check()

    def die(self) -> None:
        """The process is dead: its connections are closed, what was sent is on its way."""
        for exchange in list(self._open):
            self._close(exchange)

    @asynccontextmanager
    async def fetch(
        self,
        base_url: str,
        request: Request,
        timeouts: Timeouts,
        on_sent: Callable[[], None] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[Answer]:
        self._process.check()
        host, call = self._addressed(base_url, request)
        exchange = Exchange(host, call, self._process)
        wire = _Wire()
        self._watcher.puts(exchange)
        try:
            await self._connect(timeouts)
            if not may_send():
                raise Withheld("withheld", sent=False)
        except TransportError:
            self._watcher.drops(exchange)
            raise
        self._watcher.starts(exchange)
        self._open[exchange] = None
        try:
            self._send(exchange, wire)
            if self._rand.random() < 0.5:
                await asyncio.sleep(0)
                self._process.check()
            if on_sent is not None:
                on_sent()
            head = await _next(exchange, wire, timeouts)
            if not isinstance(head, Head):
                raise Cut("connection reset", sent=True)
            exchange.head_at = self._world.now
            yield Answer(head, exchange, wire, timeouts)
        finally:
            if self._process.alive:
                self._close(exchange)

    def _addressed(self, base_url: str, request: Request) -> tuple[Host, Call]:
        parts = urlsplit(request.url or base_url.rstrip("/") + request.path)
        _, name, *rest = parts.path.split("/")
        query = dict(parse_qsl(parts.query)) | dict(request.params) | dict(request.form)
        if request.url is not None and request.method == "GET":
            query = dict(parse_qsl(parts.query))
        host = self._hosts[name]
        headers = _Headers({k.lower(): v for k, v in request.headers})
        body = request.json or urlencode(request.form).encode()
        path = "/" + "/".join(rest)
        return host, Call(request.method, path, query, headers, 0.0, 0, body)

    async def _connect(self, timeouts: Timeouts) -> None:
        weather, rand = self._weather, self._rand
        chance = 1.0 if self._world.calm else rand.random()
        if chance < weather.unreachable / 3:
            await asyncio.sleep(timeouts.connect_or_byte_s)
            self._process.check()
            raise TimedOut("no connection", sent=False)
        await asyncio.sleep(rand.random() * weather.latency_s)
        self._process.check()
        if chance < weather.unreachable:
            raise Unreachable("connection refused", sent=False)

    def _send(self, exchange: Exchange, wire: _Wire) -> None:
        """Put it on the wire; from here on it cannot be called back."""
        weather, rand, world = self._weather, self._rand, self._world
        chance = 1.0 if world.calm else rand.random()
        if chance < weather.swallowed:
            if chance < weather.swallowed / 2:
                world.after(
                    rand.random() * weather.latency_s,
                    lambda: self._arrives(exchange, wire, "reset"),
                )
            return
        transit_s = rand.random() * exchange.host.slack_s
        broken = None
        if chance < weather.swallowed + weather.stalls:
            broken = "stall"
        elif chance < weather.swallowed + weather.stalls + weather.resets:
            broken = "reset"
        where = rand.random()
        world.after(transit_s, lambda: self._arrive(exchange, wire, broken, where))

    def _arrive(self, exchange: Exchange, wire: _Wire, broken: str | None, where: float) -> None:
        host, account = exchange.host, exchange.host.account
        now = host.clock()
        exchange.arrived_at = self._world.now
        wait = account.meter.arrive(now)
        fault = exchange.fault = host.simulator.admit(account, wait)
        call = exchange.call = replace(exchange.call, now=now, number=account.tally.requests)
        account.seen.append(Seen(now, call.method, call.path, call.query, fault and fault.kind))
        said = exchange.said = host.simulator.respond(account, call, wait, fault)
        self._world.note(
            f"{host.name} {call.method} {_target(call)} -> {said.status}"
            f" {len(said.body)}{' ' + fault.kind if fault else ''}"
            f"{'' if wait is None else ' throttled'}{' orphan' if exchange.closed else ''}"
        )
        self._watcher.arrives(exchange)
        if exchange.closed:
            exchange.leave("client gone")
            return
        self._answer(exchange, wire, said, broken, where)

    def _answer(
        self, exchange: Exchange, wire: _Wire, said: Said, broken: str | None, where: float
    ) -> None:
        """Plan when which piece comes, and how it ends."""
        world, rand, fault = self._world, self._rand, exchange.fault
        kind = fault.kind if fault is not None else ""
        body = said.body if said.chunks is None else b"".join(said.chunks)
        slow_s = self._weather.latency_s
        when = world.now + rand.random() * slow_s
        if kind in ("reset", "lost"):
            world.at(when, lambda: self._arrives(exchange, wire, "reset", last=True))
            return
        limit, end = len(body), "end"
        if kind in ("cut", "cut_chunked"):
            assert fault is not None
            limit, end = min(int(len(body) * fault.share), len(body) - 1), "cut"
        elif broken is not None:
            limit, end = int(len(body) * where), "cut" if broken == "reset" else "stall"
        headers = {k.lower(): v for k, v in said.headers.items()}
        date = formatdate(exchange.call.now, usegmt=True)
        head = Head(said.status, headers | {"content-type": said.content_type, "date": date})
        if not (end == "stall" and where < 0.2):
            world.at(when, lambda: self._arrives(exchange, wire, head))
            place = 0
            while place < limit:
                size = rand.choice((1 << 16, 1 << 16, 700, 97))
                piece = body[place : min(place + size, limit)]
                place += size
                when += rand.random() * (1.0 if kind == "drip" else slow_s)
                world.at(when, lambda piece=piece: self._arrives(exchange, wire, piece))
        if end != "stall":
            world.at(when, lambda: self._arrives(exchange, wire, end, last=True))

    def _arrives(
        self, exchange: Exchange, wire: _Wire, item: Head | bytes | str, *, last: bool = False
    ) -> None:
        if exchange.closed:
            return
        wire.put(item)
        if last:
            # What is on its way will be read: the provider has done its part.
            exchange.host.account.meter.leave()
            exchange.left = True

    def _close(self, exchange: Exchange) -> None:
        if exchange.closed:
            return
        exchange.closed = True
        self._open.pop(exchange, None)
        if exchange.left and exchange.said is not None:
            book(exchange.host.account, exchange.said, exchange.consumed, exchange.consumed, None)
        exchange.leave("client gone")
        self._watcher.ends(exchange)


class _Headers(dict[str, str]):
    """Names of headers ignore case."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


async def _next(exchange: Exchange, wire: _Wire, timeouts: Timeouts) -> Head | bytes | str:
    """The next thing that comes, or a Timeout; never after the process has died."""
    process = exchange.process
    now, over_at = process.world.now, exchange.began + timeouts.total_s
    if not wire.items and now < over_at:
        wire.bell.clear()
        late = process.loop.call_at(min(now + timeouts.connect_or_byte_s, over_at), wire.bell.set)
        try:
            await wire.bell.wait()
        finally:
            late.cancel()
    process.check()
    if not wire.items:
        raise TimedOut("nothing came", sent=True, received_bytes=exchange.consumed)
    return wire.items.popleft()


def _target(call: Call) -> str:
    return call.path + "?" + "&".join(f"{k}={v}" for k, v in call.query.items() if k != "password")
