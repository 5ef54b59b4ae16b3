"""Reading set-aside pieces again, through the provider's code as it is now.

A piece takes the way of a polled answer: reader, reports, commit, under the time at which it was
received. What is in the books by now stands: a repetition writes no second record, an older report
does not replace a newer one. A piece that is digested goes in the same transaction that takes its
reports; the others stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engine.books.committing import Committer
from engine.books.intake import Intake, Taken
from engine.config.model import AccountConfig
from engine.core.clock import Clock
from engine.core.contracts import Form, Framing, Head, Kind, Poll, Verb
from engine.core.errors import LeaseLost, StoreError
from engine.core.redact import Redactor
from engine.core.report import decode
from engine.core.work import Asked, Committed, Page
from engine.stores.kept import read_asked
from engine.stores.ledger import REPLAY, commit
from engine.stores.transaction import Piece, Question, Store, Transaction
from engine.telemetry import Telemetry

# Pieces that are in memory at once, and their bytes before the last one.
PORTION = 200
PORTION_BYTES = 4 << 20


class Order(Question, frozen=True, kw_only=True):
    """What to replay."""

    since_ms: int = 0
    dry_run: bool = False


class Line(msgspec.Struct, kw_only=True):
    """What became of the pieces of one account that were set aside for one cause."""

    account: str
    cause: str
    pieces: int = 0
    digested: int = 0
    new: int = 0  # records
    repeated: int = 0  # reports that were known already, or older than what is known
    left: int = 0


class _Undone(Exception):
    """A dry run's transaction, at its end."""

    def __init__(self, done: Committed) -> None:
        self.done = done


class Replayer:
    """Replays the pieces of one account."""

    def __init__(
        self,
        account: AccountConfig,
        store: Store,
        *,
        telemetry: Telemetry,
        clock: Clock,
        redactor: Redactor | None,
    ) -> None:
        self._account = account
        self._store = store
        self._clock = clock
        self._committer = Committer(account, store, telemetry, clock, redactor)
        self._intake = Intake(account, self._committer, telemetry)
        self._intake.careful = True
        self._lines: dict[str, Line] = {}

    async def run(self, order: Order) -> list[Line]:
        """Read what was set aside until now; whole answers first, for they hold the others."""
        name, began_ms = self._account.name, self._clock.now_ms()
        self._lines = {}
        for whole in (True, False):
            after_id = 0
            while True:
                found = await self._store.read(
                    lambda tx, after_id=after_id: tx.pieces(  # type: ignore[misc]
                        name, after_id, order.since_ms, PORTION, bytes_max=PORTION_BYTES
                    )
                )
                for piece in found:
                    if (piece.form is Form.ANSWER) is whole and piece.at_ms <= began_ms:
                        await self._replay(piece, began_ms, dry_run=order.dry_run)
                        await self._clock.sleep(0)  # a worker has others to serve
                if not found:
                    break
                after_id = found[-1].id
        return list(self._lines.values())

    async def _replay(self, piece: Piece, began_ms: int, *, dry_run: bool) -> None:
        line = self._lines.setdefault(
            piece.cause, Line(account=self._account.name, cause=piece.cause)
        )
        line.pieces += 1
        page = self._readable(piece)
        done = Committed()
        if page is not None and (page.reports or page.replayed):
            page.revisit_ms = began_ms
            try:
                done = await self._store.write(self._job(page, dry_run=dry_run))
            except _Undone as undone:
                done = undone.done
            except (StoreError, LeaseLost):  # nothing of that is the piece's fault
                raise
            except Exception as fault:  # it still cannot be recorded
                self._intake.broke(fault)
                page = None
        if page is not None and page.replayed:
            line.digested += 1
        else:
            line.left += 1
        line.new += done.records
        line.repeated += done.repeated + done.lost

    def _readable(self, piece: Piece) -> Page | None:
        try:
            return self._read(piece)
        except Exception as fault:  # what another release has kept need not fit
            self._intake.broke(fault)
            return None

    def _read(self, piece: Piece) -> Page | None:
        """Its reports; `replayed` holds the piece where all of it could be read."""
        asked = read_asked(piece.asked) or self._assumed(piece)
        if asked is None:
            return None
        page = self._committer.page()
        page.source, page.observed_ms, page.asked = REPLAY, piece.at_ms, asked
        if asked.poll.from_ms is not None and asked.poll.to_ms is not None:
            page.span = (asked.poll.from_ms, asked.poll.to_ms)
        if piece.form is Form.REPORT:
            page.reports = [decode(piece.raw)]
            page.replayed = [piece.id]
            return page
        taken = Taken(page=page)
        digestion = self._intake.begin(asked.poll, asked.head, taken)
        if piece.form is Form.VALUE:
            digestion.hand([msgspec.json.decode(piece.raw)])
        elif piece.form is Form.RECORD:
            digestion.feed(self._framed(asked, piece.raw))
        else:
            digestion.feed(piece.raw)
        outcome = digestion.close(cut=piece.truncated)
        flaws, beyond = page.flaws, page.flaws_beyond
        page.flaws, page.flaws_beyond = [], 0
        if digestion.failed:
            return page
        if piece.form is not Form.ANSWER:
            whole = bool(page.reports) and not flaws
        elif piece.truncated:  # a beginning: what can be read of it has been
            whole = bool(page.reports)
        elif not flaws:
            whole = bool(page.reports) or outcome.verb in (Verb.DONE, Verb.MORE)
        else:  # what is left of it is kept by itself
            lost = any(flaw.truncated or flaw.form is Form.ANSWER for flaw in flaws)
            whole = bool(page.reports) and not lost and not beyond
            page.flaws = flaws if whole else []
        page.replayed = [piece.id] if whole else []
        return page

    def _framed(self, asked: Asked, raw: bytes) -> bytes:
        """An answer with this record alone, where the parser has a frame for it."""
        try:
            parser = self._account.provider.reader(asked.poll, asked.head).parser
            return parser.frame(raw) if isinstance(parser, Framing) else raw
        except Exception as fault:
            self._intake.broke(fault)
            return raw

    def _assumed(self, piece: Piece) -> Asked | None:
        """What an older release asked: for whatever was new, where that is how a feed works."""
        if self._account.provider.traits.feed != "drained":
            return None
        return Asked(poll=Poll(kind=Kind.FEED, now_ms=piece.at_ms), head=Head(200, {}))

    def _job(self, page: Page, *, dry_run: bool) -> Callable[[Transaction], Committed]:
        def job(tx: Transaction) -> Committed:
            done = commit(tx, page)
            if dry_run:
                raise _Undone(done)
            return done

        return job
