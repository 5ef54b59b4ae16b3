"""What `check` tells of a configuration."""

from __future__ import annotations

from typing import Any

from test_config import HIDDEN, account, parse

import engine
from engine import config


def test_http_is_described_with_what_is_to_be_said_of_it() -> None:
    def described(**http: Any) -> list[str]:
        lines = config.describe(parse({"accounts": [account()], "http": http}))
        return lines[1 : next(n for n, line in enumerate(lines) if line.startswith("account"))]

    long = HIDDEN * 16
    assert described(token=long) == [
        "http: listens on 127.0.0.1:9464; /v1/* asks for the token ***"
    ]
    assert described() == ["http: listens on 127.0.0.1:9464; /v1/* is shut: there is no token"]
    assert "can be guessed" in described(token="short")[1]
    for place in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "dlr.example.com:1"):
        assert "WARNING" in described(listen=place)[1]
        assert "nothing is encrypted" in described(listen=place)[1]
    for place in ("127.0.0.2:1", "[::1]:1", "localhost:1"):
        assert len(described(listen=place)) == 1


def test_describe_says_what_runs_and_no_secret() -> None:
    found = parse(
        {
            "accounts": [
                account(headers={"Authorization": HIDDEN}, keys={"k": HIDDEN}, start=0),
            ],
            "sinks": [{"name": "s", "type": "file", "path": "x", "url": f"x://u:{HIDDEN}@h"}],
        }
    )
    text = "\n".join(config.describe(found))
    assert HIDDEN not in text
    assert HIDDEN not in repr(found)
    assert "account a: fake at https://api.example.com/x" in text
    assert "3 in 1s (slack 5ms) and 100 in 1m (slack 300ms); 2 at a time" in text
    assert "up to 8640 for the feed and 2 over its life" in text
    assert "the limits allow 144000" in text
    assert "from 1970-01-01T00:00:00.000Z" in text
    assert "sink s: file; all accounts; all states; from the oldest record kept" in text


def test_a_filter_by_status_is_warned_of() -> None:
    """What comes to the status later than the overlap is in a window that nobody reads again."""
    bot = {
        "name": "bot", "provider": "avaamo", "base_url": "https://api.example.com",
        "agent_id": 7, "access_token": HIDDEN, "overlap": "2h",
    }  # fmt: skip

    def warned(filters: dict[str, str]) -> list[str]:
        found = engine.configure({"accounts": [{**bot, "filters": filters}]})
        return [line for line in config.describe(found) if "WARNING" in line]

    (warning,) = warned({"status": "failed"})
    assert "filters.status" in warning
    assert "later than the overlap of 2h" in warning
    assert warned({"to_phone": "+1415"}) == []
