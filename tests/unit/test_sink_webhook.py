"""The webhook sink's own matters: signatures, what each answer means, halving, pace, TLS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from standardwebhooks import Webhook, WebhookVerificationError

import engine
from engine.config import describe
from engine.core.contracts import Batch
from engine.core.errors import ConfigError, PartialWrite, SinkError
from engine.core.secret import Secret
from engine.sinks import webhook
from engine.sinks.webhook import Pace, WebhookOptions, WebhookSink
from tests.conformance.places import batch, numbers, record

KEY = bytes(range(40))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_790_000_000.0

Rule = Callable[["Hook", bytes], web.Response]


class Hook:
    """A receiver that answers by a rule and keeps what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.rule: Rule = lambda _hook, _body: web.Response()
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.taken: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((dict(request.headers), body))
        answer = self.rule(self, body)
        if answer.status < 300:
            self.taken += json.loads(body)
        return answer

    def statuses(self, *statuses: int, **headers: str) -> None:
        """Answer so, one after the other, then 200."""
        left = list(statuses)
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def rule(_hook: Hook, _body: bytes) -> web.Response:
            return web.Response(status=left.pop(0), headers=named) if left else web.Response()

        self.rule = rule

    def header(self, name: str) -> list[str]:
        return [headers[name] for headers, _ in self.asked]


async def serving(hook: Hook, tls: ssl.SSLContext | None = None, room: int = 64 << 20) -> Any:
    app = web.Application(client_max_size=room)
    app.router.add_post("/hook/{rest:.*}", hook.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    hook.url = f"http{'s' if tls else ''}://localhost:{runner.addresses[0][1]}/hook/t0ken"
    return runner


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    made = Hook()
    runner = await serving(made)
    yield made
    await runner.cleanup()


async def sent(hook: Hook, *batches: Batch, **options: Any) -> list[dict[int, str]]:
    """What was refused of each batch."""
    made = WebhookOptions(**{"url": Secret(hook.url), "secret": Secret(SECRET), **options})
    sink = WebhookSink(made, clock=lambda: NOW)
    refused: list[dict[int, str]] = []
    try:
        await sink.open()
        for each in batches:
            try:
                await sink.write(each)
            except PartialWrite as error:
                refused.append(error.rejected)
            else:
                refused.append({})
    finally:
        await sink.close()
    return refused


# What is sent


async def test_a_request_as_standard_webhooks_specify(hook: Hook) -> None:
    times = iter([NOW, NOW + 60, NOW + 120])
    options = WebhookOptions(
        url=Secret(hook.url), secret=Secret(SECRET), headers={"Authorization": Secret("Bearer x")}
    )
    sink = WebhookSink(options, clock=lambda: next(times))
    hook.statuses(500)
    await sink.open()
    with pytest.raises(SinkError):
        await sink.write(batch(0, 3))
    await sink.write(batch(0, 3))
    await sink.write(batch(3, 1))
    await sink.close()
    first, again, other = hook.header("webhook-id")
    assert first == again != other
    assert hook.header("webhook-timestamp") == [str(int(NOW) + n) for n in (0, 60, 120)]
    assert hook.header("Content-Type") == ["application/json"] * 3
    assert hook.header("Authorization") == ["Bearer x"] * 3
    for headers, body in hook.asked:
        headers["webhook-timestamp"] = str(int(datetime.now(UTC).timestamp()))  # signed as well
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(body, headers)
    assert numbers(hook.taken) == [0, 1, 2, 3]


async def test_an_independent_implementation_verifies_it(hook: Hook) -> None:
    options = WebhookOptions(url=Secret(hook.url), secret=Secret(SECRET))
    sink = WebhookSink(options)
    await sink.open()
    await sink.write(batch(0, 5))
    await sink.close()
    headers, body = hook.asked[0]
    assert numbers(Webhook(SECRET).verify(body, headers)) == list(range(5))
    for forged, changed in (({"webhook-id": "msg_0"}, body), ({}, body + b" ")):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(changed, headers | forged)


async def test_as_cloudevents_in_batched_mode(hook: Hook) -> None:
    lines = [record(1), b"x", record(2)]
    assert list((await sent(hook, Batch(lines), envelope="cloudevents"))[0]) == [1]
    assert hook.header("Content-Type") == ["application/cloudevents-batch+json"]
    events = [JSONFormat().read(CloudEvent, json.dumps(each)) for each in hook.taken]
    assert [event.get_data() for event in events] == [json.loads(lines[0]), json.loads(lines[2])]
    assert {event.get_type() for event in events} == {"dlr.report.delivered"}


async def test_a_batch_of_several_mebibytes(hook: Hook) -> None:
    line = record(1, extra={"long": "x" * 5_000_000})
    assert await sent(hook, Batch([line])) == [{}]
    assert hook.taken == [json.loads(line)]


# What an answer means


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_2xx_accepts(hook: Hook, status: int) -> None:
    hook.rule = lambda _hook, _body: web.Response(status=status)
    assert await sent(hook, batch(0, 2)) == [{}]
    assert len(hook.asked) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        (format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=90), True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW, UTC) - timedelta(hours=2), True), 0.0),
        ("86400", 3600.0),
        ("soon", None),
    ],
)
async def test_later_after_what_is_asked_for(
    hook: Hook, status: int, header: str | None, wait_s: float | None
) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW, UTC), True)
    hook.statuses(status, Date=date, **({"Retry_After": header} if header is not None else {}))
    with pytest.raises(SinkError, match=f"^cannot post: the receiver answers {status}") as caught:
        await sent(hook, batch(0, 2))
    assert not isinstance(caught.value, PartialWrite)
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize("status", [401, 403, 404, 405, 409, 410, 418, 451])
async def test_any_other_4xx_refuses_the_batch_for_good(hook: Hook, status: int) -> None:
    hook.statuses(status)
    refused, after = await sent(hook, batch(0, 3), batch(3, 2))
    assert list(refused) == [0, 1, 2]
    assert set(refused.values()) == {refused[0]}
    assert refused[0].startswith(f"the receiver answers {status}")
    assert after == {}
    assert numbers(hook.taken) == [3, 4]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(hook: Hook, status: int) -> None:
    hook.statuses(status, Location="/hook/elsewhere")
    with pytest.raises(SinkError, match=f"the receiver answers {status}"):
        await sent(hook, batch(0, 1))
    assert len(hook.asked) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_is_refused_is_found_by_halving(hook: Hook, status: int) -> None:
    bad = {17, 300, 301, 999}

    def rule(_hook: Hook, body: bytes) -> web.Response:
        return web.Response(status=status if bad & set(numbers(json.loads(body))) else 200)

    hook.rule = rule
    (refused,) = await sent(hook, batch(0, 1000))
    assert set(refused) == bad
    assert sorted(numbers(hook.taken)) == sorted(set(range(1000)) - bad)
    assert numbers(hook.taken) == sorted(numbers(hook.taken))
    assert len(hook.asked) < 90


async def test_who_refuses_everything_is_not_asked_about_each(hook: Hook) -> None:
    hook.rule = lambda _hook, _body: web.Response(status=422)
    (refused,) = await sent(hook, batch(0, 1000))
    assert len(refused) == 1000
    assert len(hook.asked) <= webhook.REFUSALS_MAX + 12


async def test_a_receiver_with_less_room_gets_smaller_batches() -> None:
    hook = Hook()
    runner = await serving(hook, room=2000)
    try:
        lines = [record(n, extra={"x": "y" * (5000 if n == 5 else 10)}) for n in range(64)]
        (refused,) = await sent(hook, Batch(lines))
    finally:
        await runner.cleanup()
    assert refused == {5: "the receiver answers 413 Request Entity Too Large"}
    assert numbers(hook.taken) == [n for n in range(64) if n != 5]


async def test_a_failure_in_the_middle_offers_what_is_left_again(hook: Hook) -> None:
    hook.statuses(413, 200, 503)
    options = WebhookOptions(url=Secret(hook.url), secret=Secret(SECRET))
    sink = WebhookSink(options)
    await sink.open()
    with pytest.raises(SinkError, match="503"):
        await sink.write(batch(0, 10))
    await sink.write(batch(0, 10))
    await sink.write(batch(0, 10))  # it is taken by now: this is another one
    await sink.close()
    whole, first, second, again, other = hook.header("webhook-id")
    assert (again, other) == (second, whole)
    assert first != second
    assert numbers(hook.taken) == [*range(10), *range(10)]


async def test_another_batch_begins_at_its_beginning(hook: Hook) -> None:
    """As after a rewind: what was taken before is to come again."""
    hook.statuses(413, 200, 503)
    sink = WebhookSink(WebhookOptions(url=Secret(hook.url), secret=Secret(SECRET)))
    await sink.open()
    with pytest.raises(SinkError, match="503"):
        await sink.write(batch(2, 10))
    await sink.write(batch(0, 10))
    await sink.close()
    assert numbers(hook.taken) == [*range(2, 7), *range(10)]


async def test_a_search_goes_on_where_it_was_given_up(hook: Hook) -> None:
    """At a slow pace it takes longer than the sink is waited for; also the last post counts."""
    bad = {3, 7, 11, 15}

    def rule(_hook: Hook, body: bytes) -> web.Response:
        return web.Response(status=422 if bad & set(numbers(json.loads(body))) else 200)

    hook.rule = rule
    sink = WebhookSink(WebhookOptions(url=Secret(hook.url), secret=Secret(SECRET)))
    await sink.open()
    posted, ask = 0, sink._endpoint.ask

    async def asking(*args: Any) -> Any:
        nonlocal posted
        posted += 1
        if posted % 3 == 0:  # it waits for its turn when the time is over
            raise TimeoutError
        return await ask(*args)

    sink._endpoint.ask = asking  # type: ignore[method-assign]
    refused: dict[int, str] = {}
    while not refused:
        assert posted <= 60
        with contextlib.suppress(TimeoutError):
            try:
                await sink.write(batch(0, 16))
            except PartialWrite as error:
                refused = error.rejected
    await sink.close()
    assert sorted(refused) == sorted(bad)
    assert numbers(hook.taken) == [n for n in range(16) if n not in bad]


# The connection


async def test_an_answer_is_read_only_so_far(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.targets.endpoint.ANSWER_MAX", 1000)
    hook.rule = lambda _hook, _body: web.Response(body=b"x" * 50_000_000)
    assert await sent(hook, batch(0, 1), batch(1, 1)) == [{}, {}]


async def test_an_answer_that_breaks_off_behind_its_head_counts() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    hook = Hook()
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    assert await sent(hook, batch(0, 1)) == [{}]
    server.close()
    await server.wait_closed()


async def test_the_certificate_is_verified(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    hook = Hook()
    runner = await serving(hook, context)
    try:
        with pytest.raises(SinkError, match="cannot post: TLS: certificate verify failed"):
            await sent(hook, batch(0, 1))
        assert await sent(hook, batch(0, 1), ca_file=tmp_path / "ca.pem") == [{}]
        hook.url = hook.url.replace("localhost", "127.0.0.1")
        with pytest.raises(SinkError, match="cannot post: TLS: certificate verify failed"):
            await sent(hook, batch(0, 1), ca_file=tmp_path / "ca.pem")
    finally:
        await runner.cleanup()
    with pytest.raises(SinkError, match="ca_file cannot be read: no such file or directory"):
        await sent(hook, batch(0, 1), ca_file=tmp_path / "none.pem")


async def test_requests_keep_their_pace(hook: Hook) -> None:
    loop = asyncio.get_running_loop()
    at: list[float] = []

    def rule(_hook: Hook, _body: bytes) -> web.Response:
        at.append(loop.time())
        return web.Response()

    hook.rule = rule
    began = loop.time()
    await sent(hook, *(batch(n, 1) for n in range(6)), limits=Pace(requests=20, per=1.0))
    # One a twentieth of a second, the opening one included; a slow machine makes it only longer.
    assert at[-1] - began >= 6 / 20 * 0.95
    assert min(at[n] - began for n in range(6)) > 0


@pytest.mark.parametrize("hidden", ["t0ken", SECRET, "canary", "localhost", "127.0.0.1"])
async def test_no_error_tells_where_and_with_what(hook: Hook, hidden: str) -> None:
    told: list[str] = []
    for status in (401, 500, 302):
        hook.rule = lambda _hook, _body, status=status: web.Response(  # type: ignore[misc]
            status=status, text=f"{hidden} {hook.url}", reason=hidden
        )
        try:
            told += [repr(await sent(hook, batch(0, 1), headers={"X": Secret("canary")}))]
        except SinkError as error:
            told += [f"{error} {error!r} {error.__cause__!r}"]
    hook.url = "http://127.0.0.1:1/t0ken"
    with pytest.raises(SinkError, match="cannot post: connection refused") as caught:
        await sent(hook, batch(0, 1))
    told += [f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"]
    assert len(told) == 4
    assert not [each for each in told if hidden in each]


# Options


def configured(**keys: Any) -> engine.Config:
    account = {
        "name": "a", "provider": "bulksms", "base_url": "https://h", "username": "u",
        "password": "p",
    }  # fmt: skip
    sink = {
        "name": "s",
        "type": "webhook",
        "url": "https://john:pw@h/hook",
        "secret": SECRET,
        **keys,
    }
    return engine.configure({"accounts": [account], "sinks": [sink]})


def test_it_is_configured_and_shown_without_its_secrets() -> None:
    found = configured(
        limits={"requests": 5, "per": "10s"}, headers={"X-Key": "canary"}, envelope="cloudevents"
    )
    assert found.sinks[0].sink.limits == Pace(requests=5, per=10.0)
    shown = "\n".join(describe(found))
    assert not [secret for secret in ("john", "pw@", SECRET, "canary") if secret in shown]
    assert "  limits: { requests = 5, per = 10s }" in shown
    assert "  headers: { X-Key = *** }" in shown


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"url": "ftp://h"}, "url: expected a URL such as https://host/path"),
        ({"url": "https://h:99999/"}, "url: expected a URL such as https://host/path"),
        ({"url": "https://[::1/"}, "url: expected a URL such as https://host/path"),
        ({"url": "https://a b/"}, "url: expected a URL such as https://host/path"),
        ({"secret": SECRET[6:]}, "secret: expected whsec_ and the base64 of 24 to 64 bytes"),
        ({"secret": "whsec_?"}, "secret: expected whsec_ and the base64 of 24 to 64 bytes"),
        ({"secret": "whsec_c2hvcnQ="}, "secret: expected whsec_ and the base64 of 24 to 64 bytes"),
        ({"limits": {"requests": 0, "per": "1s"}}, "limits.requests: expected at least 1, got 0"),
        ({"limits": {"requests": 1, "per": 0}}, "limits.per: expected more than nothing"),
        ({"limits": {"requests": 1}}, "limits.per: missing"),
        ({"headers": {"Webhook-Id": "x"}}, "headers: 'Webhook-Id' is no name of a header, or not"),
        ({"headers": {"a b": "x"}}, "headers: 'a b' is no name of a header"),
        ({"headers": {"é": "x"}}, "headers: 'é' is no name of a header"),
        ({"headers": {"": "x"}}, "headers: '' is no name of a header"),
        ({"headers": {"X": "a\nb"}}, "headers: X holds characters that a header cannot have"),
        ({"envelope": "soap"}, 'envelope: expected one of "cloudevents", got "soap"'),
        ({"envelop": "cloudevents"}, 'envelop: unknown key; did you mean "envelope"?'),
    ],
)
def test_wrong_options_are_named(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(**keys)
    (line,) = caught.value.faults
    assert f"sinks[0].{fault}" in line
