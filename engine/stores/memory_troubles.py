"""What went wrong, in memory: set-aside pieces and incidents."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import msgspec

from engine.core.contracts import Flaw, Form
from engine.core.work import Asked, Incident

from .kept import UNKNOWN, flaw_identity, incident_identity, pack, write_asked
from .memory_tables import Name, OverTables
from .transaction import Piece, Trouble


class MemoryTroubles(OverTables):
    """Primitives over the tables."""

    def put_flaws(
        self,
        account: str,
        source: str,
        flaws: Sequence[Flaw],
        at_ms: int,
        asked: Asked | None = None,
    ) -> int:
        new = 0
        for flaw in flaws:
            key = (account, "set_aside", flaw_identity(source, flaw))
            place = f"{source}: {flaw.position}"
            if self._put_trouble(key, flaw.cause, place, pack(flaw.raw)[0], at_ms):
                new += 1
                piece = Piece(
                    id=next(self._tables.numbers),
                    account=account,
                    cause=flaw.cause,
                    position=place,
                    form=flaw.form,
                    truncated=flaw.truncated,
                    size=len(flaw.raw),
                    asked=write_asked(asked) or UNKNOWN,
                    raw=bytes(flaw.raw),
                    at_ms=at_ms,
                    times=1,
                )
                self._tables.set(self._tables.pieces, key, (piece, asked is not None))
        return new

    def put_incident(self, account: str, incident: Incident, at_ms: int) -> bool:
        span = incident_identity(incident)
        return self._put_trouble((account, incident.kind, span), incident.text, span, b"", at_ms)

    def pieces(
        self, account: str, after_id: int, since_ms: int, limit: int, *, bytes_max: int
    ) -> list[Piece]:
        found: list[Piece] = []
        size = 0
        in_order = sorted(self._tables.pieces.items(), key=lambda item: item[1][0].id)
        for key, (piece, readable) in in_order:
            trouble = self._tables.troubles[key]
            if not (readable and piece.account == account and piece.id > after_id):
                continue
            if trouble.last_ms >= since_ms and len(found) < limit and size < bytes_max:
                found.append(msgspec.structs.replace(piece, times=trouble.times))
                size += piece.size
        return found

    def drop_pieces(self, ids: Sequence[int]) -> int:
        pieces = self._tables.pieces
        wholes = {
            (piece.account, piece.asked, piece.at_ms)
            for piece, _ in pieces.values()
            if piece.id in ids and piece.form is Form.ANSWER and piece.asked != UNKNOWN
        }
        gone = [
            key
            for key, (piece, _) in pieces.items()
            if piece.id in ids or (piece.account, piece.asked, piece.at_ms) in wholes
        ]
        for key in gone:
            self._drop_trouble(key)
        return len(gone)

    def troubles(self, account: str | None, limit: int) -> list[Trouble]:
        kept = [
            trouble
            for trouble in reversed(self._tables.troubles.values())
            if account in (None, trouble.account)
        ]
        kept.sort(key=lambda trouble: -trouble.last_ms)
        return [copy(trouble) for trouble in kept[:limit]]

    def drop_troubles(self, before_ms: int, keep: int, keep_bytes: int, limit: int) -> int:
        oldest = sorted(self._tables.troubles.items(), key=lambda item: item[1].last_ms)
        beyond = max(0, len(oldest) - keep)
        gone = [
            key
            for n, (key, trouble) in enumerate(oldest)
            if n < beyond or trouble.last_ms < before_ms
        ]
        pieces = self._tables.pieces
        beyond = sum(piece.size for piece, _ in pieces.values()) - keep_bytes
        for key, _ in oldest:
            if key in pieces and beyond > 0:
                beyond -= pieces[key][0].size
                if key not in gone:
                    gone.append(key)
        for key in gone[:limit]:
            self._drop_trouble(key)
        return len(gone[:limit])

    def _drop_trouble(self, key: Name) -> None:
        self._tables.drop(self._tables.troubles, key)
        if key in self._tables.pieces:
            self._tables.drop(self._tables.pieces, key)

    def _put_trouble(self, key: Name, cause: str, position: str, raw: bytes, at_ms: int) -> bool:
        troubles = self._tables.troubles
        old = troubles.get(key)
        if old is not None:
            new = msgspec.structs.replace(old, last_ms=at_ms, times=old.times + 1)
        else:
            new = Trouble(
                account=key[0],
                kind=key[1],
                cause=cause,
                position=position,
                raw=raw,
                first_ms=at_ms,
                last_ms=at_ms,
                times=1,
            )
        self._tables.set(troubles, key, new)
        return old is None
