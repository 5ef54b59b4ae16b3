"""One connection to PostgreSQL, the thread that uses it, and the jobs that wait for it.

What waits is taken together: one transaction, one commit (one flush of the server's log) makes a
group durable. What a job writes is mostly kept back until the group's end, so that a job which
fails leaves nothing behind; one that has written before it failed is undone with its group, and
the others are done again, each alone. A job that comes upon an account whose rows another
transaction has is begun anew after its group.

Where the connection breaks while a commit is under way, nobody knows whether the server still made
it. Each writing transaction has a number, kept in a row of its connection's own: the next
connection looks it up before anything else is written, and waits there for a transaction that is
still under way. Who asks again is told what was done, or has it done now.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from engine.core.errors import StoreError, StoreTrouble
from engine.core.secret import Secret
from engine.machine.offload import hand_over

from .grouping import Grouping, Job
from .postgres_messages import Busy
from .postgres_pending import STAGE
from .postgres_rows import PostgresTransaction
from .postgres_session import Refused, Session
from .transaction import Transaction

T = TypeVar("T")

_DOUBT = "; whether it has taken what was just written is looked up when it is there again"


class Doubt:
    """A transaction whose commit was not answered."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.committed: bool | None = None  # None: not known yet


class _Job(Job):
    def __init__(self, run: Callable[[Transaction], Any], lazy: bool) -> None:
        super().__init__(run, lazy)
        self.accounts: frozenset[str] = frozenset()  # those that it has to wait for, as is known
        self.doubt: Doubt | None = None
        self.result: Any = None  # of the run that is in doubt

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Called on the desk's thread: hand the outcome to the loop that waits for it."""
        hand_over([self.ended(result, error)])


_Outcomes = list[tuple[_Job, Any, BaseException | None]]


class _Spoiled(Exception):
    """A job has failed after it had written: its group is to be undone."""

    def __init__(self, fault: BaseException) -> None:
        super().__init__()
        self.fault = fault


class Desk:
    """Runs jobs one after the other, in groups."""

    def __init__(
        self,
        url: Secret,
        shown: str,
        name: str,
        *,
        writes: bool,
        synchronous: str,
        fences: Callable[[], Mapping[str, int] | None],
        session_name: str,
    ) -> None:
        # Commits that are not on the disk for certain, each counted when it begins and when it is
        # done; and up to where they are there, by a later one.
        self.lazy = self.synced = 0
        self._session = Session(url, shown)
        self._shown = shown
        self._writes = writes
        self._synchronous = synchronous
        self._fences = fences
        self._settings = f"SET application_name = '{session_name}'; {STAGE if writes else ''}"
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._doubt: Doubt | None = None
        self._jobs: Grouping[_Job] = Grouping(name, shown, self._serve, self._session.close)

    async def run(self, run: Callable[[Transaction], T], *, lazy: bool = False) -> T:
        """The job's result. Raises what it raised, and StoreError."""
        result: T = await self._jobs.run(_Job(run, lazy))
        return result

    @property
    def waiting(self) -> int:
        """Jobs that are not done."""
        return self._jobs.waiting

    async def close(self) -> None:
        await self._jobs.close()

    # On the thread

    def _serve(self, jobs: list[_Job], *, careful: bool = False) -> None:
        """Do jobs in one transaction; where one spoils it for the others, each in its own."""
        try:
            while jobs:
                self._connect()
                jobs = [job for job in jobs if not self._was_done(job)]
                if jobs:
                    jobs = self._transact(jobs, careful=careful)
        except StoreError as error:
            for job in jobs:
                self._fail(job, error)
        except (Refused, _Spoiled) as error:
            fault = error.fault if isinstance(error, _Spoiled) else error
            retry = isinstance(fault, Busy) or (not careful and _taken(fault))
            if len(jobs) == 1 and not retry:
                jobs[0].settle(None, self._last_word(fault))
                return
            for job in jobs:
                self._serve([job], careful=True)

    def _last_word(self, fault: BaseException) -> BaseException:
        """Another connection has written the same at the same time: the next try sees it."""
        if _taken(fault):
            return StoreTrouble(f"the store {self._shown}: another worker has written the same")
        return fault

    def _fail(self, job: _Job, error: StoreError) -> None:
        """Trouble, for a job that may be in doubt."""
        if isinstance(error, StoreTrouble) and job.doubt is not None:
            error = StoreTrouble(str(error), again=lambda: self._jobs.run(self._again(job)))
        job.settle(None, error)

    def _again(self, job: _Job) -> _Job:
        again = _Job(job.run, job.lazy)
        again.doubt, again.result = job.doubt, job.result
        return again

    def _was_done(self, job: _Job) -> bool:
        """Settle a job that was in doubt and was committed after all."""
        if job.doubt is None or not job.doubt.committed:
            job.doubt = None
            return False
        job.settle(job.result, None)
        return True

    def _connect(self) -> None:
        """Be connected, and know what became of the transaction before. Raises StoreError."""
        self._session.connect(self._settings)
        doubt = self._doubt
        if doubt is not None:
            # Its lock is held by that transaction for as long as it is under way.
            rows = self._session.fetch(
                "SELECT n FROM writer WHERE id = $1 FOR UPDATE", self._writer
            )
            doubt.committed = bool(rows) and rows[0][0] == doubt.number
            self._doubt = None

    def _transact(self, jobs: list[_Job], *, careful: bool) -> list[_Job]:
        """Those that are to be begun anew."""
        lazy = self._synchronous == "off" or (
            self._synchronous == "normal" and all(job.lazy for job in jobs)
        )
        self._session.begin(self._how(lazy=lazy))
        try:
            tx = PostgresTransaction(
                self._session, self._fences(), writes=self._writes, careful=careful
            )
            tx.enter({account for job in jobs for account in job.accounts})
            outcomes, later = self._do_all(tx, jobs)
            if tx.wrote:
                self._number += 1
                tx.finish(self._writer, self._number)
        except BaseException:
            self._session.roll_back()
            raise
        loose = lazy and tx.wrote
        self.lazy += loose  # before anybody can read what the commit holds
        if self._commit(outcomes):
            self.lazy += loose
            if tx.wrote and not lazy:
                self.synced = self.lazy
            hand_over([job.ended(result, error) for job, result, error in outcomes])
        return later

    def _how(self, *, lazy: bool) -> str:
        if not self._writes:  # one picture for all that a job looks at
            return " ISOLATION LEVEL REPEATABLE READ READ ONLY"
        return "; SET LOCAL synchronous_commit = off" if lazy else ""

    def _do_all(self, tx: PostgresTransaction, jobs: list[_Job]) -> tuple[_Outcomes, list[_Job]]:
        """What became of the jobs that could be done, and the others."""
        outcomes: _Outcomes = []
        later: list[_Job] = []
        for job in jobs:
            tx.start()
            try:
                result = job.run(tx)
            except (Exception, Busy) as fault:
                if isinstance(fault, Busy):
                    job.accounts = fault.accounts
                if self._session.failed:
                    raise  # the server or the line, not the job's own fault
                if tx.dirty:
                    raise _Spoiled(fault) from None
                if isinstance(fault, Busy):
                    later.append(job)
                else:
                    outcomes.append((job, None, fault))
            else:
                tx.accept()
                outcomes.append((job, result, None))
        return outcomes, later

    def _commit(self, outcomes: _Outcomes) -> bool:
        """False where it was not answered, and those who wait were told so."""
        try:
            self._session.commit()
        except (StoreError, Refused) as error:
            self._session.drop()
            self._doubt = doubt = Doubt(self._number)
            trouble = StoreTrouble(f"{error}{_DOUBT}")
            for job, result, fault in outcomes:
                if fault is not None:
                    job.settle(None, fault)
                else:
                    job.doubt, job.result = doubt, result
                    self._fail(job, trouble)
            return False
        return True


def _taken(fault: BaseException) -> bool:
    return isinstance(fault, Refused) and fault.taken
