"""What each message sink makes of its server's own ways, against the real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.core.contracts import Batch, Sink
from engine.core.errors import PartialWrite, SinkError
from engine.core.state import State
from engine.testing.sink_case import persist
from tests.conformance.messages import MESSAGES, KafkaTopic
from tests.conformance.places import PASSWORD, Case, Place, batch, fresh, numbers, record, secret
from tests.services import HOST, own_redis, require, require_package

BY_ID = {case.id: case for case in MESSAGES}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """Named by the test: `test_<id>_…`."""
    return BY_ID[request.node.name.split("_")[1]]


@pytest.fixture
async def place(case: Case) -> AsyncIterator[Place]:
    async with case.place() as made:
        yield made


async def refusal(sink: Sink, work: Batch) -> str:
    """What a write that fails in passing says."""
    with pytest.raises(SinkError) as caught:
        await sink.write(work)
    assert not isinstance(caught.value, PartialWrite)
    assert PASSWORD not in caught.value.cause
    return caught.value.cause


def redis_at(port: int, user: str = "", **more: Any) -> Sink:
    require_package("redis", "redis")
    from engine.sinks.redis import RedisOptions, RedisSink

    url = secret(f"redis://{user}{HOST}:{port}/0")
    return RedisSink(RedisOptions(url=url, stream="s", **more))


async def test_redis_refuses_what_its_protocol_does_not_take() -> None:
    async with own_redis("--proto-max-bulk-len", "1mb") as port:
        sink = redis_at(port)
        await sink.open()
        large = record(1, content="x" * (1 << 20))
        with pytest.raises(PartialWrite) as caught:
            await sink.write(Batch([record(0), large, record(2), b"no record"]))
        await sink.write(batch(3, 1))
        await sink.close()
    assert sorted(caught.value.rejected) == [1, 3]
    assert "proto-max-bulk-len is 1048576" in caught.value.rejected[1]
    assert "not a record" in caught.value.rejected[3]


async def test_redis_takes_a_batch_as_a_whole_or_not_at_all() -> None:
    from redis.asyncio import Redis

    async with own_redis() as port, Redis(host=HOST, port=port) as client:
        sink = redis_at(port)
        await sink.open()
        await client.config_set("maxmemory", "1")
        assert "out of memory" in await refusal(sink, batch(0, 10))
        await client.config_set("maxmemory", "0")
        await client.replicaof(HOST, 1)
        assert "read-only replica" in await refusal(sink, batch(0, 10))
        await client.replicaof("NO", "ONE")
        await client.set("s", "another thing")
        assert "holds something else" in await refusal(sink, batch(0, 10))
        await client.delete("s")
        await sink.write(batch(0, 10))
        await sink.close()
        assert await client.xlen("s") == 10


async def test_redis_keeps_about_maxlen_entries() -> None:
    from redis.asyncio import Redis

    async with own_redis() as port, Redis(host=HOST, port=port) as client:
        sink = redis_at(port, maxlen=500)
        await sink.open()
        await sink.write(batch(0, 3000))
        await sink.close()
        assert 500 <= await client.xlen("s") < 1000


async def test_redis_says_that_a_password_is_wrong() -> None:
    async with own_redis("--requirepass", "another") as port:
        for user in ("", f":{PASSWORD}@"):
            with pytest.raises(SinkError, match="password is wrong") as caught:
                await redis_at(port, user).open()
            assert PASSWORD not in str(caught.value)


async def test_nats_makes_a_stream_with_a_window(case: Case, place: Any) -> None:
    sink = case.make(place)
    await sink.open()
    states = (State.ENROUTE, State.DELIVERED)
    lines = [record(n, account="eu.1", state=states[n]) for n in range(2)]
    await sink.write(Batch(lines))
    await sink.close()
    stream = place.client.jetstream()
    config = (await stream.stream_info(place.options["stream"])).config
    name = place.options["stream"]
    assert config.subjects == [f"{name}.*.*"]
    assert config.duplicate_window == 300
    reader = await stream.subscribe("", stream=name, ordered_consumer=True)
    for state, n in zip(states, range(2), strict=True):
        message = await reader.next_msg(10)
        assert message.subject == f"{name}.eu_1.{state}"
        assert message.headers["Nats-Msg-Id"] == f"{n:032x}"
        assert message.headers["content-type"] == "application/json"


async def test_nats_uses_a_stream_that_is_there(case: Case, place: Any) -> None:
    stream, name = place.client.jetstream(), place.options["stream"]
    await stream.add_stream(name=name, subjects=[f"{name}.a.delivered"], max_msg_size=2000)
    sink = case.make(place)
    await sink.open()
    with pytest.raises(PartialWrite) as caught:
        await sink.write(Batch([record(0), record(1, content="x" * 2000), record(2)]))
    assert "max_msg_size" in caught.value.rejected[1]
    elsewhere = Batch([record(3), record(4, account="b")])
    assert "no stream takes the subject" in await refusal(sink, elsewhere)
    await stream.update_stream(name=name, subjects=[f"{name}.>"], max_msg_size=2000)
    await sink.write(elsewhere)
    await sink.close()
    assert numbers(await place.read()) == [0, 2, 3, 4]


async def test_nats_writes_into_no_other_stream(case: Case, place: Any) -> None:
    stream, name = place.client.jetstream(), place.options["stream"]
    other = fresh()
    await stream.add_stream(name=other, subjects=[f"{name}.a.*"])
    try:
        with pytest.raises(SinkError, match="another stream takes the subject already"):
            await case.make(place).open()
        await stream.add_stream(name=name, subjects=[f"{name}.b.*"])
        sink = case.make(place)
        await sink.open()
        assert "another stream takes the subject" in await refusal(sink, batch(0, 1))
        await sink.close()
        assert (await stream.stream_info(other)).state.messages == 0
    finally:
        await stream.delete_stream(other)


async def test_amqp_keeps_what_no_queue_takes(case: Case, place: Any) -> None:
    lines = [record(n, account="b" if n == 5 else "a") for n in range(10)]
    sink = case.make(place)
    await sink.open()
    name = place.options["routing_key"].replace("{account}", "b")
    for _ in range(2):
        cause = await refusal(sink, Batch(lines))
        assert f'no queue takes routing key "{name}"' in cause
    second = await place.channel.declare_queue(name, durable=True)
    await sink.write(Batch(lines))
    again = await second.get(no_ack=True)
    await second.delete()
    assert again.message_id == f"{5:032x}"
    assert numbers(await place.read()) == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # and none of them twice
    await sink.write(Batch(lines[:2]))
    await sink.close()


async def test_amqp_says_what_is_wrong_with_the_set_up(case: Case, place: Any) -> None:
    with pytest.raises(SinkError, match="there is no such exchange"):
        await case.make(place, exchange=fresh()).open()
    host, port = require("amqp")
    wrong = secret(f"amqp://guest:{PASSWORD}@{host}:{port}/")
    with pytest.raises(SinkError, match="user name or password is wrong"):
        await case.make(place, url=wrong).open()
    nowhere = secret(f"amqp://guest:guest@{host}:{port}/{fresh()}")
    with pytest.raises(SinkError, match="is the virtual host there"):
        await case.make(place, url=nowhere).open()


@pytest.mark.parametrize("kind", sorted(BY_ID))
async def test_nothing_is_said_of_where_and_with_which_password(
    kind: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that goes, and one that is not there; a library's own log may name its host."""
    caplog.set_level("DEBUG", "dlr_engine")
    known = BY_ID[kind]
    if kind == "kafka":
        monkeypatch.setattr("engine.targets.kafka_producer.CONNECT_S", 1.5)
    async with known.place() as place:
        away: dict[str, Any] = {"url": place.options.get("url")}
        if kind == "kafka":
            password = {"sasl.password": secret(PASSWORD)}
            away = {"bootstrap_servers": f"{HOST}:1", "options": password}
        else:
            scheme = away["url"].reveal().partition(":")[0]
            away = {"url": secret(f"{scheme}://user:{PASSWORD}@{HOST}:1/0")}
        sink = known.make(place)
        await sink.open()
        await place.cut()
        with pytest.raises(SinkError) as caught:
            await sink.open() if kind == "kafka" else await sink.write(batch(0, 1))
        await sink.close()
        gone = known.make(place, **away)
        with pytest.raises(SinkError) as never:
            await gone.open()
        await gone.close()
        await place.mend()
    out, err = capfd.readouterr()
    ours = f"{caught.value!r} {never.value!r}"
    assert HOST not in ours
    for said in (ours, caplog.text, out, err):
        assert PASSWORD not in said
        assert "://" not in said


async def test_kafka_finds_who_is_too_large(case: Case, place: KafkaTopic) -> None:
    too_large = 10  # MSG_SIZE_TOO_LARGE: the broker's answer to a whole request
    sink = case.make(place)
    await sink.open()
    place.cluster.fail(too_large)
    await sink.write(batch(0, 10))
    place.cluster.fail(too_large, too_large)
    with pytest.raises(PartialWrite) as caught:
        await sink.write(batch(10, 10))
    await sink.close()
    assert list(caught.value.rejected) == [0]
    assert numbers(await place.read()) == [n for n in range(20) if n != 10]


async def test_kafka_leaves_no_thread_after_a_cancelled_write(
    case: Case, place: KafkaTopic
) -> None:
    sink = case.make(place)
    await sink.open()
    place.cluster.down()
    task = asyncio.create_task(sink.write(batch(0, 10)))  # type: ignore[arg-type]
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    place.cluster.up()
    await asyncio.sleep(0.5)
    assert await place.read() == []  # what was cancelled is not sent afterwards
    await sink.write(batch(0, 10))
    await sink.close()
    assert numbers(await place.read()) == list(range(10))


# What is told besides: a broker that has run out of something lets everybody wait.
ADVICE = {"amqp": "a broker with an alarm (memory, disk) takes nothing"}


@pytest.mark.parametrize("kind", ["amqp", "kafka", "nats", "redis"])
async def test_a_server_that_hangs_is_named_as_that(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = BY_ID[kind]
    monkeypatch.setattr(known.patience or "", 0.5)
    async with known.place() as place:
        sink = known.make(place)
        await sink.open()
        await place.hang()
        cause = await refusal(sink, batch(0, 10))
        await place.cut()
        await sink.close()
    said, _, advice = cause.partition("; ")
    assert said.endswith(("it does not answer", "the brokers do not answer"))
    assert advice == ADVICE.get(kind, "")


@pytest.mark.parametrize("kind", ["amqp", "nats", "redis"])
async def test_records_stay_in_order_over_a_server_that_was_too_slow(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in the moment in which the sink gives up: no record overtakes one before it."""
    known = BY_ID[kind]
    monkeypatch.setattr(known.patience or "", 0.5)
    async with known.place() as place:
        sink = known.make(place)
        await sink.open()
        for turn in range(3):
            lines = [record(turn * 600 + n, content="x" * 30_000) for n in range(600)]
            place.line.hang()
            asyncio.get_running_loop().call_later(0.53 + turn * 0.03, place.line.thaw)
            await persist(sink, Batch(lines))
        await sink.close()
        assert list(dict.fromkeys(numbers(await place.read()))) == list(range(1800))


@pytest.mark.parametrize("kind", sorted(BY_ID))
async def test_no_task_outlives_a_connection_that_broke(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = BY_ID[kind]
    monkeypatch.setattr(known.patience or "", 1.5)
    async with known.place() as place:
        before = asyncio.all_tasks()
        for written in (0, 10):
            sink = known.make(place)
            await sink.open()
            await sink.write(batch(0, written))
            await place.cut()
            await refusal(sink, batch(10, 10))
            await sink.close()
            await place.mend()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not (left := asyncio.all_tasks() - before):
                break
    assert not left
