"""Small real disks: mounted for a test, filled, emptied, and made read-only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = [] if os.getuid() == 0 else ["sudo", "-n"]


class Disk:
    """A tmpfs of its own at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Until nothing fits any more; then `leave` bytes are given back."""
        with self._ballast.open("ab") as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        os.write(file.fileno(), b"\0" * size)
                except OSError:
                    continue
            if leave:
                os.ftruncate(file.fileno(), max(0, file.tell() - leave))

    def free(self) -> None:
        self._ballast.unlink()

    def remount(self, how: str) -> None:
        """`ro` or `rw`; nobody may have a file open for writing when it becomes `ro`."""
        subprocess.run([*ROOT, "mount", "-o", f"remount,{how}", self.path], check=True)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """Mounting takes rights. In CI there are such, so that a skip there would hide something."""
    path.mkdir()
    options = f"size={size},mode=0700,uid={os.getuid()}"
    command = [*ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        done = subprocess.CompletedProcess(command, 1, "", str(error))
    if done.returncode:
        why = f"a tmpfs cannot be mounted here: {done.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield Disk(path)
    finally:
        subprocess.run([*ROOT, "umount", "-l", path], check=True)
