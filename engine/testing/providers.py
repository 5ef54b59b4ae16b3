"""What every provider owes the engine: no input or output, and no surprise in any answer."""

from __future__ import annotations

import ast
import inspect
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.core.contracts import Framing, Kind, Poll, Provider, Request, Traits, Verb
from engine.core.report import Report, decode, encode, msisdn
from engine.core.secret import secrets_in
from engine.core.state import State

from .provider_case import Answer, ProviderCase, read

NOW_MS = 1_800_000_000_000
CUTS = 25  # ways of cutting an answer that are tried, by chance
ENDS_MAX = 300  # places at which an answer breaks off
CHANNELS = {"sms", "email", "push", "whatsapp", "rcs"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch
PRICE = re.compile(r"-?\d+(\.\d+)?").fullmatch
# Fields that are the engine's to fill in.
OWN = ("event_id", "account", "revision", "observed_at", "verdict")

# A provider is called between two awaits: it has no business with any of these.
FORBIDDEN = frozenset(
    {
        "aiohttp", "anyio", "asyncio", "httpx", "random", "requests", "socket", "sqlite3", "ssl",
        "subprocess", "threading", "time", "urllib3",
    }
)  # fmt: skip
GARBAGE = (
    b"", b"\n", b"null", b"0", b"[]", b"{}", b'""', b"<html><body>503</body></html>",
    b"\x00\xff" * 50, b'{"a":' * 40, b"[" * 3000, b"\xef\xbb\xbf", b"0|", b"|", b"1e999",
    b'{"items":[[]],"results":[0],"entries":[null],"reports":{}}',
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1.5, "", " ", "x" * 300, "\x00", [], [None], {}, {"": {}}, [[]],
)  # fmt: skip


class ProviderSuite:
    """Inherit from it as `Test…`, with a fixture `case` that gives a `ProviderCase`."""

    def test_its_traits_fit_together(self, case: ProviderCase) -> None:
        traits = case.make().traits
        assert isinstance(traits, Traits)
        assert traits.feed in (None, "drained", "windowed")
        assert traits.feed is not None or traits.asks, "it gives no way to hear of anything"
        assert traits.tracks <= {"batch", "message"}
        assert traits.asks <= traits.tracks
        assert traits.ladder_s or not traits.asks, "what is asked for by id needs a ladder"
        assert list(traits.ladder_s) == sorted(set(traits.ladder_s))
        assert list(traits.rescan_s) == sorted(set(traits.rescan_s))
        assert all(limit.requests > 0 and limit.per_s > 0 for limit in traits.limits)
        assert traits.limits, "a default limit, and where it is documented"
        if any(answer.poll.kind is Kind.PUSH for answer in case.answers):
            assert traits.pushes, "nothing that is pushed would be taken"
        assert traits.concurrency >= 1
        assert traits.concurrency == 1 or not traits.one_time
        assert traits.channel in CHANNELS
        if traits.feed == "windowed":
            assert 0 < traits.window_min_ms <= traits.window_max_ms

    def test_it_does_no_input_or_output(self, case: ProviderCase) -> None:
        kind = type(case.make())
        for name in ("request", "reader", "lists", "login", "token"):
            assert not inspect.iscoroutinefunction(getattr(kind, name)), name
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
        assert not set(_imported(tree)) & FORBIDDEN

    def test_requests_are_values_and_show_no_secret(self, case: ProviderCase) -> None:
        account = case.account()
        secrets = [word for word in secrets_in(account.options) if len(word) > 3]
        probe = Poll(kind=Kind.PROBE, now_ms=NOW_MS, nonce="0b0e2f6e", from_ms=NOW_MS - 1000,
                     to_ms=NOW_MS)  # fmt: skip
        for poll in (probe, *(answer.poll for answer in case.answers)):
            if poll.kind is Kind.PUSH:
                continue  # nobody asks
            first = account.provider.request(poll)
            assert isinstance(first, Request)
            assert first == case.make().request(poll)
            assert first.url is not None or first.path.startswith("/") or not first.path
            for word in secrets:
                assert word not in repr(first)
                assert word not in first.path, "a secret in a path is logged by every proxy"

    def test_an_answer_is_read_as_expected(self, case: ProviderCase) -> None:
        assert any(answer.reports for answer in case.answers)
        for answer in case.answers:
            done = read(case.make(), answer, [answer.body])
            found = [
                {name: getattr(report, name) for name in wanted}
                for report, wanted in zip(done.reports, answer.reports, strict=True)
            ]
            assert found == [dict(wanted) for wanted in answer.reports]
            assert len(done.flaws) == answer.flaws
            assert done.outcome.verb == answer.verb

    def test_its_reports_are_sound(self, case: ProviderCase) -> None:
        provider = case.make()
        for answer in case.answers:
            for report in read(provider, answer, [answer.body]).reports:
                _sound(provider, report)

    def test_chunks_do_not_matter(self, case: ProviderCase) -> None:
        for answer in case.answers:
            wanted = read(case.make(), answer, [answer.body])
            for chunks in _cuts(answer.body):
                done = read(case.make(), answer, chunks)
                assert done.reports == wanted.reports
                assert done.outcome == wanted.outcome
                assert [flaw.cause for flaw in done.flaws] == [flaw.cause for flaw in wanted.flaws]

    def test_what_came_of_a_cut_answer_counts(self, case: ProviderCase) -> None:
        """Cut anywhere, the reader gives the first reports, and never one that was not sent."""
        for answer in case.answers:
            wanted = read(case.make(), answer, [answer.body]).reports
            step = max(1, len(answer.body) // ENDS_MAX)
            for end in range(0, len(answer.body), step):
                done = read(case.make(), answer, [answer.body[:end]], cut=True)
                assert done.reports == wanted[: len(done.reports)], end

    def test_nothing_that_is_answered_makes_it_raise(self, case: ProviderCase) -> None:
        for answer in case.answers:
            for body in GARBAGE:
                for status in (200, 204, 400, 401, 404, 418, 429, 500, 503):
                    odd = Answer(answer.poll, body, (), status, answer.headers)
                    done = read(case.make(), odd, [body])
                    assert done.reports == []
                    asked = answer.poll.kind is not Kind.PUSH
                    page = asked and status == 200 and body.startswith(b"<html")
                    assert not page or done.outcome.verb is not Verb.DONE, "it took a page of HTML"

    def test_records_with_odd_values_do_not_make_it_raise(self, case: ProviderCase) -> None:
        for answer in case.answers:
            whole = read(case.make(), answer, [answer.body])
            for odd in _odd_records(whole.records):
                reader = case.make().reader(answer.poll, answer.head)
                for report in reader.reports([odd]):
                    assert isinstance(report.state, State)
                    assert decode(encode(report)) == report
                reader.take_flaws()

    def test_statuses_are_told_apart(self, case: ProviderCase) -> None:
        for answer in case.answers:

            def verb(status: int, answer: Answer = answer) -> tuple[Verb, bool]:
                refusal = Answer(answer.poll, b"", (), status)
                outcome = read(case.make(), refusal, [b""]).outcome
                assert outcome.cause, "for people"
                return outcome.verb, outcome.hold

            for status in (401, 403, 418):  # mostly PAUSE, but a proxy may say these, too
                assert verb(status)[0] not in (Verb.DONE, Verb.MORE, Verb.SPLIT)
            assert verb(429) == (Verb.RETRY, True)
            assert verb(503) == (Verb.RETRY, True)
            assert verb(500)[0] is Verb.RETRY

    def test_single_records_can_be_read_again(self, case: ProviderCase) -> None:
        """Where its parser offers `raw` and `frame`, for `dlr-engine replay`."""
        for answer in case.answers:
            whole = read(case.make(), answer, [answer.body])
            parser = case.make().reader(answer.poll, answer.head).parser
            if not isinstance(parser, Framing):
                continue
            again: list[Report] = []
            for one in whole.records:
                framed = parser.frame(parser.raw(one))
                again += read(case.make(), answer, [framed]).reports
            assert again == whole.reports


def _sound(provider: Provider, report: Report) -> None:
    assert report.message_id
    assert isinstance(report.state, State)
    assert report.channel in CHANNELS
    assert report.direction in ("mt", "mo")
    assert report.msisdn is None or report.msisdn == msisdn(report.msisdn)
    assert report.provider in ("", provider.name)
    assert not any(getattr(report, name) for name in OWN), "the engine's to fill in"
    for moment in (report.sent_at, report.done_at):
        assert moment is None or TIME(moment), f"{moment!r}: RFC 3339, UTC, milliseconds, Z"
    assert report.price is None or PRICE(report.price)
    assert isinstance(provider.lists(report), bool)
    assert report.state is State.UNKNOWN or provider.lists(report)
    assert decode(encode(report)) == report
    assert msgspec.json.decode(encode(report))["extra"] == report.extra


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _cuts(body: bytes) -> Iterator[list[bytes]]:
    yield [body[n : n + 1] for n in range(len(body))]
    yield [b"", body, b""]
    rand = random.Random(1)
    for _ in range(CUTS):
        count = min(len(body), rand.randint(1, 8))
        places = sorted(rand.sample(range(len(body)), count)) if body else []
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


def _odd_records(records: list[Any]) -> Iterator[Any]:
    """Each record with each of its fields, at any depth, in the place of which something odd is."""
    for one in records[:3]:
        if isinstance(one, dict):
            yield from _odd_dicts(one)
        elif isinstance(one, list) and all(isinstance(cell, str) for cell in one):
            for place in range(len(one)):
                for odd in ("", " ", "x" * 300, "\x00", "|", "-1"):
                    yield [*one[:place], odd, *one[place + 1 :]]


def _odd_dicts(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in table.items():
        yield {name: each for name, each in table.items() if name != key}
        for odd in ODD:
            yield {**table, key: odd}
        if isinstance(value, dict):
            for inner in _odd_dicts(value):
                yield {**table, key: inner}
