"""Files and folders for their owner alone: what the engine writes holds personal data.

Files are 0600 and new folders 0700 from the moment they are there, whatever the umask. A file that
is found wider, from before or by somebody's chmod, is narrowed when it is opened; a folder that was
there is its owner's affair.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def open_file(path: Path | str, flags: int) -> int:
    """As `os.open`; with O_CREAT a new file is its owner's alone. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    seen = os.fstat(descriptor)
    if _too_wide(seen):
        with contextlib.suppress(OSError):  # a file system that knows no modes
            os.fchmod(descriptor, stat.S_IMODE(seen.st_mode) & FILE_MODE)
    return descriptor


def write_file(path: Path, text: str) -> None:
    """Make it anew with this text."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def make_database(path: Path) -> None:
    """An empty file for SQLite, which gives its journals the file's mode; one that is there is
    narrowed with its journals. Raises OSError.

    It is not opened then: closing it would drop the locks that this process has on it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        sync_folder(path.parent)
    except FileExistsError:
        if os.path.isdir(path) or not os.access(path, os.R_OK | os.W_OK):
            number = errno.EISDIR if os.path.isdir(path) else errno.EACCES
            if os.statvfs(path).f_flag & os.ST_RDONLY:
                number = errno.EROFS
            raise OSError(number, os.strerror(number), str(path)) from None
        for each in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
            _narrow(each)


def sync_folder(folder: Path) -> None:
    """A new file is there after a power cut once its folder is."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _narrow(path: Path | str) -> None:
    with contextlib.suppress(OSError):
        seen = os.stat(path)
        if _too_wide(seen):
            os.chmod(path, stat.S_IMODE(seen.st_mode) & FILE_MODE)


def _too_wide(seen: os.stat_result) -> bool:
    regular = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid()
    return regular and bool(seen.st_mode & 0o077)


def make_folder(folder: Path) -> None:
    """The folder and what is missing above it. Raises OSError."""
    missing = itertools.takewhile(lambda part: not part.exists(), (folder, *folder.parents))
    for part in reversed(list(missing)):
        part.mkdir(FOLDER_MODE, exist_ok=True)
