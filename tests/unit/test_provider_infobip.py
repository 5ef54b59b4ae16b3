"""Infobip: its options and traits, and the requests it makes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.core.contracts import Head, Kind, Poll
from engine.core.secret import Secret
from engine.providers.infobip import InfobipOptions
from tests.unit.infobip_answers import FEED, KEY, account

# -- options and traits --------------------------------------------------------------------------


def test_traits() -> None:
    traits = account().traits
    assert traits.feed == "drained"
    assert traits.one_time
    assert traits.dated
    assert traits.tracks == {"batch", "message"}
    assert traits.asks == frozenset()
    assert traits.concurrency == 1
    assert traits.ladder_s[0] == 300
    by_id = account(drain=False).traits
    assert by_id.feed is None
    assert by_id.asks == {"batch", "message"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"api_key": None}, ["api_key"]),
        ({"api_key": Secret("k"), "authorization": Secret("Bearer x")}, ["api_key"]),
        ({"api_key": Secret("k"), "username": "u", "password": Secret("p")}, ["api_key"]),
        ({"username": "u"}, ["password"]),
        ({"password": Secret("p")}, ["username"]),
        ({"username": "a:b", "password": Secret("p")}, ["username"]),
        ({"api_key": Secret("a\nX-Other: b")}, ["api_key"]),
        ({"authorization": Secret(" ")}, ["authorization"]),
        ({"limit": 0}, ["limit"]),
        ({"limit": 1001, "path": "sms", "channel": "sns"}, ["limit", "path", "channel"]),
        ({"path": "/sms/1/reports?limit=null"}, ["path"]),
    ],
)
def test_faults(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        account(**options)
    assert [line.partition(":")[0] for line in str(caught.value).split("\n")] == names


def test_the_nearest_channel_is_named() -> None:
    with pytest.raises(ValueError, match="'whatsapp'"):
        account(channel="whatsap")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"api-key": "x"}, InfobipOptions)


# -- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poll", "params"),
    [
        ({"kind": Kind.FEED}, (("limit", "1000"),)),
        ({"kind": Kind.MESSAGE, "message_id": "m"}, (("messageId", "m"), ("limit", "1000"))),
        ({"kind": Kind.BATCH, "batch_id": "b"}, (("bulkId", "b"), ("limit", "1000"))),
        ({"kind": Kind.PROBE, "nonce": "n"}, (("messageId", "n"), ("limit", "1"))),
    ],
)
def test_requests(poll: dict[str, Any], params: tuple[tuple[str, str], ...]) -> None:
    request = account().request(Poll(now_ms=0, **poll))
    assert (request.method, request.path) == ("GET", "/sms/1/reports")
    assert request.params == params
    assert dict(request.headers) == {"Authorization": f"App {KEY}", "Accept": "application/json"}
    assert KEY not in repr(request)


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.BATCH, Kind.WINDOW, Kind.PROBE])
def test_a_poll_without_its_id_would_take_everything(kind: Kind) -> None:
    with pytest.raises(ValueError):
        account().request(Poll(kind=kind, now_ms=0))


def test_other_ways_to_log_in_and_other_paths() -> None:
    basic = account(username="jö", password=Secret("pä"), path="/email/1/reports", limit=7)
    request = basic.request(FEED)
    assert request.path == "/email/1/reports"
    assert request.params == (("limit", "7"),)
    assert request.headers[0] == ("Authorization", "Basic asO2OnDDpA==")
    whole = account(authorization=Secret("IBSSO tok")).request(FEED)
    assert whole.headers[0] == ("Authorization", "IBSSO tok")
    assert account().login() is None
    assert account().token(Head(200, {}), b"") is None
