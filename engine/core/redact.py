"""`redact = ["recipient"]`: a keyed hash in the place of every spelling of a person's number.

The hash is of the number as digits with its country code, so that `+44 7700 900001` and
`00447700900001` give the same one in every record, account and provider, and joins still work. It
is recognised by its shape and never hashed again: what was redacted may come in once more.

Three things are redacted. A decoded record says which of its fields is the recipient: what stands
there becomes the hash, and every other spelling of it in that record with it. Prose (an error's
words) and bytes that were set aside may name a number without saying so: there everything that
looks like a telephone number goes. Bytes keep their framing, so that they can be read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import orjson
from msgspec.structs import force_setattr

from .report import Report
from .spelling import (
    ESCAPED_PLUS,
    NATIONAL_MIN,
    NUMBER_MIN,
    REDACTED,
    RUN,
    Own,
    address_of,
    digits_of,
    numbers_by_looks,
)

KEY_BYTES: Final = 32
HASH_BYTES: Final = 12

# Values nested deeper than this become null.
DEPTH_MAX: Final = 1100

# So much of what was cut off is looked at for the beginning of a number, gaps included.
CUT_OFF_MAX: Final = 64

# JSON as it may come, also cut or damaged: strings, and what is between them.
_JSON = re.compile(r'"(?:[^"\\]|\\.)*"?|[^"]+', re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.+-])[0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?(?![\w.])")
# No number stands in a text without this.
_MAY_HOLD = re.compile(r"[0-9][^A-Za-z]{0,12}[0-9]|%2[0-9BDbd]|\\u(?:00|20|22)|&nbsp;")
# Fields whose digits are no telephone number, whatever they look like.
_NO_NUMBER = re.compile(
    r"(?:id|uuid|token|date|time|at|count|total|pages?|code|status|price|mccmnc)$|^[dijkoptuv]$"
)
_FIRST_COLUMN = re.compile(r"(?m)^([ \t]*)(\+?[0-9(][0-9 ().+-]{3,}[0-9])(?=[ \t]*(?:$|[\r|;,\t]))")
_DELIMITER = re.compile(r"[,;\t]")
_CUT_OFF = re.compile(r"[0-9][0-9 ().+-]{2,}$")

NOBODY = Own()


class Redactor:
    """Redacts for one account. All with the same key give the same hashes.

    The fields are names in lower case: of a record's recipient, and of its sender, which is the
    person where the record is of an inbound message.
    """

    def __init__(
        self,
        key: bytes,
        *,
        recipient_fields: frozenset[str] = frozenset(),
        sender_fields: frozenset[str] = frozenset(),
    ) -> None:
        self._key = key
        self._recipient_fields = recipient_fields
        self._sender_fields = sender_fields

    def token(self, recipient: str) -> str:
        """The hash that stands for a recipient; a hash stays as it is."""
        if not recipient.strip() or REDACTED.fullmatch(recipient):
            return recipient
        number = digits_of(recipient)
        return self._address(address_of(recipient)) if number is None else self._number(number)

    def _number(self, digits: str) -> str:
        return "tel_" + self._hash(digits)

    def _address(self, address: str) -> str:
        return "adr_" + self._hash(address)

    def _hash(self, text: str) -> str:
        raw = text.encode("utf-8", "surrogateescape")
        return blake2b(raw, digest_size=HASH_BYTES, key=self._key).hexdigest()

    # Texts

    def text(self, text: str, own: Own, *, bare: bool = False) -> str:
        """Without `own` in any spelling, and without numbers that are written as international
        ones; `bare`: without anything that is as long as a telephone number."""
        if own.addresses:
            spans = sorted(own.addresses_in(text))
            text = _replaced(text, ((a, b, self._address(address)) for a, b, address in spans))
        if _MAY_HOLD.search(text) is None:
            return text
        return _replaced(text, self._numbers_in(text, own, bare))

    def _numbers_in(self, text: str, own: Own, bare: bool) -> Iterable[tuple[int, int, str]]:
        for run in RUN.finditer(text):
            at = run.start()
            if run["done"] is not None or run.end() - at < NUMBER_MIN:
                continue
            for start, stop, number in own.numbers_in(run):
                yield from self._by_looks(text, at, start, bare)
                yield start, stop, self._number(number)
                at = stop
            yield from self._by_looks(text, at, run.end(), bare)

    def _by_looks(
        self, text: str, start: int, stop: int, bare: bool
    ) -> Iterable[tuple[int, int, str]]:
        if stop - start >= NATIONAL_MIN and (part := RUN.search(text, start, stop)):
            for first, last in numbers_by_looks(part, bare=bare):
                yield first, last, self.token(text[first:last])

    def prose(self, words: str) -> str:
        """Words of a provider that are logged, or kept beside a report."""
        return self.text(words, NOBODY, bare=True)

    # Decoded records

    def records(self, records: Sequence[Any]) -> list[Any]:
        """Decoded records (tables, or rows that begin with the recipient), redacted."""
        return [self._record(record) for record in records]

    def _record(self, record: Any) -> Any:
        if isinstance(record, str):
            return self.prose(record)
        fields = self._recipient_fields
        if isinstance(record, list) and record and isinstance(record[0], str):
            own = Own([record[0]])
            return [self.token(record[0]), *(self._walk(v, own, fields, 0) for v in record[1:])]
        if isinstance(record, dict) and self._inbound(record):
            fields |= self._sender_fields
        own = Own()
        self._gather(record, own, fields, 0)
        return self._walk(record, own, fields, 0)

    def _inbound(self, record: Mapping[Any, Any]) -> bool:
        if not self._sender_fields:
            return False
        directions = (v for k, v in record.items() if _name(k) in ("direction", "t"))
        return any(isinstance(v, str) and v.strip().upper().startswith("I") for v in directions)

    def _gather(self, value: Any, own: Own, fields: frozenset[str], depth: int) -> None:
        """The persons in a record, at whatever depth."""
        if depth > DEPTH_MAX:
            return
        if isinstance(value, dict):
            for name, inner in value.items():
                if _name(name) in fields:
                    for text in _texts(inner):
                        own.add(text)
                if isinstance(inner, (dict, list)):
                    self._gather(inner, own, fields, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                if isinstance(inner, (dict, list)):
                    self._gather(inner, own, fields, depth + 1)

    def _walk(self, value: Any, own: Own, fields: frozenset[str], depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value, own)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            text = _plain(value)
            if len(text) < NUMBER_MIN or "." in text:
                return value
            changed = self.text(text, own)
            return value if changed == text else changed
        if not isinstance(value, (dict, list)):
            return value
        if depth > DEPTH_MAX:
            return None
        if isinstance(value, list):
            return [self._walk(inner, own, fields, depth + 1) for inner in value]
        return {
            self.text(name, own) if isinstance(name, str) else name: self._person(inner)
            if _name(name) in fields and _texts(inner)
            else self._walk(inner, own, fields, depth + 1)
            for name, inner in value.items()
        }

    def _person(self, value: Any) -> Any:
        """A recipient, or a list of them."""
        if isinstance(value, list):
            return [self._person(inner) for inner in value]
        return value if value is None or isinstance(value, bool) else self.token(_plain(value))

    def report(self, report: Report) -> Report:
        """What the provider's words say besides, changed in place."""
        for name in ("error_text", "provider_status_text", "content", "subject"):
            words = getattr(report, name)
            if words is not None:
                force_setattr(report, name, self.prose(words))
        return report

    # Bytes that were set aside

    def raw(self, raw: bytes, *, truncated: bool = False) -> bytes:
        """The same bytes, framed as they were: to be read again, or by people."""
        text = raw.decode("utf-8", "surrogateescape")
        framed = text.lstrip().startswith(("{", "[", '"'))
        text = self._json(text) if framed else self._table(text) or self._lines(text)
        last = max(0, len(text) - CUT_OFF_MAX)
        if truncated and (cut := _CUT_OFF.search(text, last)) and not _ends_redacted(text):
            text = text[: cut.start()]  # a number may be cut off in its middle
        return text.encode("utf-8", "surrogateescape")

    def _table(self, text: str) -> str | None:
        """Rows behind a row of names; None: it is no such table. In which cell the person stands
        of a row that could not be read nobody knows: a hash stands for all of it."""
        head, end, rows = text.partition("\n")
        names = {_name(word.strip().strip('"')) for word in _DELIMITER.split(head)}
        if not end or names.isdisjoint(self._recipient_fields):
            return None
        return head + end + (rows if REDACTED.fullmatch(rows) else self._address(rows))

    def _lines(self, text: str) -> str:
        own = Own(found[2] for found in _FIRST_COLUMN.finditer(text))
        text = _FIRST_COLUMN.sub(lambda found: found[1] + self.token(found[2]), text)
        return self.text(text, own, bare=True)

    def _json(self, text: str) -> str:
        fields = list(self._fields_of(text))
        own = Own(one for _, part, person in fields if person for one in _persons(part))
        done: list[str] = []
        for name, part, person in fields:
            if person:
                done.append(self._field(part))
            elif part.startswith('"'):
                bare = bool(name) and not _NO_NUMBER.search(name)
                done.append(self.text(part, own, bare=bare))
            else:
                done.append(_NUMBER.sub(lambda found: self._json_number(found[0], own), part))
        return "".join(done)

    def _fields_of(self, text: str) -> Iterable[tuple[str, str, bool]]:
        """The parts of a JSON text, each with its field's name ("" for a name itself) and whether
        it is a person."""
        parts = _JSON.findall(text)
        name = ""
        table: list[tuple[str, str]] = []  # the innermost one, flat
        for index, part in enumerate(parts):
            quoted = part.startswith('"')
            if quoted and index + 1 < len(parts) and parts[index + 1].lstrip().startswith(":"):
                table.append(("", part))
                name = _name(_unquoted(part))
                continue
            table.append((name, part))
            if not quoted and ("{" in part or "}" in part):
                yield from self._judged(table)
                table = []
        yield from self._judged(table)

    def _judged(self, table: list[tuple[str, str]]) -> Iterable[tuple[str, str, bool]]:
        fields = self._recipient_fields
        if self._inbound({name: _unquoted(part) for name, part in table if part[0] == '"'}):
            fields |= self._sender_fields
        for name, part in table:
            yield name, part, name in fields and bool(_persons(part))

    def _field(self, part: str) -> str:
        """A recipient's value, a string or numbers."""
        if part.startswith('"'):
            closed = '"' if len(part) > 1 and part.endswith('"') else ""
            return '"' + self.token(_unquoted(part)) + closed
        return _NUMBER.sub(lambda found: f'"{self.token(_written_out(found[0]))}"', part)

    def _json_number(self, number: str, own: Own) -> str:
        plain = _written_out(number)
        changed = self.text(plain, own) if plain.isdigit() else plain
        return number if changed == plain else f'"{changed}"'


def is_redacted(recipient: str | None) -> bool:
    return recipient is not None and REDACTED.fullmatch(recipient) is not None


def spells(text: str, recipients: Iterable[str]) -> bool:
    """Whether the text holds one of the recipients in any spelling."""
    own = Own(recipients)
    known = (own.numbers_in(run) for run in RUN.finditer(text) if run["done"] is None)
    return any(any(True for _ in hits) for hits in (own.addresses_in(text), *known))


def key_of(secret: str) -> bytes:
    """The key that a configured secret stands for."""
    return blake2b(secret.encode(), digest_size=KEY_BYTES, person=b"dlr redact key").digest()


def fingerprint(key: bytes) -> str:
    """Tells keys apart and gives nothing of them away."""
    return blake2b(b"fingerprint", digest_size=8, key=key).hexdigest()


def _replaced(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """With the spans, from left to right, replaced; one that overlaps the one before is not."""
    parts: list[str] = []
    end = 0
    for start, stop, new in spans:
        if start >= end:
            parts += (text[end:start], new)
            end = stop
    return "".join((*parts, text[end:])) if parts else text


def _ends_redacted(text: str) -> bool:
    return re.search(rf"(?:{REDACTED.pattern})$", text[-40:]) is not None


@lru_cache(maxsize=4096)
def _name(name: object) -> str:
    return name.strip().lower().removeprefix("items.") if isinstance(name, str) else ""


def _texts(value: Any) -> list[str]:
    """The recipients that stand in a field: a text, a number, or an array of such."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [_plain(value)]
    if isinstance(value, list) and not any(isinstance(inner, (dict, list)) for inner in value):
        return [text for inner in value for text in _texts(inner)]
    return []


def _persons(part: str) -> list[str]:
    if part.startswith('"'):
        person = _unquoted(part)
        return [person] if person else []
    return [_written_out(number) for number in _NUMBER.findall(part)]


def _plain(value: Any) -> str:
    """A value as text; a telephone number that came as a float (447700900001.0) as digits."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def _written_out(number: str) -> str:
    """The same of a number as JSON spells it."""
    return number if number.isdigit() else _plain(float(number))


def _unquoted(part: str) -> str:
    """A string's value, also where it is cut off or damaged."""
    try:
        return str(orjson.loads(part))
    except orjson.JSONDecodeError:
        return ESCAPED_PLUS.sub("+", part.strip('"'))
