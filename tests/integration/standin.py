"""A stand-in for a provider: raw answers on a real local server, and a book of what was asked."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

STALL_S = 5.0
SAMPLES = Path(__file__).parent.parent / "samples"


@dataclass(slots=True)
class Raw:
    """An answer, byte for byte."""

    body: bytes | str = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before the head goes out
    cut: int | None = None  # so many bytes of the body, then the connection ends
    stall: int | None = None  # so many bytes of the body, then nothing for STALL_S
    reset: bool = False  # the connection is reset instead of an answer


@dataclass(slots=True)
class Asked:
    """A request as it came in, by the stand-in's clock."""

    at: float
    worked: float  # seconds of processor time that this process had used by then
    method: str
    path: str  # behind base_url
    query_string: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    number: int  # 1, 2, … of this account
    left: float | None = None

    @property
    def query(self) -> dict[str, str]:
        return dict(self.pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return parse_qsl(self.query_string, keep_blank_values=True)


Answer = Raw | bytes | str
Answers = Callable[[Asked], Answer] | Sequence[Answer]


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def json_of(value: object) -> bytes:
    return orjson.dumps(value)


class Standin:
    """Each account lives behind a prefix. A list of answers is used up, its last one stays."""

    def __init__(self) -> None:
        self.asked: dict[str, list[Asked]] = defaultdict(list)
        self.running: dict[str, int] = defaultdict(int)
        self.most: dict[str, int] = defaultdict(int)  # requests in flight at a time
        self.base = ""
        self._answers: dict[str, Answers] = {}
        self._runner: web.AppRunner | None = None

    def answer(self, account: str, answers: Answers) -> str:
        """What the account answers from now on; its base URL."""
        self._answers[account] = answers
        return f"{self.base}/{account}"

    def times(self, account: str) -> list[float]:
        return [asked.at for asked in self.asked[account]]

    async def __aenter__(self) -> Standin:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{account}/{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        account = request.match_info["account"]
        asked = Asked(
            at=time.monotonic(),
            worked=time.process_time(),
            method=request.method,
            path=request.path[len(account) + 1 :],
            query_string=request.rel_url.raw_query_string,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
            number=len(self.asked[account]) + 1,
        )
        self.asked[account].append(asked)
        self.running[account] += 1
        self.most[account] = max(self.most[account], self.running[account])
        try:
            return await self._give(request, asked, self._next(account, asked))
        finally:
            self.running[account] -= 1
            asked.left = time.monotonic()

    def _next(self, account: str, asked: Asked) -> Raw:
        answers = self._answers.get(account, Raw(status=404))
        if callable(answers):
            given = answers(asked)
        elif isinstance(answers, Sequence):
            given = answers[min(asked.number, len(answers)) - 1]
        else:
            given = answers
        return given if isinstance(given, Raw) else Raw(given)

    async def _give(self, request: web.Request, asked: Asked, raw: Raw) -> web.StreamResponse:
        body = raw.body.encode() if isinstance(raw.body, str) else raw.body
        if raw.wait_s:
            await asyncio.sleep(raw.wait_s)
        if raw.reset:
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        headers = {"Content-Type": "application/json", **raw.headers}
        if raw.cut is None and raw.stall is None:
            return web.Response(body=body, status=raw.status, headers=headers)
        response = web.StreamResponse(status=raw.status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: raw.cut if raw.stall is None else raw.stall])
        if raw.stall is not None:
            await asyncio.sleep(STALL_S)
        assert request.transport is not None
        request.transport.close()
        return response
