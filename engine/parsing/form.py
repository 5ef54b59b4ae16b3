"""One record in `application/x-www-form-urlencoded`, as pushed reports have it: a query, or a body.

A name that stands there twice has a list of what it was given. The encoding has no end mark, so
nothing is read of one that was cut.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from engine.core.contracts import Flaw
from engine.parsing.flaw import set_aside

# A report has a handful of short fields.
FORM_MAX: Final = 64 << 10
FIELDS_MAX: Final = 100


class FormRecord:
    """Bytes in, at most one table of texts out, at the end."""

    def __init__(self) -> None:
        self.rows = 0
        self.complete = False
        self.cause: str | None = None
        self._raw = bytearray()
        self._flaws: list[Flaw] = []

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        if len(self._raw) <= FORM_MAX:
            self._raw += chunk
        return []

    def close(self, *, cut: bool = False) -> list[dict[str, Any]]:
        raw, self._raw = bytes(self._raw), bytearray()
        if cut:
            self.cause = "cut short"
            return []
        self.complete = True
        if not raw.strip():
            return []
        self.rows = 1
        try:
            if len(raw) > FORM_MAX:
                raise ValueError
            return [_table(raw)]
        except ValueError:
            self._flaws.append(set_aside("not a form of a report's size", "form", raw))
            return []

    def take_flaws(self) -> list[Flaw]:
        flaws, self._flaws = self._flaws, []
        return flaws

    def raw(self, record: dict[str, Any]) -> bytes:
        """A record as it stands in a push."""
        return urlencode(record, doseq=True, errors="surrogatepass").encode()

    def frame(self, raw: bytes) -> bytes:
        """A push that holds this record alone."""
        return raw


def completed(body: bytes, query: bytes) -> bytes:
    """What goes behind a body, for the query to count where the body says nothing."""
    said = set(map(_name, body.split(b"&")))
    more = [pair for pair in query.split(b"&") if pair and _name(pair) not in said]
    return b"".join(b"&" + pair for pair in more)


def _name(pair: bytes) -> bytes:
    return unquote_to_bytes(pair.strip().partition(b"=")[0].replace(b"+", b" "))


def _table(raw: bytes) -> dict[str, Any]:
    """Texts by name. They have no stated character set: UTF-8, else Latin-1, which cannot fail."""
    text = raw.decode("latin-1").strip()
    try:
        pairs = _pairs(text, "utf-8")
    except UnicodeDecodeError:
        pairs = _pairs(text, "latin-1")
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name not in table:
            table[name] = value
        elif isinstance(table[name], list):
            table[name].append(value)
        else:
            table[name] = [table[name], value]
    return table


def _pairs(text: str, encoding: str) -> list[tuple[str, str]]:
    return parse_qsl(
        text, keep_blank_values=True, encoding=encoding, errors="strict", max_num_fields=FIELDS_MAX
    )
