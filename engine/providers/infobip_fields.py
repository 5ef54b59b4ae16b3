"""How the fields of an Infobip report are read, whatever type they come in.

Each reader takes what fits and leaves the rest, under its own name, in the dictionary that becomes
the record's `extra`. None of them raises for anything that JSON can hold.
"""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any, Final

import msgspec
import orjson

from engine.core.state import State
from engine.core.units import MS_MAX, MS_MIN, iso, parse_ms
from engine.providers.infobip_codes import GROUP_IDS, GROUPS, IN_PASSING, NO_ERROR

_MAPPED_STATUS: Final = frozenset({"name", "description"})
_MAPPED_ERROR: Final = frozenset({"name", "description", "permanent"})
_MAPPED_PRICE: Final = frozenset({"pricePerMessage", "currency"})

_PARTS_MAX: Final = 2**31 - 1
_DECIMAL: Final = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,2})?")
_EPOCH_MS: Final = re.compile(r"[0-9]{11,15}")
_DEPTH_MAX: Final = 100  # of what is set aside; JSON writers give up at 250 and more
_WORDS_DEPTH: Final = 4  # how deep, and
_WORDS_ITEMS: Final = 8  # how broad an explanation is read


def status_of(status: Any, extra: dict[str, Any]) -> tuple[State, str | None, str | None]:
    """State, name and words of `{"groupId", "groupName", "id", "name", "description", …}`."""
    if type(status) is not dict:
        if status is not None:
            extra["status"] = status
        return State.UNKNOWN, None, None
    rest = {name: value for name, value in status.items() if name not in _MAPPED_STATUS}
    name = text_of(status, "name", rest)
    text = text_of(status, "description", rest)
    if rest:
        extra["status"] = rest
    group = status.get("groupId")
    if type(group) is not int or group not in GROUPS:
        group = _group(group, status.get("groupName"))
    state = IN_PASSING.get((group, name or "")) or GROUPS.get(group, State.UNKNOWN)
    if name is None:
        name = plain(status.get("groupName")) or plain(status.get("groupId"))
    return state, name, text


def _group(group: Any, name: Any) -> int:
    """The id of a group given as text or by name alone; 0 where it is none of the five."""
    if type(group) is str and group in ("1", "2", "3", "4", "5"):
        return int(group)
    return GROUP_IDS.get(name.upper(), 0) if type(name) is str else 0


def error_of(error: Any, extra: dict[str, Any]) -> tuple[str | None, str | None, bool | None]:
    """Name, words and permanence of `{"groupId", "groupName", "id", "name", …}`.

    Every report has one; NO_ERROR, which has the id 0, says that there was none.
    """
    if type(error) is not dict:
        if error is not None:
            extra["error"] = error
        return None, None, None
    rest = {name: value for name, value in error.items() if name not in _MAPPED_ERROR}
    if rest:
        extra["error"] = rest
    number = error.get("id")
    if error.get("name") == NO_ERROR or (number == 0 and type(number) is int):
        return None, None, None
    code = text_of(error, "name", rest)
    text = text_of(error, "description", rest)
    permanent = error.get("permanent")
    if permanent is not None and type(permanent) is not bool:
        rest["permanent"] = permanent
        permanent = None
    if rest:
        extra["error"] = rest
    return code, text, permanent


def price_of(price: Any, extra: dict[str, Any]) -> tuple[str | None, str | None]:
    """Amount and currency of `{"pricePerMessage": 0.01, "currency": "EUR"}`."""
    if type(price) is not dict:
        if price is not None:
            extra["price"] = price
        return None, None
    rest = {name: value for name, value in price.items() if name not in _MAPPED_PRICE}
    amount = price.get("pricePerMessage")
    text = _decimal(amount)
    if text is None and amount is not None and amount != "":
        rest["pricePerMessage"] = amount
    currency = text_of(price, "currency", rest)
    if rest:
        extra["price"] = rest
    return text, currency


def _decimal(amount: Any) -> str | None:
    """A decimal without exponent and float noise: 0.01 -> "0.01", 1e-05 -> "0.00001", 0.0 -> "0".

    The shortest text that reads back as the same float is what the provider wrote.
    """
    if type(amount) is str:
        if not _DECIMAL.fullmatch(amount):
            return None
        text = amount
    elif type(amount) is float or type(amount) is int:
        text = repr(amount)
        if text.endswith(".0"):
            text = text[:-2]
    else:
        return None
    if text.isdecimal() or "e" not in text.lower():
        return "0" if text == "-0" else text
    return format(Decimal(text), "f")


def parts_of(record: dict[str, Any], extra: dict[str, Any]) -> int | None:
    """The first of smsCount, messageCount and mmsCount that there is."""
    name = "smsCount"
    value = record.get(name)
    for other in ("messageCount", "mmsCount"):
        if value is not None:
            break
        name = other
        value = extra.pop(other, None)
    if type(value) is str and value.isdecimal() and len(value) < len(str(_PARTS_MAX)):
        value = int(value)
    if type(value) is int and 0 <= value <= _PARTS_MAX:
        return value
    if value is not None and value != "":
        extra[name] = value
    return None


def text_of(source: dict[str, Any], name: str, rest: dict[str, Any], other: str = "") -> str | None:
    """A field that is text, or a number taken as text; "" is null.

    `other` is the name it has elsewhere, still standing in `rest`. What is neither text nor number
    goes into `rest` under its own name.
    """
    value = source.get(name)
    if value is None and other:
        name = other
        value = rest.pop(other, None)
    if type(value) is str:
        return value or None
    if value is None:
        return None
    text = plain(value)
    if text is None:
        rest[name] = value
    return text


def plain(value: Any) -> str | None:
    """Text as it is, an integer as its digits. A float is neither: it may have lost some."""
    if type(value) is str:
        return value
    return str(value) if type(value) is int else None


def time_of(value: Any, zone: tzinfo) -> str | None:
    """A provider's time in RFC 3339, UTC, with milliseconds; None: it is not one.

    Text with any spelling of the offset (`+0000`, `+01:00`, `Z`; none: the account's zone), or
    epoch milliseconds (e-mail).
    """
    if type(value) is str:
        if (
            len(value) == 28 and value.endswith("+0000") and value[19] == "."
            and value[7] == "-" and value[11:13] < "24"
        ):  # fmt: skip
            # The documented spelling in UTC, as nearly all reports have it: no arithmetic needed.
            try:
                datetime.fromisoformat(value)
            except ValueError:
                return None
            return f"{value[:10]}T{value[11:23]}Z"
        if _EPOCH_MS.fullmatch(value):
            value = int(value)
        else:
            ms = parse_ms(value, zone)
            return None if ms is None else iso(ms)
    if type(value) is float and MS_MIN <= value <= MS_MAX:
        value = round(value)
    if type(value) is int and MS_MIN <= value <= MS_MAX:
        return iso(value)
    return None


def explained(envelope: dict[str, Any]) -> tuple[str | None, str]:
    """Code and words of an error body, in either family.

    `{"requestError": {"serviceException": {"messageId", "text", "validationErrors"}}}` or
    `{"errorCode", "description", "action", "violations": […]}`.
    """
    if "requestError" in envelope:
        error = envelope["requestError"]
        if type(error) is dict:
            error = error.get("serviceException") or error
        if type(error) is not dict:
            return None, _words(error)
        code = plain(error.get("messageId"))
        parts = [code, error.get("text"), error.get("validationErrors")]
    elif "errorCode" in envelope or "violations" in envelope:
        code = plain(envelope.get("errorCode"))
        names = ("description", "action", "violations")
        parts = [code, *(envelope.get(name) for name in names)]
    else:
        return None, ""
    return code, ": ".join(filter(None, map(_words, parts)))


def _words(value: Any, depth: int = 0) -> str:
    """Whatever JSON an explanation consists of, as one short text."""
    if value is None or depth > _WORDS_DEPTH:
        return ""
    if type(value) is dict:
        pairs = list(value.items())[:_WORDS_ITEMS]
        return "; ".join(f"{name}: {_words(inner, depth + 1)}" for name, inner in pairs)
    if type(value) is list:
        return ", ".join(_words(inner, depth + 1) for inner in value[:_WORDS_ITEMS])
    return str(value)


def json_of(value: Any) -> bytes:
    """Compact JSON. Integers beyond 64 bits are for msgspec, which keeps them whole.

    Neither writes nesting as deep as a hostile body may have: what is too deep becomes null.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return msgspec.json.encode(_pruned(value, _DEPTH_MAX))


def _pruned(value: Any, depth: int) -> Any:
    if type(value) is dict:
        return {name: _pruned(inner, depth - 1) for name, inner in value.items()} if depth else None
    if type(value) is list:
        return [_pruned(inner, depth - 1) for inner in value] if depth else None
    return value
