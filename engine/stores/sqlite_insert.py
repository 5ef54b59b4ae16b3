"""Many rows in few statements: at each step a statement gives the interpreter's lock up, and a busy
event loop lets nobody have it back for milliseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

# Rows that one statement takes: 5,500 values of messages, of the 32,766 that any SQLite since 2020
# allows.
_AT_ONCE = (500, 100, 20, 5, 1)


class Insert:
    """`INSERT INTO {into} VALUES (…), (…) … {rest}`; `into` names the columns."""

    def __init__(self, into: str, rest: str = "") -> None:
        self._columns = into.count(",") + 1
        row = f"({', '.join('?' * self._columns)})"
        self._statements = {
            count: f"INSERT INTO {into} VALUES {', '.join([row] * count)} {rest}"
            for count in _AT_ONCE
        }

    def run(self, db: sqlite3.Connection, values: list[Any]) -> None:
        """Insert rows, whose values stand one after the other."""
        start = 0
        for count in _pieces(len(values) // self._columns):
            end = start + count * self._columns
            db.execute(self._statements[count], values[start:end])
            start = end


def _pieces(count: int) -> Iterator[int]:
    """A number of rows, as numbers of rows that there are statements for."""
    for size in _AT_ONCE:
        while count >= size:
            yield size
            count -= size
