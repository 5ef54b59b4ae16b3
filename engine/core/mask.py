"""Taking secrets out of what a provider or a sink says, however they are spelled there.

What is asked may come back in an answer: as it was, URL-encoded, escaped for JSON or HTML, in
base64 behind whatever stood before it ("user:password"), or in hex. Nothing of that may be kept or
logged.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import msgspec

from .report import Report

MASKED: Final = "***"

# A shorter secret is no secret in base64, and would take innocent words out of reports.
ENCODED_MIN: Final = 6
# The beginning of a secret at the very end of a text that was cut off.
BEGINNING_MIN: Final = 4

# Shorter secrets may stand in a report by chance; of letters or of digits alone, also longer ones.
CHANCE_MIN: Final = 5
CHANCE_PLAIN_MIN: Final = 8

# So many letters of a secret are compared at such an end, and the longest spelling of one.
CUT_MAX: Final = 256
SPELLED_MAX: Final = 12

DEPTH_MAX: Final = 1100

LETTERS_MAX: Final = 256  # different ones whose patterns are kept

# Secrets that came while running: the present one, and those before it that an answer on its way
# may still repeat.
LEARNT_MAX: Final = 4

_WORD = re.compile(rb"[A-Za-z0-9]+")
_ESCAPE_BEGUN = re.compile(rb"(?:[%\\\\&][%\\\\&#A-Za-z0-9]{0,10})?")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_HTML = {"&": b"amp", "<": b"lt", ">": b"gt", '"': b"quot", "'": b"apos"}
_SLASH = rb"(?:\\|%(?:25){0,2}5[cC])"
_AMPERSAND = rb"(?:&(?:amp;){0,2}|%(?:25){0,2}26|\\{1,8}u0026)"
_BASE64 = {
    ord("+"): rb"(?:[+-]|%(?:25){0,2}2[bB])",
    ord("/"): rb"(?:\\{0,8}/|_|%(?:25){0,2}2[fF])",
}


class Mask:
    """Knows some secrets; puts `***` in their place."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._lasting = tuple(secrets)
        self._learnt: dict[tuple[str, ...], None] = {}
        self._secrets: dict[str, None] = {}
        self._pattern: re.Pattern[bytes] | None = None
        self.needles: tuple[bytes, ...] = ()
        self.reach = 0  # bytes of the longest needle
        self._know(self._lasting)

    def learn(self, parts: Iterable[str]) -> None:
        """A secret that came while running, such as the token that a login has brought. Of these
        the latest LEARNT_MAX are known: there may be a new one each hour, and each costs time."""
        latest = tuple(parts)
        self._learnt.pop(latest, None)
        self._learnt[latest] = None
        while len(self._learnt) > LEARNT_MAX:
            del self._learnt[next(iter(self._learnt))]
        self._know(chain(self._lasting, *self._learnt))

    def _know(self, secrets: Iterable[str]) -> None:
        self._secrets = dict.fromkeys(filter(None, secrets))
        self._pattern = None
        # Where a secret stands that has another in it (`Bearer …`), the other is found.
        inner = [s for s in self._secrets if len(s) >= ENCODED_MIN]
        enough = (s for s in self._secrets if not any(o in s and o != s for o in inner))
        needles = {needle for secret in enough for needle in _needles(secret)}
        self.needles = tuple(sorted(needles))
        self.reach = max(map(len, needles), default=0)

    def raw(self, raw: bytes, *, cut: bool = False, watch: Watch | None = None) -> bytes:
        """Bytes without the secrets; `cut`: also without the beginning of one at their end.

        `watch` has looked at all of them: to look through a long answer again, at once, would hold
        up all accounts.
        """
        if (watch is None or not watch.clear) and self.holds(raw):
            if self._pattern is None:
                longest_first = sorted(self._secrets, key=len, reverse=True)
                self._pattern = re.compile(b"|".join(map(_spelled, longest_first)), re.DOTALL)
            raw = self._pattern.sub(MASKED.encode(), raw)
        return self._without_beginning(raw) if cut else raw

    def _without_beginning(self, raw: bytes) -> bytes:
        starts = (start for secret in self._secrets for start in _cut_off(secret, raw))
        start = min(starts, default=len(raw))
        return raw if start == len(raw) else raw[:start] + MASKED.encode()

    def text(self, text: str, *, cut: bool = False) -> str:
        if not self._secrets:
            return text
        raw = text.encode("utf-8", "surrogatepass")
        return self.raw(raw, cut=cut).decode("utf-8", "surrogatepass")

    def holds(self, piece: bytes) -> bool:
        """Whether the bytes may hold a secret: quick, and never wrong where it says no."""
        for needle in self.needles:  # noqa: SIM110 - any() takes twice as long for a small answer
            if needle in piece:
                return True
        return False

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


def by_chance(secret: str) -> bool:
    """Whether what is the same as a secret may well be a word, or part of a number.

    Reports are true before all: with the password 1234, 447700123499 is a recipient still.
    """
    plain = secret.isalpha() or secret.isdecimal()
    return len(secret) < (CHANCE_PLAIN_MIN if plain else CHANCE_MIN)


class Watch:
    """Looks for a mask's secrets in the pieces of one answer."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._needles = mask.needles
        self._tail = b""
        self.seen = False

    @property
    def clear(self) -> bool:
        """Whether it has seen none, of all that are known by now."""
        return not self.seen and self._needles is self._mask.needles

    def look(self, piece: bytes) -> None:
        reach = self._mask.reach
        if self.seen or not reach:
            return
        holds, tail = self._mask.holds, self._tail
        # Nothing is copied but what stands across two pieces.
        self.seen = holds(piece) or bool(tail and holds(tail + piece[:reach]))
        self._tail = (self._tail + piece)[-reach:] if len(piece) < reach else piece[-reach:]


def _spelled(secret: str) -> bytes:
    """A pattern of every spelling of a secret."""
    ways = [b"".join(map(_letter, secret))]
    plain = secret.encode("utf-8", "surrogateescape")
    if len(plain) >= ENCODED_MIN:
        for shift in range(3):
            core = b"".join(_BASE64.get(letter, b"%c" % letter) for letter in _core(plain, shift))
            before = b"[A-Za-z0-9+/_-]?" if shift else b""
            ways.append(before + core + b"(?:[A-Za-z0-9+/_-]?={0,2})")
        ways.append(b"(?i:" + plain.hex().encode() + b")")
    return b"|".join(ways)


def _letter(letter: str) -> bytes:
    """One character as it is, or as URLs, JSON and HTML write it, also one inside the other."""
    plain = letter.encode("utf-8", "surrogateescape")
    if letter.isascii() and letter.isalnum():
        return plain
    units = letter.encode("utf-16-be", "surrogatepass")
    pairs = [b"u%02x%02x" % (units[at], units[at + 1]) for at in range(0, len(units), 2)]
    escaped = (_SLASH + b"{1,8}").join(pairs)
    named = b"|".join(part for part in (_HTML.get(letter), _numbered(letter)) if part)
    entity = _AMPERSAND + b"(?:" + named + b")" + _coded(b";")
    ways = [_percent(plain), escaped, entity, re.escape(plain)]
    if ord(letter) < 256:  # answers have no stated character set
        latin = letter.encode("latin-1")
        ways += [_percent(latin), re.escape(latin)]
    if letter == " ":
        ways.append(_coded(b"+"))
    return _SLASH + b"{0,8}(?i:" + b"|".join(dict.fromkeys(ways)) + b")"


@lru_cache(LETTERS_MAX)
def _letter_pattern(letter: str) -> re.Pattern[bytes]:
    """Kept for all secrets: to compile them anew at an account's first answer that was cut would
    hold up all accounts for tens of milliseconds."""
    return re.compile(_letter(letter), re.DOTALL)


def _percent(raw: bytes) -> bytes:
    return b"".join(b"%%(?:25){0,2}%02x" % byte for byte in raw)  # also encoded again


def _coded(mark: bytes) -> bytes:
    """A mark that an encoding uses, as it is or encoded itself."""
    return b"(?:" + re.escape(mark) + b"|(?i:" + _percent(mark) + b"))"


def _numbered(letter: str) -> bytes:
    return _coded(b"#") + b"(?:0*%d|x0*%x)" % (ord(letter), ord(letter))


def _cut_off(secret: str, raw: bytes) -> Iterator[int]:
    """Where a beginning of the secret starts that goes to the end of `raw`."""
    letters = secret[:CUT_MAX]
    begins = _letter_pattern(letters[0])
    first = begins.search(raw, max(0, len(raw) - SPELLED_MAX * len(letters)))
    while first is not None:
        start = before = at = first.start()
        count = 0
        for letter in letters:
            found = _letter_pattern(letter).match(raw, at)
            if found is None:
                break
            before, at, count = at, found.end(), count + 1
        # Where a % is a letter of the secret, it may be that or begin the next one's escape.
        if count >= BEGINNING_MIN and (
            _ESCAPE_BEGUN.fullmatch(raw, at) or _ESCAPE_BEGUN.fullmatch(raw, before)
        ):
            yield start
            break
        first = begins.search(raw, start + 1)
    plain = secret.encode("utf-8", "surrogateescape")
    if len(plain) >= ENCODED_MIN:
        cores = [_core(plain, shift) for shift in range(3)]
        cores += [core.translate(_URL_SAFE) for core in cores]
        for form in (*cores, plain.hex().encode(), plain.hex().upper().encode()):
            end = raw[1 - len(form) :]
            start = end.find(form[:ENCODED_MIN])
            while start >= 0 and not form.startswith(end[start:]):
                start = end.find(form[:ENCODED_MIN], start + 1)
            if start >= 0:
                yield len(raw) - len(end) + start


def _core(plain: bytes, shift: int) -> bytes:
    """What base64 makes of `plain` behind `shift` (mod 3) other bytes, as far as these and what
    follows have no part in it."""
    encoded = b64encode(bytes(shift) + plain)
    return encoded[(0, 2, 3)[shift] : 8 * (shift + len(plain)) // 6]


def _needles(secret: str) -> set[bytes]:
    """Pieces one of which stands in every spelling of a secret."""
    plain = secret.encode("utf-8", "surrogateescape")
    found = {max(_WORD.findall(plain), key=len, default=b"")}
    if len(plain) >= ENCODED_MIN:
        for shift in range(3):
            core = _core(plain, shift)
            found.add(max(_WORD.findall(core), key=len, default=core))
        found |= {plain.hex().encode(), plain.hex().upper().encode()}
    return found
