"""The keys that are a provider's or sink's own: its `Options` filled from a table, field by field.

msgspec's own conversion stops at the first fault and repeats what it saw; here every fault of every
field is found, worded like the engine's own keys, and a field that holds a `Secret` anywhere is
never shown. What an `Options` may declare besides its fields:

    DURATIONS, SIZES, TIMES: ClassVar[frozenset[str]]

name the fields that are written as durations (read into seconds), sizes (bytes) and times (epoch
ms). Fields of type `Path` start from the folder of the file that names them. A `Secret` that is
annotated with `Meta(extra={"numbers": True})` may be written as a number, true or false as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from engine.core.errors import EngineError
from engine.core.secret import Secret

from . import values
from .reader import Reading, Section

P = TypeVar("P")

# `Annotated[Secret, Meta(extra=NUMBERS)]`: a number or a truth value may stand there, too, as text.
NUMBERS = {"numbers": True}

_BAD = object()  # stands for a value that had a fault

_SEQUENCES = (
    inspect.ListType, inspect.SetType, inspect.FrozenSetType, inspect.VarTupleType,
)  # fmt: skip
_MAKERS: dict[type, Callable[[list[Any]], Any]] = {
    inspect.ListType: list, inspect.SetType: set,
    inspect.FrozenSetType: frozenset, inspect.VarTupleType: tuple,
}  # fmt: skip
_WORDS: dict[type, str] = {
    inspect.StrType: "a string", inspect.IntType: "an integer", inspect.FloatType: "a number",
    inspect.BoolType: "true or false", inspect.DictType: "a table", inspect.StructType: "a table",
    inspect.ListType: "an array", inspect.SetType: "an array", inspect.FrozenSetType: "an array",
    inspect.VarTupleType: "an array", inspect.TupleType: "an array",
}  # fmt: skip


def read_options(
    cls: type[msgspec.Struct],
    section: Section,
    build: Callable[[Any], P] | None = None,
) -> tuple[Any, P | None] | None:
    """An instance of `cls` from the section's keys, and what `build` makes of it.

    None where there was a fault. Keys that other readers of the section know may be fields too:
    both then get the value. The class's and the builder's own objections become faults, also when a
    field was wrong before: harmless values stand in for wrong ones then, and only what is said
    about other keys counts.
    """
    given: dict[str, Any] = {}
    wrong: set[str] = set()
    for field in _fields(cls):
        key = field.encode_name
        if not section.has(key):
            if field.required:
                section.fault(key, "missing")
                wrong.add(key)
                given[field.name] = _stand_in(field.type, section.reading)
            elif isinstance(field.default, PurePath):
                given[field.name] = section.reading.path(Path(field.default))
            continue
        before = len(section.faults)
        value = _marked(cls, field, section)
        if value is _BAD:
            value = _value(field.type, section.data[key], section.place(key), section.reading)
        if len(section.faults) > before or value is _BAD:
            wrong.add(key)
            value = _stand_in(field.type, section.reading)
        given[field.name] = value
    if any(value is _BAD for value in given.values()):
        return None
    try:
        options = cls(**given)
        built = build(options) if build is not None else None
    except (ValueError, TypeError, LookupError, EngineError, msgspec.MsgspecError) as error:
        section.reading.foreign_faults(section.at, error, section.known, wrong)
        return None
    return None if wrong else (options, built)


def _stand_in(kind: inspect.Type, reading: Reading) -> Any:
    """Something of the type, for finding further faults; `_BAD` where nothing simple is."""
    kind = _inner(kind)
    if isinstance(kind, inspect.UnionType):
        kind = _inner(kind.types[0])
    if isinstance(kind, inspect.CustomType):
        return Secret("stand-in") if kind.cls is Secret else reading.folder / "stand-in"
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, _SEQUENCES):
        return _MAKERS[type(kind)]([])
    simple: dict[type, Any] = {
        inspect.StrType: "stand-in",
        inspect.IntType: 1,
        inspect.FloatType: 1.0,
        inspect.BoolType: False,
        inspect.DictType: {},
    }
    return simple.get(type(kind), _BAD)


def _fields(cls: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(cls)
    return info.fields if isinstance(info, inspect.StructType) else ()


def _marked(cls: type[msgspec.Struct], field: inspect.Field, section: Section) -> Any:
    """The value of a field that is written as a duration, size or time; `_BAD` for others."""
    marks: tuple[tuple[str, Callable[[object], Any]], ...] = (
        ("DURATIONS", values.Span()),
        ("SIZES", values.Size()),
        ("TIMES", values.moment),
    )
    for attribute, read in marks:
        if field.name not in getattr(cls, attribute, ()):
            continue
        key = field.encode_name
        inner = _inner(field.type)
        if isinstance(inner, _SEQUENCES):
            what = attribute.lower()
            return _MAKERS[type(inner)](list(section.many(key, read, (), what=what)))
        return section.take(key, read, None)
    return _BAD


def _inner(kind: inspect.Type) -> inspect.Type:
    """The type without notes, and without None where only that is the alternative."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        kinds = [_inner(each) for each in kind.types if not isinstance(each, inspect.NoneType)]
        if len(kinds) == 1:
            return kinds[0]
    return kind


def _value(kind: inspect.Type, raw: object, at: str, reading: Reading) -> Any:
    """The value of one field or element; `_BAD`, with a fault at `at`, where it is none."""
    if raw is None and _optional(kind):
        return None
    if isinstance(kind, inspect.Metadata) and kind.extra == NUMBERS and _is_plain(raw):
        raw = str(raw).lower()
    kind = _inner(kind)
    if isinstance(kind, inspect.AnyType):
        return raw
    if isinstance(kind, inspect.UnionType):
        return _one_of(kind, raw, at, reading)
    if isinstance(kind, _SEQUENCES):
        return _sequence(kind, raw, at, reading)
    if isinstance(kind, inspect.TupleType):
        return _tuple(kind, raw, at, reading)
    if isinstance(kind, inspect.DictType):
        return _dict(kind, raw, at, reading)
    if isinstance(kind, inspect.StructType):
        if not isinstance(raw, Mapping):
            return _wrong(kind, raw, at, reading)
        section = Section(raw, at, reading)
        made: tuple[Any, None] | None = read_options(kind.cls, section)
        section.close()
        return _BAD if made is None else made[0]
    try:
        return _scalar(kind, raw, reading)
    except ValueError as error:
        reading.faults.add(at, str(error))
        return _BAD


def _is_plain(raw: object) -> bool:
    return isinstance(raw, (bool, int, float))


def _scalar(kind: inspect.Type, raw: object, reading: Reading) -> Any:
    if isinstance(kind, inspect.CustomType) and kind.cls is Secret:
        return reading.secret(raw)
    if isinstance(kind, inspect.CustomType) and issubclass(kind.cls, PurePath):
        return reading.path(raw)
    if isinstance(kind, inspect.StrType):
        return _bounded_text(kind, values.text(raw))
    if isinstance(kind, inspect.BoolType):
        return values.flag(raw)
    if isinstance(kind, inspect.IntType):
        return _bounded(kind, values.Whole()(raw))
    if isinstance(kind, inspect.FloatType):
        return _bounded(kind, values.number(raw))
    if isinstance(kind, inspect.LiteralType):
        return _word(kind.values, raw)
    if isinstance(kind, inspect.EnumType):
        return kind.cls(_word(tuple(each.value for each in kind.cls), raw))
    raise ValueError("is of a kind that cannot be written in a configuration")


def _word(words: Collection[Any], raw: object) -> Any:
    if not isinstance(raw, (str, int)) or isinstance(raw, bool) or raw not in words:
        wanted = ", ".join(values.shown(word) for word in words)
        raise ValueError(f"expected one of {wanted}, got {values.shown(raw)}")
    return raw


def _bounded(kind: inspect.IntType | inspect.FloatType, value: Any) -> Any:
    """The number, which must keep the bounds that its field declares."""
    checks: tuple[tuple[Any, str, Callable[[Any], bool]], ...] = (
        (kind.ge, "at least", lambda bound: value >= bound),
        (kind.gt, "more than", lambda bound: value > bound),
        (kind.le, "at most", lambda bound: value <= bound),
        (kind.lt, "less than", lambda bound: value < bound),
        (kind.multiple_of, "a multiple of", lambda bound: value % bound == 0),
    )
    for bound, words, holds in checks:
        if bound is not None and not holds(bound):
            raise ValueError(f"expected {words} {bound}, got {values.shown(value)}")
    return value


def _bounded_text(kind: inspect.StrType, value: str) -> str:
    if kind.min_length is not None and len(value) < kind.min_length:
        raise ValueError(f"expected at least {kind.min_length} characters")
    if kind.max_length is not None and len(value) > kind.max_length:
        raise ValueError(f"expected at most {kind.max_length} characters")
    if kind.pattern is not None and not re.search(kind.pattern, value):
        raise ValueError(f"expected a string like {kind.pattern}, got {values.shown(value)}")
    return value


def _sequence(kind: Any, raw: object, at: str, reading: Reading) -> Any:
    if not isinstance(raw, (list, tuple)):
        return _wrong(kind, raw, at, reading)
    if not _length_fits(kind, len(raw), at, reading):
        return _BAD
    found = [
        _value(kind.item_type, each, f"{at}[{index}]", reading) for index, each in enumerate(raw)
    ]
    if any(each is _BAD for each in found):
        return _BAD
    try:
        return _MAKERS[type(kind)](found)
    except TypeError:  # a set of what cannot be in one
        return _wrong(kind, raw, at, reading)


def _tuple(kind: inspect.TupleType, raw: object, at: str, reading: Reading) -> Any:
    if not isinstance(raw, (list, tuple)) or len(raw) != len(kind.item_types):
        reading.faults.add(at, f"expected an array of {len(kind.item_types)} values")
        return _BAD
    found = [
        _value(item, each, f"{at}[{index}]", reading)
        for index, (item, each) in enumerate(zip(kind.item_types, raw, strict=True))
    ]
    return _BAD if any(each is _BAD for each in found) else tuple(found)


def _dict(kind: inspect.DictType, raw: object, at: str, reading: Reading) -> Any:
    if not isinstance(raw, Mapping):
        return _wrong(kind, raw, at, reading)
    if not _length_fits(kind, len(raw), at, reading):
        return _BAD
    found = {}
    for key, each in raw.items():
        place = f"{at}.{values.key_text(key)}"
        made_key = _value(kind.key_type, key, place, reading)
        made = _value(kind.value_type, each, place, reading)
        if made_key is not _BAD:
            found[made_key] = made
    whole = len(found) == len(raw) and not any(each is _BAD for each in found.values())
    return found if whole else _BAD


def _length_fits(kind: Any, length: int, at: str, reading: Reading) -> bool:
    if kind.min_length is not None and length < kind.min_length:
        reading.faults.add(at, f"expected at least {kind.min_length} entries, got {length}")
        return False
    if kind.max_length is not None and length > kind.max_length:
        reading.faults.add(at, f"expected at most {kind.max_length} entries, got {length}")
        return False
    return True


def _one_of(kind: inspect.UnionType, raw: object, at: str, reading: Reading) -> Any:
    """The first alternative that takes the value; one fault for all where none does."""
    for each in kind.types:
        if isinstance(each, inspect.NoneType):
            continue
        quiet = reading.quiet()
        found = _value(each, raw, at, quiet)
        if not len(quiet.faults):
            return found
    return _wrong(kind, raw, at, reading)


def _wrong(kind: inspect.Type, raw: object, at: str, reading: Reading) -> Any:
    got = "" if _holds_secret(kind) else f", got {values.shown(raw)}"
    reading.faults.add(at, f"expected {_words(kind)}{got}")
    return _BAD


def _words(kind: inspect.Type) -> str:
    """What a type is called in a fault."""
    kind = _inner(kind)
    if isinstance(kind, inspect.UnionType):
        parts = [_words(each) for each in kind.types if not isinstance(each, inspect.NoneType)]
        return " or ".join(dict.fromkeys(parts))
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(values.shown(word) for word in kind.values)
    if isinstance(kind, inspect.CustomType):
        return "a secret" if kind.cls is Secret else "a path"
    return _WORDS.get(type(kind), "another value")


def _optional(kind: inspect.Type) -> bool:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return any(isinstance(each, inspect.NoneType) for each in kind.types)
    return isinstance(kind, inspect.NoneType)


def _holds_secret(kind: inspect.Type, seen: frozenset[type] = frozenset()) -> bool:
    """Whether a secret may stand somewhere in a value of this type."""
    kind = _inner(kind)
    if isinstance(kind, inspect.CustomType):
        return kind.cls is Secret
    if isinstance(kind, inspect.UnionType):
        return any(_holds_secret(each, seen) for each in kind.types)
    if isinstance(kind, _SEQUENCES):
        return _holds_secret(kind.item_type, seen)
    if isinstance(kind, inspect.TupleType):
        return any(_holds_secret(each, seen) for each in kind.item_types)
    if isinstance(kind, inspect.DictType):
        return _holds_secret(kind.value_type, seen)
    if isinstance(kind, inspect.StructType) and kind.cls not in seen:
        return any(_holds_secret(field.type, seen | {kind.cls}) for field in kind.fields)
    return False
