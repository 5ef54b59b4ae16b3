"""BulkSMS end to end: the query as documented, the ladder, first-line codes, verdicts."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, parse_qsl

import anyio
import pytest

from engine.core.contracts import Kind
from engine.idle import until_idle
from engine.stores import ledger, tracked
from engine.worker import Engine
from tests.integration.harness import (
    PATIENCE_S,
    Leaping,
    balanced,
    bulksms,
    causes,
    configured,
    hasty,
    identity,
    lines,
    table,
    tallies,
    until,
)
from tests.integration.standin import Answer, Answers, Asked, Raw, Standin

T = TypeVar("T")
PATH = "/status_reports/get_report/2/2.0"
HEAD = "0|Returns to follow\n\n"
NUMBERS = [f"4479000000{n:02d}" for n in range(12)]
HOUR_MS = 3_600_000
EVE_MS = 200


def hourly(rungs: int) -> dict[str, Any]:
    """A ladder whose rungs no machine is so slow as to miss; what lies between is leapt over."""
    return {"ladder": [f"{n}h" for n in range(rungs)], "give_up": "1h"}


def all_files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def run_to_end(
    folder: Path,
    standin: Standin,
    answers: Answers,
    recipients: list[str] | None = None,
    *,
    sent_at: float | None = None,
    clock: Leaping | None = None,
    **keys: Any,
) -> list[dict[str, Any]]:
    """Track one batch, and leap from rung to rung until it has ended; the records."""
    clock, keys = clock or Leaping(), {"schedule": hourly(3), **keys}
    config = configured(folder, bulksms(standin.answer("bulk", answers), **keys))
    async with hasty(config, clock) as poller:
        await poller.track("bulk", batch_id="4711", recipients=recipients or [], sent_at=sent_at)
        with anyio.fail_after(PATIENCE_S):
            while (due_ms := await next_due_ms(poller)) is not None:
                leap_towards(due_ms, poller, clock)
                await anyio.sleep(0.01)
            assert await until_idle(poller, PATIENCE_S) == []
        await balanced(poller)
        assert (await tallies(poller))["bulk"].get("pending", 0) == 0
    return lines(folder)


async def next_due_ms(poller: Engine) -> int | None:
    """When the batch is asked for next; None: it has ended."""
    works = await poller.store.read(lambda tx: tx.find_works("bulk", Kind.BATCH, None))
    return works[0].due_ms if works else None


def leap_towards(ms: int, poller: Engine, clock: Leaping) -> None:
    """Leap to shortly before then: what would be asked too early is asked too early still."""
    if (left_ms := ms - EVE_MS - clock.now_ms()) > 0:
        clock.leap(left_ms)
        poller.pollers["bulk"].wake()  # it looks at its clock once a second


async def test_the_query_is_as_documented(tmp_path: Path, standin: Standin) -> None:
    answer = HEAD + "447900000000|11|24-05-31 09:15:02|order-17|one|two\nand three\n"
    records = await run_to_end(
        tmp_path, standin, [answer], optional_fields=["body", "completed_time", "source_id"],
        content=True,
    )  # fmt: skip
    asked = standin.asked["bulk"][0]
    assert (asked.method, asked.path, asked.body) == ("GET", PATH, b"")
    assert asked.pairs == [
        ("username", "john"),
        ("password", "s3cret&%"),
        ("batch_id", "4711"),
        ("optional_fields", "completed_time,source_id,body"),
    ]
    assert asked.query_string.startswith("username=john&password=s3cret%26%25&batch_id=4711")
    assert records[0]["content"] == "one|two\nand three"
    assert records[0]["done_at"] == "2024-05-31T09:15:02.000Z"
    assert records[0]["reference"] == "order-17"


async def test_post_has_nothing_in_the_url(tmp_path: Path, standin: Standin) -> None:
    await run_to_end(tmp_path, standin, [HEAD + "447900000000|11\n"], method="POST")
    asked = standin.asked["bulk"][0]
    assert (asked.method, asked.path, asked.query_string) == ("POST", PATH, "")
    assert parse_qsl(asked.body.decode()) == [
        ("username", "john"),
        ("password", "s3cret&%"),
        ("batch_id", "4711"),
    ]
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_wrong_credentials_pause_the_account(
    tmp_path: Path,
    standin: Standin,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Slow enough that the next poll waits for its place when the answer comes.
    refused = Raw("23|invalid credentials (username was: john, password s3cret&%)|", wait_s=0.1)
    clock, asked_ms = Leaping(), list[int]()

    def answer(asked: Asked) -> Answer:
        asked_ms.append(clock.now_ms())
        return refused if asked.number <= 2 else HEAD + "447900000000|11\n"

    config = configured(tmp_path, bulksms(standin.answer("bulk", answer), schedule=hourly(3)))
    caplog.set_level(logging.INFO)
    async with hasty(config, clock) as poller:
        health = poller.pollers["bulk"].health
        for batch in ("1", "2", "3"):
            await poller.track("bulk", batch_id=batch, recipients=["447900000000"])
        await until(lambda: health.paused)
        await anyio.sleep(0.2)
        assert len(asked_ms) == 1
        leap_towards(asked_ms[0] + 60_000, poller, clock)
        await until(lambda: health.pauses == 2)
        leap_towards(asked_ms[1] + 300_000, poller, clock)
        await until(lambda: len(lines(tmp_path)) == 3)
        assert health.paused is None
    assert len(asked_ms) == 5
    assert asked_ms[1] - asked_ms[0] >= 60_000
    assert asked_ms[2] - asked_ms[1] >= 300_000
    paused = [r.getMessage() for r in caplog.records if "paused" in r.getMessage()]
    assert len(paused) == 1
    assert not any("s3cret" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("line", "code"), [("24|Data validation failed", "24"),
                                            ("1001|message not found", "1001")])  # fmt: skip
@pytest.mark.parametrize("recipients", [[], NUMBERS[:2]])
async def test_a_batch_that_is_not_known(
    tmp_path: Path, standin: Standin, line: str, code: str, recipients: list[str]
) -> None:
    """It answers the rung; the verdict carries the code."""
    records = await run_to_end(tmp_path, standin, [line], recipients)
    assert len(standin.asked["bulk"]) == 3  # one a rung
    ids = [f"4711:{number}" for number in recipients] or ["4711"]
    assert [record["message_id"] for record in records] == ids
    for record in records:
        assert (record["state"], record["verdict"]) == ("unknown", "never_reported")
        assert (record["final"], record["provider_status"]) == (True, None)
        assert (record["error_code"], record["revision"]) == (code, 1)
        assert record["event_id"] == identity(record, 1)


async def test_what_is_transient_is_asked_again(tmp_path: Path, standin: Standin) -> None:
    good = HEAD + "447900000000|11\n"
    answers = [
        "40|Temporarily unavailable", Raw("", 500), Raw(reset=True), "22|Internal error",
        Raw("23|a proxy's page", 401), good,
    ]  # fmt: skip
    records = await run_to_end(tmp_path, standin, answers, ["447900000000"])
    assert len(standin.asked["bulk"]) == 6
    assert [record["state"] for record in records] == ["delivered"]


async def never_delivered(
    folder: Path, standin: Standin, **schedule: Any
) -> tuple[list[int], list[dict[str, Any]]]:
    """When it was asked for, in ms since it was sent, by the engine's clock; the records."""
    clock, asked_ms = Leaping(), list[int]()
    sent_ms = clock.now_ms()

    def answer(_: Asked) -> Answer:
        asked_ms.append(clock.now_ms() - sent_ms)
        return HEAD + "447900000000|10\n"

    records = await run_to_end(
        folder, standin, answer, ["447900000000"], clock=clock, sent_at=sent_ms / 1000,
        schedule={"give_up": "1h", **schedule},
    )  # fmt: skip
    return asked_ms, records


async def test_rungs_are_never_early(tmp_path: Path, standin: Standin) -> None:
    asked_ms, records = await never_delivered(tmp_path, standin, ladder=["1h", "5h", "1d"])
    assert len(asked_ms) == 3
    for at, rung, following in zip(asked_ms, (1, 5, 24), (5, 24, 25), strict=True):
        assert rung * HOUR_MS <= at < following * HOUR_MS
    assert [(r["state"], r["verdict"], r["final"]) for r in records] == [
        ("enroute", None, False),
        ("enroute", "last_known", True),
    ]
    assert [record["revision"] for record in records] == [1, 2]
    assert records[1]["provider_status"] == "10"
    assert records[1]["event_id"] == identity(records[1], 1) != records[0]["event_id"]


async def test_gaps_from_the_previous_rung(tmp_path: Path, standin: Standin) -> None:
    asked_ms, _ = await never_delivered(
        tmp_path, standin, ladder=["1h", "4h", "2h"], **{"from": "previous"}
    )
    assert len(asked_ms) == 3
    for at, rung, following in zip(asked_ms, (1, 5, 7), (5, 7, 8), strict=True):
        assert rung * HOUR_MS <= at < following * HOUR_MS


async def test_a_late_poll_answers_all_due_rungs(tmp_path: Path, standin: Standin) -> None:
    url = standin.answer("bulk", [HEAD + "447900000000|0\n"])
    account = bulksms(url, schedule={"ladder": ["0s", "1s", "2s", "5s", "1h"]})
    async with hasty(configured(tmp_path, account)) as poller:
        await poller.track(
            "bulk", batch_id="4711", recipients=["447900000000"], sent_at=time.time() - 60
        )
        await until(lambda: lines(tmp_path))
        await anyio.sleep(0.3)
    assert len(standin.asked["bulk"]) == 1


async def test_the_only_open_recipient_is_asked_for_alone(tmp_path: Path, standin: Standin) -> None:
    all_but_one = HEAD + "".join(f"{n}|11\n" for n in NUMBERS[:11]) + f"{NUMBERS[11]}|0\n"
    records = await run_to_end(
        tmp_path, standin, [all_but_one, HEAD + f"{NUMBERS[11]}|11\n"], NUMBERS
    )
    first, second = standin.asked["bulk"]
    assert "msisdn" not in first.query
    assert second.query["msisdn"] == NUMBERS[11]
    assert list(second.query) == ["username", "password", "batch_id", "msisdn"]
    last = [r for r in records if r["recipient"] == NUMBERS[11]]
    assert [(r["state"], r["revision"]) for r in last] == [("accepted", 1), ("delivered", 2)]


async def test_a_small_batch_is_asked_for_whole(tmp_path: Path, standin: Standin) -> None:
    nearly = HEAD + f"{NUMBERS[0]}|11\n{NUMBERS[1]}|0\n"
    over = HEAD + f"{NUMBERS[0]}|11\n{NUMBERS[1]}|11\n"
    await run_to_end(tmp_path, standin, [nearly, over], NUMBERS[:2])
    assert [asked.query.get("msisdn") for asked in standin.asked["bulk"]] == [None, None]


async def test_what_brings_nothing_costs_the_store_nothing(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures are what a sick account has most of: a transaction and a look of every sink for each
    would be felt by the others. Nor is it looked which recipients of a small batch are open."""
    pages, told, looks = [], [], []
    commit, only_open, tell = ledger.commit, tracked.only_open, Engine.tell
    monkeypatch.setattr(
        "engine.books.committing.commit", lambda tx, page: (pages.append(page), commit(tx, page))[1]
    )
    monkeypatch.setattr(
        "engine.polling.poller.only_open", lambda *of: (looks.append(of), only_open(*of))[1]
    )
    monkeypatch.setattr(Engine, "tell", lambda engine: (told.append(len(pages)), tell(engine))[1])
    answers = [*[Raw(status=500)] * 5, HEAD + f"{NUMBERS[0]}|0\n", Raw(status=500),
               HEAD + f"{NUMBERS[0]}|11\n"]  # fmt: skip
    records = await run_to_end(tmp_path, standin, answers, NUMBERS[:1], schedule=hourly(2))
    assert [record["state"] for record in records] == ["accepted", "delivered"]
    assert len(standin.asked["bulk"]) == 8
    assert [len(page.reports) for page in pages] == [1, 1]
    assert told[:2] == [1, 2]
    assert not looks


async def test_a_batch_without_recipients_ends_with_its_rows(
    tmp_path: Path, standin: Standin
) -> None:
    answers = [HEAD, HEAD + "447900000000|11\n447900000001|0\n",
               HEAD + "447900000000|11\n447900000001|53\n"]  # fmt: skip
    records = await run_to_end(tmp_path, standin, answers, schedule=hourly(6))
    assert len(standin.asked["bulk"]) == 3
    states = [(record["recipient"], record["state"]) for record in records]
    assert states == [("447900000000", "delivered"), ("447900000001", "accepted"),
                      ("447900000001", "expired")]  # fmt: skip


async def test_a_batch_with_recipients_waits_for_each(tmp_path: Path, standin: Standin) -> None:
    answers = [HEAD + "447900000000|11\n", HEAD + "447900000000|11\n447900000001|54\n"]
    records = await run_to_end(tmp_path, standin, answers, NUMBERS[:2])
    assert len(standin.asked["bulk"]) == 2
    assert [record["state"] for record in records] == ["delivered", "undeliverable"]


async def test_a_number_twice_in_a_batch(tmp_path: Path, standin: Standin) -> None:
    answers = [
        HEAD + "447900000000|11\n447900000000|0\n",
        HEAD + "447900000000|11\n447900000000|51\n",
    ]
    records = await run_to_end(tmp_path, standin, answers, ["447900000000"] * 2)
    assert [(r["message_id"], r["state"], r["revision"]) for r in records] == [
        ("4711:447900000000", "delivered", 1),
        ("4711:447900000000#2", "accepted", 1),
        ("4711:447900000000#2", "undeliverable", 2),
    ]
    newest = {row["message_id"]: row["state"] for row in table(tmp_path, "messages")}
    assert newest == {"4711:447900000000": "delivered", "4711:447900000000#2": "undeliverable"}


async def test_verdicts(tmp_path: Path, standin: Standin) -> None:
    answers = [HEAD + "447900000000|0\n", HEAD + "447900000000|63\n"]
    records = await run_to_end(tmp_path, standin, answers, ["+44 7900 000000", "447900000001"])
    found = [(r["recipient"], r["state"], r["verdict"], r["final"], r["revision"]) for r in records]
    assert found[:2] == [("447900000000", "accepted", None, False, 1),
                         ("447900000000", "enroute", None, False, 2)]  # fmt: skip
    assert sorted(found[2:]) == [
        ("447900000000", "enroute", "last_known", True, 3),
        ("447900000001", "unknown", "never_reported", True, 1),
    ]
    assert len(standin.asked["bulk"]) == 3


async def test_a_status_that_comes_back_has_a_new_id(tmp_path: Path, standin: Standin) -> None:
    answers = [HEAD + f"447900000000|{code}\n" for code in ("63", "10", "63", "11")]
    records = await run_to_end(tmp_path, standin, answers, ["447900000000"], schedule=hourly(20))
    assert [record["provider_status"] for record in records] == ["63", "10", "63", "11"]
    times = [1, 1, 2, 1]
    assert [r["event_id"] for r in records] == [
        identity(record, t) for record, t in zip(records, times, strict=True)
    ]


async def test_line_ends_blank_lines_and_latin_1(tmp_path: Path, standin: Standin) -> None:
    body = (
        "0|Results to follow\r\n\r\n447900000000|11|Gr\u00fc\u00dfe\r\n\r\n\r\n"
        "447900000001|53|ol\u00e9\r\n"
    )
    records = await run_to_end(
        tmp_path, standin, [body.encode("latin-1")], NUMBERS[:2], optional_fields=["source_id"]
    )
    assert [record["reference"] for record in records] == ["Gr\u00fc\u00dfe", "ol\u00e9"]
    assert len(standin.asked["bulk"]) == 1


async def test_tracking_again_adds_what_is_new(tmp_path: Path, standin: Standin) -> None:
    rows = dict.fromkeys(NUMBERS[:3], "0")
    url = standin.answer("bulk", lambda _: HEAD + "".join(f"{n}|{c}\n" for n, c in rows.items()))
    async with hasty(configured(tmp_path, bulksms(url, schedule={"ladder": ["1h"]}))) as poller:
        for recipients in (NUMBERS[:2], NUMBERS[:2], NUMBERS[1:3]):
            await poller.track("bulk", batch_id="4711", recipients=recipients, reference="r")
        assert (await tallies(poller))["bulk"]["known"] == 3
        works = await poller.store.read(lambda tx: tx.count_works(0))
        assert [count for count, _, _ in works["bulk"].values()] == [1]
    assert lines(tmp_path) == []


async def test_good_rows_around_bad_ones(tmp_path: Path, standin: Standin) -> None:
    body = HEAD + "447900000000|11\nnot a row\n447900000001\n447900000002|11\n"
    url = standin.answer("bulk", [body])
    async with hasty(configured(tmp_path, bulksms(url))) as poller:
        await poller.track("bulk", batch_id="4711", recipients=[NUMBERS[0], NUMBERS[2]])
        await until(lambda: len(lines(tmp_path)) == 2)
        found = await causes(poller, "bulk")
        assert [kind for kind, _ in found] == ["set_aside", "set_aside"]
        assert (await tallies(poller))["bulk"]["set_aside"] == 2


async def test_no_secret_comes_out(
    tmp_path: Path, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    """The provider echoes the URL, plain and quoted, in all sorts of places."""
    caplog.set_level(logging.DEBUG)

    def echo(asked: Any) -> Raw | str:
        said = f"password=s3cret&% {asked.query_string}"
        if asked.number == 1:
            return Raw(said, 500)
        if asked.number == 2:
            return f"40|{said}"
        return HEAD + f"447900000000|11\n{said}\nx|{said}\n"

    await run_to_end(tmp_path, standin, echo, ["447900000000"])
    assert parse_qs(standin.asked["bulk"][0].query_string)["password"] == ["s3cret&%"]
    assert b"s3cret" not in all_files(tmp_path)
    assert "s3cret" not in caplog.text
