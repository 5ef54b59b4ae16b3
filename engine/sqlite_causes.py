"""What SQLite's errors mean for whoever runs the engine: what is wrong, and what to do."""

from __future__ import annotations

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


def code(error: BaseException) -> int:
    """The primary result code; 0 where there is none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the rest is detail


def cause(error: BaseException) -> str:
    return _CAUSES.get(code(error), str(error))


def passing(error: BaseException) -> bool:
    """Whether it may mend without a change to the database: a full disk, a lock, rights."""
    return code(error) in _PASSING
