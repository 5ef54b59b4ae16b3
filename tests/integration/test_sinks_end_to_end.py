"""Sinks behind a running engine: a dead one fails alone, and catches up."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import msgspec
import pytest

from engine.config.model import BatchConfig, Config, SinkConfig
from engine.core.contracts import Batch
from engine.core.errors import PartialWrite, SinkError
from engine.idle import until_idle
from tests.integration.harness import (
    BATCH,
    bulksms,
    causes,
    configured,
    hasty,
    infobip,
    lines,
    patiently,
    table,
    until,
)
from tests.integration.standin import Standin, json_of

HEAD = "0|Returns to follow\n\n"
NUMBER = "447900000000"
STEPS = ["0", "10", "63", "12", "11"]
# Rungs enough for the steps on a machine that is too slow for most of them.
LADDER = {"ladder": [f"{n * 60}ms" for n in range(200)], "give_up": "1h"}


class Toy:
    """A sink in a list, that fails as it is told."""

    name: ClassVar[str] = "toy"

    class Options(msgspec.Struct, frozen=True):
        """Nothing to set."""

    def __init__(self, options: Any) -> None:
        self.dead = False
        self.refuse = ""
        self.opened = self.closed = 0
        self.tries = 0
        self.taken: list[dict[str, Any]] = []

    async def open(self) -> None:
        self.opened += 1
        if self.dead:
            raise SinkError("cannot be opened")

    async def write(self, batch: Batch) -> None:
        self.tries += 1
        if self.dead:
            raise SinkError("is down")
        records = [msgspec.json.decode(line) for line in batch.lines]
        bad = {n: "too ugly" for n, one in enumerate(records) if one["state"] == self.refuse}
        self.taken += [one for n, one in enumerate(records) if n not in bad]
        if bad:
            raise PartialWrite(bad)

    async def close(self) -> None:
        self.closed += 1


def with_toy(config: Config, **keys: Any) -> tuple[Config, Toy]:
    """The configuration with one more sink, that the test holds in its hand."""
    toy = Toy(None)

    class Handed(Toy):
        def __new__(cls, *_: Any) -> Any:
            return toy

    more = SinkConfig(
        name="toy", type="toy", sink=None, sink_class=Handed, batch=BatchConfig(wait_s=0.01), **keys
    )
    return msgspec.structs.replace(config, sinks=(*config.sinks, more)), toy


def stepping(standin: Standin, name: str = "bulk") -> str:
    """One message that goes through all the steps, an answer each."""
    return standin.answer(name, [f"{HEAD}{NUMBER}|{code}\n" for code in STEPS])


def in_order(records: list[dict[str, Any]]) -> None:
    revisions: dict[str, list[int]] = defaultdict(list)
    for one in records:
        revisions[one["message_id"]].append(one["revision"])
    for numbers in revisions.values():
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("at", ["open", "write"])
async def test_a_dead_sink_fails_alone(
    tmp_path: Path, standin: Standin, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    toy.dead = at == "open"
    async with hasty(config) as poller:
        if at == "write":
            await until(lambda: toy.opened)
            toy.dead = True
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) == len(STEPS))
        await until(lambda: len(table(tmp_path)) == len(STEPS))
        dispatcher = poller.dispatchers[-1]
        assert dispatcher.health.failing == ("cannot be opened" if at == "open" else "is down")
        assert toy.taken == []
        # More than once, since a busy machine's store may not answer within so short a time.
        stuck = f"sink toy: it has not taken everything; {dispatcher.health.failing}"
        await patiently(partial(until_idle, poller, 0.2), [stuck])
        toy.dead = False
        await until(lambda: len(toy.taken) == len(STEPS))
        assert await until_idle(poller, 5) == []
        assert dispatcher.health.failing is None
    assert toy.taken == lines(tmp_path)
    in_order(toy.taken)
    assert toy.closed == 1
    said = [r.getMessage() for r in caplog.records if "sink toy" in r.getMessage()]
    assert len([line for line in said if "tried again" in line]) == 1


async def test_a_path_that_cannot_be_written(tmp_path: Path, standin: Standin) -> None:
    """A file stands where the folder should be; when it goes, the sink goes on by itself."""
    blocker = tmp_path / "folder"
    await anyio.Path(blocker).write_text("in the way")
    sinks = [
        {"name": "good", "type": "jsonl", "path": "r.jsonl", "batch": BATCH},
        {"name": "bad", "type": "jsonl", "path": "folder/r.jsonl", "batch": BATCH},
        {"name": "baddb", "type": "sqlite", "path": "folder/r.db", "batch": BATCH},
    ]
    account = bulksms(stepping(standin), schedule=LADDER)
    async with hasty(configured(tmp_path, account, sinks=sinks)) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) == len(STEPS))
        assert poller.dispatchers[1].health.failing
        assert poller.dispatchers[2].health.failing
        await anyio.Path(blocker).unlink()
        await anyio.Path(blocker).mkdir()
        assert await until_idle(poller, 5) == []
    assert lines(tmp_path, "folder/r.jsonl") == lines(tmp_path)
    assert len(table(tmp_path, name="folder/r.db")) == len(STEPS)


async def test_what_a_sink_missed_comes_after_a_restart(tmp_path: Path, standin: Standin) -> None:
    base = configured(tmp_path, bulksms(stepping(standin), schedule=LADDER), shutdown_grace="1s")
    config, toy = with_toy(base)
    toy.dead = True
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) == len(STEPS))
    assert toy.taken == []
    config, toy = with_toy(base)
    async with hasty(config):
        await until(lambda: len(toy.taken) == len(STEPS))
    in_order(toy.taken)
    assert len(lines(tmp_path)) == len(STEPS)  # the other one is not given anything again


async def test_new_sinks(tmp_path: Path, standin: Standin) -> None:
    """`oldest` begins with what is kept, `now` with what comes."""
    answers = [json_of({"results": [_report(n)]}) for n in range(3)]
    url = standin.answer("info", [*answers, b'{"results":[]}'])
    base = configured(tmp_path, infobip(url))
    async with hasty(base):
        await until(lambda: len(lines(tmp_path)) == 3)
    old, oldest = with_toy(base)
    new, now = with_toy(base, start="now")
    later = msgspec.structs.replace(new.sinks[-1], name="later")
    config = msgspec.structs.replace(old, sinks=(*old.sinks, later))
    fresh = [json_of({"results": [_report(3)]}), b'{"results":[]}']
    async with hasty(config):
        await until(lambda: len(oldest.taken) == 3)
        begun = len(standin.asked["info"])
        standin.answer("info", lambda a: fresh[0] if a.number == begun + 3 else fresh[1])
        await until(lambda: len(oldest.taken) == 4)
        await until(lambda: now.taken)
    assert [one["message_id"] for one in oldest.taken] == ["m0", "m1", "m2", "m3"]
    assert [one["message_id"] for one in now.taken] == ["m3"]


def _report(n: int) -> dict[str, Any]:
    status = {"groupId": 3, "groupName": "DELIVERED", "name": "DELIVERED_TO_HANDSET"}
    return {"messageId": f"m{n}", "to": NUMBER, "status": status}


async def test_filters(tmp_path: Path, standin: Standin) -> None:
    sinks = [
        {"name": "all", "type": "jsonl", "path": "r.jsonl", "batch": BATCH},
        {"name": "done", "type": "jsonl", "path": "done.jsonl", "states": ["delivered"]},
        {"name": "a", "type": "sqlite", "path": "a.db", "accounts": ["a"]},
        {"name": "both", "type": "jsonl", "path": "both.jsonl", "accounts": ["b"],
         "states": ["enroute", "accepted"]},
    ]  # fmt: skip
    accounts = [bulksms(stepping(standin, n), name=n, schedule=LADDER) for n in ("a", "b")]
    async with hasty(configured(tmp_path, *accounts, sinks=sinks)) as poller:
        for name in ("a", "b"):
            await poller.track(name, batch_id="1", recipients=[NUMBER])
        assert await until_idle(poller, 5) == []
    assert len(lines(tmp_path)) == 2 * len(STEPS)
    done = lines(tmp_path, "done.jsonl")
    assert sorted((one["account"], one["state"]) for one in done) == [
        ("a", "delivered"),
        ("b", "delivered"),
    ]
    assert {row["account"] for row in table(tmp_path, name="a.db")} == {"a"}
    assert len(table(tmp_path, name="a.db")) == len(STEPS)
    both = lines(tmp_path, "both.jsonl")
    assert [(one["account"], one["provider_status"]) for one in both] == [
        ("b", code) for code in STEPS[:-1]
    ]


async def test_what_a_sink_refuses_for_good(tmp_path: Path, standin: Standin) -> None:
    """It is a dead letter; what is around it was taken, nothing is offered for ever."""
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    toy.refuse = "accepted"
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        assert await until_idle(poller, 5) == []
        (letter,) = await poller.store.read(lambda tx: tx.dead_letters("toy", 0, 9, bytes_max=999))
        assert letter.cause == "too ugly"
        assert await causes(poller, "bulk") == []
    assert [one["provider_status"] for one in toy.taken] == STEPS[1:]
    assert len(lines(tmp_path)) == len(STEPS)


async def test_a_slow_sink_holds_nobody_up(tmp_path: Path, standin: Standin) -> None:
    config, toy = with_toy(configured(tmp_path, bulksms(stepping(standin), schedule=LADDER)))
    write = toy.write

    async def slowly(batch: Batch) -> None:
        await anyio.sleep(0.5)
        await write(batch)

    toy.write = slowly  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) == len(STEPS))
        assert len(toy.taken) < len(STEPS)
    assert len(toy.taken) == len(STEPS)  # leaving the block flushes it
    in_order(toy.taken)


async def test_the_last_batch_waits_for_nothing_when_all_else_has_ended(
    tmp_path: Path, standin: Standin
) -> None:
    account = bulksms(standin.answer("bulk", [f"{HEAD}{NUMBER}|11\n"]), schedule=LADDER)
    sinks = [{"name": "lines", "type": "jsonl", "path": "r.jsonl", "batch": {"wait": "1d"}}]
    async with hasty(configured(tmp_path, account, sinks=sinks)) as poller:
        await poller.track("bulk", batch_id="1")
        with anyio.fail_after(60):
            assert await until_idle(poller, 20) == []
    assert len(lines(tmp_path)) == 1
