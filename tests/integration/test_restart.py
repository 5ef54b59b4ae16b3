"""Stopping and starting again: nothing is lost, nothing gets a second identity."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import anyio
import pytest

import engine
from engine.core.errors import StoreBusy, StoreTrouble
from engine.idle import until_idle
from engine.machine.clock import RealClock
from engine.worker import Engine
from tests.integration.harness import (
    Hasty,
    avaamo,
    balanced,
    bulksms,
    configured,
    hasty,
    identity,
    infobip,
    lines,
    messangi,
    until,
)
from tests.integration.standin import Answer, Asked, Raw, Standin, json_of

HEAD = "0|Returns to follow\n\n"
NUMBER = "447900000000"
EMPTY = b'{"results":[]}'


def report(message_id: str) -> dict[str, Any]:
    status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
    done = "2024-05-31T10:00:00.000+0000"
    return {"messageId": message_id, "to": NUMBER, "status": status, "doneAt": done}


def one_identity_each(folder: Path) -> None:
    """A fact that was written again has the id it had."""
    ids: dict[Any, set[str]] = defaultdict(set)
    for one in lines(folder):
        ids[one["account"], one["message_id"], one["revision"]].add(one["event_id"])
    assert all(len(found) == 1 for found in ids.values())


class Settable(RealClock):
    """The machine's clock, whose wall can be set."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


async def test_the_ladder_goes_on(tmp_path: Path, standin: Standin) -> None:
    """Stopped between rungs: those that were answered are not asked again."""
    url = standin.answer("bulk", [HEAD + f"{NUMBER}|0\n"] * 2 + [HEAD + f"{NUMBER}|11\n"])
    account = bulksms(url, schedule={"ladder": ["0s", "700ms", "900ms"], "give_up": "5s"})
    config = configured(tmp_path, account)
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER], reference="order")
        await until(lambda: lines(tmp_path))
    assert len(standin.asked["bulk"]) == 1
    async with hasty(config) as poller:
        await anyio.sleep(0.1)
        assert len(standin.asked["bulk"]) == 1
        assert await until_idle(poller, 5) == []
        await balanced(poller)
    assert len(standin.asked["bulk"]) == 3
    assert [(one["state"], one["revision"]) for one in lines(tmp_path)] == [
        ("accepted", 1),
        ("delivered", 2),
    ]
    assert {one["reference"] for one in lines(tmp_path)} == {"order"}
    one_identity_each(tmp_path)


async def test_missed_rungs_are_one_poll(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [HEAD + f"{NUMBER}|0\n"])
    account = bulksms(url, schedule={"ladder": ["200ms", "300ms", "400ms", "500ms", "1h"]})
    config = configured(tmp_path, account)
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
    await anyio.sleep(0.6)
    assert standin.asked["bulk"] == []
    async with hasty(config):
        await until(lambda: lines(tmp_path))
        await anyio.sleep(0.2)
    assert len(standin.asked["bulk"]) == 1


async def test_a_status_that_comes_back_after_a_restart(tmp_path: Path, standin: Standin) -> None:
    """How often it was entered is durable."""
    codes = iter(["63", "10", "63", "11"])
    url = standin.answer("bulk", lambda _: HEAD + f"{NUMBER}|{next(codes)}\n")
    ladder = {"ladder": [f"{n * 100}ms" for n in range(100)], "give_up": "5s"}
    config = configured(tmp_path, bulksms(url, schedule=ladder))
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) >= 1)
    async with hasty(config) as poller:
        assert await until_idle(poller, 5) == []
    records = lines(tmp_path)
    assert [one["provider_status"] for one in records] == ["63", "10", "63", "11"]
    assert [one["event_id"] for one in records] == [
        identity(one, t) for one, t in zip(records, (1, 1, 2, 1), strict=True)
    ]


async def test_a_drain_that_was_interrupted(tmp_path: Path, standin: Standin) -> None:
    """Leaving in the middle of a drain: what was handed out is there, the rest comes later."""
    waiting = [report(str(n)) for n in range(60)]

    def answer(asked: Asked) -> Answer:
        given, waiting[:] = waiting[:5], waiting[5:]
        return Raw(json_of({"results": given}), wait_s=0.02)

    config = configured(tmp_path, infobip(standin.answer("info", answer), limit=5))
    rounds = 0
    while waiting and rounds < 10:
        rounds += 1
        before = len(standin.asked["info"])
        async with hasty(config):
            await until(lambda before=before: len(standin.asked["info"]) >= before + 3)
    async with hasty(config) as poller:
        await until(lambda: len(standin.asked["info"]) >= 15)
        await balanced(poller)
    assert rounds >= 2
    found = [one["message_id"] for one in lines(tmp_path)]
    assert sorted(found, key=int) == [str(n) for n in range(60)]
    one_identity_each(tmp_path)


async def test_cancelled_in_the_middle_of_an_answer(tmp_path: Path, standin: Standin) -> None:
    """What had come whole of a one-time answer is kept."""
    body = json_of({"results": [report(str(n)) for n in range(10)]})
    url = standin.answer("info", [Raw(body, stall=body.index(b'{"messageId":"4"')), EMPTY])
    config = configured(tmp_path, infobip(url), shutdown_grace="100ms")
    async with hasty(config):
        await until(lambda: standin.asked["info"])
        await anyio.sleep(0.1)
    config = configured(tmp_path, infobip(url))
    async with hasty(config) as poller:
        await until(lambda: len(lines(tmp_path)) == 4)
        await balanced(poller)
    assert [one["message_id"] for one in lines(tmp_path)] == ["0", "1", "2", "3"]


async def test_windows_go_on_where_they_stood(tmp_path: Path, standin: Standin) -> None:
    """The cursor is durable, and so are rescans and the spans of a split that was under way."""
    items = [
        {"channel": "S", "sender": "SIM", "recipient": f"+52550000{n:04d}", "direction": "O",
         "date": f"2024-06-01T00:{n:02d}:00.000Z", "status": "SENT",
         "statusdate": f"2024-06-01T00:{n:02d}:01.000Z"} for n in range(50)
    ]  # fmt: skip

    def answer(asked: Asked) -> Answer:
        first, last = asked.query["from"], asked.query["to"]
        found = [one for one in items if first <= one["date"] <= last]
        if len(found) > 5:
            return json_of({"meta": {"explain": "The size of the report is too big."}})
        return Raw(json_of({"pagination": {"total": len(found)}, "items": found}), wait_s=0.01)

    schedule = {"interval": "50ms", "rescan": ["1500ms"]}
    account = messangi(
        standin.answer("omni", answer), start="2024-06-01T00:00:00Z", end="2024-06-01T01:00:00Z",
        schedule=schedule,
    )  # fmt: skip
    config = configured(tmp_path, account)
    spans: list[set[tuple[str, str]]] = []
    for _ in range(3):
        before = len(standin.asked["omni"])
        async with hasty(config):
            await until(lambda before=before: len(standin.asked["omni"]) >= before + 6)
        asked = standin.asked["omni"][before:]
        spans.append({(one.query["from"], one.query["to"]) for one in asked})
    assert not spans[0] & spans[1]
    async with hasty(config) as poller:
        assert await until_idle(poller, 5) == []
        await balanced(poller)
    records = lines(tmp_path)
    assert len({one["message_id"] for one in records}) == 50
    assert len([one for one in records if one["verdict"] is None]) == 50
    assert len([one for one in records if one["verdict"] == "last_known"]) == 50
    one_identity_each(tmp_path)


async def test_a_later_end_goes_on(tmp_path: Path, standin: Standin) -> None:
    """A feed that came to its configured end is read on when the end is moved."""
    late = {"uuid": "late", "created_at": 1_717_200_000 + 5400.0, "sms_status": "delivered"}

    def answer(asked: Asked) -> Answer:
        inside = float(asked.query["to_timetoken"]) >= late["created_at"]  # type: ignore[operator]
        return json_of({"total_entries": int(inside), "entries": [late] if inside else []})

    url = standin.answer("bot", answer)
    for end in ("2024-06-01T01:00:00Z", "2024-06-01T02:00:00Z"):
        account = avaamo(url, start="2024-06-01T00:00:00Z", end=end)
        async with hasty(configured(tmp_path, account)) as poller:
            assert await until_idle(poller, 5) == []
    assert [one["message_id"] for one in lines(tmp_path)] == ["late"]


async def test_one_worker_owns_the_store(tmp_path: Path, standin: Standin) -> None:
    config = configured(tmp_path, infobip(standin.answer("info", [EMPTY])))
    async with hasty(config):
        with pytest.raises(StoreBusy):
            async with engine.open(config):
                pass
        await until(lambda: len(standin.asked["info"]) >= 2)
    async with engine.open(config):
        pass


async def test_a_hold_outlives_a_restart(tmp_path: Path, standin: Standin) -> None:
    answers = [Raw(b"", 429, {"Retry-After": "2"}), EMPTY]
    config = configured(tmp_path, infobip(standin.answer("info", answers)))
    async with hasty(config) as poller:
        await until(lambda: poller.pollers["info"].health.failing)
    async with hasty(config):
        await until(lambda: len(standin.asked["info"]) >= 2)
    first, second = standin.times("info")[:2]
    assert second - first >= 1.99


async def test_a_restart_is_no_new_try_at_a_password(tmp_path: Path, standin: Standin) -> None:
    refused, fine = "23|invalid credentials|", HEAD + f"{NUMBER}|11\n"
    url = standin.answer("bulk", [refused, refused, fine])
    account = bulksms(url, schedule={"ladder": ["0s"], "give_up": "1d"})
    config = configured(tmp_path, account, infobip(standin.answer("info", [EMPTY])))
    clock = Settable()

    def opened(*, once: bool = False) -> Engine:
        return Engine(config, clock=clock, rand=Hasty(), once=once)

    async def start(times: int, *, once: bool = False) -> None:
        for _ in range(times):
            async with opened(once=once) as poller:
                if once:
                    await poller.polls_ended()
                else:  # by then it has come round to what is due
                    asked = len(standin.asked["info"])
                    await until(lambda asked=asked: len(standin.asked["info"]) > asked + 2)

    async with opened() as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: poller.pollers["bulk"].health.paused)
    await start(3)
    await start(3, once=True)
    assert len(standin.asked["bulk"]) == 1
    clock.ahead_ms += 60_000
    async with opened() as poller:  # the first pause is over
        await until(lambda: len(standin.asked["bulk"]) == 2)
        await until(lambda: poller.pollers["bulk"].health.pauses == 2)
    clock.ahead_ms += 60_000
    await start(3, once=True)  # a pause of five minutes, which cron does not shorten …
    assert len(standin.asked["bulk"]) == 2
    async with opened() as poller:  # … but who restarts the worker does
        await until(lambda: len(lines(tmp_path)) == 1)
        assert poller.pollers["bulk"].health.paused is None
    assert len(standin.asked["bulk"]) == 3


async def test_a_clock_that_was_set_back_does_not_lengthen_a_pause(
    tmp_path: Path, standin: Standin
) -> None:
    """A pause that was noted by a clock a year ahead would silence the account for that long."""
    url = standin.answer("info", [Raw(b"", 401), EMPTY])
    config = configured(tmp_path, infobip(url))
    ahead_ms = 365 * 86_400_000
    async with hasty(config) as poller:
        health = poller.pollers["info"].health
        await until(lambda: health.paused)
        assert health.paused_until_ms is not None
        health.paused_until_ms += ahead_ms
        await anyio.sleep(0.05)
        poller.pollers["info"].wake()
        await until(lambda: (health.paused_until_ms or 0) <= poller.clock.now_ms() + 60_000)
        health.paused_until_ms += ahead_ms
        await poller._chores.note_status()
    async with hasty(config) as poller:
        until_ms = poller.pollers["info"].health.paused_until_ms
        assert until_ms is not None
        assert 0 < until_ms - poller.clock.now_ms() <= 60_000


async def test_a_clock_that_is_set_back_stops_no_feed_and_no_second_try(
    tmp_path: Path, standin: Standin
) -> None:
    """What comes an interval or a backoff from now would come so much later, by the wall clock."""
    failing = Raw(b"", 503)
    config = configured(
        tmp_path,
        infobip(standin.answer("info", [EMPTY])),
        avaamo(standin.answer("bot", [json_of({"entries": [], "total_entries": 0})])),
        bulksms(standin.answer("bulk", [failing]), schedule={"ladder": ["0s"]}),
    )
    clock = Settable()
    async with Engine(config, clock=clock, rand=Hasty()) as poller:
        sent_at = time.time() - 7200  # due by either clock
        await poller.track("bulk", batch_id="1", recipients=[NUMBER], sent_at=sent_at)
        names = ("info", "bot", "bulk")
        await until(lambda: all(len(standin.asked[name]) > 2 for name in names))
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(until_idle, poller, 60)
                await anyio.sleep(0.2)  # it has looked at the clock
                clock.ahead_ms = -3_600_000
                asked = {name: len(standin.asked[name]) for name in names}
                await until(lambda: all(len(standin.asked[one]) > asked[one] + 2 for one in names))
                standin.answer("bulk", [HEAD + f"{NUMBER}|11"])


async def test_failures_after_a_clock_was_set_back_hold_the_account(
    tmp_path: Path, standin: Standin
) -> None:
    """They are not taken for ones that overlap a failure of before."""
    config = configured(tmp_path, infobip(standin.answer("info", [Raw(b"", 503)])))
    clock = Settable()
    async with Engine(config, clock=clock, rand=Hasty()) as poller:
        health = poller.pollers["info"].health
        await until(lambda: health.failures)
        clock.ahead_ms = -3_600_000
        before = health.failures
        await until(lambda: health.failures > before + 1)


async def test_an_edited_interval_counts_from_the_restart(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("info", [EMPTY])
    slow, fast = ({"interval": pace, "idle_interval": pace} for pace in ("1d", "50ms"))
    async with hasty(configured(tmp_path, infobip(url, schedule=slow))) as poller:
        await until(lambda: poller.pollers["info"].feed_began_ms)
    assert len(standin.asked["info"]) == 1
    async with hasty(configured(tmp_path, infobip(url, schedule=fast))):
        await until(lambda: len(standin.asked["info"]) > 2)


async def test_a_status_that_could_not_be_noted_is_noted_the_next_time(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_args: object, **_more: object) -> None:
        raise StoreTrouble("the disk is full")

    url = standin.answer("info", [EMPTY])
    async with hasty(configured(tmp_path, infobip(url))) as poller:
        poller._chores.scope.cancel()
        poller.pollers["info"].health.paused = "the password"
        with monkeypatch.context() as broken:
            broken.setattr(poller._store, "write", full)
            with anyio.move_on_after(0.1) as given_up:
                await poller._chores.note_status("info")
        assert given_up.cancelled_caught
        await poller._chores.note_status("info")
        notes = await poller.store.read(lambda tx: tx.notes("status"))
    assert b'"the password"' in notes["info"]
