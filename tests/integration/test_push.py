"""Pushed reports, over real sockets: one fact with the polled one, by whatever way it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import anyio
import pytest

from engine.books.replaying import Order, Replayer
from engine.core.contracts import Kind
from engine.providers.infobip import Infobip
from tests.integration.harness import (
    STORES,
    avaamo,
    balanced,
    bulksms,
    causes,
    lines,
    messangi,
    table,
    tallies,
    until,
)
from tests.integration.pushes import AT, INFO, ONE, SECRET, TWO, bulk, info, pushed
from tests.integration.standin import Raw, Standin
from tests.integration.test_infobip import page, report
from tests.integration.webbing import NOWHERE, ROWS, served


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("observed_at", "sent_at")}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_pushed_report_is_the_record_that_a_poll_would_have_made(
    tmp_path: Path, standin: Standin, method: str
) -> None:
    row = f"{ONE}|11|24-01-31 13:45:00|ref\n"
    url = standin.answer("bulk", [f"{ROWS}{row}"])
    fields = {"optional_fields": ["completed_time", "source_id"]}
    params = {
        "msisdn": ONE, "batch_id": "4711", "status": "11",
        "completed_time": "24-01-31 13:45:00", "source_id": "ref",
    }  # fmt: skip
    (tmp_path / "polled").mkdir()
    (tmp_path / "pushed").mkdir()
    soon = {"ladder": ["0s"]}
    async with served(tmp_path / "polled", bulk(url, schedule=soon, **fields)) as (poller, _):
        await poller.track("bulk", batch_id="4711", recipients=[ONE])
        await until(lambda: bool(lines(tmp_path / "polled")))
    async with served(tmp_path / "pushed", bulk()) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE])
        if method == "GET":
            status, said, _ = await web.ask(f"{AT}?{urlencode(params)}")
        else:
            status, said, _ = await web.ask(AT, "POST", data=params)
        assert (status, bool(said)) == (200, True)
        # It is in the store by now, whoever is killed next.
        assert (await tallies(poller))["bulk"]["state:delivered"] == 1
        await until(lambda: bool(lines(tmp_path / "pushed")))
    (by_poll,), (by_push,) = lines(tmp_path / "polled"), lines(tmp_path / "pushed")
    assert without_times(by_push) == without_times(by_poll)
    assert by_push["done_at"] == "2024-01-31T13:45:00.000Z"


@pytest.mark.parametrize("store", STORES)
async def test_a_pushed_end_ends_the_polls(tmp_path: Path, standin: Standin, store: str) -> None:
    url = standin.answer("bulk", [f"{ROWS}{ONE}|10\n{TWO}|10\n"])
    account = bulk(url, schedule={"ladder": ["0s", "6s"]})
    async with served(tmp_path, account, store=store) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE, TWO])
        await until(lambda: len(standin.asked["bulk"]) == 1 and len(lines(tmp_path)) == 2)
        assert await pushed(web) == 200
        works = await poller.store.read(lambda tx: tx.find_works("bulk", Kind.BATCH, None))
        assert [work.key for work in works] == ["4711"]  # the other one is on its way still
        assert await pushed(web, to=TWO, status="53") == 200
        assert await poller.store.read(lambda tx: tx.find_works("bulk", Kind.BATCH, None)) == []
        await poller.track("bulk", batch_id="beside", recipients=[ONE])
        # Its second rung is after the one that the other would have had.
        await until(lambda: len(standin.asked["bulk"]) == 3)
        batches = [asked.query["batch_id"] for asked in standin.asked["bulk"]]
        assert batches == ["4711", "beside", "beside"]
        await balanced(poller)
    stands = {line["message_id"]: line["state"] for line in lines(tmp_path)}
    assert (stands[f"4711:{ONE}"], stands[f"4711:{TWO}"]) == ("delivered", "expired")


async def test_a_message_that_is_asked_for_ends_with_its_push(
    tmp_path: Path, standin: Standin
) -> None:
    url = standin.answer("info", [b'{"results": []}'])
    account = info(url, drain=False, schedule={"ladder": ["0s", "6s"]})
    async with served(tmp_path, account) as (poller, web):
        await poller.track("info", message_id="m1", reference="mine")
        await until(lambda: len(standin.asked["info"]) == 1)
        status, _, _ = await web.ask(INFO, "POST", data=page(report("m1")))
        assert status == 200
        await poller.track("info", message_id="m2")
        # Its second rung is after the one that the other would have had.
        await until(lambda: len(standin.asked["info"]) == 3)
        ids = [asked.query["messageId"] for asked in standin.asked["info"]]
        assert ids == ["m1", "m2", "m2"]
        assert (await tallies(poller))["info"]["state:delivered"] == 1
    told = [line for line in lines(tmp_path) if line["message_id"] == "m1"]
    assert [(line["reference"], line["final"]) for line in told] == [("mine", True)]


async def test_a_push_and_a_poll_at_once_are_one_record(tmp_path: Path, standin: Standin) -> None:
    """The answer is on its way while the push comes, and the other way round."""
    slow = Raw(f"{ROWS}{ONE}|11\n", wait_s=0.4)
    url = standin.answer("bulk", [slow])
    async with served(tmp_path, bulk(url, schedule={"ladder": ["0s"]})) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE])
        await until(lambda: bool(standin.asked["bulk"]))
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(lambda: pushed(web))
        await until(lambda: standin.asked["bulk"][0].left is not None)
        assert await pushed(web) == 200
        await until(lambda: poller.telemetry.of("repeated", "bulk") >= 20)
        assert poller.telemetry.of("pushed", "bulk") == 21
        await balanced(poller)
    assert len(lines(tmp_path)) == 1
    assert table(tmp_path)[0]["revision"] == 1


async def test_thousands_in_one_push(tmp_path: Path) -> None:
    reports = [report(f"m{n}") for n in range(3000)]
    odd = [
        report("m0", "READ", seenAt="2024-05-31T11:00:00.000+0000"), "x", {"to": "1"},
        {"messageId": "in", "from": ONE, "receivedAt": "2024-05-31T11:00:00.000+0000"},
    ]  # fmt: skip
    del odd[0]["status"]  # a seen report has none
    async with served(tmp_path, info()) as (poller, web):
        status, said, _ = await web.ask(INFO, "POST", data=page(*reports, *odd))
        assert (status, said) == (200, "ok\n")
        counts = (await tallies(poller))["info"]
        assert (counts["known"], counts["state:read"], counts["set_aside"]) == (3000, 1, 3)
        assert {cause for _, cause in await causes(poller)} == {
            "not an object", "no usable messageId", "an inbound message, not a report",
        }  # fmt: skip
        status, _, _ = await web.ask(INFO, "POST", data=page(*reports, *odd))
        assert (await tallies(poller))["info"] == counts
        await until(lambda: len(lines(tmp_path)) == 3001)


async def test_what_is_not_there_is_answered_alike(tmp_path: Path, standin: Standin) -> None:
    secret = {"push_secret": SECRET}
    accounts = [
        bulk(), info(push_secret="another"), avaamo(NOWHERE, **secret), messangi(NOWHERE, **secret),
        bulksms(NOWHERE, name="shut"),
    ]  # fmt: skip
    quoted = quote(SECRET, safe="")
    async with served(tmp_path, *accounts) as (poller, web):
        answers = [
            await web.ask(path, method)
            for path in (
                f"/push/nobody/{quoted}", f"/push/info/{quoted}", f"/push/bot/{quoted}",
                f"/push/omni/{quoted}", f"/push/shut/{quoted}", "/push/shut/", "/push/bulk/",
                "/push/bulk", "/push/", "/push", f"/push/bulk/{quoted}/", f"/push/bulk/{quoted}x",
                f"/push/bulk/{quoted[:-3]}", "/push/bulk/%ff%00", "/nothing",
            )
            for method in ("GET", "POST", "PUT")
        ]  # fmt: skip
        assert {(status, json.dumps(said)) for status, said, _ in answers} == {
            (404, '{"errors": ["there is nothing here"]}')
        }
        assert {"Date"} >= {
            name for _, _, head in answers for name in head if head[name] != answers[0][2][name]
        }
        status, _, headers = await web.ask(AT, "PUT")
        assert (status, headers["Allow"]) == (405, "GET, POST")
        assert await tallies(poller) == {}


async def test_ids_that_nobody_tracked_are_recorded_and_adopted(tmp_path: Path) -> None:
    async with served(tmp_path, bulk()) as (poller, web):
        assert await pushed(web, status="10") == 200
        assert (await web.ask(AT))[:2] == (200, "ok\n")  # who only looks whether there is anything
        await poller.track("bulk", batch_id="4711", recipients=[ONE, TWO], reference="order-17")
        assert await pushed(web) == 200
        counts = (await tallies(poller))["bulk"]
        assert (counts["known"], counts["final"], counts.get("set_aside", 0)) == (2, 1, 0)
        await until(lambda: len(lines(tmp_path)) == 2)
    assert [line["reference"] for line in lines(tmp_path)] == [None, "order-17"]
    assert [line["revision"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("store", STORES)
async def test_what_was_pushed_to_its_end_before_it_was_tracked_gets_its_reference(
    tmp_path: Path, store: str
) -> None:
    async with served(tmp_path, bulk(), store=store) as (_, web):
        assert await pushed(web) == 200
        sent = {"account": "bulk", "batch_id": "4711", "recipients": [ONE, TWO]}
        status, said = await web.track({**sent, "reference": "order-17"})
        assert (status, said["new"]) == (202, 1)
        status, shown = await web.message("bulk", f"4711:{ONE}")
        assert (status, shown["state"], shown["revision"]) == (200, "delivered", 1)
        assert shown["reference"] == "order-17"
        assert (await web.track({**sent, "reference": "order-18"}))[1]["new"] == 0
        assert (await web.message("bulk", f"4711:{ONE}"))[1]["reference"] == "order-17"


async def test_a_number_that_stands_twice_in_its_batch_is_left_to_the_polls(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, bulk()) as (poller, web):
        await poller.track("bulk", batch_id="4711", recipients=[ONE, ONE, TWO])
        assert await pushed(web) == 200
        assert await pushed(web, to=TWO) == 200
        counts = (await tallies(poller))["bulk"]
        assert (counts["final"], counts["pending"], counts["set_aside"]) == (1, 2, 1)
        ((_, cause),) = await causes(poller)
        assert "more than once" in cause


BAD = {
    "no number": "batch_id=1&status=11", "a letter": "msisdn=x&batch_id=1&status=11",
    "no batch": f"msisdn={ONE}&status=11", "no status": f"msisdn={ONE}&batch_id=1",
    "a word": f"msisdn={ONE}&batch_id=1&status=DELIVRD", "no form": '{"a": 1}',
    "too many fields": "&".join(f"a{n}=1" for n in range(101)), "too long": "a=" + "x" * 70_000,
    "not UTF-8": f"msisdn={ONE}&batch_id=%ff",
}  # fmt: skip


async def test_a_bad_push_is_set_aside_and_answered(tmp_path: Path) -> None:
    async with served(tmp_path, bulk(), info()) as (poller, web):
        for n, body in enumerate(BAD.values(), 1):
            status, _, _ = await web.ask(AT, "POST", data=body)
            assert status == 200, body
            assert (await tallies(poller))["bulk"]["set_aside"] == n, body
        for n, raw in enumerate((b"<reports/>", b"{", b'{"results": 7}', b"\xff\x00"), 1):
            status, _, _ = await web.ask(INFO, "POST", data=raw)
            assert status == 200, raw
            assert (await tallies(poller))["info"]["set_aside"] == n, raw
        troubles = await poller.store.read(lambda tx: tx.troubles("info", 10))
        assert b"<reports/>" in [trouble.raw for trouble in troubles]
        assert {trouble.kind for trouble in troubles} == {"set_aside"}
        for _, cause in await causes(poller, "bulk"):
            assert not any(char.isdigit() for char in cause)  # causes are logged
        assert poller.telemetry.of("pushed", "info") == 0


PARAMS = {"msisdn": ONE, "batch_id": "4711", "status": "11"}
HALVES = {
    "nothing in the body": (PARAMS, b""),
    "blanks in the body": (PARAMS, b"\r\n"),
    "a word in the body": (PARAMS, b"ok"),
    "JSON in the body": (PARAMS, b"{}"),
    "some of each": ({"status": "11"}, f"batch_id=4711&msisdn={ONE}".encode()),
    "the body says otherwise": (
        {"status": "22", "msisdn": TWO}, urlencode(PARAMS).encode(),
    ),
    "by another spelling": ({"msis%64n": TWO}, urlencode(PARAMS).encode()),
}  # fmt: skip


@pytest.mark.parametrize(("query", "body"), HALVES.values(), ids=HALVES)
async def test_a_query_counts_where_the_body_says_nothing(
    tmp_path: Path, query: dict[str, str], body: bytes
) -> None:
    async with served(tmp_path, bulk()) as (poller, web):
        text = "&".join(f"{name}={value}" for name, value in query.items())
        status, _, _ = await web.ask(f"{AT}?{text}", "POST", data=body)
        assert status == 200
        counts = (await tallies(poller))["bulk"]
        assert (counts["known"], counts["state:delivered"]) == (1, 1)
        assert "set_aside" not in counts
        await until(lambda: bool(lines(tmp_path)))
    assert [line["message_id"] for line in lines(tmp_path)] == [f"4711:{ONE}"]


async def test_a_query_beside_a_body_of_json_says_nothing_of_it(tmp_path: Path) -> None:
    async with served(tmp_path, info()) as (poller, web):
        status, _, _ = await web.ask(f"{INFO}?results=1", "POST", data=page(report("m1")))
        assert status == 200
        assert (await tallies(poller))["info"]["known"] == 1


async def test_what_a_bug_could_not_read_is_read_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Infobip.reader
    async with served(tmp_path, info()) as (poller, web):

        def broken(self: Infobip, *args: Any) -> Any:
            reader = sound(self, *args)
            reports = reader.reports

            def failing(records: Any) -> Any:
                if any("m2" in str(record) for record in records):
                    raise KeyError("m2")
                return reports(records)

            reader.reports = failing  # type: ignore[method-assign]
            return reader

        monkeypatch.setattr(Infobip, "reader", broken)
        sent = page(report("m1"), report("m2"), report("m3"))
        status, _, _ = await web.ask(INFO, "POST", data=sent)
        assert status == 200
        counts = (await tallies(poller))["info"]
        assert (counts["known"], counts["set_aside"]) == (2, 1)
        monkeypatch.setattr(Infobip, "reader", sound)
        replayer = Replayer(
            poller.config.accounts[0], poller.store, telemetry=poller.telemetry,
            clock=poller.clock, redactor=None,
        )  # fmt: skip
        (line,) = await replayer.run(Order())
        assert (line.digested, line.new) == (1, 1)
        assert (await tallies(poller))["info"]["known"] == 3
