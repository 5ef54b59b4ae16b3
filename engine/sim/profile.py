"""What a simulated provider is like: who it lets in, what it limits, how it fails, what it holds.

A profile is data only, so that a file, a test and a benchmark say the same things with the same
words. It must never read a clock or hold state: two simulators may share one profile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

Provider = Literal["bulksms", "infobip", "avaamo", "messangi"]
Channel = Literal["S", "E", "P", "W", "R"]
Seconds = Annotated[float, msgspec.Meta(ge=0, extra={"duration": True})]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Many = Annotated[int, msgspec.Meta(ge=1)]

DEFAULT_SCALE = 60.0
"""A minute of a provider's life takes a second, unless somebody says otherwise."""

FAULT_KINDS = frozenset(
    {
        "ok",  # in a script: this request meets no fault
        "500",
        "502",
        "503",
        "429",
        "reset",  # the connection is reset before the request was looked at
        "lost",  # the request was carried out, then the connection is reset before the head
        "cut",  # part of a body with Content-Length, then the end of the connection
        "cut_chunked",  # the same with chunked transfer
        "drip",  # the whole body, slowly
        "endless",  # a body that never ends
        "html",  # a page with 200, as a proxy in the middle would give
        "bad_encoding",  # bytes that are no UTF-8 inside a text field
        "empty",  # 200 and no body
        "truncated",  # half of the body, its length told truly
        "redirect",  # to the same origin
        "redirect_away",  # to another origin
        "wrong_type",  # the right body under another Content-Type
        "error22",  # bulksms: refusals that stand on the first line of a 200
        "error23",
        "error24",
        "error40",
    }
)


class Window(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """At most `requests` in any `per` seconds."""

    requests: Many
    per: Seconds


class Limits(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is enforced. Zero requests or zero concurrency: counted, never refused."""

    requests: Count = 0
    per: Seconds = 1.0
    concurrency: Count = 0
    also: list[Window] = []
    slack: Seconds | None = None
    """How much shorter than `per` a window is judged; absent: 5 ms or 0.5 %, what is larger."""
    retry_after: Literal["none", "seconds", "date"] = "seconds"


class Fault(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One fault of a script, with what it needs."""

    kind: str
    retry_after: Seconds | None = None
    form: Literal["seconds", "date"] = "seconds"
    share: Share = 0.5
    """cut, truncated: how much of the body goes out."""
    seconds: Seconds = 1.0
    """drip: how long the body takes."""


class Delays(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Seconds after sending (read: after the final state), before time_scale."""

    enroute: Seconds = 2.0
    final: Seconds = 20.0
    read: Seconds = 60.0
    late: Seconds = 7200.0
    listed: Seconds = 0.0
    """A row of a list is not shown before this age: entries that turn up late."""
    jitter: Share = 0.5


class Mix(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Weights of the outcomes; `late` and `read` are shares among them."""

    delivered: Share = 0.86
    undeliverable: Share = 0.05
    expired: Share = 0.03
    rejected: Share = 0.03
    never: Share = 0.02
    """Nothing is ever said (in a list: nothing after the first state)."""
    stuck: Share = 0.01
    """An intermediate state, and nothing after it."""
    late: Share = 0.05
    read: Share = 0.3


class Generate(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Messages that come up by themselves, `rate` a second from the start on, `count` in all."""

    count: Count = 0
    rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    batch: Many = 10
    since: Seconds = 0.0
    """How long before the start the first of them was sent: a backlog."""


class AccountProfile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One account at one provider. A key another provider would need is ignored."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    provider: Provider
    username: str | None = None
    password: str | None = None
    api_key: str | None = None
    ibsso: str | None = None
    bearer: str | None = None
    authorization: str | None = None
    access_token: str | None = None
    headers: dict[str, str] = {}
    """Each of these must come with every request, whatever the provider."""
    limits: Limits = Limits()
    faults: list[str | Fault] = []
    """Met in this order by the first requests; "ok" stands for none."""
    odds: dict[str, Share] = {}
    """By kind of fault, how probable it is for a request, once `faults` is used up."""
    latency: Seconds = 0.0
    latency_jitter: Seconds = 0.0
    gzip: bool = False
    seed: int | None = None
    time_scale: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    delays: Delays = Delays()
    mix: Mix = Mix()
    generate: Generate = Generate()
    order: Literal["newest", "oldest"] = "newest"
    page_cap: Many | None = None
    """The most a page or answer holds; absent: avaamo 100, infobip 1000."""
    clock_skew: float = 0.0
    global_total: bool = False
    """The total of a list counts every message, whatever window was asked for."""
    # bulksms
    header: Literal["returns", "results"] = "returns"
    charset: str = "utf-8"
    declare_charset: bool = False
    time_format: str = "%y-%m-%d %H:%M:%S"
    # infobip
    paths: list[str] = []
    style: Literal["auto", "v1", "v3"] = "auto"
    """auto: v3 names where the path's version is 3 or more."""
    dates: Literal["plain", "colon", "zulu", "shifted", "mixed"] = "plain"
    horizon: Seconds = 172800.0
    """A report that was not fetched for so long is gone; zero: never."""
    # avaamo
    agent_id: int = 5157
    ignore_page: bool = False
    total_moves: Count = 0
    """So many rows turn up inside a window while its pages are read, one an answer."""
    # messangi
    channels: list[Channel] = msgspec.field(default_factory=lambda: ["S"])
    mo: Share = 0.0
    token_life: Seconds = 86400.0
    report_max_items: Count = 0
    page_max_items: Count = 0
    bulk_items: Count = 0
    bulk_span: Seconds = 3600.0
    """The generated items lie evenly over so many seconds before the start."""


class Profile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The accounts of one simulator."""

    accounts: list[AccountProfile]

    def __post_init__(self) -> None:
        faults = self.faults()
        if faults:
            raise ValueError("\n".join(faults))

    def faults(self) -> list[str]:
        """What no type can say, a line each."""
        found = [] if self.accounts else ["accounts: at least one is needed"]
        seen: set[str] = set()
        for n, account in enumerate(self.accounts):
            where = f"accounts[{n}]"
            if account.name in seen:
                found.append(f"{where}.name: {account.name!r} is there twice")
            seen.add(account.name)
            found += _account_faults(account, where)
        return found

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """From a TOML file; ValueError with a line for each fault."""
        from engine.sim.profile_file import read  # the reader knows the types, not they it

        return read(Path(path))

    @classmethod
    def default(
        cls, *, count: int = 0, rate: float = 2.0, time_scale: float = DEFAULT_SCALE
    ) -> Profile:
        """The four providers under their own names, time compressed, limits enforced."""
        coming = Generate(count=count, rate=rate)
        return cls(
            [
                AccountProfile(
                    name="bulksms",
                    provider="bulksms",
                    username="john",
                    password="sim-secret",  # noqa: S106 - a simulator guards nothing
                    limits=Limits(requests=10, per=1.0, concurrency=1),
                    time_scale=time_scale,
                    generate=coming,
                ),
                AccountProfile(
                    name="infobip",
                    provider="infobip",
                    api_key="sim-key",
                    limits=Limits(requests=20, per=1.0, concurrency=1),
                    time_scale=time_scale,
                    generate=coming,
                ),
                AccountProfile(
                    name="avaamo",
                    provider="avaamo",
                    access_token="sim-token",  # noqa: S106
                    limits=Limits(requests=10, per=1.0, concurrency=4),
                    time_scale=time_scale,
                    generate=coming,
                ),
                AccountProfile(
                    name="messangi",
                    provider="messangi",
                    username="sim",
                    password="sim-secret",  # noqa: S106
                    channels=["S", "E", "P", "W", "R"],
                    mo=0.05,
                    limits=Limits(requests=10, per=1.0, concurrency=4),
                    time_scale=time_scale,
                    generate=coming,
                ),
            ]
        )


def _account_faults(account: AccountProfile, where: str) -> list[str]:
    known = ", ".join(sorted(FAULT_KINDS))
    found = [
        f"{where}.faults[{n}]: expected one of {known}, got {kind!r}"
        for n, kind in enumerate(f if isinstance(f, str) else f.kind for f in account.faults)
        if kind not in FAULT_KINDS
    ]
    found += [
        f"{where}.odds.{kind}: expected one of {known}"
        for kind in account.odds
        if kind not in FAULT_KINDS
    ]
    if sum(account.odds.values()) > 1 + 1e-9:
        found.append(f"{where}.odds: together more than 1")
    mix = account.mix
    outcomes = mix.delivered, mix.undeliverable, mix.expired, mix.rejected, mix.never, mix.stuck
    if sum(outcomes) <= 0:
        found.append(f"{where}.mix: no outcome has a weight")
    if not account.channels:
        found.append(f"{where}.channels: at least one is needed")
    try:
        "".encode(account.charset)
    except LookupError:
        found.append(f"{where}.charset: {account.charset!r} is not known")
    if account.limits.per <= 0 or any(w.per <= 0 for w in account.limits.also):
        found.append(f"{where}.limits.per: more than 0 is needed")
    return found
