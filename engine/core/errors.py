"""Errors, typed by what the caller must do, each carrying the datum for it.

The lowest module: it imports nothing, so that everything may raise from it. No message here may
hold a URL or a secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class EngineError(Exception):
    """Anything the engine raises on purpose."""


class ConfigError(EngineError):
    """The command line or the configuration is wrong: nothing was started. Exit status 2.

    `faults` holds one line for each fault, as `engine.toml: accounts[0].limits.per: …`.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class StoreError(EngineError):
    """The store cannot be used: it is locked by another worker, damaged, or too new."""


class StoreTrouble(StoreError):
    """The disk, a lock or the line to a server stands in the way for now: try again.

    Nothing was written; or, where there is an `again`, that is not known: it looks up what became
    of the job, and does it only where nothing did.
    """

    def __init__(self, cause: str, *, again: Callable[[], Awaitable[Any]] | None = None) -> None:
        super().__init__(cause)
        self.again = again


class StoreBusy(StoreError):
    """Another worker owns the store."""


class LeaseLost(EngineError):
    """The account's lease is another worker's by now: nothing of the job was written."""

    def __init__(self, account: str) -> None:
        super().__init__(f"the lease of the account {account} is not this worker's any more")
        self.account = account


class SinkError(EngineError):
    """A sink could not take a batch; all of it is kept and offered again."""

    def __init__(self, cause: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.retry_after_s = retry_after_s


class PartialWrite(SinkError):
    """A sink took a batch except the records in `rejected`: index in the batch -> cause.

    The rejected ones can never be accepted; offering them again is pointless.
    """

    def __init__(self, rejected: dict[int, str]) -> None:
        super().__init__(f"{len(rejected)} records were refused for good")
        self.rejected = dict(sorted(rejected.items()))
