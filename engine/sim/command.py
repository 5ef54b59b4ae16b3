"""What `dlr-engine simulate` runs: the server, and the configuration that fits it.

The configuration is announced as text ready to be saved, so that trying the engine out takes two
commands. It installs no signal handler: it serves until it is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from engine.sim.profile import AccountProfile, Profile
from engine.sim.server import Simulator

GENERATED = 10_000
"""Messages an account of the default profile brings up by itself in the end."""
LADDER = (300.0, 1800.0, 7200.0, 18000.0, 86400.0, 172800.0, 432000.0)
MIN_RUNG = 0.5


async def serve(port: int, profile: Profile | None, announce: Callable[[str], None]) -> None:
    """Serve this profile, or the default one, until cancelled."""
    chosen = profile if profile is not None else Profile.default(count=GENERATED)
    simulator = Simulator(chosen)
    base = await simulator.start(port=port)
    try:
        announce(f"simulator: {base}")
        announce(engine_toml(base, chosen))
        announce(f"send: {_send_line(base, chosen)}")
        announce(f"look: curl -s {base}/_sim/counts")
        await asyncio.Event().wait()  # nobody sets it: cancelling ends this
    finally:
        await simulator.stop()


def engine_toml(base_url: str, profile: Profile) -> str:
    """A configuration of the engine with an account for each of the profile's."""
    parts = [
        '[store]\nurl = "sqlite:///state.db"',
        *(_account(base_url, account) for account in profile.accounts),
        '[[sinks]]\nname = "reports"\ntype = "jsonl"\npath = "reports.jsonl"',
    ]
    return "\n\n".join(parts) + "\n"


def _account(base_url: str, account: AccountProfile) -> str:
    lines = [
        "[[accounts]]",
        f"name = {_text(account.name)}",
        f"provider = {_text(account.provider)}",
        f"base_url = {_text(f'{base_url}/{account.name}')}",
        *_credentials(base_url, account),
    ]
    limits = account.limits
    keys = []
    if limits.requests:
        keys += [f"requests = {limits.requests}", f'per = "{limits.per:g}s"']
    if limits.concurrency:
        keys.append(f"concurrency = {limits.concurrency}")
    if limits.also:
        also = ", ".join(f'{{ requests = {w.requests}, per = "{w.per:g}s" }}' for w in limits.also)
        keys.append(f"also = [{also}]")
    if keys:
        lines.append(f"limits = {{ {', '.join(keys)} }}")
    lines.append(f"schedule = {{ {_schedule(account)} }}")
    return "\n".join(lines)


def _credentials(base_url: str, account: AccountProfile) -> list[str]:
    """The one way in that the provider's account in the engine takes."""
    headers = dict(account.headers)
    login = [f"{key} = {_text(getattr(account, key) or '')}" for key in ("username", "password")]
    if account.provider == "bulksms":
        lines = login
    elif account.provider == "infobip":
        lines = _infobip(account) or login
    elif account.provider == "avaamo":
        lines = [f"agent_id = {account.agent_id}"]
        if account.access_token is not None:
            lines.append(f"access_token = {_text(account.access_token)}")
    else:
        lines = []
        if account.authorization is not None:
            headers["Authorization"] = account.authorization
        elif account.username is not None:
            lines = [f"login_url = {_text(f'{base_url}/{account.name}/login')}", *login]
        if account.channels != ["S"]:
            lines.append(f"channels = {json.dumps(account.channels)}")
    if headers:
        pairs = ", ".join(f"{_text(name)} = {_text(value)}" for name, value in headers.items())
        lines.append(f"headers = {{ {pairs} }}")
    return lines


def _infobip(account: AccountProfile) -> list[str]:
    """The key or header; empty where it is name and password."""
    if account.api_key is not None:
        return [f"api_key = {_text(account.api_key)}"]
    whole = account.authorization
    if whole is None and account.ibsso is not None:
        whole = f"IBSSO {account.ibsso}"
    if whole is None and account.bearer is not None:
        whole = f"Bearer {account.bearer}"
    return [f"authorization = {_text(whole)}"] if whole is not None else []


def _schedule(account: AccountProfile) -> str:
    """The documented offsets, in the profile's compressed time."""
    rungs = [max(offset / account.time_scale, MIN_RUNG) for offset in LADDER]
    ladder = ", ".join(f'"{rung:g}s"' for rung in sorted(set(rungs)))
    if account.provider == "bulksms":
        return f"ladder = [{ladder}]"
    if account.provider == "infobip":
        return 'interval = "1s", idle_interval = "5s"'
    return f'interval = "1s", rescan = [{ladder}]'


def _send_line(base_url: str, profile: Profile) -> str:
    order = json.dumps({"account": profile.accounts[0].name, "n": 10})
    return f"curl -s {base_url}/_sim/send -d '{order}'"


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(value)
