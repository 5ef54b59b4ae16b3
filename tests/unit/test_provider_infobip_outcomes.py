"""Infobip: what an answer comes to: full pages, error bodies, cut ones, and no secret in any."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.core.contracts import Kind, Outcome, Poll, Verb
from engine.core.secret import Secret
from tests.unit.infobip_answers import KEY, SAMPLE, account, read

# -- outcomes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "limit", "rows", "verb"),
    [
        (Kind.FEED, 1000, 0, Verb.DONE),
        (Kind.FEED, 1000, 49, Verb.DONE),
        (Kind.FEED, 1000, 50, Verb.MORE),
        (Kind.FEED, 1000, 1000, Verb.MORE),
        (Kind.FEED, 2, 1, Verb.DONE),
        (Kind.FEED, 2, 2, Verb.MORE),
        (Kind.BATCH, 1000, 50, Verb.MORE),
        (Kind.BATCH, 1000, 3, Verb.DONE),
        (Kind.MESSAGE, 1000, 50, Verb.DONE),
        (Kind.PROBE, 1, 1, Verb.DONE),
    ],
)
def test_a_full_page_means_more(kind: Kind, limit: int, rows: int, verb: Verb) -> None:
    body = {"results": [SAMPLE] * rows}
    answer = read(body, provider=account(limit=limit), poll=Poll(kind=kind, now_ms=0))
    assert answer.outcome == Outcome(verb=verb)
    assert len(answer.reports) == rows


V1 = {"requestError": {"serviceException": {"messageId": "BAD_REQUEST", "text": "Bad request"}}}
V3 = {
    "errorCode": "E400",
    "description": "Wrong",
    "action": "Mend it",
    "violations": [{"property": "limit", "violation": "too big"}],
    "resources": [],
}


@pytest.mark.parametrize(
    ("body", "code", "cause"),
    [
        (V1, "BAD_REQUEST", "HTTP 400: BAD_REQUEST: Bad request"),
        (V3, "E400", "HTTP 400: E400: Wrong: Mend it: property: limit; violation: too big"),
        ({"requestError": "no"}, None, "HTTP 400: no"),
        ({"requestError": {"text": "t"}}, None, "HTTP 400: t"),
        ([], None, "HTTP 400: bad request"),
        ({}, None, "HTTP 400: bad request"),
    ],
)
def test_both_families_of_error_bodies(body: Any, code: str | None, cause: str) -> None:
    answer = read(body, status=400)
    assert answer.outcome == Outcome(verb=Verb.RETRY, cause=cause, code=code)
    assert (answer.reports, answer.flaws) == ([], [])


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({"limit": ["too big", "odd"]}, "limit: too big, odd"),
        (["too big"], "too big"),
        ("too big", "too big"),
    ],
)
def test_validation_errors_in_every_shape(errors: Any, words: str) -> None:
    said = {"messageId": "BAD_REQUEST", "text": "Bad", "validationErrors": errors}
    answer = read({"requestError": {"serviceException": said}}, status=400)
    assert answer.outcome.cause == f"HTTP 400: BAD_REQUEST: Bad: {words}"


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (400, Verb.RETRY, False),
        (401, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (404, Verb.RETRY, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_http_statuses(status: int, verb: Verb, hold: bool) -> None:
    for body in (V1, V3, b"<html>no</html>", b""):
        answer = read(body, status=status)
        assert (answer.outcome.verb, answer.outcome.hold) == (verb, hold)
        assert answer.flaws == []


@pytest.mark.parametrize("body", [V1, V3, {"requestError": None, "results": []}, {}, [], b"", b"<"])
def test_a_failure_under_200_is_asked_again(body: Any) -> None:
    answer = read(body)
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


@pytest.mark.parametrize("cut", [True, False])
def test_a_cut_answer_is_asked_again_after_its_whole_records_were_taken(cut: bool) -> None:
    whole = json.dumps({"results": [SAMPLE, SAMPLE]}).encode()
    answer = read(whole[:-20], cut=cut)
    assert [report.message_id for report in answer.reports] == ["MESSAGE-ID-123-xyz"]
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


def test_reports_under_a_failing_status_are_not_thrown_away() -> None:
    answer = read({"results": [SAMPLE]}, status=500)
    assert len(answer.reports) == 1
    assert answer.outcome.verb is Verb.RETRY


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "secrets"),
    [
        ({"api_key": Secret(KEY)}, [KEY]),
        ({"username": "u", "password": Secret("pass-word")}, ["pass-word", "dTpwYXNzLXdvcmQ="]),
        ({"authorization": Secret("Bearer tok-en-1")}, ["tok-en-1"]),
    ],
)
def test_secrets_never_come_out_again(options: dict[str, Any], secrets: list[str]) -> None:
    provider = account(**options)
    for secret in secrets:
        bodies: list[Any] = [
            {"requestError": {"serviceException": {"messageId": secret, "text": f"no {secret}"}}},
            {"errorCode": "E", "description": secret},
            {"results": [{"echo": secret}, 1]},
            f"{secret} is wrong".encode(),
        ]
        for body in bodies:
            for status in (200, 401):
                assert secret not in repr(read(body, provider=provider, status=status).outcome)


def test_words_become_one_short_line() -> None:
    cause = read({"errorCode": "E", "description": "a\x1b[0m\nb" + "x" * 9999}).outcome.cause
    assert cause.isprintable()
    assert len(cause) == 300
