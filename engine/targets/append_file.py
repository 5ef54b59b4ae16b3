"""A file that is only ever appended to, by one writer at a time, and never left with half a record.

What is not whole at its end, after a crash or a full disk, is cut off before anything is written
behind it. Each turn takes the file's lock and looks whether the path still names it: several
workers may share a file, and logrotate may move it away.

It must never cut a file that it did not write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

from engine.machine.private import make_folder, open_file, sync_folder

from ..core.errors import SinkError
from .framing import Foreign, Framing, write_all

LOCK_WAIT_S = 5.0
LOCK_STEP_S = 0.01
MOVES_MAX = 10  # how often the file may be replaced while one turn waits for its lock


class AppendFile:
    """Whatever fails, call `drop`: the next turn starts from what the disk says."""

    def __init__(self, path: Path, framing: Framing) -> None:
        self._path = path
        self._framing = framing
        self._fd = -1
        self.size = 0  # whole records; nothing behind it counts
        self.modified_s = 0.0  # when it was last written, as it was opened

    def acquire(self) -> bool:
        """Hold the lock of the file that the path names; whether that was opened anew.

        Raises SinkError, or an OSError.
        """
        fresh = False
        for _ in range(MOVES_MAX):
            if self._fd < 0:
                fresh = True
                make_folder(self._path.parent)
                self._fd = open_file(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            self._lock()
            seen = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(seen, os.stat(self._path)):
                    break
            self.drop()
        else:
            raise self._unfit("something replaces it all the time")
        if not os.path.isfile(self._path):
            raise self._unfit("not a regular file; name another path")
        if fresh:
            self.modified_s = seen.st_mtime
            sync_folder(self._path.parent)
        if fresh or seen.st_size != self.size:
            self._mend(0 if fresh or seen.st_size < self.size else self.size, seen.st_size)
        return fresh

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def append(self, lines: Sequence[bytes]) -> None:
        """With the lock held: all of them, on the disk, or none. Raises OSError."""
        size = self.size
        try:
            for data in self._framing.pieces(lines):
                write_all(self._fd, data)
                size += len(data)
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # else the next turn cuts it
                os.ftruncate(self._fd, self.size)
                os.fsync(self._fd)
            raise
        self.size = size

    def drop(self) -> None:
        """Close it, and with it the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._unfit("another program holds its lock") from None
                time.sleep(LOCK_STEP_S)
            else:
                return

    def _mend(self, start: int, size: int) -> None:
        """Cut what is not whole behind `start`."""
        try:
            self.size = self._framing.whole(self._fd, start, size)
        except Foreign:
            raise self._unfit(
                "it holds something that this sink did not write with these settings; move it away"
                " or name another path"
            ) from None
        if self.size != size:
            os.ftruncate(self._fd, self.size)
            os.fsync(self._fd)

    def _unfit(self, why: str) -> SinkError:
        return SinkError(f"cannot write {self._path}: {why}")
