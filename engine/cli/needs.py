"""What the schedules need beside what the limits allow, for `check` and `stats`.

Beforehand it is not known how much will be sent, so `check` says how much of it the limit carries;
`stats` knows the schedule and counts what it asks for within the next hour. Both are estimates for
people: nothing in the engine may depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.core.units import spell_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.config.model import AccountConfig, Config
    from engine.core.contracts import Kind

DAY_S = 86_400.0
HOUR_S = 3600.0


def allows_per_s(account: AccountConfig) -> float:
    """The rate that all of the account's limits let through."""
    return min(rate.requests / rate.per_s for rate in account.limits.rates)


def feed_per_s(account: AccountConfig) -> float:
    """What the feed asks for at its busiest, a page a read."""
    traits = account.provider.traits
    if traits.feed is None:
        return 0.0
    return max(1, len(traits.read_channels)) / account.schedule.interval_s


def rescans_per_s(account: AccountConfig) -> float:
    """What is added at most by reading windows again, none of them being neighbours."""
    if account.provider.traits.feed != "windowed":
        return 0.0
    return feed_per_s(account) * len(account.schedule.rescan_s)


def scheduled_per_s(account: AccountConfig, works: dict[Kind, tuple[int, int, int]]) -> float:
    """The feed, and what the schedule asks for besides within the hour that `works` counted."""
    asks = account.provider.traits.asks
    due = sum(
        count
        for kind, (_, count, _) in works.items()
        if kind.value in asks or kind.value == "window"
    )
    return feed_per_s(account) + due / HOUR_S


def lines(config: Config) -> list[str]:
    """For each account (or group that shares a limit) what it needs, and what it may use."""
    found = []
    for name, accounts in _sharing(config):
        allows = allows_per_s(accounts[0])
        feeds = sum(map(feed_per_s, accounts))
        again = sum(map(rescans_per_s, accounts))
        asking = [a for a in accounts if a.provider.traits.asks and a.schedule.ladder_s]
        parts = []
        if feeds:
            parts.append(f"{_feeds(accounts)} at {_rate(feeds)}")
        if again:
            parts.append(f"rescans of what is open at up to {_rate(again)}")
        if asking:
            parts.append(_carried(asking, allows - feeds))
        if not parts:
            parts.append("nothing is asked for by itself")
        line = f"{name}: {'; '.join(parts)}; the limit allows {_rate(allows)}"
        if feeds > allows:
            line += ". That is more than the limit allows: lengthen schedule.interval"
        found.append(line)
    return found


def _sharing(config: Config) -> Iterable[tuple[str, list[AccountConfig]]]:
    """Accounts by the limit that they have to themselves or share."""
    groups: dict[str, list[AccountConfig]] = {}
    for account in config.accounts:
        group = account.limits.group
        groups.setdefault(f"group {group}" if group else f"account {account.name}", []).append(
            account
        )
    return groups.items()


def _feeds(accounts: list[AccountConfig]) -> str:
    reading = [account for account in accounts if account.provider.traits.feed is not None]
    if len(reading) != 1:
        return f"{len(reading)} feeds"
    schedule, traits = reading[0].schedule, reading[0].provider.traits
    text = f"a feed every {spell_duration(schedule.interval_s)}"
    if len(traits.read_channels) > 1:
        text += f" on {len(traits.read_channels)} channels"
    return text


def _carried(asking: list[AccountConfig], left_per_s: float) -> str:
    """How many batches or messages a day the rest of the limit carries, all rungs counted."""
    rungs = max(len(account.schedule.ladder_s) for account in asking)
    kinds = sorted({kind for account in asking for kind in account.provider.traits.asks})
    what = " or ".join("batches" if kind == "batch" else f"{kind}s" for kind in kinds)
    many = _two_digits(max(0.0, left_per_s) * DAY_S / rungs)
    each = "a rung" if rungs == 1 else "rungs"
    return f"{many:,} {what} a day at {rungs} {each} need {_rate(many * rungs / DAY_S)}"


def _two_digits(value: float) -> int:
    """Rounded down to two digits that count."""
    whole = int(value)
    step = int(10 ** max(0, len(str(whole)) - 2))
    return whole // step * step


def _rate(per_s: float) -> str:
    if per_s == 0 or per_s >= 0.095:
        return f"{per_s:.1f}".removesuffix(".0") + "/s"
    if per_s * HOUR_S >= 1:
        return f"{per_s * HOUR_S:.0f}/h"
    return f"{per_s * DAY_S:.1f}/d"
