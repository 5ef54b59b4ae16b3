"""Records as tables with typed columns take them: a value a field, in the order of `FIELDS`.

Text stays text, whole numbers fit into 64 bits, times are aware datetimes, and `extra` is the JSON
text as it came. What does not fit is named by its index with the cause, and costs itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from .report import FIELDS, Report

Kind = Literal["text", "flag", "integer", "time"]
Row = tuple[Any, ...]

_Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]

_KINDS: dict[str, Kind] = {
    "revision": "integer", "parts": "integer", "final": "flag", "error_permanent": "flag",
    "sent_at": "time", "done_at": "time", "observed_at": "time",
}  # fmt: skip
COLUMNS: dict[str, Kind] = {field: _KINDS.get(field, "text") for field in FIELDS}
EVENT_ID, OBSERVED_AT = FIELDS.index("event_id"), FIELDS.index("observed_at")


class _Bounded(Report, frozen=True, gc=False, kw_only=True):
    revision: _Integer
    parts: _Integer | None = None
    extra: msgspec.Raw = msgspec.Raw(b"{}")  # type: ignore[assignment]


class _Timed(_Bounded, frozen=True, gc=False, kw_only=True):
    sent_at: _Time | None = None  # type: ignore[assignment]
    done_at: _Time | None = None  # type: ignore[assignment]
    observed_at: _Time  # type: ignore[assignment]


_bounded = msgspec.json.Decoder(_Bounded).decode
_timed = msgspec.json.Decoder(_Timed).decode
_values = attrgetter(*(field for field in FIELDS if field != "extra"))
assert FIELDS[-1] == "extra"


def read_rows(
    lines: Sequence[bytes], *, timed: bool = True
) -> tuple[dict[int, Row], dict[int, str]]:
    """The rows by their index in the batch, and the causes of what is none.

    Not `timed`, for a database without a type for it, times stay the text that they are.
    """
    decode = _timed if timed else _bounded
    rows: dict[int, Row] = {}
    rejected: dict[int, str] = {}
    for index, line in enumerate(lines):
        try:
            typed = decode(line)
            rows[index] = (*_values(typed), bytes(typed.extra).decode())
        except (msgspec.DecodeError, UnicodeError) as error:
            rejected[index] = f"not a record: {error}"
    return rows, rejected
