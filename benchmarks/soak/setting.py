"""Who takes part in a soak: accounts of all four providers, on both sides of the wire.

A day of a provider's life is a few seconds here, so that an hour holds many generations of
messages, verdicts included. Whatever a ladder says in days is said in `RUNGS_S`.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

RUNGS_S = (1.0, 3.0, 8.0, 20.0, 40.0, 60.0)
DELAYS = {"enroute": 1.0, "final": 5.0, "read": 8.0, "late": 45.0, "jitter": 0.5}
MIX = {"never": 0.03, "stuck": 0.02, "late": 0.12}
LIFE_S = (DELAYS["late"] + DELAYS["read"]) * (1 + DELAYS["jitter"])
"""The longest that a message's state may still change after it was sent."""
OVERLAP_S = 6
INTERVAL_S, IDLE_INTERVAL_S = 1.0, 2.0
LISTED_S = 2.0
FOUND_S = IDLE_INTERVAL_S + LISTED_S * (1 + DELAYS["jitter"])
"""A feed finds a message within this: the longest interval, and the listing's delay."""
SLACK_S = 0.05
"""How much the network may vary: the worker's `slack`, and what the simulator judges by."""
SECRET = "soak-secret"

ODDS = {
    "500": 0.02, "502": 0.01, "503": 0.02, "429": 0.02, "reset": 0.02, "lost": 0.01, "cut": 0.02,
    "cut_chunked": 0.02, "drip": 0.01, "endless": 0.003, "html": 0.01, "bad_encoding": 0.01,
    "empty": 0.01, "truncated": 0.01, "redirect": 0.01, "redirect_away": 0.01, "wrong_type": 0.01,
}  # fmt: skip
"""How probable a fault is for a request of an account that is not sick: about one in five."""
BULKSMS_ODDS = {"error22": 0.01, "error23": 0.0002, "error24": 0.001, "error40": 0.01}


class Member(msgspec.Struct, kw_only=True):
    """An account of the soak: what the simulator has for it, and what the worker."""

    name: str
    provider: str
    rate: float
    """Messages a second, at a load of 1."""
    batch: int = 1
    """Messages that are sent together."""
    tracked: bool = True
    sick: dict[str, float] | None = None
    """Odds of an account that no request ever gets through to."""
    requests: int = 10
    concurrency: int = 1
    sim: dict[str, Any] = {}
    worker: dict[str, Any] = {}

    @property
    def odds(self) -> dict[str, float]:
        if self.sick is not None:
            return self.sick
        return ODDS | (BULKSMS_ODDS if self.provider == "bulksms" else {})


MEMBERS = (
    Member(name="bulk-1", provider="bulksms", rate=5, batch=10),
    Member(
        name="bulk-2", provider="bulksms", rate=5, batch=25,
        sim={"charset": "latin-1", "declare_charset": True, "header": "results"},
        worker={"method": "POST", "optional_fields": ["body", "completed_time", "created_time"]},
    ),
    Member(name="bulk-sick", provider="bulksms", rate=1, batch=5, sick={"error23": 1.0}),
    Member(
        name="info-1", provider="infobip", rate=8, batch=4,
        sim={"order": "oldest"}, worker={"limit": 50},
    ),
    Member(
        name="info-2", provider="infobip", rate=8, batch=8,
        sim={"gzip": True, "dates": "mixed", "latency": 0.05},
    ),
    Member(name="info-sick", provider="infobip", rate=1, sick={"500": 1.0}),
    Member(name="bot-1", provider="avaamo", rate=5, batch=5, concurrency=2),
    Member(
        name="bot-2", provider="avaamo", rate=5, batch=5, tracked=False, concurrency=2,
        sim={"delays": DELAYS | {"listed": LISTED_S}, "gzip": True}, worker={"per_page": 20},
    ),
    Member(
        name="bot-sick", provider="avaamo", rate=1, tracked=False,
        sick={"html": 0.5, "reset": 0.3, "empty": 0.2},
    ),
    Member(
        name="omni-1", provider="messangi", rate=5, batch=5, tracked=False, concurrency=2,
        sim={"username": "soak", "password": SECRET, "token_life": 120.0, "page_max_items": 60,
             "channels": ["S", "E", "P", "W", "R"]},
        worker={"username": "soak", "password": SECRET},
    ),
    Member(
        name="omni-2", provider="messangi", rate=5, batch=5, tracked=False,
        sim={"authorization": f"Bearer {SECRET}", "report_max_items": 100, "gzip": True,
             "channels": ["S", "W", "R"]},
        worker={"headers": {"Authorization": f"Bearer {SECRET}"}, "pretty": False},
    ),
    Member(
        name="omni-sick", provider="messangi", rate=1, tracked=False,
        sick={"503": 0.6, "cut": 0.2, "lost": 0.2},
        sim={"authorization": f"Bearer {SECRET}"},
        worker={"headers": {"Authorization": f"Bearer {SECRET}"}},
    ),
)  # fmt: skip

_SIM_KEYS: dict[str, dict[str, Any]] = {
    "bulksms": {"username": "soak", "password": SECRET},
    "infobip": {"api_key": SECRET},
    "avaamo": {"access_token": SECRET},
    "messangi": {},
}
_WORKER_KEYS: dict[str, dict[str, Any]] = {
    "bulksms": {"username": "soak", "password": SECRET},
    "infobip": {"api_key": SECRET},
    "avaamo": {"agent_id": 5157, "access_token": SECRET},
    "messangi": {},
}


def profile(seed: int) -> str:
    """The simulator's profile."""
    return "\n".join(
        _table(
            "accounts",
            {
                "name": member.name,
                "provider": member.provider,
                "seed": seed,
                "odds": member.odds,
                "latency": 0.005,
                "latency_jitter": 0.02,
                "delays": DELAYS,
                "mix": MIX,
                "limits": {
                    "requests": member.requests,
                    "per": 1.0,
                    "concurrency": member.concurrency,
                    "slack": SLACK_S,
                },
                **_SIM_KEYS[member.provider],
                **member.sim,
            },
        )
        for member in MEMBERS
    )


def configuration(url: str, start: str) -> str:
    """The worker's configuration; `start` is when the soak began, RFC 3339."""
    parts = ['[store]\nurl = "sqlite:///state.db"\nlog_retention = "1m"\n']
    parts += [_table("accounts", _account(member, url, start)) for member in MEMBERS]
    lines = {"name": "lines", "type": "jsonl", "path": "reports.jsonl"}
    parts.append(_table("sinks", {**lines, "rotate": "4MiB", "compress": "gzip"}))
    parts.append(_table("sinks", {"name": "tables", "type": "sqlite", "path": "reports.db"}))
    return "\n".join(parts)


def _account(member: Member, url: str, start: str) -> dict[str, Any]:
    base = f"{url}/{member.name}"
    rungs = [f"{rung:g}s" for rung in RUNGS_S]
    keys: dict[str, Any] = {
        "name": member.name,
        "provider": member.provider,
        "base_url": base,
        **_WORKER_KEYS[member.provider],
        **member.worker,
        "limits": {
            "requests": member.requests,
            "per": "1s",
            "concurrency": member.concurrency,
            "slack": f"{SLACK_S:g}s",
        },
        "request": {"timeout": "3s", "total_timeout": "10s", "max_body": "8MiB"},
    }
    if member.provider == "messangi" and "username" in keys:
        keys["login_url"] = f"{base}/login"
    if member.provider == "bulksms":
        keys["schedule"] = {"ladder": rungs, "give_up": "10m"}
    elif member.provider == "infobip":
        keys["schedule"] = {"interval": "500ms", "idle_interval": IDLE_INTERVAL_S, "ladder": rungs}
    else:
        keys["schedule"] = {
            "interval": INTERVAL_S, "idle_interval": IDLE_INTERVAL_S, "rescan": rungs
        }  # fmt: skip
        keys |= {"start": start, "overlap": f"{OVERLAP_S}s"}
    return keys


def _table(name: str, keys: dict[str, Any]) -> str:
    return f"[[{name}]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items())


def _toml(value: Any) -> str:
    """A value in a line of TOML; JSON's scalars and arrays are TOML's."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items())
        return "{ " + ", ".join(pairs) + " }"
    return json.dumps(value)
