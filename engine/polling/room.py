"""Room for what is still to come: the log's bound, the disk's floor, and a store that can write.

A sink that is dead or slow leaves its records in the log, on disk. When these reach `log_max`,
accounts that can be read again later stop asking: nothing is lost by waiting. A one-time feed goes
on, since its provider forgets what is not fetched in time, until the disk is nearly full; then all
wait. Each goes on by itself. What is on its way when an account is told to wait is taken in.

`Room` decides, from what it is shown, and says loudly what it has decided; it asks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from engine.core.units import spell_size
from engine.stores.patient import PatientStore
from engine.telemetry import Telemetry

# Polling goes on once what waits in the log is below this share of its bound, and once there is
# this much more room than the floor: not at each batch that a slow sink takes.
RESUME_SHARE = 0.8
RESUME_FLOOR = 1.25

# A sink with less than this share of the bound behind it is at work, not behind.
BEHIND_SHARE = 0.01

# The floor where none is configured: this share of the disk, and at most so much.
FLOOR_SHARE = 0.05
FLOOR_MAX = 256 << 20


class Disk(msgspec.Struct, frozen=True):
    """The file system under the store: bytes in all, and bytes that can still be written, those
    that were freed inside the store's own file included."""

    total: int
    free: int


class Consumer(msgspec.Struct, frozen=True):
    """Who the log is kept for. `accounts` is None for all."""

    name: str
    accounts: frozenset[str] | None = None

    def takes(self, account: str) -> bool:
        return self.accounts is None or account in self.accounts


class Room:
    """Which accounts may ask. `one_time` names every account, and whether it is a one-time feed."""

    def __init__(
        self,
        one_time: Mapping[str, bool],
        store: PatientStore,
        telemetry: Telemetry,
        *,
        log_max: int,
        floor: int | None,
    ) -> None:
        self._one_time = one_time
        self._store = store
        self._telemetry = telemetry
        self._log_max = log_max
        self._floor = floor
        self._full = False
        self._short = False
        self._shut: dict[str, str] = {}
        self.waiting_bytes = 0  # records in the log that some sink has not taken
        self.behind: dict[str, int] = {}  # by sink: bytes of the log that wait for it

    @property
    def short(self) -> bool:
        """Whether the disk is below its floor."""
        return self._short

    def shut(self, account: str) -> str | None:
        """Why the account may not ask at present; None: it may."""
        if self._store.trouble is not None:
            return f"nothing can be stored: {self._store.trouble}"
        return self._shut.get(account)

    def judge(
        self,
        backlog: Mapping[str, Mapping[str, int]],
        consumers: Sequence[Consumer],
        disk: Disk | None,
    ) -> None:
        """Take in what waits for whom, by consumer and account, and how much disk there is."""
        lags = {
            consumer.name: {
                account: size
                for account, size in backlog.get(consumer.name, {}).items()
                if account in self._one_time and consumer.takes(account)
            }
            for consumer in consumers
        }
        self.behind = {name: sum(sizes.values()) for name, sizes in lags.items()}
        self.waiting_bytes = sum(
            max((sizes.get(account, 0) for sizes in lags.values()), default=0)
            for account in self._one_time
        )
        self._judge_log()
        self._judge_disk(disk)
        self._shut = {}
        if self._short:
            self._shut = dict.fromkeys(self._one_time, self._short_why(disk))
        elif self._full:
            late = [who for who in consumers if self._is_behind(who.name)]
            for account, one_time in self._one_time.items():
                if not one_time and any(who.takes(account) for who in late):
                    self._shut[account] = self._full_why()

    def _is_behind(self, name: str) -> bool:
        size = self.behind[name]
        return size >= BEHIND_SHARE * self._log_max or size == max(self.behind.values())

    def _judge_log(self) -> None:
        full = self.waiting_bytes >= self._log_max * (RESUME_SHARE if self._full else 1.0)
        if full and not self._full:
            self._telemetry.count("log_full", "")
            self._tell(
                logging.ERROR,
                "log",
                f"{self._full_why()}; accounts that can be read again later ask nothing until it is"
                f" below {spell_size(round(self._log_max * RESUME_SHARE))}, one-time feeds go on."
                " Mend the sink, or take it out of the configuration",
            )
        elif self._full and not full:
            self._tell(logging.INFO, "log", "polling goes on: the sinks have caught up")
        self._full = full

    def _judge_disk(self, disk: Disk | None) -> None:
        floor = self._floor_of(disk)
        short = disk is not None and disk.free < floor * (RESUME_FLOOR if self._short else 1.0)
        if short and not self._short:
            self._telemetry.count("disk_short", "")
            self._tell(
                logging.ERROR,
                "disk",
                f"{self._short_why(disk)}; no account asks anything until there is a quarter more"
                " than that. Free some space; one-time providers forget what is not fetched in"
                " time",
            )
        elif self._short and not short:
            self._tell(logging.INFO, "disk", "polling goes on: there is room again")
        self._short = short

    def _floor_of(self, disk: Disk | None) -> int:
        if self._floor is not None or disk is None:
            return self._floor or 0
        return min(FLOOR_MAX, round(disk.total * FLOOR_SHARE))

    def _full_why(self) -> str:
        last = max(self.behind, key=self.behind.__getitem__)
        return (
            f"{spell_size(self.waiting_bytes)} of records wait in the log, store.log_max is"
            f" {spell_size(self._log_max)}: sink {last} is {spell_size(self.behind[last])} behind"
        )

    def _short_why(self, disk: Disk | None) -> str:
        return (
            f"{spell_size(disk.free if disk else 0)} are free on the store's disk,"
            f" store.min_free_disk is {spell_size(self._floor_of(disk))}"
        )

    def _tell(self, level: int, subject: str, text: str) -> None:
        self._telemetry.event(level, subject, text)
