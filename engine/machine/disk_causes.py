"""What errors of files and databases mean for people: what is wrong, and what to do."""

from __future__ import annotations

import errno
import sqlite3

_CAUSES = {
    sqlite3.SQLITE_BUSY: "the database is locked by another program; end its transaction",
    sqlite3.SQLITE_LOCKED: "the database is locked by another program; end its transaction",
    sqlite3.SQLITE_PROTOCOL: "the database is locked by another program; end its transaction",
    sqlite3.SQLITE_READONLY: "it is read-only; allow this user to write the file and its folder",
    sqlite3.SQLITE_PERM: "no permission; allow this user to write the file and its folder",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk is full or broken; free some space, and look at the disk",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that this user may write the file and its"
    " folder, and that there is space on the disk",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; move it away or restore a copy",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; move it away or name another path",
}
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)


_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the limit for the size of a file is reached; rotate by size",
    errno.EACCES: "allow this user to write there",
    errno.EPERM: "allow this user to write there",
    errno.EROFS: "the file system is mounted read-only",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "name a file, not a folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the system has no more open files to give",
    errno.ETIMEDOUT: "look at the disk, or at whoever reads there",
}


def code(error: BaseException) -> int:
    """The primary result code; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest is detail


def cause(error: BaseException) -> str:
    """Of an sqlite3.Error."""
    return _CAUSES.get(code(error), str(error))


def file_cause(error: OSError) -> str:
    return f"{error.strerror or error}; {_HINTS.get(error.errno or 0, 'look at the disk')}"


def write_cause(error: BaseException) -> str | None:
    """Of either; None for another error."""
    if isinstance(error, sqlite3.Error):
        return cause(error)
    return file_cause(error) if isinstance(error, OSError) else None


def passing(error: BaseException) -> bool:
    """Whether it may mend without a change to the database: a full disk, a lock, rights."""
    return code(error) in _PASSING
