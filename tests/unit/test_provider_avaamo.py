"""Avaamo: what is asked, with which options, and what an answer says beside its entries."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from engine.core.contracts import Head, Kind, Outcome, Poll, Verb
from engine.core.secret import Secret
from engine.providers.avaamo import AvaamoOptions
from tests.unit.avaamo_answers import NOW, SAMPLE, provider, read, window

# -- requests --------------------------------------------------------------------------------


def test_request() -> None:
    made = provider(filters={"status": "failed", "to_phone": "+17778889999"}, per_page=50)
    poll = Poll(kind=Kind.FEED, now_ms=NOW, from_ms=1672123097000, to_ms=1670940238492, page=3)
    request = made.request(poll)
    assert (request.method, request.path) == ("GET", "/api/v1/agents/5157/sms/report.json")
    assert request.params == (
        ("from_timetoken", "1672123097"),
        ("to_timetoken", "1670940238.492"),
        ("page", "3"),
        ("per_page", "50"),
        ("status", "failed"),
        ("to_phone", "+17778889999"),
    )
    assert dict(request.headers) == {"access-token": "tok-secret", "Accept": "application/json"}
    assert "tok-secret" not in repr(request)


def test_probe_is_one_second_and_one_entry() -> None:
    request = provider().request(Poll(kind=Kind.PROBE, now_ms=NOW))
    assert request.params == (
        ("from_timetoken", "1699999999"),
        ("to_timetoken", "1700000000"),
        ("page", "1"),
        ("per_page", "1"),
    )


def test_agent_id_cannot_leave_its_place() -> None:
    request = provider(agent_id="a/b?c").request(window())
    assert request.path == "/api/v1/agents/a%2Fb%3Fc/sms/report.json"


def test_only_windows() -> None:
    with pytest.raises(ValueError, match="windows"):
        provider().request(Poll(kind=Kind.MESSAGE, now_ms=NOW, message_id="m"))


def test_traits() -> None:
    traits = provider().traits
    assert (traits.feed, traits.paged, traits.dated) == ("windowed", True, False)
    assert (traits.tracks, traits.asks, traits.channels) == ({"message"}, set(), ())
    assert (traits.window_max_ms, traits.window_min_ms) == (7 * 86_400_000, 1000)
    assert traits.rescan_s == (300, 1800, 7200, 18000, 86400, 172800, 432000)
    assert provider().login() is None
    assert provider().token(Head(200, {"authorization": "x"}), b"") is None


def test_faults_are_named_all_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        provider(
            per_page=101,
            filters={"stats": "x", "phone_to": "y"},
            agent_id="",
            access_token=Secret(""),
        )
    assert str(caught.value).splitlines() == [
        'filters.stats: unknown key; the nearest known one is "status"',
        'filters.phone_to: unknown key; the nearest known one is "to_phone"',
        "per_page: expected 1 to 100, got 101",
        "agent_id: expected the agent's number",
        "access_token: is empty",
    ]


def test_options_know_their_keys() -> None:
    with pytest.raises(msgspec.ValidationError, match="per_pages"):
        msgspec.convert({"agent_id": 1, "access_token": Secret("x"), "per_pages": 1}, AvaamoOptions)


# -- outcomes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "verb", "hold"),
    [
        (401, Verb.PAUSE, False),
        (402, Verb.PAUSE, False),
        (403, Verb.PAUSE, False),
        (404, Verb.RETRY, False),
        (422, Verb.RETRY, False),
        (429, Verb.RETRY, True),
        (500, Verb.RETRY, False),
        (503, Verb.RETRY, True),
    ],
)
def test_refusals(status: int, verb: Verb, hold: bool) -> None:
    outcome = read({"error": "To Date cannot be before From Date"}, status).outcome
    cause = f"HTTP {status}: To Date cannot be before From Date"
    assert outcome == Outcome(verb=verb, cause=cause, hold=hold)


def test_a_cause_is_printable_short_and_without_secrets() -> None:
    words = "bad token tok-secret\r\n\x1b[31m see https://x.example/?a=tok-secret " + "w" * 999
    outcome = read({"message": words}, 401).outcome
    assert outcome.cause.startswith("HTTP 401: bad token ***   [31m see *** www")
    assert len(outcome.cause) <= 210
    assert outcome.cause.isprintable()


def test_html_under_an_error() -> None:
    outcome = read(b"<html>Bad gateway</html>", 502).outcome
    assert (outcome.verb, outcome.cause) == (Verb.RETRY, "HTTP 502")


@pytest.mark.parametrize(
    ("body", "verb", "words"),
    [
        ({"error": "no such agent"}, Verb.RETRY, "no entries in the answer: no such agent"),
        ({"error": "Invalid access token"}, Verb.PAUSE, "Invalid access token"),
        ({"total_entries": 3}, Verb.RETRY, "no entries in the answer"),
        ({}, Verb.RETRY, "no entries in the answer"),
        ({"total_entries": 3, "entries": {}}, Verb.RETRY, "'entries' is not an array"),
        (b"<html>hello</html>", Verb.RETRY, "not JSON"),
        (b"", Verb.RETRY, "empty"),
        ({"total_entries": 0}, Verb.DONE, ""),
        ({"total_entries": 0, "entries": None}, Verb.DONE, ""),
        ({"total_entries": 0, "entries": []}, Verb.DONE, ""),
    ],
)
def test_answers_without_entries(body: Any, verb: Verb, words: str) -> None:
    outcome = read(body).outcome
    assert outcome.verb is verb
    assert words in outcome.cause
    assert bool(outcome.cause) is bool(words)


def test_a_cut_answer_keeps_its_whole_entries() -> None:
    raw = orjson.dumps({"total_entries": 2, "entries": SAMPLE["entries"]})
    answer = read(raw[:-30], cut=True)
    assert [r.provider_status for r in answer.reports] == ["sent"]
    assert answer.outcome.verb is Verb.RETRY
    assert answer.outcome.cause


@pytest.mark.parametrize(
    ("given", "total", "server_ms"),
    [
        ({"total_entries": "12", "time_token": "1670940238.4926484"}, 12, 1670940238493),
        ({"total_entries": None, "time_token": None}, None, None),
        ({"total_entries": 3.0, "time_token": 12}, 3, None),
        ({"total_entries": 2.5, "time_token": 1e300}, None, None),
        ({"total_entries": -1, "time_token": True}, None, None),
        ({"total_entries": True, "time_token": []}, None, None),
    ],
)
def test_numbers_of_the_envelope(given: dict[str, Any], total: Any, server_ms: Any) -> None:
    outcome = read({**SAMPLE, **given}).outcome
    assert (outcome.verb, outcome.total, outcome.server_ms) == (Verb.DONE, total, server_ms)


def test_pages_are_what_the_provider_says() -> None:
    outcome = read({**SAMPLE, "current_page": 1, "total_pages": 8}, page=2).outcome
    assert (outcome.page, outcome.pages) == (1, 8)
