"""Records with known fields, decoded many at once and without a dictionary each.

A provider says which type it wants a field in; which other fields its records have is learnt from
the ones that were read as dictionaries. Records that fit are decoded straight into structs, at two
to three times the speed. What does not fit in every field is refused, and read as a dictionary:
so nothing here has to know what to do with an odd value.

A typed value must be exactly what the untyped decoder gives for the same text. Numbers may be
`int | float`, never `float`; what is `Raw` is checked by whoever decodes it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, setitem
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from engine.parsing.json_decode import Misfit

# Fields of one provider's records; the most that is known has 22. Beyond it nothing is learnt.
FIELDS_MAX: Final = 64

# A name that stands in a body as it is; msgspec takes no others.
_may_be_named: Final = re.compile(r'[^"\\\x00-\x1f]+').fullmatch

# The kinds a field may be wanted in.
ID: Final = Annotated[str, Meta(min_length=1)]  # there is none without it
TEXT: Final = str | None  # absent: None
OPTIONAL: Final = str | UnsetType  # absent: UNSET
SCALAR: Final = str | int | float | bool | None  # absent: None
RAW: Final = Raw  # as it stands there; absent: b""
# Of fields that nobody knows: those that all records have had, and those that some have not.
OTHER: Final = Annotated[str | int | float | bool | None, Meta()]
RARE: Final = str | int | float | bool | None | UnsetType  # absent: UNSET

_DEFAULTS: Final[tuple[tuple[Any, Any], ...]] = (
    (TEXT, None), (SCALAR, None), (OPTIONAL, UNSET), (RAW, Raw(b"")), (RARE, UNSET),
)  # fmt: skip


class Shape:
    """The fields of one account's records, as far as they are known."""

    def __init__(
        self,
        always: Mapping[str, Any],
        known: Mapping[str, Any],
        *,
        never: Callable[[str], bool] = frozenset[str]().__contains__,
    ) -> None:
        """`always` are fields that there is a place for from the beginning, `known` those that
        may come, each with its kind. A record with a field that is to be `never` does not fit."""
        self._kinds = dict(always)
        self._known = known
        self._never = never
        self._build: Callable[[bytes], list[Any]] | None = None
        self._fields: dict[str, str] = {}
        self._others: list[tuple[str, Any]] = []

    def learn(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Note the fields of records that were read as dictionaries."""
        found = set().union(*records)
        kinds = self._kinds
        unknown = found.difference(self._fields)
        new = {name for name in unknown if _may_be_named(name) and not self._never(name)}
        missed = [name for name in self.names(OTHER) if any(name not in one for one in records)]
        if not new and not missed:
            return
        # In the order of the records: the next field is then found at once.
        order = dict.fromkeys(name for record in records for name in record if name in new)
        kinds = {**kinds, **{name: self._kind(name, records) for name in order}}
        if not self._fields:
            kinds = {**{name: kinds[name] for name in order}, **kinds}
        kinds |= dict.fromkeys(missed, RARE)
        if len(kinds) > FIELDS_MAX:
            return
        self._kinds = kinds
        self._fields = {name: f"f{index}" for index, name in enumerate(kinds)}
        self._others = [(name, kind) for name, kind in kinds.items() if kind in (OTHER, RARE)]
        self._build = _decoder(tuple(kinds.items()))

    def _kind(self, name: str, records: Sequence[Mapping[str, Any]]) -> Any:
        kind = self._kinds.get(name) or self._known.get(name)
        if kind is not None:
            return kind
        return RARE if self._fields or any(name not in one for one in records) else OTHER

    def decode(self, raw: bytes) -> list[Any]:
        """The structs of an array's records. Raises what a decoder raises, or Misfit."""
        if self._build is None:
            raise Misfit
        return self._build(raw)

    def names(self, *kinds: Any) -> tuple[str, ...]:
        """The fields of some kinds."""
        return tuple(name for name, kind in self._kinds.items() if any(kind is k for k in kinds))

    def columns(self, records: Sequence[Any], *names: str) -> Iterator[tuple[Any, ...]]:
        """Two or more fields of all records, each as a column."""
        return zip(*self.rows(records, *names), strict=True)

    def rows(self, records: Sequence[Any], *names: str) -> Iterator[tuple[Any, ...]]:
        """Two or more fields of each record."""
        return map(attrgetter(*(self._fields[name] for name in names)), records)

    def column(self, records: Sequence[Any], name: str) -> Iterator[Any] | None:
        """One field of all records; None: there is none of that name."""
        field = self._fields.get(name)
        return None if field is None else map(attrgetter(field), records)

    @property
    def has_others(self) -> bool:
        """Whether records may have fields that nobody knows."""
        return bool(self._others)

    def add_others(
        self, records: Sequence[Any], tables: Sequence[dict[str, Any]], called: Mapping[str, str]
    ) -> None:
        """Put into each record's table what it has of such fields, as `called` calls them."""
        for name, kind in self._others:
            column = map(attrgetter(self._fields[name]), records)
            name = called.get(name, name)
            if kind is OTHER:
                deque(map(setitem, tables, repeat(name), column), maxlen=0)
                continue
            for table, value in zip(tables, column, strict=True):
                if value is not UNSET:
                    table[name] = value


@lru_cache(maxsize=64)
def _decoder(kinds: tuple[tuple[str, Any], ...]) -> Callable[[bytes], list[Any]]:
    fields: list[Any] = []
    for index, (_, kind) in enumerate(kinds):
        default = next(((value,) for known, value in _DEFAULTS if known is kind), ())
        fields.append((f"f{index}", kind, *default))
    made = msgspec.defstruct(
        "Record",
        fields,
        rename={f"f{index}": name for index, (name, _) in enumerate(kinds)},
        forbid_unknown_fields=True,
        kw_only=True,  # the order is that of the records, which is found quickest
        gc=False,
    )
    return msgspec.json.Decoder(list[made]).decode  # type: ignore[valid-type]
