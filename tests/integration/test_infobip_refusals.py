"""Infobip refuses: errors of both families, credentials, and how long it is to be let alone."""

from __future__ import annotations

import random
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import pytest

import engine
from engine.limits.limiter import AccountLimiter
from tests.integration.harness import configured, hasty, infobip, lines, until
from tests.integration.standin import Answer, Asked, Raw, Standin, json_of
from tests.integration.test_infobip import EMPTY, page, report, slow


class Middling(random.Random):
    """Every backoff is half of what it may be."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (
            500,
            {"requestError": {"serviceException": {
                "messageId": "GENERAL_ERROR", "text": "Something went wrong"}}},
            "Something went wrong",
        ),
        (400, {"errorCode": "E400", "description": "Bad limit", "violations": []}, "Bad limit"),
        (
            400,
            {"requestError": {"serviceException": {
                "messageId": "BAD_REQUEST", "text": "Bad", "validationErrors": "a string"}}},
            "a string",
        ),
    ],
)  # fmt: skip
async def test_errors_of_both_families(
    tmp_path: Path, standin: Standin, status: int, body: Any, word: str
) -> None:
    """They are said in the provider's words, and asked again."""
    answers = [Raw(json_of(body), status), Raw(page(report("1")), wait_s=0.1), EMPTY]
    url = standin.answer("info", answers)
    async with hasty(configured(tmp_path, infobip(url))) as poller:
        await until(lambda: poller.pollers["info"].health.failing)
        assert word in (poller.pollers["info"].health.failing or "")
        assert f"HTTP {status}" in (poller.pollers["info"].health.failing or "")
        await until(lambda: len(lines(tmp_path)) == 1)
        assert poller.pollers["info"].health.failing is None
        assert poller.pollers["info"].health.paused is None


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_pause(tmp_path: Path, standin: Standin, status: int) -> None:
    body = {"requestError": {"serviceException": {"messageId": "UNAUTHORIZED", "text": "No"}}}
    url = standin.answer("info", [Raw(json_of(body), status)])
    async with hasty(configured(tmp_path, infobip(url))) as poller:
        await until(lambda: poller.pollers["info"].health.paused)
        await anyio.sleep(0.3)
        until_ms = poller.pollers["info"].health.paused_until_ms or 0
        assert 55_000 < until_ms - poller.clock.now_ms() <= 60_000
    assert len(standin.asked["info"]) == 1


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds the account was held, one time after the other."""
    seconds_of: list[float] = []
    hold = AccountLimiter.hold

    def noted(limiter: AccountLimiter, seconds: float, why: str) -> None:
        if seconds > 0:
            seconds_of.append(seconds)
        hold(limiter, seconds, why)

    monkeypatch.setattr(AccountLimiter, "hold", noted)
    return seconds_of


@pytest.mark.parametrize(("status", "form"), [(429, "date"), (503, "seconds")])
async def test_retry_after_holds_the_account(
    tmp_path: Path, standin: Standin, status: int, form: str, held: list[float]
) -> None:
    """Measured by the stand-in's clock: nothing comes before the time is up."""
    promised: list[float] = []

    def answer(asked: Asked) -> Answer:
        if asked.number > 1:
            return EMPTY
        # A date has whole seconds: between one and two of them are left.
        date = int(time.time()) + 2
        promised.append(1.0 if form == "seconds" else date - time.time())
        header = "1" if form == "seconds" else formatdate(date, usegmt=True)
        return Raw(b"", status, {"Retry-After": header})

    url = standin.answer("info", answer)
    async with hasty(configured(tmp_path, infobip(url, schedule=slow()))) as poller:
        await poller.track("info", message_id="1")
        await until(lambda: len(standin.asked["info"]) >= 2)
        assert poller.pollers["info"].health.paused is None
    first, second = standin.times("info")[:2]
    assert second - first >= promised[0] - 0.01
    # The answer's own date, by which the other one is meant, is up to a second behind.
    assert held[0] <= promised[0] + (0.0 if form == "seconds" else 1.0)


async def test_retry_after_is_meant_by_the_providers_clock(
    tmp_path: Path, standin: Standin, held: list[float]
) -> None:
    """Its clock is a day behind ours: by ours the date is past."""

    def answer(asked: Asked) -> Answer:
        if asked.number > 1:
            return EMPTY
        now = time.time() - 86_400
        dates = {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + 2)}
        return Raw(b"", 429, dates)

    url = standin.answer("info", answer)
    async with hasty(configured(tmp_path, infobip(url, schedule=slow()))) as poller:
        await poller.track("info", message_id="1")
        await until(lambda: len(standin.asked["info"]) >= 2)
    first, second = standin.times("info")[:2]
    assert second - first >= 1.9
    assert held[0] == 2.0


@pytest.mark.parametrize(
    "header",
    ["0", "-5", "0.0001", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9", "\u0661", "1, soon"],
)
async def test_retry_after_nonsense_is_no_hot_loop(
    tmp_path: Path, standin: Standin, header: str, held: list[float]
) -> None:
    """Where the header asks for nothing usable, the backoff holds, and it grows."""
    refused = Raw(b"", 429, {"Retry-After": header})
    url = standin.answer("info", [refused])
    async with engine.Engine(
        configured(tmp_path, infobip(url, schedule=slow())), rand=Middling()
    ) as poller:
        await poller.track("info", message_id="1")
        await until(lambda: len(held) >= 3)
    assert held[:3] == [0.5, 1.0, 2.0]
    first, second, third = standin.times("info")[:3]
    assert second - first >= 0.5
    assert third - second >= 1.0


async def test_a_huge_retry_after_is_a_day_at_most(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("info", [Raw(b"", 503, {"Retry-After": "9" * 40})])
    async with hasty(configured(tmp_path, infobip(url, schedule=slow()))) as poller:
        await poller.track("info", message_id="1")
        await until(lambda: poller.pollers["info"].limiter.hold_s() > 0)
        assert poller.pollers["info"].limiter.hold_s() <= 86_400
    assert len(standin.asked["info"]) == 1
