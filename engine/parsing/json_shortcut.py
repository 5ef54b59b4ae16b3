"""Which way an array of records goes: a reader's shortcut where it fits, else dictionaries.

A reader may know how to go from the text of many records to what it makes of them without a
dictionary for each. What does not fit goes the long way, in which nothing has to be usual; a body
of which nothing fits is not tried again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from engine.parsing.json_decode import Misfit, decode_list

# From the text of an array to what the reader takes for its records, one for each of them. It
# raises what a decoder raises where the text is no array, Misfit where it is and does not fit.
Shortcut = Callable[[bytes], list[Any]]

# After n arrays in a row that did not fit, 2**(n-1) - 1 are not tried; n is at most:
MISFITS_MAX: Final = 6


class Ways:
    """Decodes the arrays of one body."""

    __slots__ = ("_detour", "_misfits", "short", "shortcut")

    def __init__(self) -> None:
        self.short = False  # whether the shortcut may be taken
        self.shortcut: Shortcut | None = None
        self._misfits = 0
        self._detour = 0

    def records(self, inner: bytes | memoryview) -> list[Any]:
        """The records inside an array: values and the commas between them.

        Raises one of DECODE_ERRORS where it is not that.
        """
        raw = b"".join((b"[", inner, b"]"))
        if self.short and self.shortcut is not None and not self._passes_by():
            try:
                records = self.shortcut(raw)
            except (Misfit, msgspec.ValidationError):
                self._detour = (1 << self._misfits) - 1
                self._misfits = min(self._misfits + 1, MISFITS_MAX)
            else:
                self._misfits = 0
                return records
        return decode_list(raw)

    def _passes_by(self) -> bool:
        self._detour -= 1
        return self._detour >= 0
