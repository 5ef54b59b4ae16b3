"""What one read of the log gives: each wanted record once, in order, and no more than fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.core.state import State
from engine.core.work import LogRow
from engine.dispatch.log_reader import LogReader
from engine.stores.transaction import STATE_CODES, Place

ENROUTE, DELIVERED = map(STATE_CODES.index, (State.ENROUTE, State.DELIVERED))

# A log row: of each record its state and its bytes; rows are read a few at a time.
rows = st.lists(
    st.lists(
        st.tuples(st.sampled_from([ENROUTE, DELIVERED]), st.integers(1, 9)), min_size=1, max_size=9
    ),
    max_size=5,
)


class Log:
    """A store that holds a log and places, and nothing else."""

    def __init__(self, rows: list[LogRow]) -> None:
        self.rows = rows
        self.kept: dict[str, Place] = {}

    async def read(self, job: Callable[[Any], Any]) -> Any:
        return job(self)

    async def write(self, job: Callable[[Any], Any], *, lazy: bool = False) -> Any:
        return job(self)

    async def sync(self) -> None: ...

    def places(self) -> dict[str, dict[str, Place]]:
        return {"out": self.kept}

    def put_places(self, sink: str, places: dict[str, Place]) -> None:
        self.kept = self.kept | places

    def log_bounds(self) -> dict[str, tuple[int, int]]:
        return {"a": (1, len(self.rows) + 1)}

    def log_rows(self, account: str, seq: int, limit: int, *, bytes_max: int) -> list[LogRow]:
        return self.rows[seq - 1 : seq + 1]


@given(rows, st.integers(1, 12), st.integers(1, 40), st.booleans(), st.integers(0, 12))
async def test_portions_of_a_log(
    made: list[list[tuple[int, int]]], records_max: int, bytes_max: int, chosen: bool, cut: int
) -> None:
    log = Log([
        LogRow(
            seq=seq,
            at_ms=0,
            states=bytes(state for state, _ in row),
            body=b"\n".join(b"%d" % (n % 10) * size for n, (_, size) in enumerate(row)),
        )
        for seq, row in enumerate(made, 1)
    ])  # fmt: skip
    wanted = [
        ((row.seq, at), line)
        for row in log.rows
        for at, line in enumerate(row.body.split(b"\n"))
        if not chosen or row.states[at] == DELIVERED
    ]
    states = frozenset({State.DELIVERED}) if chosen else None
    reader = LogReader("out", log, ["a"], states=states)  # type: ignore[arg-type]
    await reader.open()
    given: list[tuple[Place, bytes]] = []
    while (portion := await reader.read(records_max, bytes_max)).lines:
        lines = portion.lines
        given += [(place, line) for _, place, line in map(portion.record, range(len(lines)))]
        assert portion.size == sum(map(len, lines))
        assert len(lines) <= records_max
        assert sum(map(len, lines[:-1])) < bytes_max
        assert portion.full == (len(lines) == records_max or portion.size >= bytes_max)
        after = portion.places_after(min(cut, len(lines)))
        last = portion.record(min(cut, len(lines)) - 1)[1] if cut else None
        assert after == ({"a": (last[0], last[1] + 1)} if last else {})
        await reader.move(portion.places)
    assert given == wanted
    await reader.move(portion.places)  # beyond what nobody wants
    assert not await reader.behind()
