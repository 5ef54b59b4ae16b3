"""An account's `limits`, and what accounts of one group share.

A group is one limit at the provider, so its accounts must mean the same by it: those that state a
limit state equal ones, those that state none take it. Where nobody states one, every member's
default holds for all of them: the engine is never faster than the most careful of them allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.core.contracts import Traits
from engine.core.windows import Rate

from . import values
from .model import LimitsConfig
from .reader import Section

_PER_MIN_S = 0.001


class LimitsDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Limits as one account has them, before its group was asked."""

    at: str
    stated_rates: tuple[Rate, ...] | None
    stated_concurrency: int | None
    default_rates: tuple[Rate, ...]
    default_concurrency: int
    group: str | None

    def alone(self) -> LimitsConfig:
        return LimitsConfig(
            rates=self.default_rates if self.stated_rates is None else self.stated_rates,
            concurrency=self.default_concurrency
            if self.stated_concurrency is None
            else self.stated_concurrency,
            group=self.group,
        )


def read_limits(section: Section, traits: Traits) -> LimitsDraft:
    faults = len(section.faults)
    slack_s = section.take("slack", values.Span(), None)
    first = _rate(section, slack_s)
    more = []
    for other in section.tables("also", "an array of { requests, per }"):
        more.append(_rate(other, slack_s, needed=True))
        other.close()
    concurrency = section.take("concurrency", values.Whole(1, 100_000), None)
    group = section.take("group", values.name, None)
    section.close()
    defaults = tuple(Rate.of(limit.requests, limit.per_s) for limit in traits.limits)
    stated: tuple[Rate, ...] | None = None
    if len(section.faults) == faults and any(
        section.has(key) for key in ("requests", "slack", "also")
    ):
        base = [first] if first is not None else [
            Rate.of(limit.requests, limit.per_s, slack_s) for limit in traits.limits
        ]  # fmt: skip
        stated = tuple(rate for rate in (*base, *more) if rate is not None)
    return LimitsDraft(
        at=section.at,
        stated_rates=stated,
        stated_concurrency=concurrency,
        default_rates=defaults,
        default_concurrency=traits.concurrency,
        group=group,
    )


def _rate(section: Section, slack_s: float | None, *, needed: bool = False) -> Rate | None:
    requests = section.take("requests", values.Whole(1, 1_000_000_000), None)
    per_s = section.take("per", values.Span(_PER_MIN_S), None)
    for key, other in (("per", "requests"), ("requests", "per")):
        if not section.has(key) and (needed or section.has(other)):
            section.fault(key, f'missing; "{other}" needs it' if section.has(other) else "missing")
    if requests is None or per_s is None:
        return None
    return Rate.of(requests, per_s, slack_s)


def joined(drafts: Sequence[LimitsDraft], top: Section) -> list[LimitsConfig]:
    """Each account's limits, groups taken into account."""
    groups: dict[str, list[LimitsDraft]] = {}
    for draft in drafts:
        if draft.group is not None:
            groups.setdefault(draft.group, []).append(draft)
    shared = {name: _shared(members, top) for name, members in groups.items()}
    return [draft.alone() if draft.group is None else shared[draft.group] for draft in drafts]


def _shared(members: Sequence[LimitsDraft], top: Section) -> LimitsConfig:
    rates: tuple[Rate, ...] | None = None
    concurrency: int | None = None
    first = {"rates": "", "concurrency": ""}
    for member in members:
        if member.stated_rates is not None:
            if rates is None:
                rates, first["rates"] = member.stated_rates, member.at
            elif set(rates) != set(member.stated_rates):
                _differs(top, member, first["rates"])
        if member.stated_concurrency is not None:
            if concurrency is None:
                concurrency, first["concurrency"] = member.stated_concurrency, member.at
            elif concurrency != member.stated_concurrency:
                _differs(top, member, first["concurrency"])
    if concurrency is None:
        concurrency = min(member.default_concurrency for member in members)
    if rates is None:
        rates = _strictest([rate for member in members for rate in member.default_rates])
    return LimitsConfig(rates=rates, concurrency=concurrency, group=members[0].group)


def _differs(top: Section, member: LimitsDraft, other: str) -> None:
    top.faults.add(
        member.at,
        f"group {values.shown(member.group)} has other limits at {other};"
        " accounts of a group state equal ones or none",
    )


def _strictest(rates: Sequence[Rate]) -> tuple[Rate, ...]:
    """All of the rates, the lowest of those with the same window."""
    lowest: dict[float, Rate] = {}
    for rate in rates:
        known = lowest.get(rate.per_s)
        if known is None or rate.requests < known.requests:
            lowest[rate.per_s] = rate
    return tuple(lowest.values())
