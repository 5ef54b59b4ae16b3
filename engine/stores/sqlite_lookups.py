"""The SQLite store's look-ups of messages: what lies in rows, and in lots.

A page goes in, and what is known of its messages comes out, in a statement or two. How the rows are
laid out, and why, stands in `schema/sqlite-0004.sql`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine.core.reconcile import Known
from engine.core.report import recipient_key

from .kept import unpack_log
from .sqlite_lots import HASH, IN_LOTS, SqliteLots, array, hash_of, key_with

Key = tuple[str, str]  # message id, direction

AS_JSON = "group_concat('[' || id || ',' || data || ']')"
_FOUND_BY = {"message_id": f"key & {HASH}", "recipient": "who", "reference": "reference"}

_decode = msgspec.json.Decoder(list[tuple[int, Known]]).decode


class SqliteLookups(SqliteLots):
    """The primitives that read messages."""

    def messages(
        self, account: str, ids: Sequence[Key], marks: Sequence[int | None] | None = None
    ) -> dict[Key, Known]:
        found: dict[Key, Known] = {}
        number = self._peek_account(account)
        wanted = set(ids)
        if marks is not None:
            keys = [
                key_with(mark, message_id)
                for (message_id, _), mark in zip(ids, marks, strict=True)
                if mark is not None
            ]
            rows = self._db.execute(
                "SELECT message FROM by_key WHERE key IN (SELECT value FROM json_each(?))",
                (array(keys),),
            ).fetchall()
            if rows:
                self._pick(found, wanted, account, self._numbered([row for (row,) in rows]))
        if len(found) < len(wanted) and self._any_elsewhere():
            self._by_id(found, wanted, number)
        unmarked = wanted if marks is None else _unmarked(ids, marks)
        if left := unmarked - found.keys():
            self._long_known(found, left, account)
        return found

    def _pick(
        self, found: dict[Key, Known], wanted: set[Key], account: str, among: Iterable[Known]
    ) -> None:
        """Those of an account that are wanted."""
        for known in among:
            key = (known.message_id, known.direction)
            if key in wanted and known.account == account:
                found[key] = known

    def _numbered(self, numbers: Sequence[int], *, sure: bool = True) -> list[Known]:
        """Messages with these numbers; `sure`: each of them is there."""
        rows = self._read(
            f"SELECT {AS_JSON} FROM message WHERE id IN (SELECT value FROM json_each(?))",
            (array(numbers),),
        )
        if len(rows) == len(numbers):
            return rows
        packed = self._in_lots(list(set(numbers).difference(known.row or 0 for known in rows)))
        return rows + (packed if sure else self._alive(packed))

    def _take(
        self, found: dict[Key, Known], wanted: set[Key], where: str, number: int, among: list[Any]
    ) -> None:
        """Those of `wanted` that are among the rows with one of these values."""
        for known in self._read(
            f"SELECT {AS_JSON} FROM message WHERE {where} (SELECT value FROM json_each(?))",
            (number, array(among)),
        ):
            key = (known.message_id, known.direction)
            if key in wanted:
                found[key] = known

    def _any_elsewhere(self) -> bool:
        """Whether any message has to be looked for by its id: mostly none has."""
        some = "SELECT 1 FROM message WHERE elsewhere IS NOT NULL LIMIT 1"
        return self._db.execute(some).fetchone() is not None

    def _by_id(self, found: dict[Key, Known], wanted: set[Key], number: int) -> None:
        """Those whose mark may have been another one before."""
        left = {message_id for message_id, direction in wanted - found.keys()}
        plain = [message_id for message_id in left if "\0" not in message_id]
        where = "account = ? AND elsewhere IN"
        self._take(found, wanted, where, number, plain)
        for odd in left.difference(plain):  # json_each ends a text at a NUL
            for known in self._read(
                f"SELECT {AS_JSON} FROM message WHERE {where} (?)", (number, odd)
            ):
                if (known.message_id, known.direction) in wanted:
                    found[known.message_id, known.direction] = known

    def _long_known(self, found: dict[Key, Known], left: set[Key], account: str) -> None:
        """Those that came before the account was first asked by ids alone; later ones are found
        by them."""
        known = self.ask_by_id(account) if self._writes else self._peek(account)
        if known is None or known.first is None:
            return
        if known.by_id_from is None or known.first < known.by_id_from:
            hashes = {hash_of(message_id) for message_id, _ in left}
            rows = self._looked_up("message_id", hashes)
            self._pick(found, left, account, self._numbered(rows, sure=False))

    def _looked_up(self, by: str, hashes: Iterable[int]) -> list[int]:
        """Rows that may be those with these hashes, from the runs and from what is in none yet."""
        (last,) = self._db.execute("SELECT max(last) FROM run").fetchone()
        rows = self._db.execute(
            "SELECT lookup.message FROM run CROSS JOIN json_each(?1) AS wanted CROSS JOIN lookup"
            " ON lookup.run = run.id AND lookup.hash = wanted.value"
            f" UNION SELECT id FROM message WHERE id > ?2 AND {_FOUND_BY[by]} IN"
            " (SELECT value FROM json_each(?1))"
            f" UNION SELECT id FROM ({IN_LOTS}) WHERE hash IN (SELECT value FROM json_each(?1))",
            (array(list(hashes)), last),
        )
        return [row for (row,) in rows.fetchall()]

    def _read(self, select: str, values: tuple[Any, ...]) -> list[Known]:
        """Messages that a statement gives as one text: `AS_JSON`."""
        (text,) = self._db.execute(select, values).fetchone()
        messages: list[Known] = []
        for row, known in _decode(f"[{text}]") if text is not None else ():
            known.row = row
            messages.append(known)
        return messages

    def newest(self, messages: Sequence[Known]) -> None:
        rows: dict[int, list[Known]] = {}
        for known in messages:
            if known.place is not None:
                rows.setdefault(self._log_id(known.account, known.place[0]), []).append(known)
            else:
                spare = self._db.execute("SELECT record FROM spare WHERE id = ?", (known.row,))
                found = spare.fetchone()
                known.record = found[0] if found is not None else b""
        for log_id, here in sorted(rows.items()):
            (body,) = self._db.execute("SELECT body FROM log WHERE id = ?", (log_id,)).fetchone()
            lines = unpack_log(body).split(b"\n")
            for known in here:
                assert known.place is not None
                known.record = lines[known.place[1]]

    def batch_messages(
        self, account: str, batch_id: str, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND pending > 0" if pending else ""
        number = self._peek_account(account)
        rows = self._read(
            f"SELECT {AS_JSON} FROM (SELECT id, data FROM message WHERE batch = ?"
            f" AND account = ?{only} ORDER BY id LIMIT ?)",
            (batch_id, number, limit),
        )
        return (
            rows if pending else self._with_lots(rows, limit, batch_id, " AND account = ?", number)
        )

    def _with_lots(
        self, rows: list[Known], limit: int, batch_id: str, more: str = "", *values: Any
    ) -> list[Known]:
        """A batch's messages in the order in which they came, at most so many."""
        both = rows + self._lots_of_batch(batch_id, limit, more, *values)
        return sorted(both, key=lambda known: known.row or 0)[:limit]

    def batch_counts(self, account: str, batch_id: str) -> tuple[int, int, int]:
        number = self._peek_account(account)
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(pending > 0), 0), coalesce(sum(pending = 2), 0)"
            " FROM message WHERE batch = ? AND account = ?",
            (batch_id, number),
        ).fetchone()
        (packed,) = self._db.execute(
            "SELECT coalesce(sum(alive), 0) FROM lot WHERE batch = ? AND account = ?",
            (batch_id, number),
        ).fetchone()
        return (row[0] + packed, row[1], row[2])

    def open_batches(self, account: str, batch_ids: Sequence[str]) -> set[str]:
        if not batch_ids:
            return set()
        rows = self._by_text(
            "SELECT DISTINCT batch FROM message WHERE batch IN",
            batch_ids,
            "AND account = ? AND pending = 2",
            (self._peek_account(account),),
        )
        return {row[0] for row in rows}

    def open_in_span(
        self, account: str, from_ms: int, to_ms: int, *, pending: bool, limit: int
    ) -> list[Known]:
        only = " AND pending > 0" if pending else ""
        return self._read(
            f"SELECT {AS_JSON} FROM (SELECT id, data FROM message WHERE account = ?"
            f" AND open_ms BETWEEN ? AND ?{only} ORDER BY open_ms, id LIMIT ?)",
            (self._peek_account(account), from_ms, to_ms, limit),
        )

    def find_messages(self, by: str, value: str, limit: int) -> list[Known]:
        if by == "batch_id":
            rows = self._read(
                f"SELECT {AS_JSON} FROM (SELECT id, data FROM message WHERE batch = ?"
                " ORDER BY id LIMIT ?)",
                (value, limit),
            )
            return self._with_lots(rows, limit, value)
        found = self._numbered(self._looked_up(by, [hash_of(value)]), sure=False)
        found.sort(key=lambda known: known.row or 0)
        return [known for known in found if _is_meant(known, by, value)][:limit]


def _unmarked(ids: Sequence[Key], marks: Sequence[int | None]) -> set[Key]:
    return {key for key, mark in zip(ids, marks, strict=True) if mark is None}


def _is_meant(known: Known, by: str, value: str) -> bool:
    """Hashes are shared."""
    if by == "recipient":
        return known.recipient is not None and recipient_key(known.recipient) == value
    return bool(getattr(known, by) == value)
