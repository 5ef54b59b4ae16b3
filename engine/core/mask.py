"""Taking secrets out of what a provider or a sink says, however they are spelled there.

What is asked may come back in an answer: as it was, URL-encoded, escaped for JSON or HTML, in
base64 behind whatever stood before it ("user:password"), or in hex. Nothing of that may be kept or
logged.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from .report import Report

MASKED: Final = "***"

# A shorter secret is no secret in base64, and would take innocent words out of reports.
ENCODED_MIN: Final = 6
# The shortest part of a secret that an answer is looked through for.
NEEDLE_MIN: Final = 4
# The beginning of a secret at the very end of a text that was cut off.
BEGINNING_MIN: Final = 4

DEPTH_MAX: Final = 1100

_WORD = re.compile(rb"[A-Za-z0-9]+")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}


class Mask:
    """Knows some secrets; puts `***` in their place."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: dict[str, None] = {}
        self._pattern: re.Pattern[bytes] | None = None
        self._needles: tuple[bytes, ...] = ()
        self.reach = 0  # bytes of the longest needle
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """One more, such as the token that a login has brought."""
        if secret and secret not in self._secrets:
            self._secrets[secret] = None
            self._pattern = None
            needles = {*self._needles, *_needles(secret)}
            self._needles = tuple(sorted(needles))
            self.reach = max(map(len, needles), default=0)

    def raw(self, raw: bytes, *, cut: bool = False) -> bytes:
        """Bytes without the secrets; `cut`: also without the beginning of one at their end."""
        if not self._secrets:
            return raw
        if self._pattern is None:
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._pattern = re.compile(b"|".join(map(_spelled, longest_first)), re.DOTALL)
        raw = self._pattern.sub(MASKED.encode(), raw)
        return self._without_beginning(raw) if cut else raw

    def _without_beginning(self, raw: bytes) -> bytes:
        for secret in self._secrets:
            plain = secret.encode("utf-8", "surrogateescape")
            for size in range(len(plain) - 1, BEGINNING_MIN - 1, -1):
                if raw.endswith(plain[:size]):
                    return raw[:-size] + MASKED.encode()
        return raw

    def text(self, text: str, *, cut: bool = False) -> str:
        if not self._secrets:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        return self.raw(raw, cut=cut).decode("utf-8", "surrogatepass")

    def holds(self, piece: bytes) -> bool:
        """Whether the bytes may hold a secret: quick, and never wrong where it says no."""
        return any(needle in piece for needle in self._needles)

    def report(self, report: Report) -> Report:
        """A report whose texts may hold a secret."""
        fields = {
            name: self._walk(getattr(report, name), 0)
            for name in report.__struct_fields__
            if name not in ("state", "direction", "reason")
        }
        return msgspec.structs.replace(report, **fields)

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if depth > DEPTH_MAX:
            return None
        if isinstance(value, dict):
            return {self._walk(k, depth): self._walk(v, depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [self._walk(inner, depth + 1) for inner in value]
        return value


class Watch:
    """Looks for a mask's secrets in the pieces of one answer."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._tail = b""
        self.seen = False

    def look(self, piece: bytes) -> None:
        if not self.seen:
            self.seen = self._mask.holds(self._tail + piece)
            self._tail = (self._tail + piece)[-self._mask.reach :]


def _spelled(secret: str) -> bytes:
    """A pattern of every spelling of a secret."""
    ways = [b"".join(map(_letter, secret))]
    plain = secret.encode("utf-8", "surrogateescape")
    if len(plain) >= ENCODED_MIN:
        for shift in range(3):
            core = re.escape(_core(plain, shift)).replace(rb"\+", b"[+-]").replace(b"/", b"[/_]")
            before = b"[A-Za-z0-9+/_-]?" if shift else b""
            ways.append(before + core + b"(?:[A-Za-z0-9+/_-]?={0,2})")
        ways.append(b"(?i:" + plain.hex().encode() + b")")
    return b"|".join(ways)


def _letter(letter: str) -> bytes:
    """One character as it is, or as URLs, JSON and HTML write it."""
    plain = letter.encode("utf-8", "surrogateescape")
    if letter.isascii() and letter.isalnum():
        return plain
    ways = {re.escape(plain), b"(?i:" + _percent(plain) + b")", b"\\\\{1,8}" + re.escape(plain)}
    units = letter.encode("utf-16-be", "surrogatepass")
    escaped = b"".join(
        b"\\\\{1,8}u%02x%02x" % (units[at], units[at + 1]) for at in range(0, len(units), 2)
    )
    ways.add(b"(?i:" + escaped + b")")
    ways.add(b"(?i:&\\#(?:%d|x0*%x);)" % (ord(letter), ord(letter)))
    if letter in _HTML:
        ways.add(_HTML[letter].encode())
    if letter == " ":
        ways.add(b"\\+")
    if ord(letter) < 256:  # answers have no stated character set
        latin = letter.encode("latin-1")
        ways |= {re.escape(latin), b"(?i:" + _percent(latin) + b")"}
    return b"(?:" + b"|".join(sorted(ways)) + b")"


def _percent(raw: bytes) -> bytes:
    return b"".join(b"%%(?:25){0,2}%02x" % byte for byte in raw)  # also encoded again


def _core(plain: bytes, shift: int) -> bytes:
    """What base64 makes of `plain` behind `shift` (mod 3) other bytes, as far as these and what
    follows have no part in it."""
    encoded = b64encode(bytes(shift) + plain)
    return encoded[(0, 2, 3)[shift] : 8 * (shift + len(plain)) // 6]


def _needles(secret: str) -> set[bytes]:
    """Pieces one of which stands in every spelling of a secret."""
    plain = secret.encode("utf-8", "surrogateescape")
    longest = max(_WORD.findall(plain), key=len, default=b"")
    found = {longest if len(longest) >= NEEDLE_MIN else plain}
    if len(plain) >= ENCODED_MIN:
        for shift in range(3):
            core = _core(plain, shift)
            found.add(max(_WORD.findall(core), key=len, default=core))
        found |= {plain.hex().encode(), plain.hex().upper().encode()}
    return found
