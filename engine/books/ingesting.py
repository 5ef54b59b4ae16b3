"""A provider's exported file, from its bytes into the books.

It takes the way of a polled answer: reader, reports, commit. Where no worker runs the reports are
committed here; beside one they go through the inbox, a few portions at a time. What is in the books
by now stands, so that a file may be read again and again, after a crash in its middle too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from uuid import uuid4

import anyio
import msgspec
from msgspec.structs import replace

from engine.books.committing import Committer
from engine.books.intake import Intake, Taken
from engine.books.portions import Counts, counts_of, portion_item
from engine.config.model import AccountConfig
from engine.config.values import printable
from engine.core.clock import Clock
from engine.core.contracts import Head, Kind, Outcome, Poll, Verb
from engine.core.errors import EngineError
from engine.core.work import Page
from engine.machine.offload import Offload
from engine.stores.ledger import FILE
from engine.stores.transaction import Store
from engine.telemetry import Telemetry

# A portion has this many reports, or this many bytes of the file, and what one chunk adds.
PORTION_REPORTS = 1000
PORTION_BYTES = 1 << 20

# Portions that wait in the inbox at a time: what a worker takes in one transaction.
PORTIONS_MAX = 4

LOOK_S = 0.1
WORKER_MAX_S = 60.0  # without any getting on

NAME_MAX = 64


class Told(msgspec.Struct, kw_only=True):
    """What came of a file."""

    rows: int = 0
    new: int = 0  # records
    repeated: int = 0  # known already, or older than what is known
    set_aside: int = 0
    cause: str | None = None  # why it was not read to its end


class Keeper(Protocol):
    """Where the reports of files go. `counts` are of all portions that are durable."""

    counts: Counts

    async def keep(self, page: Page) -> None: ...

    async def settle(self) -> None:
        """All that was kept is in the books."""
        ...


class Books:
    """Straight into the books, for whoever owns them."""

    def __init__(self, committer: Committer, store: Store) -> None:
        self.counts = Counts()
        self._committer = committer
        self._store = store

    async def keep(self, page: Page) -> None:
        with anyio.CancelScope(shield=True):  # whoever stops it, stops it between two portions
            done = await self._committer.commit(page)
        self.counts.portions += 1
        self.counts.new += done.records
        self.counts.repeated += done.repeated + done.lost

    async def settle(self) -> None:
        await self._store.sync()


class Worker:
    """To the worker that has the account, through its inbox."""

    def __init__(self, account: str, store: Store, clock: Clock, began_ms: int) -> None:
        self.counts = Counts()
        self._account = account
        self._store = store
        self._clock = clock
        self._run = str(uuid4())
        self._began_ms = began_ms
        self._handed = 0

    async def keep(self, page: Page) -> None:
        self._handed += 1
        item = portion_item(page, self._run, self._handed, self._began_ms)
        await self._store.write(lambda tx: tx.put_inbox(item))
        await self._wait(PORTIONS_MAX - 1)

    async def settle(self) -> None:
        await self._wait(0)

    async def _wait(self, left: int) -> None:
        """Until no more than so many portions wait."""
        last, since_s = self.counts.portions, self._clock.monotonic()
        while self._handed - self.counts.portions > left:
            runs = await self._store.read(lambda tx: counts_of(tx, self._account))
            self.counts = runs.get(self._run, self.counts)
            if self.counts.portions > last:
                last, since_s = self.counts.portions, self._clock.monotonic()
            elif self._clock.monotonic() - since_s > WORKER_MAX_S:
                raise EngineError(
                    f"the running worker has taken nothing for {WORKER_MAX_S:g} s; what was handed"
                    " over waits in its inbox. Run the same command again to go on: nothing is"
                    " recorded twice"
                )
            else:
                await self._clock.sleep(LOOK_S)


class Ingester:
    """Reads files of one account, one after the other."""

    def __init__(
        self,
        account: AccountConfig,
        committer: Committer,
        keeper: Keeper,
        *,
        telemetry: Telemetry,
        clock: Clock,
    ) -> None:
        self._committer = committer
        self._keeper = keeper
        self._clock = clock
        self._began_ms = clock.now_ms()
        self._intake = Intake(account, committer, telemetry)
        self._intake.careful = True  # a file is read once: a record that breaks the reader is one

    async def read(self, name: str, chunks: Iterator[bytes]) -> Told:
        """Take one file; `chunks` may end early, and say why by raising EOFError. They may be of
        a pipe that gives nothing for long: a thread of their own waits for them."""
        poll = Poll(kind=Kind.FILE, now_ms=self._began_ms)
        taken = Taken(page=self._page())
        digestion = self._intake.begin(poll, Head(200, {}), taken)
        before = replace(self._keeper.counts)
        size, cause = 0, None
        reading = Offload("dlr-file")
        try:
            while (chunk := await reading.run(next, chunks, None)) is not None:
                digestion.feed(chunk)
                size += len(chunk)
                full = len(taken.page.reports) >= PORTION_REPORTS or size >= PORTION_BYTES
                if full or taken.page.flaws:
                    await self._keep(name, taken)
                    size = 0
        except EOFError as error:
            cause = str(error)
        finally:
            await reading.close()
        outcome = digestion.close(cut=cause is not None)
        await self._keep(name, taken)
        await self._keeper.settle()
        after = self._keeper.counts
        return Told(
            rows=taken.rows,
            new=after.new - before.new,
            repeated=after.repeated - before.repeated,
            set_aside=taken.flaws + after.apart - before.apart,
            cause=cause or _cause(outcome),
        )

    def _page(self) -> Page:
        page = self._committer.page()
        page.source, page.observed_ms, page.revisit_ms = FILE, self._began_ms, self._began_ms
        return page

    async def _keep(self, name: str, taken: Taken) -> None:
        page = taken.page
        if not (page.reports or page.flaws or page.flaws_beyond):
            return
        page.flaws = [
            replace(flaw, position=f"{printable(name, NAME_MAX)}: {flaw.position}")
            for flaw in page.flaws
        ]
        await self._keeper.keep(page)
        taken.page = self._page()


def _cause(outcome: Outcome) -> str | None:
    return None if outcome.verb is Verb.DONE else outcome.cause
