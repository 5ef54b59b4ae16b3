"""The `[[accounts]]` tables: an account's engine keys, and its provider made from its own keys.

What a user leaves out falls back on what the provider documents of itself, so that the defaults
stand in one place, beside their source. Values are checked here until nothing later needs to ask:
the scheduler never meets an empty ladder or an interval of nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import isfile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from engine.core.contracts import Context, Provider, Traits
from engine.core.errors import ConfigError
from engine.core.secret import Secret

from . import values
from .limits import LimitsDraft, joined, read_limits
from .model import DAY_S, AccountConfig, RequestConfig, ScheduleConfig
from .options import read_options
from .reader import Reading, Section, ascending

T = TypeVar("T")

_INTERVAL_MIN_S = 0.01  # less is a hot loop
REDACTABLE = ("recipient",)
_SHIPPED = frozenset({"bulksms", "infobip", "avaamo", "messangi"})
# What somebody may look for who wants a certificate to be accepted that is not.
_TLS_KEYS = re.compile(
    r"tls|ssl|verif|insecure|certificate|check_?hostname|trust|^cert|^ca_?", re.I
)
_TLS_WHY = (
    "unknown key; a server's certificate and name are always verified, and no key switches that"
    ' off: name the authority that it is from with "ca_file"'
)
# What stands in for a provider that could not be made: it must cause no fault of its own.
_NO_TRAITS = Traits(interval_s=_INTERVAL_MIN_S, idle_interval_s=_INTERVAL_MIN_S)


def read_accounts(
    top: Section, providers: Mapping[str, type[Provider]]
) -> tuple[tuple[AccountConfig, ...], frozenset[str]]:
    """The accounts that are whole, and the names of all that there are."""
    faults = len(top.faults)
    sections = top.tables("accounts", "[[accounts]], an array of tables")
    if not sections and len(top.faults) == faults:
        top.fault("accounts", "there is none; at least one is needed")
    names: dict[str, str] = {}
    accounts: list[AccountConfig] = []
    drafts: list[LimitsDraft] = []
    for section in sections:
        account, draft = _account(section, providers)
        unique_name(section, account.name if account else None, names)
        drafts.append(draft)
        if account is not None:
            accounts.append(account)
    limits = joined(drafts, top)
    if len(accounts) == len(limits):
        accounts = [
            msgspec.structs.replace(account, limits=limit)
            for account, limit in zip(accounts, limits, strict=True)
        ]
    return tuple(accounts), frozenset(names)


def unique_name(section: Section, name: str | None, names: dict[str, str]) -> None:
    """A fault where the section's name was taken before; else it is noted down."""
    raw = name if name is not None else section.data.get("name")
    if not isinstance(raw, str):
        return
    if raw in names:
        section.fault("name", f"{values.shown(raw)} is the name of {names[raw]} already")
    else:
        names[raw] = section.at


def _account(
    section: Section, providers: Mapping[str, type[Provider]]
) -> tuple[AccountConfig | None, LimitsDraft]:
    faults = len(section.faults)
    name = section.need("name", values.name, "")
    provider_name = section.need("provider", values.text, "")
    cls = _provider_class(section, provider_name, providers) if provider_name else None
    base_url = section.need("base_url", values.base_url, "")
    content = section.take("content", values.flag, False)
    zone_name, zone = section.take("timezone", values.timezone, values.timezone("UTC"))
    headers = _headers(section.table("headers", hidden=True))
    ca_file = section.take("ca_file", lambda value: _certificates(section.reading, value), None)
    push_secret = section.take("push_secret", section.reading.secret, None)
    redact = section.many("redact", values.Choice(REDACTABLE), (), what="names")
    span = _period(section)
    for key in ("limits", "schedule", "request", "overlap"):  # read when the traits are known
        section.has(key)
    context = Context(account=name, content=content, timezone=zone)
    options, provider = _provider(section, cls, context)
    traits = provider.traits if provider is not None else _NO_TRAITS
    draft = read_limits(section.table("limits"), traits)
    schedule = _schedule(section.table("schedule"), traits)
    request = _request(section.table("request"))
    overlap_s = section.take("overlap", values.Span(), traits.overlap_s)
    if cls is not None:  # without it nobody knows which keys are known
        section.close(never=_TLS_KEYS, why=_TLS_WHY)
    if provider is None or len(section.faults) > faults:
        return None, draft
    start_ms, lookback_s, end_ms = span
    account = AccountConfig(
        name=name,
        provider_name=provider_name,
        provider=provider,
        options=options,
        base_url=base_url,
        limits=draft.alone(),
        schedule=schedule,
        request=request,
        content=content,
        timezone=zone_name,
        headers=headers,
        start_ms=start_ms,
        lookback_s=traits.lookback_s if start_ms is None and lookback_s is None else lookback_s,
        end_ms=end_ms,
        overlap_s=overlap_s,
        ca_file=ca_file,
        push_secret=push_secret,
        redact=frozenset(redact),
    )
    return account, draft


def _certificates(reading: Reading, value: object) -> Path:
    """The path of a file with certificates to trust, which are loaded for a try."""
    import ssl  # for whoever names a file: it takes a while

    path = reading.path(value)
    if not isfile(path):  # also one whose name no system would take
        raise ValueError("there is no such file")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=path)
        count = context.cert_store_stats()["x509"]
    except ssl.SSLError:
        raise ValueError("expected certificates as PEM has them, found none") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or 'input/output error'}") from None
    if not count:
        raise ValueError("expected certificates as PEM has them, found none")
    return path


def _provider_class(
    section: Section, name: str, providers: Mapping[str, type[Provider]]
) -> type[Provider] | None:
    if name in _SHIPPED and name not in providers:
        section.fault("provider", f"{values.shown(name)} is not part of this build")
        return None
    return plugin_class(section, "provider", "provider", name, providers)


def plugin_class(
    section: Section, key: str, what: str, name: str, available: Mapping[str, T]
) -> T | None:
    """The class of a provider or sink; None, and a fault at `key`, where there is none."""
    if name in available:
        try:
            return available[name]
        except ConfigError as error:  # it is there, and could not be loaded
            for line in error.faults:
                section.fault(key, values.printable(line, 300))
            return None
    likely, close = values.nearest(name, available)
    hint = f'; did you mean "{likely}"?' if close else ""
    section.fault(
        key,
        f"unknown {what} {values.shown(name)}{hint}"
        f" (this build has {values.listed(sorted(available))})",
    )
    return None


def _provider(
    section: Section, cls: type[Provider] | None, context: Context
) -> tuple[Any, Provider | None]:
    """The provider and the options it was made with; its own faults at the keys they name."""
    if cls is None:
        return None, None
    provider_class = cls

    def build(options: Any) -> Provider:
        return provider_class(options, context)

    return read_options(cls.Options, section, build) or (None, None)


def _headers(section: Section) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for key in section.data:
        place = values.key_text(key)
        try:
            header = values.header_name(key)
            value = section.reading.secret(section.data[key])
            if any(c != "\t" and not c.isprintable() for c in value.reveal()):
                raise ValueError("holds characters that a header cannot have")
            if any(header.lower() == other.lower() for other in found):
                raise ValueError("is there twice")
            found[header] = value
        except ValueError as error:
            section.fault(place, str(error))
    return found


def _period(section: Section) -> tuple[int | None, float | None, int | None]:
    """`start` or `lookback`, and `end`."""
    start_ms = section.take("start", values.moment, None)
    lookback_s = section.take("lookback", values.Span(0.001), None)
    end_ms = section.take("end", values.moment, None)
    if section.has("start") and section.has("lookback"):
        section.fault("lookback", 'goes not together with "start"; give one of them')
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        section.fault("end", 'expected a time after "start"')
    return start_ms, lookback_s, end_ms


def _schedule(section: Section, traits: Traits) -> ScheduleConfig:
    ladder = section.many("ladder", values.Span(), traits.ladder_s, what="durations")
    start = section.take("from", values.Choice(("sent", "previous")), "sent")
    jitter = section.take("jitter", values.share, 0.0)
    give_up_s = section.take("give_up", values.Span(), 2 * DAY_S)
    interval_s = section.take("interval", values.Span(_INTERVAL_MIN_S), traits.interval_s)
    by_default = interval_s
    if not section.has("interval"):
        by_default = max(interval_s, traits.idle_interval_s)
    before = len(section.faults)
    idle_s = section.take("idle_interval", values.Span(_INTERVAL_MIN_S), by_default)
    if idle_s < interval_s and len(section.faults) == before:
        section.fault("idle_interval", "expected at least the interval")
    rescan = section.many("rescan", values.Span(), traits.rescan_s, what="durations")
    if section.has("ladder"):
        _check_ladder(section, ladder, previous=start == "previous")
    if section.has("rescan"):
        ascending(section, "rescan", rescan, least_ms=1)
    section.close()
    return ScheduleConfig(
        ladder_s=ladder,
        from_previous=start == "previous",
        jitter=jitter,
        give_up_s=give_up_s,
        interval_s=interval_s,
        idle_interval_s=idle_s,
        rescan_s=rescan,
    )


def _check_ladder(section: Section, ladder: tuple[float, ...], *, previous: bool) -> None:
    if section.data["ladder"] in ([], ()):
        section.fault("ladder", "expected at least one duration")
    elif not previous:
        ascending(section, "ladder", ladder, least_ms=0)
    elif any(round(gap_s * 1000) < 1 for gap_s in ladder[1:]):
        section.fault("ladder", "expected gaps of at least a millisecond after the first")


def _request(section: Section) -> RequestConfig:
    default = RequestConfig()
    found = RequestConfig(
        timeout_s=section.take("timeout", values.Span(0.001), default.timeout_s),
        total_timeout_s=section.take("total_timeout", values.Span(0.001), default.total_timeout_s),
        body_max=section.take("max_body", values.Size(1), default.body_max),
    )
    section.close(never=_TLS_KEYS, why=_TLS_WHY)
    return found
