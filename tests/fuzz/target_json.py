"""JsonItems: the same however it is cut, equal to a plain decoder, bounded in work and memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engine.parsing import json_cursor, json_items, json_shortcut
from engine.parsing.flaw import FLAW_RAW_MAX
from engine.parsing.json_boundary import TRIES
from engine.parsing.json_decode import NESTING_MAX
from engine.parsing.json_items import JsonItems
from tests.fuzz.documents import BLANKS, BROKEN, TOKENS, Writer
from tests.fuzz.draw import Draw, Patched, chunks, damaged

LENGTH = 240
WORDS = (*TOKENS, *BROKEN, b'{"r":[', b"},{", b'"r"', b"]}")
SAMPLES = Path(__file__).parents[1] / "samples"

KEY_MAX = 96
STEPS = (1, 1, 16, 300)
WINDOWS = (48, 20, 150)
LARGE = 1 << 20


def seeds() -> Iterator[bytes]:
    for path in sorted(SAMPLES.glob("*/*.json")):
        for key in (b"entries", b"results", b"items"):
            yield b"\x00\x00" + path.read_bytes().replace(b'"' + key + b'"', b'"r"')
    for mode in (2, 4, 6, 8):
        yield bytes([mode, *range(60)])
        yield bytes([mode, *range(255, 100, -3)])


def check(data: bytes) -> None:
    draw = Draw(data)
    mode = draw.byte() % 8
    limits = {"record_max": LARGE, "envelope_max": LARGE}
    if mode % 2 and draw.flag():
        limits = {"record_max": 5 + draw.below(200), "envelope_max": draw.below(200)}
    sizes = draw.sizes() if mode else [1 + draw.byte() % 64]
    cut = False
    if mode < 2:
        body = draw.rest()
    else:
        body = document(draw, loose=mode >= 4)
        if mode >= 6:
            body = damaged(draw, body, TOKENS)
        if draw.chance(64) and len(body) < 100:
            body = body * (1 + draw.below(20))
        cut = draw.chance(6)
        if cut:
            body = body[: draw.below(len(body) + 1)]
    step, window = draw.pick(STEPS), draw.pick(WINDOWS)
    with Patched(
        (json_cursor, "STEP_MIN", step),
        (json_items, "WINDOW", window),
        (json_items, "KEY_MAX", KEY_MAX),
    ):
        seen, items = read(chunks(body, sizes), limits, cut=cut)
        whole, other = read([body], limits, cut=cut)
    assert state(seen, items) == state(whole, other)
    invariants(body, seen, items, cut=cut)
    if limits["record_max"] == LARGE and not cut:
        compare(body, seen, items)


def document(draw: Draw, *, loose: bool) -> bytes:
    write = Writer(draw, loose=loose)
    members = [(write_key(draw, loose=loose), write.value(2)) for _ in range(draw.below(4))]
    records = [record(write, draw) for _ in range(draw.below(9))]
    if records and draw.chance(64) and sum(map(len, records)) < 100:
        records *= 1 + draw.below(20)
    members.append((b'"r"', write.array(records)))
    members += [(write_key(draw, loose=loose), write.value(2)) for _ in range(draw.below(3))]
    begin = b"\xef\xbb\xbf" if draw.chance(8) else b""
    return begin + draw.pick(BLANKS) + write.table(members) + draw.pick(BLANKS)


def write_key(draw: Draw, *, loose: bool) -> bytes:
    if loose and draw.chance(8):
        return draw.pick((b'"\\ud800"', b'"\xff"', b"'r'", b'"' + b"k" * 120 + b'"', b'"r', b"1"))
    return draw.pick((b'"a"', b'"total"', b'"page"', b'"r"', b'"\\u0072"', b'"},{"', b'""'))


def record(write: Writer, draw: Draw) -> bytes:
    if draw.byte() % 4:
        first = draw.pick((b'"a"', b'"uuid"', b'"r"'))
        return write.table([(first, write.value(2)), (b'"b"', write.value(3))])
    return write.value(3)


class Work:
    """Decoders that count the bytes they are given."""

    def __init__(self) -> None:
        self.size = 0
        self._list, self._value = json_shortcut.decode_list, json_items.decode_value

    def list(self, inner: Any) -> list[Any]:
        self.size += len(inner)
        return self._list(inner)

    def value(self, raw: bytes) -> Any:
        self.size += len(raw)
        return self._value(raw)


def read(
    parts: Sequence[bytes], limits: dict[str, int], *, cut: bool
) -> tuple[list[Any], JsonItems]:
    """Records and parser of one reading, with its work and its memory looked after."""
    items = JsonItems("r", **limits)
    work = Work()
    records: list[Any] = []
    size = 0
    most = max(*limits.values(), KEY_MAX)
    ways = (json_shortcut, "decode_list", work.list), (json_items, "decode_value", work.value)
    with Patched(*ways):
        for part in parts:
            records += items.feed(part)
            size += len(part)
            held = len(items._buffer) + items._new_size
            assert held <= 2 * (most + json_cursor.STEP_MIN + len(part)), "it holds too much"
            assert len(items._rest) <= FLAW_RAW_MAX
        records += items.close(cut=cut)
    assert work.size <= (TRIES + 2) * size, "it decodes too much"
    return records, items


def state(records: list[Any], items: JsonItems) -> str:
    seen = (items.envelope, items.found, items.rows, items.complete, items.cause, items.flaws)
    return repr((records, seen))


def invariants(body: bytes, records: list[Any], items: JsonItems, *, cut: bool) -> None:
    of_records = sum(flaw.position.startswith("record ") for flaw in items.flaws)
    assert items.rows == len(records) + of_records
    assert items.complete or items.cause
    assert not (cut and items.complete)
    for flaw in items.flaws:
        assert flaw.raw in body
        assert "\n" not in flaw.cause
        assert flaw.cause.isprintable()


class Table(dict[str, Any]):
    """An object as the standard library read it, with all pairs that stood there."""

    pairs: list[tuple[str, Any]]

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_plain = json.JSONDecoder(object_pairs_hook=Table, parse_constant=_refuse)


def compare(body: bytes, records: list[Any], items: JsonItems) -> None:
    """Against the standard library's decoder, given the body whole."""
    clean = items.complete and not items.flaws
    try:
        document = _plain.decode(body.removeprefix(b"\xef\xbb\xbf").decode())
    except RecursionError:
        return
    except ValueError:
        assert not clean, "broken JSON was taken for whole"
        return
    if not isinstance(document, Table):
        assert not items.complete
        return
    if any(len(key) > KEY_MAX // 8 for key, _ in document.pairs):
        return
    if body.count(b"[") + body.count(b"{") > NESTING_MAX and (
        _levels(document, hidden=True) != _levels(document, hidden=False)
    ):
        return  # what is hidden may be too deep even to be passed over
    expected, bad, envelope, found = _expected(document)
    assert items.complete
    assert items.found == found
    assert repr(records) == repr(expected)
    assert items.rows == len(expected) + bad
    if not any(_unusable(key) for key, _ in document.pairs):
        assert repr(items.envelope) == repr(envelope)


def _expected(document: Table) -> tuple[list[Any], int, dict[str, Any], bool]:
    """Records, how many are unusable, the envelope, and whether there was an array."""
    records: list[Any] = []
    envelope: dict[str, Any] = {}
    bad, found = 0, False
    for key, value in document.pairs:
        if key == "r" and isinstance(value, list):
            found = True
            envelope.pop("r", None)
            for each in value:
                if _unusable(each):
                    bad += 1
                else:
                    records.append(each)
        elif (key != "r" or not found) and not _unusable(value):
            envelope[key] = value
    return records, bad, envelope, found


def _unusable(value: Any) -> bool:
    """Half a surrogate pair, a number beyond a float, nested beyond any use: JSON, but no value.

    Also where a name that stands twice hides it: what does not decode is set aside.
    """
    stack = [value]
    while stack:
        inner = stack.pop()
        if isinstance(inner, Table):
            stack += chain.from_iterable(inner.pairs)
        elif isinstance(inner, list):
            stack += inner
        elif isinstance(inner, float):
            if not math.isfinite(inner):
                return True
        elif isinstance(inner, str) and not inner.isascii():
            try:
                inner.encode()
            except UnicodeEncodeError:
                return True
    return _levels(value, hidden=False) > NESTING_MAX


def _levels(value: Any, *, hidden: bool) -> int:
    """How deep containers nest; `hidden`: also those that a name which stands twice hides."""
    most, stack = 0, [(value, 0)]
    while stack:
        inner, depth = stack.pop()
        if isinstance(inner, Table):
            values = [each for _, each in inner.pairs] if hidden else list(inner.values())
        elif isinstance(inner, list):
            values = inner
        else:
            continue
        most = max(most, depth + 1)
        stack += [(each, depth + 1) for each in values]
    return most
