"""Sinks that hang, let go half way, or cannot be ended: others and polls do not feel it."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from engine.core.contracts import Batch
from engine.core.errors import SinkError
from engine.dispatch import dispatcher as dispatching
from engine.idle import until_idle
from engine.machine.offload import Hanging, Offload
from tests.integration import folder
from tests.integration.harness import (
    PATIENCE_S,
    bulksms,
    configured,
    hasty,
    lines,
    patiently,
    until,
)
from tests.integration.standin import Standin
from tests.integration.test_disk import Queue
from tests.integration.test_sinks_end_to_end import (
    LADDER,
    NUMBER,
    STEPS,
    Toy,
    in_order,
    stepping,
    with_toy,
)


def hang(toy: Toy, at: str) -> anyio.Event:
    """Its calls do not come back until the event is set; then they do as before."""
    mended, act = anyio.Event(), getattr(toy, at)

    async def hanging(*args: Any) -> None:
        await mended.wait()
        await act(*args)

    setattr(toy, at, hanging)
    return mended


@pytest.mark.parametrize("at", ["open", "write"])
async def test_a_call_that_hangs_is_given_up_and_made_again(
    tmp_path: Path, standin: Standin, at: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = configured(tmp_path, bulksms(stepping(standin), schedule=LADDER))
    config, toy = with_toy(base, timeout_s=0.2)
    mended = hang(toy, at)
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        await until(lambda: len(lines(tmp_path)) == len(STEPS))
        hung = poller.dispatchers[-1]
        await until(lambda: hung.health.failures > 1)
        assert hung.health.failing == "has not answered for 200ms"
        stuck = "sink toy: it has not taken everything; has not answered for 200ms"
        # More than once, since a busy machine's store may not answer within so short a time.
        await patiently(partial(until_idle, poller, 0.2), [stuck])

        async def noted() -> bool:
            notes = await poller.store.read(lambda tx: tx.notes("sink"))
            return b"has not answered" in notes.get("toy", b"")

        await patiently(noted, True)  # for `stats`
        mended.set()
        assert await until_idle(poller, PATIENCE_S) == []
    assert toy.taken == lines(tmp_path)
    told = [r.getMessage() for r in caplog.records if "has not answered" in r.getMessage()]
    assert len(told) == 1


async def test_a_call_that_cannot_be_ended_is_told(
    tmp_path: Path,
    standin: Standin,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "OVERDUE_S", 0.1)
    monkeypatch.setattr(dispatching, "CALL_LONG_S", 0.1)
    base = configured(tmp_path, bulksms(stepping(standin), schedule=LADDER), shutdown_grace="1s")
    config, toy = with_toy(base, timeout_s=0.1)
    let_go = anyio.Event()

    async def deaf(batch: Batch) -> None:
        with anyio.CancelScope(shield=True):
            await let_go.wait()

    toy.write = deaf  # type: ignore[method-assign]
    async with hasty(config) as poller:
        try:
            await poller.track("bulk", batch_id="1", recipients=[NUMBER])
            await until(lambda: len(lines(tmp_path)) == len(STEPS))
            await until(lambda: "does not let go" in caplog.text)
            assert (poller.dispatchers[-1].dead or "").startswith("has not answered since 20")
            poller.dispatchers[-1].look()  # as is done once a second
            assert caplog.text.count("does not let go") == 1
        finally:
            let_go.set()


async def test_the_wait_before_the_next_try_is_not_the_calls(
    tmp_path: Path,
    standin: Standin,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "OVERDUE_S", 0.1)
    base = configured(tmp_path, bulksms(stepping(standin), schedule=LADDER), shutdown_grace="1s")
    config, toy = with_toy(base, timeout_s=0.1)

    async def refusing(batch: Batch) -> None:
        error = SinkError("come back later")
        error.retry_after_s = 60.0
        raise error

    toy.write = refusing  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await poller.track("bulk", batch_id="1", recipients=[NUMBER])
        waiting = poller.dispatchers[-1]
        await until(lambda: waiting.dead is not None)
        await anyio.sleep(0.4)  # longer than a call may take and be overdue
        waiting.look()
        assert waiting.dead == "come back later"
        assert "does not let go" not in caplog.text


async def test_one_that_dies_in_the_middle_of_a_batch(tmp_path: Path, standin: Standin) -> None:
    queue = Queue(standin)
    config, toy = with_toy(configured(tmp_path, queue.account()))
    deaths = 0

    async def dying(batch: Batch) -> None:
        nonlocal deaths
        records = [msgspec.json.decode(line) for line in batch.lines]
        if deaths < 5 and len(records) > 1:
            deaths += 1
            toy.taken += records[: len(records) // 2]
            raise SinkError("the connection was lost")
        toy.taken += records

    toy.write = dying  # type: ignore[method-assign]
    async with hasty(config) as poller:
        await until(lambda: deaths == 5)
        queue.dry = True
        assert await until_idle(poller, PATIENCE_S) == []
    ids = [one["message_id"] for one in toy.taken]
    assert set(ids) == set(queue.given), "nothing is dropped"
    assert list(dict.fromkeys(ids)) == [one["message_id"] for one in lines(tmp_path)], "in order"
    assert len(ids) > len(set(ids)), "what was taken before it died came again"


async def test_one_that_is_a_hundred_times_slower(tmp_path: Path, standin: Standin) -> None:
    queue = Queue(standin)
    config, toy = with_toy(configured(tmp_path, queue.account()), timeout_s=60)
    config = msgspec.structs.replace(
        config,
        sinks=(
            *config.sinks[:-1],
            msgspec.structs.replace(
                config.sinks[-1], batch=msgspec.structs.replace(config.sinks[-1].batch, records=1)
            ),
        ),
    )
    write, slow = toy.write, True

    async def slowly(batch: Batch) -> None:
        given = len(queue.given)
        await until(lambda: not slow or len(queue.given) >= given + 100)
        await write(batch)

    toy.write = slowly  # type: ignore[method-assign]
    async with hasty(config) as poller:
        before = queue.asked
        await until(lambda: len(lines(tmp_path)) >= 200)
        assert queue.asked - before >= 10, "polling goes on"
        assert len(toy.taken) < 100
        assert poller.dispatchers[-1].health.failing is None, "slow is not dead"
        queue.dry, slow = True, False
        assert await until_idle(poller, PATIENCE_S) == []
    assert [one["message_id"] for one in toy.taken] == [
        one["message_id"] for one in lines(tmp_path)
    ]
    in_order(toy.taken)


@pytest.mark.parametrize("at", ["write", "open", "close"])
async def test_the_end_does_not_wait_for_a_sink_that_hangs(
    tmp_path: Path,
    standin: Standin,
    at: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dispatching, "CLOSE_S", 0.5)
    base = configured(tmp_path, bulksms(stepping(standin), schedule=LADDER), shutdown_grace="1s")
    config, toy = with_toy(base)
    hang(toy, at)
    with anyio.fail_after(PATIENCE_S):
        async with hasty(config) as poller:
            await poller.track("bulk", batch_id="1", recipients=[NUMBER])
            await until(lambda: len(lines(tmp_path)) == len(STEPS))
    assert ("did not close within" in caplog.text) == (at == "close")
    config, toy = with_toy(base)
    async with hasty(config):
        if at != "close":
            await until(lambda: len(toy.taken) == len(STEPS))
    assert len(lines(tmp_path)) == len(STEPS)


async def test_a_thread_that_hangs_in_the_system_is_left_behind() -> None:
    offload, release, done = Offload("test-hanging"), threading.Event(), []
    with anyio.move_on_after(0.05) as scope:
        await offload.run(release.wait)
    assert scope.cancelled_caught
    assert offload.hangs
    with pytest.raises(Hanging, match="the call before it still hangs"):
        await offload.run(done.append, 1)
    with anyio.fail_after(PATIENCE_S):  # what it hangs in is let go only below
        await offload.close()
    release.set()
    await until(lambda: not offload.hangs)
    await offload.run(done.append, 2)
    assert done == [2], "what was refused was not done later"
    await offload.close()


async def test_a_process_whose_output_nobody_reads_ends(tmp_path: Path, standin: Standin) -> None:
    queue = Queue(standin)
    (tmp_path / "engine.toml").write_text(
        f'shutdown_grace = "2s"\n[[accounts]]\nname = "info"\nprovider = "infobip"\n'
        f'base_url = "{queue.url}"\napi_key = "k3y-canary"\n'
        'schedule = { interval = "50ms", idle_interval = "50ms" }\n'
        'limits = { requests = 1000, per = "1s" }\n'
        '[[sinks]]\nname = "pipe"\ntype = "stdout"\n'
    )
    command = [sys.executable, "-m", "engine", "run", "--config", str(tmp_path / "engine.toml")]
    async with await anyio.open_process(command, stdout=-1, stderr=-1) as process:
        await until(lambda: queue.asked > 12, folder.PATIENCE_S)  # far more than a pipe holds
        asked = queue.asked
        await until(lambda: queue.asked > asked + 3, what="polling goes on")
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(folder.PATIENCE_S):
            assert await process.wait() == 0
