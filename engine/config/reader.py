"""Tables: reading keys out of one while faults are gathered and unknown keys are found.

A `Section` knows which keys it was asked for, so the list of known keys is the code that reads
them and cannot drift from it. A key that is wrong gives its default: reading goes on, and the
faults decide in the end. It never raises for anything that a user wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from engine.core.errors import ConfigError
from engine.core.secret import Secret

from . import values

T = TypeVar("T")
D = TypeVar("D")

_FAULT_MAX = 500  # characters of a line that a provider or sink words itself


class Faults:
    """The faults found so far, in the order of finding, each once."""

    def __init__(self, source: str) -> None:
        self.source = values.printable(source, 200)
        self._lines: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, at: str, text: str) -> None:
        where = f"{self.source}: {at}" if at else self.source
        self._lines[f"{where}: {text}"] = None

    def raise_any(self) -> None:
        if self._lines:
            raise ConfigError(tuple(self._lines))


class Reading:
    """What every value of one configuration is read with."""

    def __init__(self, faults: Faults, folder: Path, env: Mapping[str, str]) -> None:
        self.faults = faults
        self.folder = folder
        self.env = env
        self._secrets: set[str] = set()

    def quiet(self) -> Reading:
        """A reading whose faults go nowhere, for trying whether a value would do."""
        other = Reading(Faults(""), self.folder, self.env)
        other._secrets = self._secrets
        return other

    def secret(self, value: object) -> Secret:
        found = values.secret(value, self.folder, self.env)
        self._secrets.add(found.reveal())
        return found

    def strong_secret(self, value: object) -> Secret:
        """One that must not be guessed."""
        found = self.secret(value)
        if len(found.reveal()) < values.STRONG_MIN:
            raise ValueError(f"expected at least {values.STRONG_MIN} characters")
        return found

    def path(self, value: object) -> Path:
        return values.file_path(value, self.folder)

    def foreign_faults(
        self, at: str, error: Exception, known: Iterable[str], wrong: Collection[str]
    ) -> None:
        """The lines of an error that a provider or sink raised, at the keys that they name.

        Where keys are `wrong` already, what is said of these, or of nothing by name, is left out:
        it may be about the values that stand in. The words are not ours, so what was read as a
        secret is taken out of them.
        """
        keys = set(known)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        for line in lines or ["its options do not go together"]:
            key, colon, rest = line.partition(":")
            root = key.partition(".")[0].partition("[")[0]
            if colon and root in keys and not any(c.isspace() for c in key):
                if root not in wrong:
                    self.faults.add(f"{at}.{key}", self._clean(rest.strip()))
            elif not wrong:
                self.faults.add(at, self._clean(line))

    def _clean(self, line: str) -> str:
        for value in sorted(self._secrets, key=len, reverse=True):
            if len(value) > 3:
                line = line.replace(value, "***")
        return values.printable(line, _FAULT_MAX)


class Section:
    """One table."""

    def __init__(self, data: Mapping[str, Any], at: str, reading: Reading) -> None:
        self.data = data
        self.at = at
        self.reading = reading
        self.faults = reading.faults
        self.known: set[str] = set()

    def place(self, key: str) -> str:
        return f"{self.at}.{key}" if self.at else key

    def fault(self, key: str, text: str) -> None:
        self.faults.add(self.place(key) if key else self.at, text)

    def has(self, key: str) -> bool:
        self.known.add(key)
        return key in self.data

    def take(self, key: str, read: Callable[[object], T], default: D) -> T | D:
        """The key's value; the default where the key is absent or wrong."""
        if not self.has(key):
            return default
        try:
            return read(self.data[key])
        except ValueError as error:
            self.fault(key, str(error))
            return default

    def need(self, key: str, read: Callable[[object], T], stand_in: D) -> T | D:
        """The same for a key that must be there."""
        if not self.has(key):
            self.fault(key, "missing")
        return self.take(key, read, stand_in)

    def many(
        self, key: str, read: Callable[[object], T], default: D, *, what: str
    ) -> tuple[T, ...] | D:
        """An array, each element read on its own. Wrong elements are left out."""
        if not self.has(key):
            return default
        array = self.data[key]
        if not isinstance(array, (list, tuple)):
            self.fault(key, f"expected an array of {what}, got {values.shown(array)}")
            return default
        found = []
        for index, value in enumerate(array):
            try:
                found.append(read(value))
            except ValueError as error:
                self.fault(f"{key}[{index}]", str(error))
        return tuple(found)

    def table(self, key: str, *, hidden: bool = False) -> Section:
        """The table under the key; an empty one where there is none. `hidden`: may be secret."""
        value = self.data[key] if self.has(key) else {}
        if not isinstance(value, Mapping):
            got = "" if hidden else f", got {values.shown(value)}"
            self.fault(key, f"expected a table{got}")
            value = {}
        return Section(value, self.place(key), self.reading)

    def tables(self, key: str, written: str) -> list[Section]:
        """An array of tables; what is none in it gets a fault and is left out."""
        value = self.data[key] if self.has(key) else []
        if not isinstance(value, (list, tuple)):
            self.fault(key, f"expected {written}, got {values.shown(value)}")
            value = []
        sections = []
        for index, item in enumerate(value):
            if isinstance(item, Mapping):
                sections.append(Section(item, self.place(f"{key}[{index}]"), self.reading))
            else:
                self.fault(f"{key}[{index}]", "expected a table")
        return sections

    def close(self, *, never: re.Pattern[str] | None = None, why: str = "") -> None:
        """Faults for the keys that nothing asked for, with the nearest of those known; for those
        like `never`, which there are not on purpose, with `why`."""
        for key in self.data:
            if key in self.known:
                continue
            if never is not None and never.search(key):
                self.fault(values.key_text(key), why)
                continue
            likely, close = values.nearest(key, self.known)
            hint = ""
            if likely is not None and close:
                hint = f'; did you mean "{likely}"?'
            elif likely is not None:
                hint = f'; the nearest known key is "{likely}"'
            self.fault(values.key_text(key), f"unknown key{hint}")


def ascending(section: Section, key: str, spans: Sequence[float], *, least_ms: int) -> None:
    """A fault where durations do not rise by at least a millisecond, which is what is kept."""
    before = least_ms - 1
    for seconds in spans:
        if round(seconds * 1000) <= before:
            section.fault(key, "expected durations that ascend, none twice and none too short")
            return
        before = round(seconds * 1000)
