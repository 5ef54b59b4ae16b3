"""A bug in a provider loses nothing: what it could not read is kept, and read once mended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

import engine
from engine.books.redacting import redactors
from engine.books.replaying import Line, Order, Replayer
from engine.core.contracts import Head, Poll, Reader
from engine.core.redact import Redactor, is_redacted
from engine.core.report import Report
from engine.core.units import iso_ms
from engine.machine.clock import RealClock
from engine.parsing.json_items import JsonItems
from engine.parsing.pipe import PipeRows
from engine.providers.bulksms import BulkSMS
from engine.providers.infobip import Infobip
from engine.providers.infobip_quick import AtOnce
from engine.stores.sqlite import SqliteStore
from engine.telemetry import Telemetry
from tests.integration.harness import (
    bulksms,
    configured,
    hasty,
    infobip,
    lines,
    table,
    tallies,
    until,
)
from tests.integration.standin import Raw, Standin, json_of

STATUS = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
EMPTY = b'{"results":[]}'
Provider = type[Infobip] | type[BulkSMS]


def answer(*ids: str, **more: Any) -> bytes:
    reports = [
        {"messageId": one, "to": "447900000001", "status": STATUS, "doneAt": "2026-11-01T10:00:00Z"}
        for one in ids
    ]
    return json_of({"results": [{**report, **more} for report in reports]})


class Bug:
    """What goes wrong in a provider's code, until it is mended."""

    kind: ClassVar[str] = ""


def broken(reader: Reader, head: Head) -> Reader:
    """The reader with the bug that is there at present."""
    if Bug.kind == "reports":
        sound = reader.reports

        def reports(records: Sequence[Any]) -> list[Report]:
            if any("m3" in str(record) or "447900000003" in str(record) for record in records):
                raise KeyError("a field that was always there")
            return sound(records)

        reader.reports = reports  # type: ignore[method-assign]
    elif Bug.kind == "parser":
        feed, fed = reader.parser.feed, 0

        def some(chunk: bytes) -> Sequence[Any]:
            nonlocal fed
            fed += 1
            if fed > 1:
                raise IndexError("string index out of range")
            return feed(chunk)

        reader.parser.feed = some  # type: ignore[method-assign]
        reader.parser.close = lambda *, cut=False: some(b"")  # type: ignore[method-assign]
    elif Bug.kind == "outcome":

        def outcome() -> engine.Outcome:
            raise TypeError("'NoneType' object is not subscriptable")

        reader.outcome = outcome  # type: ignore[method-assign]
    elif Bug.kind == "mended for UTF-16":
        plain = reader.parser.feed
        reader.parser.feed = (  # type: ignore[method-assign]
            lambda chunk: plain(chunk.decode("utf-16").encode())
        )
    elif Bug.kind == "reader":
        raise ValueError("not enough values to unpack")
    return reader


def faulty(monkeypatch: pytest.MonkeyPatch, provider: Provider, kind: str) -> None:
    sound = provider.reader

    def reader(self: Any, poll: Poll, head: Head) -> Reader:
        return broken(sound(self, poll, head), head)

    monkeypatch.setattr(provider, "reader", reader)
    monkeypatch.setattr(Bug, "kind", kind)


async def replay(
    store: Any, account: Any, redactor: Redactor | None = None, **order: Any
) -> list[Line]:
    replayer = Replayer(
        account,
        store,
        telemetry=Telemetry(),
        clock=RealClock(),
        redactor=redactor,
    )
    return await replayer.run(Order(**order))


async def run_until(config: engine.Config, done: Any, seconds: float = 20.0) -> dict[str, int]:
    async with hasty(config) as poller:
        await until(lambda: done(poller), seconds)
        name = config.accounts[0].name
        return {
            **(await tallies(poller)).get(name, {}),
            "faults": poller.telemetry.of("faults", name),
        }


@pytest.mark.parametrize("kind", ["reports", "parser", "outcome", "reader"])
async def test_a_bug_loses_nothing_of_a_one_time_answer(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ids = [f"m{n}" for n in range(9)]
    pages = [answer(*ids[:5]), answer(*ids[5:]), EMPTY]
    faulty(monkeypatch, Infobip, kind)
    config = configured(tmp_path, infobip(standin.answer("info", pages)))
    seen = await run_until(config, lambda poller: len(standin.asked["info"]) > 4)
    assert seen["faults"] > 0
    if kind == "reports":  # one bad record takes no other along
        assert {one["message_id"] for one in lines(tmp_path)} == set(ids) - {"m3"}
        assert seen["set_aside"] == 1
    monkeypatch.setattr(Bug, "kind", "")
    store, account = SqliteStore(tmp_path / "state.db"), config.accounts[0]
    await store.open(own=True)
    try:
        at = {one.id: one.at_ms for one in await pieces(store, "info")}
        tried = await replay(store, account, dry_run=True)
        assert {one.id for one in await pieces(store, "info")} == set(at)
        done = await replay(store, account)
        assert done == tried  # a dry run says what would come of it
        assert sum(line.left for line in done) == 0
        assert sum(line.new for line in done) == {"reports": 1, "outcome": 0}.get(kind, 9)
        assert await pieces(store, "info") == []
        assert await replay(store, account) == []
    finally:
        await store.close()
    seen = await run_until(config, lambda poller: len(lines(tmp_path)) == 9)
    assert seen["records"] == seen["known"] == 9
    recorded = {one["message_id"]: one for one in lines(tmp_path)}
    assert set(recorded) == set(ids)
    assert len({row["event_id"] for row in table(tmp_path)}) == 9
    replayed = {"reports": ["m3"], "outcome": []}.get(kind, ids)
    moments = {iso_ms(recorded[one]["observed_at"]) for one in replayed}
    assert moments <= set(at.values())  # when it was received, not when it was read


async def pieces(store: Any, account: str) -> list[Any]:
    found: list[Any] = await store.read(
        lambda tx: tx.pieces(account, 0, 0, 1000, bytes_max=1 << 30)
    )
    return found


async def test_a_bug_in_the_way_of_many(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where reading many records at once has a bug, they are read one by one, and nothing waits."""

    def reports(*args: object) -> list[Report]:
        raise AttributeError("'NoneType' object has no attribute 'strip'")

    monkeypatch.setattr(AtOnce, "reports", reports)
    ids = [f"m{n}" for n in range(40)]
    config = configured(tmp_path, infobip(standin.answer("info", [answer(*ids), EMPTY])))
    await run_until(config, lambda poller: len(lines(tmp_path)) == len(ids))
    assert [line["message_id"] for line in lines(tmp_path)] == ids
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        assert await pieces(store, "info") == []
    finally:
        await store.close()


async def test_an_answer_of_which_no_byte_could_be_read(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept as an answer, not as a record that could not be read."""
    faulty(monkeypatch, Infobip, "")
    body = answer("m1", "m2").decode().encode("utf-16")
    config = configured(tmp_path, infobip(standin.answer("info", [body, EMPTY])))
    seen = await run_until(config, lambda poller: len(standin.asked["info"]) > 2)
    assert (seen.get("records", 0), seen["set_aside"]) == (0, 1)

    monkeypatch.setattr(Bug, "kind", "mended for UTF-16")
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        (piece,) = await pieces(store, "info")
        assert (piece.raw, piece.times) == (body, 1)
        (line,) = await replay(store, config.accounts[0])
        assert (line.digested, line.new, line.left) == (1, 2, 0)
    finally:
        await store.close()


async def test_an_envelope_that_is_new(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser that looks in the wrong place sees nothing: the answer is kept all the same."""
    body = answer("m1", "m2", callbackData="x" * 3000)
    renamed = body.replace(b'"results"', b'"deliveries"')
    config = configured(tmp_path, infobip(standin.answer("info", [renamed, EMPTY])))
    await run_until(config, lambda poller: len(standin.asked["info"]) > 2)
    assert lines(tmp_path) == []
    sound = JsonItems.__init__
    monkeypatch.setattr(JsonItems, "__init__", lambda self, key: sound(self, "deliveries"))
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        (piece,) = await pieces(store, "info")
        assert piece.raw == renamed
        (line,) = await replay(store, config.accounts[0])
        assert (line.digested, line.new, line.left) == (1, 2, 0)
    finally:
        await store.close()


async def test_what_is_malformed_is_kept_to_its_end(tmp_path: Path, standin: Standin) -> None:
    """A one-time answer that stops being JSON in the middle: all of it is there for later."""
    body = answer(*(f"m{n}" for n in range(900)), callbackData="y" * 4000)
    place = body.index(b',{"messageId":"m7"')
    torn = body[:place] + b"]} " + body[place:]
    config = configured(tmp_path, infobip(standin.answer("info", [torn, EMPTY])))
    await run_until(config, lambda poller: len(standin.asked["info"]) > 2)
    assert {one["message_id"] for one in lines(tmp_path)} == {f"m{n}" for n in range(7)}
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        found = await pieces(store, "info")
        assert [one.raw == torn for one in found if one.form == "answer"] == [True]
        done = await replay(store, config.accounts[0])
        assert sum(line.digested for line in done) == 0
        assert len(await pieces(store, "info")) == len(found) == 2
    finally:
        await store.close()


async def test_a_cut_answer_keeps_its_whole_records_and_its_torn_tail(
    tmp_path: Path, standin: Standin
) -> None:
    body = answer(*(f"m{n}" for n in range(6)))
    at = body.index(b'"m4"') + 60
    pages = [Raw(body, cut=at), EMPTY]
    config = configured(tmp_path, infobip(standin.answer("info", pages)))
    await run_until(config, lambda poller: len(lines(tmp_path)) == 4)
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        (tail,) = await pieces(store, "info")
        assert tail.cause == "cut off before its end"
        assert body[:at].endswith(tail.raw)
        assert b'"m4"' in tail.raw
        (line,) = await replay(store, config.accounts[0])
        assert (line.digested, line.new, line.left) == (0, 0, 1)
    finally:
        await store.close()


async def test_a_batch_keeps_its_numbering(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that stands twice is two messages, also where the reader raised in between."""
    rows = [f"44790000000{n}|11" for n in (1, 2, 1, 3, 2)]
    body = "0|Returns to follow\n\n" + "\n".join(rows) + "\n"
    faulty(monkeypatch, BulkSMS, "reports")
    config = configured(tmp_path, bulksms(standin.answer("bulk", [body])))
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="7")
        await until(lambda: len(lines(tmp_path)) == 4, 20)
    wanted = {"7:447900000001", "7:447900000001#2", "7:447900000002", "7:447900000002#2"}
    assert {one["message_id"] for one in lines(tmp_path)} == wanted
    monkeypatch.setattr(Bug, "kind", "")
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        (line,) = await replay(store, config.accounts[0])
        assert (line.digested, line.new, line.left) == (1, 1, 0)
    finally:
        await store.close()


async def test_what_is_known_by_now_stands(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older report of the same rank does not replace a newer one; it is in the history."""
    first = b"0|x\n\n447900000003|10\n"
    faulty(monkeypatch, BulkSMS, "reports")
    bodies = [first, b"0|x\n\n447900000003|12\n"]
    config = configured(tmp_path, bulksms(standin.answer("bulk", bodies)))
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="7", recipients=["447900000003"])
        await until(lambda: len(standin.asked["bulk"]) == 1)
        await until(lambda: poller.telemetry.of("set_aside", "bulk") == 1)
        monkeypatch.setattr(Bug, "kind", "")
        await until(lambda: any(one["provider_status"] == "12" for one in lines(tmp_path)))
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        (line,) = await replay(store, config.accounts[0])
        assert (line.digested, line.new, line.repeated, line.left) == (1, 0, 1, 0)
    finally:
        await store.close()


@pytest.mark.parametrize("provider", [Infobip, BulkSMS])
async def test_what_was_redacted_is_read_again(
    tmp_path: Path, standin: Standin, monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    """The raw bytes of an account that redacts recipients hold none, and can still be read."""
    number = "447900000003"
    faulty(monkeypatch, provider, "parser")
    if provider is Infobip:
        body = answer("m1", to=number)
        it = infobip(standin.answer("it", [body, EMPTY]), name="it", redact=["recipient"])
    else:
        monkeypatch.setattr(Bug, "kind", "")  # a row with a column too many, until it is mended
        url = standin.answer("it", [f"0|x\n\n{number}|11|surplus\n"])
        it = bulksms(url, name="it", redact=["recipient"])
    config = configured(tmp_path, it)
    async with hasty(config) as poller:
        if provider is BulkSMS:
            await poller.track("it", batch_id="7")
        await until(lambda: poller.telemetry.of("set_aside", "it") > 0)
    monkeypatch.setattr(Bug, "kind", "")
    if provider is BulkSMS:
        monkeypatch.setattr(PipeRows, "frame", lambda self, raw: b"0|\n" + raw[:-8] + b"\n")
    store = SqliteStore(tmp_path / "state.db")
    await store.open(own=True)
    try:
        kept = b"".join(piece.raw for piece in await pieces(store, "it"))
        assert kept
        assert number.encode() not in kept
        known = await redactors(config, store)
        done = await replay(store, config.accounts[0], known["it"])
        assert (sum(line.new for line in done), sum(line.left for line in done)) == (1, 0)
    finally:
        await store.close()
    await run_until(config, lambda poller: len(lines(tmp_path)) > 0)
    assert all(is_redacted(one["recipient"]) for one in lines(tmp_path))
