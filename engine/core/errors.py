"""Errors, typed by what the caller must do, each carrying the datum for it.

The lowest module: it imports nothing, so that everything may raise from it. No message here may
hold a URL or a secret.
"""

from __future__ import annotations

from collections.abc import Sequence


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
    """The disk or a lock stands in the way for now: nothing was written, try again."""


class StoreBusy(StoreError):
    """Another worker owns the store."""


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
        self.rejected = rejected
