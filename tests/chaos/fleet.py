"""What a chaos run harms: a simulator in a process of its own, and workers in theirs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

ONE_TIME = ("info-0", "info-1", "info-2", "info-3")
POLLED = ("bulk-0", "bulk-1")
FEEDS = ("bot-0", "bot-1")
PROVIDERS = {"infobip": ONE_TIME, "bulksms": POLLED, "avaamo": FEEDS}
PAGE = 40  # reports of one answer of a one-time account
LIMIT, PER_S = 8, 1.0
SLACK = "200ms"  # processes that are frozen and started on a busy machine
SECOND_S = 2.0  # after sending: then the second state comes
ENGINE = [sys.executable, "-m", "engine"]


def profile() -> str:
    """Which accounts there are, as the simulator reads it."""
    keys = {
        # Oldest first: a state that comes after a later one is none that anybody wants to know.
        "infobip": 'api_key = "key"\nlatency = "30ms"\nhorizon = "0s"\norder = "oldest"',
        "bulksms": 'username = "u"\npassword = "p"',
        "avaamo": 'access_token = "t"',
    }
    limits = f'limits = {{ requests = {LIMIT}, per = "{PER_S:g}s" }}'
    return "\n".join(
        f'[[accounts]]\nname = "{name}"\nprovider = "{provider}"\n{keys[provider]}\n{limits}\n'
        for provider, names in PROVIDERS.items()
        for name in names
    )


def config(url: str, store: str) -> str:
    """The workers' configuration; `store` is the database of the sink, too."""
    keys = {
        "infobip": f'api_key = "key"\nlimit = {PAGE}\nschedule = {{ interval = "300ms" }}',
        "bulksms": 'username = "u"\npassword = "p"\n'
        'schedule = { ladder = ["1s", "3s", "8s", "15s"], give_up = "5m" }',
        "avaamo": 'agent_id = 5157\naccess_token = "t"\nlookback = "1h"\noverlap = "1m"\n'
        'schedule = { interval = "1s", rescan = ["2s", "5s", "10s"] }',
    }
    limits = f'limits = {{ requests = {LIMIT}, per = "{PER_S:g}s", slack = "{SLACK}" }}'
    accounts = [
        f'[[accounts]]\nname = "{name}"\nprovider = "{provider}"\nbase_url = "{url}/{name}"\n'
        f"{keys[provider]}\n{limits}"
        for provider, names in PROVIDERS.items()
        for name in names
    ]
    return "\n\n".join(
        [
            f'shutdown_grace = "5s"\n[store]\nurl = "{store}"',
            *accounts,
            f'[[sinks]]\nname = "tables"\ntype = "postgres"\nurl = "{store}"',
            '[[sinks]]\nname = "lines"\ntype = "jsonl"\npath = "{worker}.jsonl"\n',
        ]
    )


class Simulator:
    """The counting oracle."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.url = url
        self._client = client

    async def told(self, what: str) -> Any:
        async with self._client.get(f"{self.url}/_sim/{what}") as answer:
            return await answer.json(content_type=None)

    async def send(self, account: str, **order: Any) -> Any:
        async with self._client.post(
            f"{self.url}/_sim/send", json={"account": account, **order}
        ) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json(content_type=None)


@contextlib.asynccontextmanager
async def simulator(folder: Path) -> AsyncIterator[Simulator]:
    (folder / "profile.toml").write_text(profile())
    process = await asyncio.create_subprocess_exec(
        *ENGINE, "simulate", "--port", "0", "--profile", str(folder / "profile.toml"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = b""
        while b"\n" not in said.partition(b"http://")[2]:
            said += await process.stdout.read(1 << 12)
        reading = asyncio.create_task(process.stdout.read())
        url = "http://" + said.partition(b"http://")[2].split()[0].decode().rstrip("/")
        async with aiohttp.ClientSession() as client:
            yield Simulator(url, client)
        reading.cancel()
    finally:
        process.terminate()
        await process.wait()


class Command:
    """A worker, or a parent with workers, in a process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._argv = [*ENGINE, "run", "--config", str(folder / "engine.toml"), *arguments]
        self._log = folder / "workers.log"
        self.process: asyncio.subprocess.Process | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._argv, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def end(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()
