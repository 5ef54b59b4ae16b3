"""The last reading of a window: what could not be read is asked for again before the verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.contracts import Kind
from engine.core.schedule import Ladder
from engine.core.units import iso
from engine.core.work import Page, Work
from engine.polling.rescans import Rescans
from engine.polling.windowed import WindowReader
from engine.stores.settling import SHORT_WAITS_MS
from tests.conformance.storing import DAY, WINDOWED, commit, report
from tests.unit.parts import T0, Parts

LIMITS = {"requests": 100, "per": "1s"}
SENT_S = T0 / 1000 - 30
DELIVERED = [("m1", "delivered", None)]
VERDICT = [("m1", "enroute", "last_known")]


def page(*entries: object, total: int | None = None) -> tuple[int, dict[str, Any]]:
    total = len(entries) if total is None else total
    return 200, {
        "current_page": 1, "per_page": 100, "total_entries": total, "total_pages": 1,
        "entries": list(entries),
    }  # fmt: skip


def entry(status: str) -> dict[str, Any]:
    return {"uuid": "m1", "created_at": SENT_S, "to_phone": "+447700900001", "sms_status": status}


UNREADABLE = page("no object")
SHORT = page(total=1)


async def begun(parts: Parts) -> Work:
    """A message that is known as sent, in a window with one rung left."""
    reply = await parts.asker.ask(parts.poll(from_ms=T0 - 60_000, to_ms=T0))
    await parts.asker.commit(reply.page)
    data = {"from": T0 - 30_500, "to": T0 - 29_500}
    return await parts.put(
        Work(account="a", kind=Kind.WINDOW, key="w", due_ms=T0, start_ms=T0 - 10_000, data=data)
    )


async def visit(parts: Parts) -> Work | None:
    """As a process does that has just been started; what has become of the window."""
    rescans = Rescans(parts.asker, WindowReader(parts.asker), Ladder.of((10.0,)))
    (stored,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.WINDOW, None))
    assert (await rescans.visit([stored])).failed is None
    left = await parts.store.read(lambda tx: tx.find_works("a", Kind.WINDOW, None))
    return left[0] if left else None


@pytest.mark.parametrize(
    "doubtful",
    [[UNREADABLE], [SHORT, page()]],  # the second: beside it, to see whether its total is true
    ids=["unreadable", "short"],
)
async def test_an_end_that_could_not_be_read_is_read_in_time(
    doubtful: list[tuple[int, dict[str, Any]]],
) -> None:
    async with Parts(
        "avaamo", page(entry("sent")), *doubtful, page(entry("delivered")), limits=LIMITS
    ) as parts:
        await begun(parts)
        window = await visit(parts)
        assert window is not None
        assert window.due_ms == parts.clock.ms + SHORT_WAITS_MS[0]
        assert await parts.states() == [("m1", "enroute", None)]
        parts.clock.ms = window.due_ms
        assert await visit(parts) is None
        assert await parts.states() == DELIVERED


async def test_a_row_that_can_never_be_read_delays_the_verdict_twice() -> None:
    """Also over a restart after each reading."""
    async with Parts("avaamo", page(entry("sent")), UNREADABLE, limits=LIMITS) as parts:
        await begun(parts)
        for wait_ms in SHORT_WAITS_MS:
            window = await visit(parts)
            assert window is not None
            assert window.due_ms == parts.clock.ms + wait_ms
            parts.clock.ms = window.due_ms
        assert await visit(parts) is None
        assert await parts.states() == VERDICT
        assert len(parts.network.asked) == 1 + 1 + len(SHORT_WAITS_MS)


async def test_a_whole_answer_gives_the_verdict_at_once() -> None:
    async with Parts("avaamo", page(entry("sent")), limits=LIMITS) as parts:
        await begun(parts)
        assert await visit(parts) is None
        assert await parts.states() == VERDICT


@pytest.mark.parametrize("half_read", [False, True])
async def test_what_the_process_before_has_perhaps_half_read_is_read_again(
    half_read: bool,
) -> None:
    """What was open in it had been stored when that died, an entry further on, which had come up
    late, had not. A window that falls due later with nothing open in it is not asked for."""
    answers = page(entry("delivered")), page(entry("delivered"))
    async with Parts("avaamo", *answers, limits=LIMITS) as parts:
        window = await begun(parts)
        parts.clock.ms = T0 if half_read else T0 - 1
        rescans = Rescans(parts.asker, WindowReader(parts.asker), Ladder.of((10.0, 60.0)))
        parts.clock.ms = T0
        assert (await rescans.visit([window])).failed is None
        assert len(parts.network.asked) == 1 + half_read


@pytest.mark.parametrize("sent_s", [T0 / 1000, None], ids=["at its end", "no time"])
async def test_what_comes_up_late_at_the_end_of_a_window_is_in_it(sent_s: float | None) -> None:
    late = entry("sent") | {"created_at": sent_s}
    async with Parts("avaamo", page(late), limits=LIMITS) as parts:
        data = {"from": T0 - 60_000, "to": T0}
        await parts.put(
            Work(account="a", kind=Kind.WINDOW, key="w", due_ms=T0, start_ms=T0 - 10_000, data=data)
        )
        assert await visit(parts) is None
        assert await parts.states() == VERDICT


@pytest.mark.parametrize("moment", ["nothing is open", "its verdicts are given"])
async def test_what_comes_another_way_while_a_window_ends_is_in_one(moment: str) -> None:
    """A day that has a window gets no second one: it must not be gone a moment later."""
    day = T0 // DAY * DAY - DAY
    ladder = Ladder.of((10.0,))
    async with Parts("avaamo", page(), limits=LIMITS) as parts:
        data = {"from": day, "to": day + DAY}
        key = f"{day}-{day + DAY}"
        window = await parts.put(
            Work(account="a", kind=Kind.WINDOW, key=key, due_ms=T0, start_ms=T0 - DAY, data=data)
        )
        rescans = Rescans(parts.asker, WindowReader(parts.asker), ladder)
        read, commit_page = parts.store.read, parts.asker.commit

        async def replayed() -> None:
            await commit(
                parts.tables, report("m1", sent_at=iso(day)), traits=WINDOWED,
                at=T0, source="replay", revisit_ms=T0, ladder=ladder,
            )  # fmt: skip

        async def reading(job: Any) -> Any:
            found = await read(job)
            parts.store.read = read  # type: ignore[method-assign]
            await replayed()
            return found

        async def committing(page: Page) -> Any:
            done = await commit_page(page)
            if page.expire is not None:
                await replayed()
            return done

        if moment == "nothing is open":
            parts.clock.ms += 1
            rescans._began_ms = T0 - 1
            parts.store.read = reading  # type: ignore[method-assign]
        else:
            parts.asker.commit = committing  # type: ignore[method-assign]
        assert (await rescans.visit([window])).failed is None
        assert await parts.states() == [("m1", "enroute", None)]
        (held,) = await parts.store.read(lambda tx: tx.find_works("a", Kind.WINDOW, None))
        assert held.data == data
