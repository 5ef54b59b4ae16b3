"""Messangi: its requests and logins, its options, and what an answer comes to."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from engine.core.contracts import Head, Kind, Outcome, Poll, Request, Verb
from tests.unit.messangi_answers import (
    ANSWER,
    META,
    NOW,
    PRETTY,
    expected,
    logging_in,
    provider,
    read,
    window,
)

# -- requests --------------------------------------------------------------------------------


def test_request() -> None:
    made = provider(pretty=False, filters={"campaignID": "12151", "status": "SENT,EXPIRED"})
    request = made.request(
        window(from_ms=1690552011144, to_ms=1690552012000, channel="W"), "Bearer abc"
    )
    assert request == Request(
        path="/v3/mlog",
        params=(
            ("from", "2023-07-28T13:46:51.144Z"),
            ("to", "2023-07-28T13:46:52.000Z"),
            ("pretty", "false"),
            ("channel", "W"),
            ("campaignID", "12151"),
            ("status", "SENT,EXPIRED"),
        ),
        headers=(("Accept", "application/json"), ("Authorization", "Bearer abc")),
    )
    assert "abc" not in repr(request)
    plain = provider().request(window())
    assert dict(plain.params)["pretty"] == "true"
    assert "channel" not in dict(plain.params)
    assert "Authorization" not in dict(plain.headers)


def test_to_is_after_from() -> None:
    params = dict(provider().request(window(from_ms=NOW, to_ms=NOW)).params)
    assert (params["from"], params["to"]) == (
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.001Z",
    )


def test_probe_is_one_second() -> None:
    params = dict(provider().request(Poll(kind=Kind.PROBE, now_ms=NOW)).params)
    assert (params["from"], params["to"]) == (
        "2023-11-14T22:13:19.000Z",
        "2023-11-14T22:13:20.000Z",
    )


def test_only_windows() -> None:
    with pytest.raises(ValueError, match="windows"):
        provider().request(Poll(kind=Kind.BATCH, now_ms=NOW, batch_id="b"))


def test_login() -> None:
    made = logging_in()
    login = made.login()
    assert login is not None
    assert (login.method, login.url) == ("POST", "https://l.example/login")
    assert orjson.loads(login.json or b"") == {"username": "u", "password": "pass-word"}
    assert made.token(Head(200, {"authorization": "Bearer abc"}), b"") == "Bearer abc"
    assert made.token(Head(200, {"authorization": " abc "}), b"") == "abc"
    assert made.token(Head(200, {}), b"") is None
    assert made.token(Head(200, {"authorization": " "}), b"") is None
    assert made.token(Head(401, {"authorization": "Bearer abc"}), b"") is None
    assert provider().login() is None


def test_traits() -> None:
    traits = provider().traits
    assert (traits.feed, traits.paged, traits.dated) == ("windowed", False, True)
    assert (traits.tracks, traits.asks) == (set(), set())
    assert (traits.window_max_ms, traits.window_min_ms) == (91 * 86_400_000, 1)
    assert traits.channels == ("S", "E", "P", "W", "R")
    assert traits.read_channels == ()
    assert provider(channels=("S", "W", "S")).traits.read_channels == ("S", "W")


def test_faults_are_named_all_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        provider(login_url="ftp://x", channels=("S", "Q"), filters={"campaignid": "1"})
    together = "missing; login_url, username and password go together"
    assert str(caught.value).splitlines() == [
        'filters.campaignid: unknown key; the nearest known one is "campaignID"',
        f"username: {together}",
        f"password: {together}",
        "login_url: expected a URL that begins with https:// or http://",
        'channels[1]: expected one of S, E, P, W, R, got "Q"',
    ]
    with pytest.raises(ValueError, match="at least one"):
        provider(channels=())


# -- outcomes --------------------------------------------------------------------------------

TOO_BIG = "The size of the report is too big. Please contact support"
TOO_LONG = "The date range exceeds the allowed limit: 92"


@pytest.mark.parametrize("words", [TOO_BIG, TOO_LONG, TOO_BIG.upper()])
@pytest.mark.parametrize("status", [200, 400, 403, 413, 500])
@pytest.mark.parametrize("items", [{}, {"items": []}, {"items": PRETTY}, {"items": None}])
def test_too_big_asks_for_halves(words: str, status: int, items: dict[str, Any]) -> None:
    as_json = orjson.dumps({"reason": words}).decode()
    places: list[dict[str, Any]] = [
        {"meta": {**META, "explain": words}},
        {"meta": {**META, "explain": as_json}},
        {"meta": {**META, "explain": {"reason": words}}},
        {"explain": words},
        {"message": words},
    ]
    for place in places:
        answer = read({**place, **items}, status)
        assert answer.outcome == Outcome(verb=Verb.SPLIT, cause=words)
        assert len(answer.reports) == len(items.get("items") or [])


def test_a_rate_limit_is_not_a_big_report() -> None:
    outcome = read({"message": "too big a rate"}, 429).outcome
    assert (outcome.verb, outcome.hold) == (Verb.RETRY, True)


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (400, Verb.RETRY, False),
        (401, Verb.PAUSE, False),
        (402, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_refusals(status: int, verb: Verb, hold: bool) -> None:
    body = {"message": "Your connection is being rate limited"}
    outcome = read(body, status).outcome
    cause = f"HTTP {status}: Your connection is being rate limited"
    assert outcome == Outcome(verb=verb, cause=cause, hold=hold)
    outcome = read(body, status, of=logging_in()).outcome
    assert outcome.verb is (Verb.LOGIN if status == 401 else verb)


@pytest.mark.parametrize(
    ("body", "verb", "words"),
    [
        ({"meta": {"explain": "You request is bein processed."}}, Verb.RETRY, "processed"),
        ({"meta": {"explain": '{"reason":"Try later","n":"0"}'}}, Verb.RETRY, "Try later"),
        ({"meta": {"explain": '{"broken'}}, Verb.RETRY, '{"broken'),
        ({"meta": {"explain": {"n": 1}}}, Verb.RETRY, '{"n":1}'),
        ({"meta": {"explain": "Invalid token"}}, Verb.PAUSE, "Invalid token"),
        ({"message": "Unauthorized"}, Verb.PAUSE, "Unauthorized"),
        ({"meta": META}, Verb.RETRY, "no items in the answer"),
        ({"items": {}}, Verb.RETRY, "'items' is not an array"),
        ({}, Verb.RETRY, "no items in the answer"),
        (b"<html>x</html>", Verb.RETRY, "not JSON"),
        (b"", Verb.RETRY, "empty"),
        ({"pagination": {"total": 0}}, Verb.DONE, ""),
        ({"pagination": {"total": 0}, "items": []}, Verb.DONE, ""),
        ({"meta": {"explain": "none found"}, "items": []}, Verb.DONE, ""),
    ],
)
def test_answers_without_items(body: Any, verb: Verb, words: str) -> None:
    outcome = read(body).outcome
    assert outcome.verb is verb
    assert words in outcome.cause
    assert bool(outcome.cause) is bool(words)
    if verb is Verb.PAUSE:
        assert read(body, of=logging_in()).outcome.verb is Verb.LOGIN


def test_a_cause_is_printable_short_and_without_secrets() -> None:
    key = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN"
    words = f"bad pass-word\r\nBearer abc {key} at https://x.example/?a=b " + "w " * 999
    outcome = read({"message": words}, 403, of=logging_in()).outcome
    assert outcome.cause.startswith("HTTP 403: bad ***  Bearer *** *** at *** w w")
    assert len(outcome.cause) <= 210
    assert outcome.cause.isprintable()


def test_a_cut_answer_keeps_its_whole_records() -> None:
    raw = orjson.dumps(ANSWER)
    answer = read(raw[:-30], cut=True)
    assert answer.reports == expected(False)[:4]
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


@pytest.mark.parametrize(
    ("total", "clock", "wanted"),
    [
        ("12", "1692668448063", (12, 1692668448063)),
        (3.0, 1692668448063.0, (3, 1692668448063)),
        (None, None, (None, None)),
        (-1, 12, (None, None)),
        (True, 10**30, (None, None)),
    ],
)
def test_numbers_of_the_envelope(total: Any, clock: Any, wanted: tuple[Any, Any]) -> None:
    body = {"meta": {"timestamp": clock}, "pagination": {"total": total}, "items": []}
    outcome = read(body).outcome
    assert (outcome.verb, outcome.total, outcome.server_ms) == (Verb.DONE, *wanted)
    assert read({"meta": [], "pagination": "x", "items": []}).outcome == Outcome()
