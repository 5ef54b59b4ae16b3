"""Finding a telephone number or an address in every way in which it may be written.

With `+`, `00` or neither, with blanks, dashes, dots and brackets between, URL-encoded, inside an id
(`4711:447700900001`), in its national form: all of them are one stream of digits in which a known
number is looked up by its end. What is not known is told from other digits by its looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from .report import REDACTED_ADDRESS, REDACTED_NUMBER, msisdn

# A national form is the end of the number, at least this much of it, behind a 0 or nothing.
NATIONAL_MIN: Final = 8
# A number of so many digits is recognised inside longer ones; a shorter one stands by itself.
EMBEDDED_MIN: Final = 10
# What is shorter is looked for in its own field alone: it may be anything elsewhere.
NUMBER_MIN: Final = 5
NUMBER_MAX: Final = 15
# So many addresses are looked for one by one.
ADDRESSES_FEW: Final = 8

REDACTED = re.compile(rf"{REDACTED_NUMBER}|{REDACTED_ADDRESS}")

# Dashes and blanks as typesetters have them, raw and escaped.
_TYPESET = r"\u2007\u2009-\u2015\u202f\u2212"
_ESCAPED_TYPESET = r"\\u20(?:0[79a-fA-F]|1[0-5]|2[fF])|\\u2212"
_SEPARATOR = (
    rf"[ \t\u00a0{_TYPESET}().+/-]|%20|%28|%29|%2[DdEeBb]|\\u00a0|&nbsp;|{_ESCAPED_TYPESET}"
)
# A redacted value, or digits with what people put between them.
RUN = re.compile(
    rf"(?P<done>(?:{REDACTED.pattern}))"
    rf"|(?P<plus>(?:\+|%2[Bb]|\\u002[Bb])(?:{_SEPARATOR})?)?"
    rf"(?P<digits>[0-9](?:(?:{_SEPARATOR}){{0,3}}[0-9])*)"
)
ESCAPED_PLUS = re.compile(r"%2[Bb]|\\u002[Bb]")
# Only from the beginning of a word: tried at each of its letters, a long one would take for ever.
MAIL = re.compile(r"(?<![\w.+-])[\w.+-]+(?:@|%40|\\u0040)[\w.-]*\w")
_ESCAPED_GAP = re.compile(rf"%20|%28|%29|%2[DdEe]|\\u00a0|&nbsp;|{_ESCAPED_TYPESET}")
_GAP = re.compile(_SEPARATOR)
_DATE = re.compile(r"(?<![0-9])(?:[0-9]{4}|[0-9]{2})[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2})")
# Where another number begins: a plus, or digits that are one without a gap.
_NEXT_NUMBER = re.compile(r"(?<=[^+])(?:\+|%2[Bb]|\\u002[Bb])|(?<![0-9])[0-9]{9,15}(?![0-9])")
_SCHEME = re.compile(r"(?:tel|sms|whatsapp|rcs):", re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")
_INNER = re.compile(r"[0-9]{8,15}")
_ESCAPED_AT = re.compile(r"%40|\\u0040")


class Own:
    """The numbers and addresses that are to be found in every spelling."""

    def __init__(self, recipients: Iterable[str] = ()) -> None:
        self.tails: dict[str, list[str]] = {}  # numbers by their last digits
        self.short: set[str] = set()
        self.addresses: dict[str, None] = {}
        for recipient in recipients:
            self.add(recipient)

    def add(self, recipient: str) -> None:
        if REDACTED.fullmatch(recipient):
            return
        number = digits_of(recipient)
        if number is not None:
            self._add_number(number)
            return
        address = address_of(recipient)
        if len(address) >= NUMBER_MIN:
            self.addresses[address] = None
            for inner in _INNER.findall(address):  # 447700900001@s.whatsapp.net
                self._add_number(inner)

    def _add_number(self, number: str) -> None:
        if len(number) >= NATIONAL_MIN:
            alike = self.tails.setdefault(number[-NATIONAL_MIN:], [])
            if number not in alike:
                alike.append(number)
        elif len(number) >= NUMBER_MIN:
            self.short.add(number)

    def addresses_in(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where the addresses stand, and which they are."""
        if not self.addresses:
            return
        if len(self.addresses) > ADDRESSES_FEW:
            for found in MAIL.finditer(text):
                if (address := address_of(found[0])) in self.addresses:
                    yield *found.span(), address
            return
        folded = address_of(text)
        for address in self.addresses:
            if address in folded:
                for found in _spelled(address).finditer(text):
                    yield *found.span(), address

    def numbers_in(self, run: re.Match[str]) -> Iterator[tuple[int, int, str]]:
        """Where the numbers stand in a run of digits, and which they are, from left to right."""
        start, stop = run.span("digits")
        if stop - start < NUMBER_MIN or not (self.tails or self.short):
            return
        places = _places(run.string, start, stop)
        stream = "".join(run.string[at] for at in places)
        for first, last, number in self._hits(run.string, stream, places):
            begins, ends = run.start() if first == 0 else places[first], places[last] + 1
            if run.string[begins - 1 : begins] == "(" and ")" in run.string[begins:ends]:
                begins -= 1
            yield begins, ends, number

    def _hits(self, text: str, stream: str, places: list[int]) -> Iterator[tuple[int, int, str]]:
        short = stream.removeprefix("00")
        if short in self.short and _alone(text, places, 0, -1):
            yield 0, len(stream) - 1, short
            return
        at = left = 0
        while at + NATIONAL_MIN <= len(stream):
            last = at + NATIONAL_MIN - 1
            hit = None
            for number in self.tails.get(stream[at : last + 1], ()):
                first, whole = _grown(stream, at, left, number)
                free = whole and len(number) >= EMBEDDED_MIN
                if (free or _alone(text, places, first, last)) and (hit is None or first < hit[0]):
                    hit = first, number
            at += 1
            if hit is not None:
                yield hit[0], last, hit[1]
                at = left = last + 1


def digits_of(recipient: str) -> str | None:
    """A telephone number as digits, with its country code as far as it says so."""
    if ":" in recipient:
        recipient = _SCHEME.sub("", recipient, count=1)
    if "%" in recipient or "\\" in recipient:
        recipient = _ESCAPED_GAP.sub(" ", ESCAPED_PLUS.sub("+", recipient))
    recipient = recipient.strip()
    if "+" in recipient:
        recipient = recipient.replace("(0)", "")  # the trunk prefix of +44 (0)20 is not dialled
    digits = msisdn(recipient)
    if digits is None or not digits.isdigit():
        return None
    return digits.removeprefix("00") or digits


def address_of(text: str) -> str:
    """An address as it is compared."""
    return _ESCAPED_AT.sub("@", text).strip().casefold()


def numbers_by_looks(run: re.Match[str], *, bare: bool) -> Iterator[tuple[int, int]]:
    """Where a run holds what is written as an international number; `bare`: what is as long as
    any number. Numbers that follow one another make one run."""
    if run.end() - run.start() <= NATIONAL_MIN - 1:
        return
    if len(_GAP.sub("", run["digits"])) <= NUMBER_MAX:
        if _looks(run, bare=bare):
            yield run.span()
        return
    at = run.start()
    for cut in (*_NEXT_NUMBER.finditer(run.string, at, run.end()), None):
        until = run.end() if cut is None else cut.start()
        part = RUN.search(run.string, at, until)
        if part is not None and (_looks(part, bare=bare) or (bare and " " in part[0].strip())):
            yield part.span()
        at = until


def _looks(run: re.Match[str], *, bare: bool) -> bool:
    text, digits = run.string, run["digits"]
    before = text[run.start() - 1 : run.start()] if run.start() else ""
    stream = _GAP.sub("", digits)
    if _LETTER.match(before) or len(stream) < NATIONAL_MIN:
        return False
    if run["plus"] is not None:
        return stream[0] != "0" and len(stream) <= NUMBER_MAX
    if digits.startswith("00") and stream[2:3] not in ("", "0") and before != ":":
        plain = digits.isdigit() or " " in digits
        if plain and NATIONAL_MIN <= len(stream) - 2 <= NUMBER_MAX:
            return True
    long = NATIONAL_MIN < len(stream) <= NUMBER_MAX and not _LETTER.match(text, run.end())
    return bare and long and not _DATE.search(digits) and digits.count(".") < 3


@lru_cache(maxsize=256)
def _spelled(address: str) -> re.Pattern[str]:
    return re.compile(re.escape(address).replace("@", r"(?:@|%40|\\u0040)"), re.IGNORECASE)


def _places(text: str, start: int, stop: int) -> list[int]:
    """Where the digits are between `start` and `stop`; those of an encoded separator are none."""
    if "%" not in text and "\\" not in text:
        return [at for at in range(start, stop) if text[at].isdigit()]
    places = []
    at = start
    while at < stop:
        gap = _GAP.match(text, at)
        if gap is not None:
            at = gap.end()
        else:
            places.append(at)
            at += 1
    return places


def _grown(stream: str, at: int, left: int, number: str) -> tuple[int, bool]:
    """How far to the left a number goes whose end begins at `at`, and whether it is there whole."""
    first, more = at, len(number) - NATIONAL_MIN
    while more and first > left and stream[first - 1] == number[more - 1]:
        first, more = first - 1, more - 1
    if more and first > left and stream[first - 1] == "0":  # 0 7700 …, and 44 (0)7700 …
        first -= 1
        if first - more >= left and stream[first - more : first] == number[:more]:
            first, more = first - more, 0
    if not more and first - 2 >= left and stream[first - 2 : first] == "00":
        first -= 2
    return first, not more


def _alone(text: str, places: list[int], first: int, last: int) -> bool:
    """Whether no further digit stands right beside."""
    start, stop = places[first], places[last] + 1
    return not text[start - 1 : start].isdigit() and not text[stop : stop + 1].isdigit()
