"""The engine inside another program: send, track, read reports until every message has ended.

    python examples/embed.py

The provider is the simulator that comes with the engine, so nothing leaves this machine. What is
built here from dictionaries could as well be a file: `engine.open("engine.toml")`.
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime

import engine
from engine.sim import AccountProfile, Delays, Profile, Simulator

MESSAGES = 20

PROVIDER = Profile(
    accounts=[
        AccountProfile(
            name="bulk-eu",
            provider="bulksms",
            username="john",
            password="secret",  # noqa: S106 - a simulator guards nothing
            delays=Delays(enroute=0.2, final=0.8),
            seed=7,
        )
    ]
)


def configuration(base_url: str) -> engine.Config:
    """One account whose ladder takes seconds instead of days, in a store that keeps nothing."""
    account = {
        "name": "bulk-eu",
        "provider": "bulksms",
        "base_url": base_url,
        "username": "john",
        "password": "secret",
        "limits": {"requests": 10, "per": "1s"},
        "schedule": {"ladder": ["0.5s", "1s", "2s", "3s"]},
    }
    return engine.configure({"store": {"url": "memory://"}, "accounts": [account]})


async def main() -> None:
    async with (
        Simulator(PROVIDER) as provider,
        engine.open(configuration(provider.url("bulk-eu"))) as poller,
    ):
        sent = provider.send("bulk-eu", MESSAGES)
        await poller.track(
            "bulk-eu",
            batch_id=sent.batch_id,
            recipients=sent.recipients,
            sent_at=datetime.now(UTC),
            reference="order-17",
        )
        ends: dict[str, str] = {}
        async for report in poller.reports():
            print(f"{report.recipient}  revision {report.revision}  {report.state}")
            if report.final:
                ends[report.message_id] = report.verdict or report.state
            if len(ends) == MESSAGES:
                break
    print(", ".join(f"{count} {end}" for end, count in Counter(ends.values()).most_common()))


if __name__ == "__main__":
    asyncio.run(main())
