"""What a configuration would run, in lines for people: the `check` command's text.

Everything is printed from typed values, where secrets are wrapped and print as `***`; strings that
look like URLs lose userinfo and query on the way, should a plug-in keep one unwrapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.core.secret import Secret
from engine.core.units import iso, spell_duration, spell_size

from .model import WORKER, AccountConfig, Config, HttpConfig, SinkConfig, StoreConfig
from .values import STRONG_MIN, listed, printable

_DAY_S = 86_400.0
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"(?<=\?)\S+")


def describe(config: Config) -> list[str]:
    """One line for the store, then a block of lines for each account and sink."""
    store = config.store
    place = f"{store.scheme} {printable(store.shown, 300)}" if store.path else store.scheme
    if store.scheme == "postgresql":
        place = "postgresql://***"
    lines = [
        f"store: {place}; ended messages stay {spell_duration(store.retention_s)},"
        f" acknowledged records {spell_duration(store.log_retention_s)}; polling waits at"
        f" {spell_size(store.log_max)} of records that wait for sinks"
    ]
    if store.synchronous != "full":
        lines.append(f"  a power cut: synchronous = {store.synchronous}")
    if warning := unsafe(store):
        lines.append(f"  WARNING: {warning}")
    if config.http is not None:
        lines += _http(config.http)
    for account in config.accounts:
        lines += [*_account(account), *_pushes(config, account)]
    for sink in config.sinks:
        lines += _sink(sink)
        if store.scheme == "postgresql" and sink.is_shared_file:
            lines.append(
                f"  WARNING: path holds no {WORKER}: one worker of a machine can write it, a second"
                " one is refused"
            )
    return lines


def unsafe(store: StoreConfig) -> str | None:
    """What is to be said where a power cut may take what no provider gives again."""
    if store.scheme == "memory" or store.synchronous != "off":
        return None
    damage = "" if store.scheme == "postgresql" else ", and damage the store"
    return (
        'synchronous = "off": a power cut, or a crash of the operating system, can take answers'
        f" that a one-time provider has given{damage}; use it for trials alone"
    )


def allowed_a_day(account: AccountConfig) -> float:
    """How many requests a day the account's limits let through."""
    return min(rate.requests * _DAY_S / rate.per_s for rate in account.limits.rates)


def feed_a_day(account: AccountConfig) -> int:
    """How many requests a day the feed's interval asks for, at its busiest and a page a read."""
    if account.provider.traits.feed is None:
        return 0
    reads = max(1, len(account.provider.traits.read_channels))
    return math.ceil(_DAY_S / account.schedule.interval_s) * reads


def _account(account: AccountConfig) -> list[str]:
    limits, request = account.limits, account.request
    rates = " and ".join(
        f"{rate.requests} in {spell_duration(rate.per_s)} (slack {spell_duration(rate.slack_s)})"
        for rate in limits.rates
    )
    group = f", shared by group {limits.group}" if limits.group else ""
    lines = [
        f"account {account.name}: {account.provider_name} at {account.base_url}",
        f"  limits: {rates}; {limits.concurrency} at a time{group}",
        f"  schedule: {_schedule(account)}",
        f"  request: timeout {spell_duration(request.timeout_s)},"
        f" in all {spell_duration(request.total_timeout_s)}, body up to {request.body_max} bytes",
        f"  requests a day: {_needs(account)}",
    ]
    if account.provider.traits.feed == "windowed":
        lines.append(f"  period: {_period(account)}")
        if "status" in getattr(account.options, "filters", {}):
            overlap = spell_duration(account.overlap_s)
            lines.append(
                "  WARNING: filters.status hides a message until it has that status: one that comes"
                f" to it later than the overlap of {overlap} is not seen, unless it is tracked"
            )
    lines.append(f"  tls: {_tls(account)}")
    if account.redact:
        lines.append(f"  redacted: {listed(sorted(account.redact))}")
    lines.extend(f"  header {name}: ***" for name in sorted(account.headers))
    return lines + _options(account.options)


def _http(http: HttpConfig) -> list[str]:
    opens = "asks for the token ***" if http.token is not None else "is shut: there is no token"
    lines = [f"http: listens on {http.shown}; /v1/* {opens}"]
    return lines + [f"  WARNING: {warning}" for warning in http_warnings(http)]


def _pushes(config: Config, account: AccountConfig) -> list[str]:
    """Where the provider's pushes are taken, or why they are not."""
    if account.push_secret is None:
        return []
    if not account.provider.traits.pushes:
        return [f"  pushes: none, {account.provider_name} has none that say which message is meant"]
    if config.http is None:
        return ["  pushes: none: there is no [http], so no port is opened"]
    lines = [f"  pushes: taken at /push/{account.name}/***"]
    if len(account.push_secret.reveal()) < STRONG_MIN:
        why = f"push_secret has fewer than {STRONG_MIN} characters: it can be guessed"
        lines.append(f"  WARNING: {why}")
    return lines


def http_warnings(http: HttpConfig) -> list[str]:
    """What is to be said of a port that others can reach, and of a token that can be guessed."""
    warnings = []
    if not _loopback(http.host):
        warnings.append(
            f"{http.shown} can be reached from other machines, and nothing is encrypted: the token,"
            " the secrets in push URLs, counts and reports can be read on their way. Listen on"
            " 127.0.0.1 behind a proxy with TLS"
        )
    if http.token is not None and len(http.token.reveal()) < STRONG_MIN:
        warnings.append(f"token has fewer than {STRONG_MIN} characters: it can be guessed")
    return warnings


def _tls(account: AccountConfig) -> str:
    if account.ca_file is None:
        trusted = "the system's certificates"
    else:
        trusted = f"the certificates in {printable(str(account.ca_file), 300)}"
    clear = in_the_clear(account)
    return f"verified by {trusted}" + (f". WARNING: {clear}" if clear else "")


def in_the_clear(account: AccountConfig) -> str | None:
    """What is to be said where credentials go out unencrypted, except on this very machine."""
    urls = {"base_url": account.base_url, "login_url": getattr(account.options, "login_url", None)}
    for key, url in urls.items():
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is not None and parts.scheme == "http" and not _loopback(parts.hostname or ""):
            return f"{key} is http://: credentials and reports can be read on their way; use https"
    return None


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _schedule(account: AccountConfig) -> str:
    schedule, traits = account.schedule, account.provider.traits
    parts = []
    if traits.feed is not None:
        idle = spell_duration(schedule.idle_interval_s)
        parts.append(f"feed every {spell_duration(schedule.interval_s)}, {idle} when idle")
    if traits.feed == "windowed":
        parts.append(f"rescans after {_spans(schedule.rescan_s)}")
    if traits.asks and schedule.ladder_s:
        since = "the rung before" if schedule.from_previous else "sending"
        parts.append(
            f"ladder {_spans(schedule.ladder_s)} from {since}, jitter {schedule.jitter:g},"
            f" given up {spell_duration(schedule.give_up_s)} after the last"
        )
    return "; ".join(parts) or "nothing is asked for by itself"


def _needs(account: AccountConfig) -> str:
    """The demand that is known beforehand, beside what the limits allow."""
    parts = []
    if account.provider.traits.feed is not None:
        parts.append(f"up to {feed_a_day(account)} for the feed")
    if account.provider.traits.asks and account.schedule.ladder_s:
        what = " or ".join(sorted(account.provider.traits.asks))
        parts.append(f"{len(account.schedule.ladder_s)} over its life for each tracked {what}")
    return f"{' and '.join(parts) or 'none'}; the limits allow {allowed_a_day(account):.0f}"


def _period(account: AccountConfig) -> str:
    begin = "the beginning"
    if account.start_ms is not None:
        begin = iso(account.start_ms)
    elif account.lookback_s is not None:
        begin = f"{spell_duration(account.lookback_s)} ago"
    end = f" to {iso(account.end_ms)}" if account.end_ms is not None else ""
    return f"from {begin}{end}, overlap {spell_duration(account.overlap_s)}"


def _sink(sink: SinkConfig) -> list[str]:
    accounts = "all accounts" if sink.accounts is None else listed(sink.accounts)
    states = "all states" if sink.states is None else listed(sorted(sink.states))
    begin = "the oldest record kept" if sink.start == "oldest" else "now"
    batch = sink.batch
    return [
        f"sink {sink.name}: {sink.type}; {accounts}; {states}; from {begin}; batches of"
        f" {batch.records} records, {batch.bytes} bytes, {spell_duration(batch.wait_s)}",
        *_options(sink.sink),
    ]


def _options(options: Any) -> list[str]:
    """The plug-in's own keys that are set to something."""
    lines = []
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if value is not None and value not in ((), [], {}, ""):
            lines.append(f"  {field.encode_name}: {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, Secret):
        return "***"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, msgspec.Struct):
        spans: frozenset[str] = getattr(value, "DURATIONS", frozenset())
        found = msgspec.structs.asdict(value).items()
        value = {key: spell_duration(each) if key in spans else each for key, each in found}
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_shown(each)}' for key, each in value.items())} }}"
    text = str(value) if isinstance(value, (str, PurePath)) else repr(value)
    return printable(_QUERY.sub("***", _USERINFO.sub("***@", text)), 300)


def _spans(spans: tuple[float, ...]) -> str:
    return listed(spell_duration(span) for span in spans)
