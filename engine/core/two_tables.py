"""The two tables that an SQL sink keeps, in the SQL that SQLite and PostgreSQL share.

`reports` takes each event once, `messages` keeps the newest record of each message: a column a
field in both. What is offered again, or is older than what is there, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from .rows import COLUMNS, Kind

FIELDS = ", ".join(COLUMNS)
EVENT = "event_id"
MESSAGE = "account, message_id, direction"

_NEWER = ", ".join(f"{field} = excluded.{field}" for field in COLUMNS)


class TwoTables:
    """Their names, each with the columns of its key, and what is said to the database.

    `prefix` and `schema` are put into SQL as they are; `types` are the database's own.
    """

    def __init__(self, prefix: str, types: Mapping[Kind, str], schema: str = "") -> None:
        self._prefix = prefix
        self._columns = {field: f"{field} {types[kind]}" for field, kind in COLUMNS.items()}
        self.definition = ", ".join(self._columns.values())
        self.reports = f"{schema}{prefix}reports"
        self.messages = f"{schema}{prefix}messages"
        self.keys = {self.reports: EVENT, self.messages: MESSAGE}

    def take_once(self, source: str) -> str:
        """Into `reports`; `source` is VALUES, or a query, of `FIELDS`."""
        into = f"INSERT INTO {self.reports} ({FIELDS}) {source}"
        return f"{into} ON CONFLICT ({EVENT}) DO NOTHING"

    def keep_newest(self, source: str) -> str:
        """Into `messages`, likewise; where a key is in `source` twice, in any order."""
        into = f"INSERT INTO {self.messages} AS kept ({FIELDS}) {source}"
        newer = f"DO UPDATE SET {_NEWER} WHERE excluded.revision > kept.revision"
        return f"{into} ON CONFLICT ({MESSAGE}) {newer}"

    def owns(self, table: str, present: Set[str]) -> bool:
        """Whether one with these columns is ours, or is not there yet."""
        return not present or present >= set(self.keys[table].split(", "))

    def making(self, table: str, present: Set[str], constraint: str = "") -> list[str]:
        """The statements that make it, or add what a table with these columns lacks."""
        if present:
            lacking = [column for field, column in self._columns.items() if field not in present]
            return [f"ALTER TABLE {table} ADD COLUMN {column}" for column in lacking]
        made = [f"CREATE TABLE {table} ({self.definition}{constraint})"]
        if table == self.reports:
            index = f"{self._prefix}reports_message"
            made.append(f"CREATE INDEX {index} ON {table} (account, message_id)")
        return made
