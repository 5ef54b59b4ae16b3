"""Records into Parquet files, a folder a day: `<path>/day=2026-11-22/<time>-<digest>.parquet`.

The day is that of `observed_at` (UTC). Every write makes whole files: each is written beside the
days under a name that no reader looks at, synced, and only then renamed. Its name follows from its
records, so the same batch gives the same file and not another one. What a crash leaves of
unfinished ones is removed by the next opening, unless somebody still writes it: the lock tells.
All are their owner's alone, as `tempfile` makes them.

It must never leave half a file under its name, nor change one that is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from engine.machine.disk_causes import write_cause
from engine.machine.private import make_folder, sync_folder

from ..core.contracts import Batch
from ..core.errors import PartialWrite
from ..core.rows import COLUMNS, EVENT_ID, OBSERVED_AT, Row, read_rows
from ..targets.own_thread import OwnThread

SLICE = 2000  # rows turned into columns at once: as Python objects they take much more room
UNFINISHED = ".unfinished-"

_TYPES = {
    "text": pa.string(), "flag": pa.bool_(), "integer": pa.int64(),
    "time": pa.timestamp("ms", "UTC"),
}  # fmt: skip
SCHEMA = pa.schema([(field, _TYPES[kind]) for field, kind in COLUMNS.items()])


class ParquetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path` is the folder that the days are in."""

    path: Path


class ParquetSink:
    """Writes a file a batch and day, in a worker thread, one call at a time."""

    name: ClassVar[str] = "parquet"
    Options: ClassVar[type[msgspec.Struct]] = ParquetOptions
    # A batch is a file, and few large files are read far quicker than many small ones.
    BATCH: ClassVar[Mapping[str, float]] = {"records": 20_000, "bytes": 16 << 20, "wait_s": 60.0}

    def __init__(self, options: ParquetOptions) -> None:
        self._path = options.path
        self._thread = OwnThread(
            "dlr-parquet", f"cannot write {self._path}", lambda: None, write_cause
        )

    async def open(self) -> None:
        await self._thread.run(self._prepare)

    async def write(self, batch: Batch) -> None:
        if batch.lines and (rejected := await self._thread.run(self._store, batch.lines)):
            raise PartialWrite(rejected)

    async def close(self) -> None:
        await self._thread.close()

    # All below runs in a worker thread.

    def _prepare(self) -> None:
        make_folder(self._path)
        sync_folder(self._path.parent)
        for left in self._path.glob(f"{UNFINISHED}*"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()

    def _store(self, lines: Sequence[bytes]) -> dict[int, str]:
        rejected: dict[int, str] = {}
        days: defaultdict[date, _Day] = defaultdict(_Day)
        for start in range(0, len(lines), SLICE):
            rows, bad = read_rows(lines[start : start + SLICE])
            rejected |= {start + index: why for index, why in bad.items()}
            by_day: defaultdict[date, list[Row]] = defaultdict(list)
            for row in rows.values():
                by_day[row[OBSERVED_AT].astimezone(UTC).date()].append(row)
            for day, chosen in by_day.items():
                days[day].add(chosen)
        for day, found in days.items():
            self._write_file(self._path / f"day={day}" / found.name(), found.pieces)
        return rejected

    def _write_file(self, path: Path, pieces: list[pa.RecordBatch]) -> None:
        make_folder(path.parent)
        fd, unfinished = tempfile.mkstemp(prefix=UNFINISHED, dir=self._path)
        try:
            with os.fdopen(fd, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                pq.write_table(pa.Table.from_batches(pieces), file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise
        sync_folder(path.parent)
        sync_folder(self._path)


class _Day:
    """What a file is made of."""

    def __init__(self) -> None:
        self.pieces: list[pa.RecordBatch] = []
        self._digest = blake2b(digest_size=8)
        self._first: datetime | None = None

    def add(self, rows: list[Row]) -> None:
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)
        ]
        self.pieces.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._digest.update("".join([f"{row[EVENT_ID]} " for row in rows]).encode())
        self._first = self._first or rows[0][OBSERVED_AT].astimezone(UTC)

    def name(self) -> str:
        return f"{self._first:%H%M%S}-{self._digest.hexdigest()}.parquet"
