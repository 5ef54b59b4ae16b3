"""The contract, said again: which report wins, what a record's key is, what an answer means.

Written from the contract and the providers' pages, without a look at how the engine reads them.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from hashlib import blake2b
from typing import Any

import orjson

from engine.core.reconcile import Known
from engine.sim.answer import Answer as Said
from engine.sim.answer import Call
from tests.simulation.network import Exchange
from tests.simulation.scenario import AccountPlan

RANKS = {"unknown": 0, "accepted": 1, "enroute": 2, "delivered": 4, "read": 5}  # an end: 3
LETTERS = {"sms": "S", "email": "E", "push": "P", "whatsapp": "W", "rcs": "R"}
FIRST_WORDS = {"avaamo": "sent", "messangi": "QUEUE"}  # of a message of which nothing was said yet

Who = tuple[str, str, str]  # account, message id, direction


def replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Section 4, "which report wins", of two records of one message."""
    if new["verdict"] is not None:
        return not old["final"]
    old_final = old["final"] and old["verdict"] is None
    if old["state"] == "read" or (old_final and not new["final"]):
        return False
    if new["state"] == "unknown" and new["provider_status"] != "70" and not old_final:
        return True  # of a code that no table lists
    if new["done_at"] and old["done_at"] and new["done_at"] != old["done_at"]:
        return bool(new["done_at"] > old["done_at"])
    return RANKS.get(new["state"], 3) >= RANKS.get(old["state"], 3)


def event_id_of(plan: AccountPlan, record: dict[str, Any], entered: int) -> str:
    dated = plan.provider in ("infobip", "messangi") and record["done_at"] is not None
    fact = [
        *(record[k] for k in ("account", "message_id", "direction", "provider_status")),
        *(record[k] for k in ("error_code", "verdict")),
        ms_of(record["done_at"]) if dated else entered,
    ]
    return blake2b(orjson.dumps(fact), digest_size=16).hexdigest()


def ms_of(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def ids_of(known: Known) -> tuple[str | None, ...]:
    return known.message_id, known.batch_id


def brief(record: dict[str, Any] | None) -> str:
    if record is None:
        return "nothing"
    names = ("account", "message_id", "revision", "state", "provider_status", "verdict", "done_at")
    return " ".join(str(record[name]) for name in names)


def key_of(plan: AccountPlan, exchange: Exchange) -> tuple[str, str] | None:
    """Which batch or message is asked for by its id."""
    query = exchange.call.query
    if plan.provider == "bulksms":
        return "batch", query["batch_id"]
    if plan.provider == "infobip":
        for name, kind in (("messageId", "message"), ("bulkId", "batch")):
            if name in query:
                return kind, query[name]
    return None


def refuses(plan: AccountPlan, call: Call, said: Said) -> bool:
    """Wrong credentials, as each provider says it."""
    if plan.provider == "bulksms":
        return said.status == 200 and said.body.startswith(b"23|")
    if call.path == "/login":
        if said.status >= 500 or said.status == 429 or 300 <= said.status < 400:
            return False
        return "authorization" not in said.headers and "html" not in said.content_type
    return said.status == 401 and not plan.logs_in


def rows_of(plan: AccountPlan, exchange: Exchange, body: bytes) -> list[tuple[str, str, str]]:
    """(message id, direction, status) of each row of an answer, read without the engine."""
    if plan.provider == "bulksms":
        batch = exchange.call.query["batch_id"]
        rows = [line.split("|") for line in body.decode().splitlines()[1:] if line]
        seen: dict[str, int] = defaultdict(int)
        found = []
        for row in rows:
            seen[row[0]] += 1
            suffix = f"#{seen[row[0]]}" if seen[row[0]] > 1 else ""
            found.append((f"{batch}:{row[0]}{suffix}", "mt", row[1]))
        return found
    if plan.provider == "infobip" and exchange.said is not None:
        return [(given.message_id, "mt", given.status) for _, given in exchange.said.ledger]
    if not body:
        return []
    data = orjson.loads(body)
    if plan.provider == "avaamo":
        return [(e["uuid"], "mt", e["sms_status"]) for e in data.get("entries", [])]
    if plan.provider == "messangi":
        return [_messangi_row(item) for item in data.get("items", [])]
    return []


def _messangi_row(item: dict[str, Any]) -> tuple[str, str, str]:
    names = ("channel", "sender", "recipient", "date", "direction", "status")
    keys = names if "channel" in item else "abcdtj"
    channel, sender, recipient, date, direction, status = (item[key] for key in keys)
    fact = (channel, sender, recipient.removeprefix("+"), ms_of(date), direction)
    digest = blake2b(orjson.dumps(fact), digest_size=16).hexdigest()
    return digest, "mo" if direction == "I" else "mt", status
