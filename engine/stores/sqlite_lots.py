"""The SQLite store's lots: messages that had come to their end when they were first heard of, some
dozens in a row. Why, and how they are numbered, stands in `schema/sqlite-0006.sql`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

import msgspec
import orjson

from engine.core.reconcile import Known
from engine.core.report import recipient_key

from .kept import pack_log, unpack_log
from .sqlite_accounts import Account, SqliteAccounts
from .sqlite_insert import Insert

_HASH_BITS = 31
HASH = (1 << _HASH_BITS) - 1

# Messages of a lot: that many are unpacked where one is asked for. Fewer than the least are rows.
LOT_MAX = 50
LOT_MIN = 8

# Where a hash stands before a message's index in its lot.
INDEX_BITS = 16

# What messages are looked up by, and their numbers, in lots that came after some.
IN_LOTS = f"""
    SELECT has.value >> {INDEX_BITS} AS hash, lot.id + (has.value & {(1 << INDEX_BITS) - 1}) AS id
    FROM lot CROSS JOIN json_each(lot.hashes) AS has WHERE lot.id > ?2
"""

_PUT = Insert("lot (id, account, alive, ended_ms, batch, hashes, data)")
_LOTS = """
SELECT id, data FROM lot WHERE id IN (
    SELECT (SELECT max(id) FROM lot WHERE id <= value) FROM json_each(?)
) ORDER BY id
"""
_ALIVE = """
SELECT by_key.message FROM json_each(?) AS wanted CROSS JOIN by_key
    ON by_key.key = json_extract(wanted.value, '$[0]')
    AND by_key.message = json_extract(wanted.value, '$[1]')
WHERE NOT EXISTS (SELECT 1 FROM message WHERE id = by_key.message)
"""
_FORGET_KEYS = """
DELETE FROM by_key WHERE (key, message) IN (
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)
)
"""


def ended(table: str) -> str:
    """Of messages or lots those that ended before ?1 and whose batch is not asked for, ?2 at most.

    Those that came later cannot have ended before; those in no run yet are few.
    """
    return f"""
SELECT id, data FROM {table} WHERE ended_ms < ?1
    AND (id <= (SELECT max(last) FROM run WHERE at_ms < ?1) OR id > (SELECT max(last) FROM run))
    AND NOT EXISTS (SELECT 1 FROM work WHERE work.account = {table}.account
        AND work.kind = 'batch' AND work.key = {table}.batch)
LIMIT ?2
"""


_ENDED = ended("lot")

_encode = msgspec.json.Encoder().encode
_pieces = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode = msgspec.json.Decoder(Known).decode

Key = tuple[int, int]  # a message's key and number


class SqliteLots(SqliteAccounts):
    """The primitives' part on lots."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._from: dict[int, int] = {}  # of what was read out of a lot here: its lot

    def _put_lots(
        self, lots: Sequence[Sequence[Known]], accounts: dict[str, Account], number: int
    ) -> list[Key]:
        """New messages; they are numbered from `number` on."""
        keys: list[Key] = []
        values: list[Any] = []
        for lot in lots:
            ids = [hash_of(known.message_id) for known in lot]
            marks = [known.mark or 0 for known in lot]
            keys += [
                (mark << _HASH_BITS | id_hash, number + index)
                for index, (mark, id_hash) in enumerate(zip(marks, ids, strict=True))
            ]
            hashes = [one << INDEX_BITS | index for index, one in enumerate(ids)]
            hashes += [
                one << INDEX_BITS | index
                for index, known in enumerate(lot)
                for one in _later_hashes(known)
            ]
            values += (
                number,
                accounts[lot[0].account].number,
                len(lot),
                max(known.seen_ms for known in lot),
                lot[0].batch_id,
                array(hashes),
                pack_log(_encode(lot)),
            )
            number += len(lot)
        _PUT.run(self._db, values)
        return keys

    def _in_lots(self, numbers: Sequence[int]) -> list[Known]:
        """Messages with these numbers, as their lots have them."""
        found: list[Known] = []
        wanted = sorted(numbers)
        at = 0
        for lot, data in self._db.execute(_LOTS, (array(wanted),)).fetchall():
            pieces = _pieces(unpack_log(data))
            while at < len(wanted) and wanted[at] < lot:
                at += 1
            while at < len(wanted) and wanted[at] < lot + len(pieces):
                found.append(self._taken(lot, wanted[at], pieces[wanted[at] - lot]))
                at += 1
        return found

    def _lots_of_batch(
        self, batch_id: str, limit: int, more: str = "", *values: Any
    ) -> list[Known]:
        """The first that a batch has in lots."""
        found: list[Known] = []
        lots = self._db.execute(
            f"SELECT id, data FROM lot WHERE batch = ?{more} ORDER BY id", (batch_id, *values)
        )
        for lot in lots:
            found += self._alive(list(self._all(*lot)))
            if len(found) >= limit:
                break
        lots.close()
        return found

    def _all(self, lot: int, data: bytes) -> Iterator[Known]:
        for index, piece in enumerate(_pieces(unpack_log(data))):
            yield self._taken(lot, lot + index, piece)

    def _taken(self, lot: int, number: int, piece: msgspec.Raw) -> Known:
        known = _decode(piece)
        known.row = number
        self._from[number] = lot
        return known

    def _alive(self, messages: list[Known]) -> list[Known]:
        """Those that have no row of their own, nor have had one that was dropped since."""
        if not messages:
            return messages
        keys = array([_key(known) for known in messages])
        alive = {number for (number,) in self._db.execute(_ALIVE, (keys,)).fetchall()}
        for known in messages:
            if known.row not in alive:  # it has left its lot before, and is not to leave it again
                self._from.pop(known.row or 0, None)
        return [known for known in messages if known.row in alive]

    def _move_out(self, messages: Iterable[Known]) -> None:
        """Those of these that were in lots have been given rows of their own."""
        for known in messages:
            if (lot := self._from.pop(known.row or 0, None)) is None:
                continue
            self._db.execute("UPDATE lot SET alive = alive - 1 WHERE id = ?", (lot,))
            # What it is looked up by may be new, and its run knows only what was.
            self._db.executemany(
                "INSERT OR IGNORE INTO lookup (run, hash, message) VALUES (0, ?, ?)",
                looked_up_later(known),
            )

    def _drop_lots(self, before_ms: int, limit: int) -> list[Known]:
        """Lots that ended before, so many at most; their messages."""
        lots = self._db.execute(_ENDED, (before_ms, limit)).fetchall()
        gone = self._alive([known for lot in lots for known in self._all(*lot)])
        if lots:
            self._db.execute(_FORGET_KEYS, (array([_key(known) for known in gone]),))
            self._db.execute(
                "DELETE FROM lot WHERE id IN (SELECT value FROM json_each(?))",
                (array([lot for lot, _ in lots]),),
            )
        return gone


def sorted_out(
    messages: Sequence[Known], accounts: dict[str, Account]
) -> tuple[list[list[Known]], list[Known]]:
    """What goes into lots, and what into rows: lots are of one account and batch, new, and ended
    for good; their records stand in the log, and nobody will look for them by their ids alone."""
    lots: list[list[Known]] = []
    rows: list[Known] = []
    alike: dict[tuple[str, str | None], list[Known]] = {}
    unsure = {name for name, account in accounts.items() if account.by_id_from is not None}
    for known in messages:
        if (
            known.row is not None
            or not known.final
            or known.open
            or known.mark is None
            or known.place is None
            or known.record
            or known.account in unsure
        ):
            rows.append(known)
        else:
            alike.setdefault((known.account, known.batch_id), []).append(known)
    for group in alike.values():
        for start in range(0, len(group), LOT_MAX):
            lot = group[start : start + LOT_MAX]
            if len(lot) < LOT_MIN:
                rows += lot
            else:
                lots.append(lot)
    return lots, rows


def hash_of(text: str) -> int:
    return crc32(text.encode()) & HASH


def key_of(known: Known) -> int:
    """Mark and hash of the id; of one without a mark, of when it was sent."""
    mark = known.mark
    if mark is None:
        mark = known.sent_ms // 1000 & 0xFFFFFFFF if known.sent_ms is not None else 0
    return key_with(mark, known.message_id)


def key_with(mark: int, message_id: str) -> int:
    return mark << _HASH_BITS | hash_of(message_id)


def _key(known: Known) -> tuple[int, int | None]:
    return key_of(known), known.row


def looked_up_later(known: Known) -> list[tuple[int, int | None]]:
    """What a message is looked up by that may become known, or change, after it was sorted."""
    return [(one, known.row) for one in _later_hashes(known)]


def _later_hashes(known: Known) -> list[int]:
    hashes = [hash_of(recipient_key(known.recipient))] if known.recipient is not None else []
    if known.reference is not None:
        hashes.append(hash_of(known.reference))
    return hashes


def array(values: Sequence[Any]) -> str:
    return orjson.dumps(values).decode()
