"""What whoever writes a loop by hand might map: the contract's fields, without `event_id`,
`revision`, `extra` and whatever does not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

_STATES = {"delivered": "delivered", "failed": "rejected", "undelivered": "undeliverable"}
_GROUPS = {1: "enroute", 2: "undeliverable", 3: "delivered", 4: "expired", 5: "rejected"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str) -> str:
    return f"{text[:23]}Z"


def infobip(record: dict[str, Any]) -> dict[str, Any]:
    status, error, price = record["status"], record["error"], record["price"]
    state = _GROUPS.get(status["groupId"], "unknown")
    failed = error["id"] != 0
    return {
        "provider": "infobip",
        "channel": "sms",
        "direction": "mt",
        "message_id": record["messageId"],
        "batch_id": record["bulkId"],
        "sender": record["from"],
        "recipient": record["to"],
        "msisdn": record["to"],
        "state": state,
        "final": state != "enroute",
        "provider_status": status["name"],
        "provider_status_text": status["description"],
        "error_code": error["name"] if failed else None,
        "error_text": error["description"] if failed else None,
        "error_permanent": error["permanent"] if failed else None,
        "sent_at": _time(record["sentAt"]),
        "done_at": _time(record["doneAt"]),
        "observed_at": _now(),
        "parts": record["smsCount"],
        "price": str(price["pricePerMessage"]),
        "currency": price["currency"],
        "mcc_mnc": record["mccMnc"],
    }


def avaamo(record: dict[str, Any]) -> dict[str, Any]:
    state = _STATES.get(record["sms_status"], "enroute")
    created = datetime.fromtimestamp(record["created_at"], UTC)
    return {
        "provider": "avaamo",
        "channel": "sms",
        "direction": "mt",
        "message_id": record["uuid"],
        "sender": record["from_phone"],
        "recipient": record["to_phone"],
        "msisdn": record["to_phone"].removeprefix("+"),
        "state": state,
        "final": state != "enroute",
        "provider_status": record["sms_status"],
        "error_text": record.get("sms_status_response"),
        "sent_at": _time(created.isoformat(timespec="milliseconds")),
        "observed_at": _now(),
    }


def bulksms(record: dict[str, Any]) -> dict[str, Any]:
    msisdn, code, *_ = record["row"]
    return {
        "provider": "bulksms",
        "channel": "sms",
        "direction": "mt",
        "message_id": f"{record['batch_id']}:{msisdn}",
        "batch_id": str(record["batch_id"]),
        "recipient": msisdn,
        "msisdn": msisdn,
        "state": "delivered" if code == "11" else "enroute",
        "final": code == "11",
        "provider_status": code,
        "observed_at": _now(),
    }
