"""`run --once`: does what is due, and ends; what will not go is left to the next run, and named."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import anyio

import engine
from engine.idle import until_done
from engine.polling.health import ONCE_FAILURES_MAX
from tests.integration.harness import (
    Hasty,
    Leaping,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    tallies,
    until,
)
from tests.integration.standin import Asked, Raw, Standin

HEAD = "0|Returns to follow\n\n"
NUMBER = "447900000000"
EMPTY = b'{"results":[]}'


async def track(config: engine.Config, batches: list[str]) -> None:
    """Into the schedule, for a minute from now."""
    async with engine.Engine(config, rand=Hasty(), once=True) as poller:
        for batch in batches:
            await poller.track("bulk", batch_id=batch, recipients=[NUMBER], sent_at=time.time())
        await poller.polls_ended()


async def once(config: engine.Config, rand: random.Random | None = None) -> list[str]:
    """A run of its own, an hour from now; what it says is stuck."""
    clock = Leaping()
    clock.leap(3_600_000)
    with anyio.fail_after(30):
        async with engine.Engine(config, clock=clock, rand=rand or Hasty(), once=True) as poller:
            return await until_done(poller)


async def test_once_does_not_wait_for_what_the_provider_holds_for_long(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("bulk", [Raw(b"", 429, {"Retry-After": "600"})])
    account = bulksms(url, schedule={"ladder": ["0s"]})
    config = configured(tmp_path, account, infobip(standin.answer("info", [EMPTY])))
    async with engine.Engine(config, rand=Hasty(), once=True) as poller:
        for batch in "123":  # the second waits for its place when the first is refused
            await poller.track("bulk", batch_id=batch, recipients=[NUMBER])
    for _ in range(2):  # and so does the next run, which has nothing but the hold
        async with engine.Engine(config, rand=Hasty(), once=True) as poller:
            with anyio.fail_after(15):
                (stuck,) = await until_done(poller)
        assert stuck.startswith("account bulk: what is due was not answered; ")
    assert "held for " in stuck
    assert len(standin.asked["bulk"]) == 1
    assert standin.asked["info"], "the other account is not held"


async def test_once_leaves_a_question_that_lost_its_place_to_a_login(
    tmp_path: Path, standin: Standin
) -> None:
    """It gave its place back while another one logged in; that one is told to wait for long."""
    login = standin.answer("login", [Raw(b"", headers={"authorization": "Bearer t"}, wait_s=0.2)])
    url = standin.answer("omni", [Raw(b"", 429, {"Retry-After": "600"})])
    account = messangi(
        url, headers={}, login_url=login + "/in", username="u", password="pa55-canary",
        channels=["S", "E"], limits={"requests": 2, "per": "500ms", "concurrency": 2},
    )  # fmt: skip
    config = configured(tmp_path, account)
    async with engine.Engine(config, rand=Hasty(), once=True) as poller:
        with anyio.fail_after(10):
            (stuck,) = await until_done(poller)
    assert stuck.startswith("account omni: what is due was not answered; ")
    assert "HTTP 429" in stuck
    assert len(standin.asked["omni"]) == 1


async def test_once(tmp_path: Path, standin: Standin) -> None:
    """Does what is due now and ends: the later rungs are left for the next run."""
    url = standin.answer("bulk", [HEAD + f"{NUMBER}|0\n"])
    account = bulksms(url, schedule={"ladder": ["0s", "1h"]})
    config = configured(tmp_path, account, infobip(standin.answer("info", [EMPTY])))
    async with hasty(config) as poller:
        for n in range(5):
            await poller.track("bulk", batch_id=str(n), recipients=[NUMBER], sent_at=time.time())
        await until(lambda: len(lines(tmp_path)) == 5)
    asked = len(standin.asked["info"])
    await anyio.sleep(0.1)  # past the feed's interval of 50 ms
    with anyio.fail_after(5):
        async with engine.Engine(config, rand=Hasty(), once=True) as poller:
            await poller.polls_ended()
            assert (await tallies(poller))["bulk"]["pending"] == 5
    assert len(standin.asked["bulk"]) == 5
    assert len(standin.asked["info"]) == asked + 1


def batch(asked: Asked) -> str:
    return asked.query["batch_id"]


def refusing(status: int, *refused: str) -> Any:
    """A provider that has an answer for every batch but these."""

    def answer(asked: Asked) -> Raw:
        if batch(asked) in refused:
            return Raw(b"", status)
        return Raw((HEAD + f"{NUMBER}|11\n").encode())

    return answer


def one_by_one(folder: Path, url: str) -> engine.Config:
    """One request at a time, and a single rung."""
    account = bulksms(
        url, limits={"requests": 1000, "per": "1s", "concurrency": 1},
        schedule={"ladder": ["1m"], "give_up": "1d"},
    )  # fmt: skip
    return configured(folder, account)


async def test_an_item_that_always_fails_keeps_no_other_from_being_asked(
    tmp_path: Path, standin: Standin
) -> None:
    """It is due first, and with one request at a time it is asked first, too."""
    url = standin.answer("bulk", refusing(414, "1"))
    config = one_by_one(tmp_path, url)
    await track(config, ["1", "2", "3", "4"])
    assert not standin.asked["bulk"]
    stuck = await once(config)
    assert sorted(one["batch_id"] for one in lines(tmp_path)) == ["2", "3", "4"]
    asked = [batch(one) for one in standin.asked["bulk"]]
    assert asked[0] == "1"
    assert sorted(asked) == ["1", "2", "3", "4"]
    # The others were answered after it: it is named all the same, and due in the next run.
    assert stuck == ["account bulk: what is due was not answered; failed: HTTP 414"]
    assert len(await once(config)) == 1
    assert len(standin.asked["bulk"]) == 5
    standin.answer("bulk", refusing(414))
    assert await once(config) == []
    assert len(lines(tmp_path)) == 4


class Lots(Hasty):
    """Chance where it is about the order."""

    def random(self) -> float:
        return self.getrandbits(32) / 2**32


async def test_items_that_always_fail_and_are_due_first_leave_others_a_turn(
    tmp_path: Path, standin: Standin
) -> None:
    """As many as end a run: in one of the next runs the others come before them."""
    bad = [str(number) for number in range(ONCE_FAILURES_MAX)]
    url = standin.answer("bulk", refusing(414, *bad))
    config = one_by_one(tmp_path, url)
    await track(config, [*bad, "good", "better"])
    rand = Lots(6)
    for _ in range(10):
        await once(config, rand)
    assert sorted(one["batch_id"] for one in lines(tmp_path)) == ["better", "good"]


async def test_an_account_that_fails_again_and_again_is_left_to_the_next_run(
    tmp_path: Path, standin: Standin
) -> None:
    batches = [str(number) for number in range(20)]
    url = standin.answer("bulk", refusing(503, *batches))
    config = one_by_one(tmp_path, url)
    await track(config, batches)
    stuck = await once(config)
    assert len(standin.asked["bulk"]) == ONCE_FAILURES_MAX
    assert stuck == ["account bulk: what is due was not answered; failing: HTTP 503"]
    standin.answer("bulk", refusing(503))
    assert await once(config) == []
    assert len(lines(tmp_path)) == 20
