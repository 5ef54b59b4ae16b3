"""What a configuration is once it was read: frozen values, complete, every default filled in.

Durations are seconds (`…_s`), times epoch milliseconds (`…_ms`), paths absolute. The rest of the
engine reads these and never a TOML key, so that a spelling lives in one place. Secrets stay
wrapped: the `repr` of a Config is safe to print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.core.contracts import Provider, Sink
from engine.core.mask import MASKED
from engine.core.schedule import Ladder
from engine.core.secret import Secret
from engine.core.state import State
from engine.core.windows import Rate

DAY_S = 86_400.0
LOG_MAX = 10 << 30
LOG_MAX_MEMORY = 256 << 20  # of a store that is not on disk
WORKER = "{worker}"  # in a sink's path: the name of the worker that writes it
ALONE = "worker"  # what that is where one worker owns the store
HTTP_LISTEN = "127.0.0.1:9464"  # of an `[http]` that says nothing else
SinkClass = type[Sink]  # inside SinkConfig the word `type` is a field


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where state is kept and for how long."""

    url: Secret
    scheme: str  # "memory", "sqlite", "postgresql"
    path: Path | None = None  # the file of a sqlite store
    retention_s: float = 30 * DAY_S  # ended messages
    synchronous: str = "full"  # or "normal", "off": what a power cut may take
    log_retention_s: float = DAY_S  # records that every sink has acknowledged
    log_max: int = LOG_MAX  # bytes of records that some sink has not acknowledged
    min_free_disk: int | None = None  # bytes; None: by the size of the disk
    hidden: bool = False  # the URL came from the environment or a file of its own

    @property
    def shown(self) -> str:
        """The place, fit for people: a file, or that it is a server."""
        server = "postgresql://***" if self.scheme == "postgresql" else f"{self.scheme}://"
        return MASKED if self.hidden else str(self.path or server)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        fields = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [(n, self.shown if n == "path" and self.hidden else value) for n, value in fields]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"StoreConfig({fields})"


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the HTTP surface listens."""

    host: str  # an address without brackets, or a name
    port: int  # 0: one that the system chooses
    token: Secret | None = None  # what `/v1/*` asks for; None: it is shut

    @property
    def shown(self) -> str:
        """The place as it is written."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Every rate holds at once. Accounts of one `group` share a limit and have equal values."""

    rates: tuple[Rate, ...]
    concurrency: int = 1
    group: str | None = None


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """When to ask: the ladder for what is tracked, the interval and the rescans for a feed."""

    ladder_s: tuple[float, ...]
    from_previous: bool = False  # the ladder's numbers are gaps between rungs
    jitter: float = 0.0
    give_up_s: float = 2 * DAY_S
    interval_s: float
    idle_interval_s: float
    rescan_s: tuple[float, ...]


class RequestConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may take."""

    timeout_s: float = 30.0  # for a connection, or for the next byte
    total_timeout_s: float = 600.0
    body_max: int = 1 << 30  # bytes after decompression


class AccountConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One account at one provider."""

    name: str
    provider_name: str
    provider: Provider
    options: Any  # the provider's own keys, an instance of its Options
    base_url: str  # without a slash at its end
    limits: LimitsConfig
    schedule: ScheduleConfig
    request: RequestConfig
    content: bool = False
    timezone: str = "UTC"
    headers: dict[str, Secret]
    start_ms: int | None = None
    lookback_s: float | None = None  # None exactly where `start_ms` is set
    end_ms: int | None = None
    overlap_s: float
    ca_file: Path | None = None
    push_secret: Secret | None = None
    redact: frozenset[str] = frozenset()  # of "recipient"


def tracking_ladder(account: AccountConfig) -> Ladder:
    """The offsets after which what is tracked, or found in a window, gets its verdict."""
    schedule = account.schedule
    if account.provider.traits.feed == "windowed":
        return Ladder.of(schedule.rescan_s)
    return Ladder.of(
        schedule.ladder_s,
        gaps=schedule.from_previous,
        jitter=schedule.jitter,
        give_up_s=schedule.give_up_s,
    )


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much a sink is given at once; whichever comes first."""

    records: int = 1000
    bytes: int = 1 << 20
    wait_s: float = 0.2


class SinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One place where records go."""

    name: str
    type: str
    sink: Any  # the sink's own keys, an instance of its Options
    sink_class: SinkClass
    accounts: tuple[str, ...] | None = None  # None: all
    states: frozenset[State] | None = None  # None: all
    start: str = "oldest"  # or "now"
    timeout_s: float = 300.0  # of one call
    batch: BatchConfig

    @property
    def path(self) -> str | None:
        """Where on this machine it writes, as it was configured; None: elsewhere."""
        path = getattr(self.sink, "path", None)
        return None if path is None else str(path)

    @property
    def is_shared_file(self) -> bool:
        """Whether every worker would write the same place of its machine."""
        return self.path is not None and WORKER not in self.path

    def build(self, worker: str | None = None) -> Sink:
        """A new sink, not yet open. `worker` is the name that `{worker}` in its path stands for."""
        options = self.sink
        if self.path is not None and WORKER in self.path:
            named = type(options.path)(self.path.replace(WORKER, worker or ALONE))
            options = msgspec.structs.replace(options, path=named)
        return self.sink_class(options)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    source: str  # what faults are headed with: the file's name
    base: Path  # what relative paths started from
    shutdown_grace_s: float = 10.0
    redact_key: Secret | None = None  # None: one that the store keeps
    store: StoreConfig
    http: HttpConfig | None = None  # None: no port is opened
    accounts: tuple[AccountConfig, ...]
    sinks: tuple[SinkConfig, ...] = ()

    def account(self, name: str) -> AccountConfig | None:
        """The account of that name."""
        return next((account for account in self.accounts if account.name == name), None)
