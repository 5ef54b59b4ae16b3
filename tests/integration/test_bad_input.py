"""Bad input of all sorts, from each of the four: set aside, never fatal, never anybody else's."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.worker import Engine
from tests.integration.harness import (
    BATCH,
    avaamo,
    balanced,
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    messangi,
    tallies,
    until,
)
from tests.integration.standin import Answers, Raw, Standin, json_of

NOW = time.time()
PROVIDERS = ["bulksms", "infobip", "avaamo", "messangi"]
NUMBERS = [f"4479000000{n:02d}" for n in range(4)]
# A batch that is given up has a record for each recipient that nothing was heard of: none of these
# is to end before its answers are read, however long a busy machine takes for them.
LADDER = {"ladder": [f"{n * 80}ms" for n in range(200)], "give_up": "1h"}
MAKE: dict[str, Callable[..., dict[str, Any]]] = {
    "bulksms": bulksms,
    "infobip": infobip,
    "avaamo": avaamo,
    "messangi": messangi,
}


def record(provider: str, n: int, **more: Any) -> bytes:
    """The n-th good record, as it stands in an answer."""
    if provider == "bulksms":
        return f"{NUMBERS[n]}|11".encode()
    if provider == "infobip":
        status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
        return json_of({"messageId": f"m{n}", "to": NUMBERS[n], "status": status, **more})
    if provider == "avaamo":
        fields = {"uuid": f"m{n}", "to_phone": NUMBERS[n], "created_at": NOW - 5}
        return json_of({**fields, "sms_status": "delivered", **more})
    fields = {"channel": "S", "recipient": NUMBERS[n], "date": "2024-05-31T10:00:00.000Z"}
    done = {"statusdate": "2024-05-31T10:00:01.000Z", "direction": "O", "status": "DELIVRD"}
    return json_of({**fields, **done, "sender": "SIM", **more})


def whole(provider: str, *records: bytes) -> bytes:
    """An answer with these records."""
    if provider == "bulksms":
        return b"0|Returns to follow\n\n" + b"".join(one + b"\n" for one in records)
    rows = b",".join(records)
    if provider == "infobip":
        return b'{"results":[' + rows + b"]}"
    count = str(len(records)).encode()
    if provider == "avaamo":
        return b'{"current_page":1,"total_entries":' + count + b',"entries":[' + rows + b"]}"
    return b'{"pagination":{"total":' + count + b'},"items":[' + rows + b"]}"


def account(provider: str, url: str, **keys: Any) -> dict[str, Any]:
    more: dict[str, Any] = {"schedule": LADDER} if provider == "bulksms" else {}
    if provider in ("avaamo", "messangi"):
        more = {"lookback": "30s", "overlap": "30s"}
    return MAKE[provider](url, name="it", **{**more, **keys})


async def begin(poller: Engine, provider: str) -> None:
    if provider == "bulksms":
        await poller.track("it", batch_id="1", recipients=NUMBERS)


def recipients(folder: Path) -> set[str]:
    return {one["recipient"] for one in lines(folder) if one["account"] == "it"}


async def serve(
    folder: Path, standin: Standin, provider: str, answers: Answers, last: int, **keys: Any
) -> dict[str, int]:
    """Run until the record `last` was recorded; the account's tallies and failures.

    Meanwhile another account must not feel anything.
    """
    calm = infobip(standin.answer("calm", [b'{"results":[]}']), name="calm")
    it = account(provider, standin.answer("it", answers), **keys)
    sinks = [{"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": BATCH}]
    async with hasty(configured(folder, it, calm, store="memory://", sinks=sinks)) as poller:
        await until(lambda: standin.asked["calm"])
        await begin(poller, provider)
        await until(lambda: NUMBERS[last] in recipients(folder), 60)
        await until(lambda: poller.pollers["it"].health.failing is None)
        await balanced(poller)
        assert poller.telemetry.total("faults") == 0
        counts = (await tallies(poller))["it"]
        counts["failures"] = poller.telemetry.of("failures", "it")
        assert poller.telemetry.of("failures", "calm") == 0
    # Nobody was held up for most of the work, of which others on the machine have no part.
    worked = [asked.worked for asked in standin.asked["calm"]]
    gaps = [later - earlier for earlier, later in pairwise(worked)]
    assert max(gaps, default=0.0) < max(0.6, (worked[-1] - worked[0]) / 2)
    return counts


HTML = b"<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"
ANSWERS: dict[str, bytes | None] = {
    "empty": b"",
    "html": HTML,
    "truncated": None,
    "null": b"null",
    "number": b"12345678901234567890",
    "other keys": b'{"data":{"rows":[1,2,3]}}',
    "rows of another type": b'{"results":{"a":1},"entries":"x","items":17}',
    "nothing but brackets": b"[" * 100_000,
    "zeros": b"\0" * 100_000,
    "invalid utf-8": b"\xff\xfe" * 1000,
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", ANSWERS)
async def test_whole_answers(tmp_path: Path, standin: Standin, provider: str, kind: str) -> None:
    good = whole(provider, *(record(provider, n) for n in range(3)))
    bad = ANSWERS[kind]
    if bad is None:
        bad = good[: good.index(record(provider, 2)[:12]) + 6]
    counts = await serve(tmp_path, standin, provider, [bad, good], last=2)
    assert counts["failures"] + counts.get("set_aside", 0) > 0
    assert recipients(tmp_path) == set(NUMBERS[:3])
    assert len([one for one in lines(tmp_path) if one["account"] == "it"]) == 3


DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
RECORDS: dict[str, bytes] = {
    "null": b"null",
    "number": b"17",
    "list": b"[1,2]",
    "text": b'"text"',
    "empty object": b"{}",
    "nested": DEEP,
    "broken": b'{"messageId":tru}',
    "invalid utf-8": b'{"a":"\xff\xff"}',
    "ten megabytes": b'{"a":"' + b"x" * 10_000_000 + b'"}',
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", RECORDS)
async def test_good_records_around_a_bad_one(
    tmp_path: Path, standin: Standin, provider: str, kind: str
) -> None:
    rows = record(provider, 0), RECORDS[kind], record(provider, 1)
    after = whole(provider, *(record(provider, n) for n in range(3)))
    counts = await serve(tmp_path, standin, provider, [whole(provider, *rows), after], last=2)
    assert recipients(tmp_path) == set(NUMBERS[:3])
    assert counts["set_aside"] >= 1


@pytest.mark.parametrize("provider", ["infobip", "avaamo", "messangi"])
async def test_fields_of_wrong_types(tmp_path: Path, standin: Standin, provider: str) -> None:
    """A record whose fields are of other types, or null, is recorded as far as it goes."""
    names = [
        "bulkId", "sentAt", "doneAt", "smsCount", "price", "status", "error", "callbackData",
        "mccMnc", "from", "from_phone", "created_at", "sms_status", "sms_status_response",
        "message", "campaignid", "statusdate", "statusdescription", "content", "subject",
        "sender",
    ]  # fmt: skip
    rows = []
    for n, value in enumerate((None, [1, {"a": None}], 2**70, {"b": [True]})):
        wrong = dict.fromkeys(names, value)
        line = record(provider, n, **{k: v for k, v in wrong.items() if v != 2**70})
        if value == 2**70:
            line = line[:-1] + b"".join(f',"{k}":{2**70}'.encode() for k in names) + b"}"
        rows.append(line)
    counts = await serve(tmp_path, standin, provider, [whole(provider, *rows)], last=3)
    assert recipients(tmp_path) == set(NUMBERS)
    assert counts["known"] == 4
    unknown = [one["state"] for one in lines(tmp_path) if one["account"] == "it"]
    assert unknown[1:] == ["unknown"] * 3


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_states_that_nobody_lists(tmp_path: Path, standin: Standin, provider: str) -> None:
    """unknown, not final, counted; a listed one follows as usual."""
    news = {
        "bulksms": f"{NUMBERS[0]}|99".encode(),
        "infobip": record("infobip", 0, status={"groupId": 9, "groupName": "X", "name": "NEW"}),
        "avaamo": record("avaamo", 0, sms_status="pondered"),
        "messangi": record("messangi", 0, status="PONDERED", statusdate="2024-05-31T10:00:00Z"),
    }[provider]
    answers = [whole(provider, news), whole(provider, record(provider, 0), record(provider, 1))]
    counts = await serve(tmp_path, standin, provider, answers, last=1)
    first, second = [one for one in lines(tmp_path) if one["recipient"] == NUMBERS[0]]
    assert (first["state"], first["final"], first["verdict"]) == ("unknown", False, None)
    assert first["provider_status"] in ("99", "NEW", "pondered", "PONDERED")
    assert (second["state"], second["revision"]) == ("delivered", 2)
    assert counts["unlisted"] == 1


async def test_numbers_beyond_two_to_the_53(tmp_path: Path, standin: Standin) -> None:
    big = 33640241674303572142
    row = b'{"messageId":' + str(big).encode() + b',"to":"447900000000","x":' + b"9" * 30 + b"}"
    await serve(tmp_path, standin, "infobip", [whole("infobip", row)], last=0)
    raw = (tmp_path / "r.jsonl").read_bytes()
    assert lines(tmp_path)[0]["message_id"] == str(big)
    assert b"9" * 30 in raw


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_redirects(tmp_path: Path, standin: Standin, provider: str) -> None:
    """To the same origin they are followed; elsewhere they are not, nothing is sent there."""
    good = whole(provider, record(provider, 0))
    async with Standin() as elsewhere:
        away = elsewhere.answer("it", [good])

        def answer(asked: Any) -> Raw | bytes:
            if asked.number <= 2:
                return Raw(b"", 302, {"Location": f"{away}/x?{asked.query_string}"})
            if asked.path != "/moved":
                return Raw(b"", 307, {"Location": f"/it/moved?{asked.query_string}"})
            return good

        counts = await serve(tmp_path, standin, provider, answer, last=0)
        assert elsewhere.asked["it"] == []
    assert counts["known"] >= 1
    moved = [asked for asked in standin.asked["it"] if asked.path == "/moved"]
    assert moved
    assert moved[0].query == standin.asked["it"][2].query
    for name in ("authorization", "access-token"):
        assert moved[0].headers.get(name) == standin.asked["it"][2].headers.get(name)


async def test_redirects_in_a_circle(tmp_path: Path, standin: Standin) -> None:
    def answer(asked: Any) -> Raw | bytes:
        if asked.number <= 4:
            return Raw(b"", 302, {"Location": f"/it{asked.path}?{asked.query_string}"})
        return whole("infobip", record("infobip", 0))

    await serve(tmp_path, standin, "infobip", answer, last=0)
    assert len(standin.asked["it"]) >= 5


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_gzip_bomb(tmp_path: Path, standin: Standin, provider: str) -> None:
    """80 MiB of one field out of 80 KiB: memory stays small, the account goes on."""
    good = whole(provider, record(provider, 0), record(provider, 1))
    start = good[: good.index(record(provider, 1))]
    bomb = gzip.compress(start + (b'{"a":"' if provider != "bulksms" else b"") + b"x" * (80 << 20))
    answers = [Raw(bomb, headers={"Content-Encoding": "gzip"}), good]
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        await serve(tmp_path, standin, provider, answers, last=1, request={"max_body": "72MiB"})
        peak = tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20
    assert recipients(tmp_path) == set(NUMBERS[:2])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_silent_provider(tmp_path: Path, standin: Standin, provider: str) -> None:
    """No byte for the whole time-out, then a good answer."""
    good = whole(provider, record(provider, 0))
    answers = [Raw(good, wait_s=0.5), Raw(good, reset=True), good]
    counts = await serve(tmp_path, standin, provider, answers, last=0, request={"timeout": "200ms"})
    assert counts["failures"] == 2


async def test_all_at_once(tmp_path: Path, standin: Standin) -> None:
    """Three accounts that only ever get rubbish; the fourth has its reports in time."""
    bad = [infobip(standin.answer(f"b{n}", [body]), name=f"b{n}")
           for n, body in enumerate((HTML, DEEP, Raw(b"", 500)))]  # fmt: skip
    fine = infobip(standin.answer("fine", lambda a: whole("infobip", record("infobip", 0))),
                   name="fine")  # fmt: skip
    async with engine.open(configured(tmp_path, *bad, fine)) as poller:
        rotten = [poller.pollers[f"b{n}"].health for n in range(3)]
        await until(lambda: all(health.failing for health in rotten))
        before = len(standin.asked["fine"])
        await until(lambda: len(standin.asked["fine"]) >= before + 5)
        await until(lambda: lines(tmp_path))
        assert all(health.failing for health in rotten)
        assert poller.pollers["fine"].health.failing is None
    assert [one["account"] for one in lines(tmp_path)] == ["fine"]
