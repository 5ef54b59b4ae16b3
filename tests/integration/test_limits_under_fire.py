"""Limits while the worker is killed, and with 200 accounts at once: by the simulator's own count.

The simulator runs in this process, the worker in its own. `slack` is wide, for both share a machine
with whatever else it does: what the simulator's clock shows is also when it was let run.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.sim import Simulator
from engine.sim.profile import AccountProfile, Limits, Profile, Window

pytestmark = pytest.mark.alone

SLACK = "200ms"
LONG_S = 12.0  # longer than what is waited out after an unclean end
GROUPS, MEMBERS = 10, 4


@pytest.mark.parametrize("provider", ["bulksms", "infobip"])
async def test_a_long_window_holds_over_kills_in_a_burst(tmp_path: Path, provider: str) -> None:
    """Allowance is taken in durable blocks, so it is neither exceeded nor waited out."""
    limits = Limits(requests=40, per=LONG_S, also=[Window(requests=15, per=1.0)])
    account = profile(provider, "a", limits, odds={})
    rand = random.Random(3)
    async with Simulator(Profile(accounts=[account])) as sim:
        configure(tmp_path, sim, [account])
        if provider == "bulksms":
            batches = [sim.send("a", 1).batch_id for _ in range(200)]
            (tmp_path / "sent.csv").write_text("batch_id\n" + "\n".join(map(str, batches)))
            await command(tmp_path, "track", "--account", "a", "--file", "sent.csv")
        for n in range(2):
            async with worker(tmp_path) as process:
                await until(lambda n=n: sim.counts("a").requests >= 5 * (n + 1))
                await asyncio.sleep(rand.uniform(0.0, 0.2))
                process.kill()
                await process.wait()
        killed_at = sim.requests("a")[-1].at
        async with worker(tmp_path):
            await until(lambda: sim.counts("a").requests >= 60, LONG_S + 30)
        times = [seen.at for seen in sim.requests("a")]
        assert sim.violations("a") == []
    # The window was not waited out: work went on in it after the last kill.
    assert min(at for at in times if at > killed_at) < times[0] + LONG_S


async def test_two_hundred_accounts_at_once(tmp_path: Path) -> None:
    """Of all four providers, some in groups, with refusals at random, and a kill in the middle."""
    limits = Limits(requests=3, per=1.0, also=[Window(requests=5, per=3.0)])
    grouped = Limits(requests=MEMBERS, per=1.0)
    feeds = ("infobip", "avaamo", "messangi")
    names = ["bulksms" if n % 20 == 0 else feeds[n % 3] for n in range(160)]
    accounts = [profile(name, f"a{n}", limits) for n, name in enumerate(names)]
    groups = {
        f"g{n}": [profile("infobip", f"g{n}-{m}", grouped) for m in range(MEMBERS)]
        for n in range(GROUPS)
    }
    everyone = accounts + [member for members in groups.values() for member in members]
    assert len(everyone) == 200
    async with Simulator(Profile(accounts=everyone)) as sim:
        configure(tmp_path, sim, everyone)
        for account in accounts:
            if account.provider == "bulksms":
                rows = ["batch_id", *(str(sim.send(account.name, 1).batch_id) for _ in range(30))]
                (tmp_path / "sent.csv").write_text("\n".join(rows))
                await command(tmp_path, "track", "--account", account.name, "--file", "sent.csv")
        for needed in (600, 1500):
            async with worker(tmp_path) as process:
                await until(lambda n=needed: requests(sim) >= n, 60)
                process.kill()
                await process.wait()
        assert [v for one in everyone for v in sim.violations(one.name)] == []
        assert min(sim.counts(one.name).requests for one in everyone) >= 2
        assert sum(sim.counts(one.name).faults.get("429", 0) for one in everyone) >= 20
        for members in groups.values():
            times = sorted(seen.at for one in members for seen in sim.requests(one.name))
            pairs = zip(times, times[MEMBERS:], strict=False)
            assert all(later - sooner > 0.995 for sooner, later in pairs)


REFUSALS = {"429": 0.05, "503": 0.02}


def profile(
    provider: str, name: str, limits: Limits, odds: dict[str, float] = REFUSALS
) -> AccountProfile:
    keys = {
        "infobip": {"api_key": "key"},
        "bulksms": {"username": "u", "password": "p"},
        "avaamo": {"agent_id": 1, "access_token": "t"},
    }
    return msgspec.convert(
        {
            "name": name,
            "provider": provider,
            "limits": msgspec.to_builtins(limits),
            "odds": odds,
            **keys.get(provider, {}),
        },
        AccountProfile,
    )


def configure(folder: Path, sim: Simulator, accounts: list[AccountProfile]) -> None:
    parts = ['shutdown_grace = "1s"', '[store]\nurl = "sqlite:///state.db"']
    for account in accounts:
        limits = account.limits
        keys = [f"requests = {limits.requests}", f'per = "{limits.per:g}s"', f'slack = "{SLACK}"']
        if limits.also:
            also = (f'{{ requests = {w.requests}, per = "{w.per:g}s" }}' for w in limits.also)
            keys.append(f"also = [{', '.join(also)}]")
        if account.name.startswith("g"):
            keys.append(f'group = "{account.name.partition("-")[0]}"')
        ways = {
            "infobip": 'api_key = "key"\nschedule = { interval = "50ms", idle_interval = "50ms" }',
            "bulksms": 'username = "u"\npassword = "p"\n'
            'schedule = { ladder = ["0s", "100ms", "200ms", "1h"] }',
            "avaamo": 'agent_id = 1\naccess_token = "t"\nschedule = { interval = "50ms" }',
            "messangi": 'schedule = { interval = "50ms" }',
        }
        parts.append(
            f'[[accounts]]\nname = "{account.name}"\nprovider = "{account.provider}"\n'
            f'base_url = "{sim.url(account.name)}"\nlimits = {{ {", ".join(keys)} }}\n'
            + ways[account.provider]
        )
    (folder / "engine.toml").write_text("\n\n".join(parts))


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", "run", "--config", "engine.toml", "--quiet"),
        cwd=folder,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()


async def command(folder: Path, name: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "engine", name, "--config", "engine.toml", *arguments),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


async def until(check: object, seconds: float = 30.0) -> None:
    assert callable(check)
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 - it is another process that makes it true
            await asyncio.sleep(0.01)


def requests(sim: Simulator) -> int:
    return sum(account.tally.requests for account in sim.accounts.values())
