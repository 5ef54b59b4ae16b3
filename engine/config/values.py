"""Single values: how each kind is read, and what is said where it is not one.

A reader here takes what TOML gave and returns the typed value, or raises ValueError whose text is
the whole fault behind the key. Texts are one line and bounded, whatever was written; the readers
of secrets never repeat what they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, tzinfo
from difflib import get_close_matches
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from engine.core.http import is_http_url
from engine.core.secret import Secret
from engine.core.units import duration_s, size_bytes, spell_duration, time_ms

SHOWN_MAX = 60  # characters of a value or key that a fault repeats
SECRET_MAX = 64 << 10
STRONG_MIN = 16
DURATION_MAX_S = 36_500 * 86_400.0  # beyond a century a sum with today is no time any more
INT_MAX = 2**63 - 1

_SECRET_FORMS = "expected a string, { env = … } or { file = … }"  # noqa: S105  (no secret)
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")  # those two are no part of a path
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
# Of what a request carries, which the provider decides, or asks for a piece of an answer.
_FRAMING = frozenset(
    {
        *("content-encoding", "content-length", "content-range", "content-type"),
        *("range", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)


def printable(text: str, most: int = SHOWN_MAX) -> str:
    """The text on one line, at most `most` characters of it; what cannot be shown is escaped."""
    cut = text if len(text) <= most else text[:most] + "…"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut
    )


def shown(value: object) -> str:
    """A value as a fault repeats it. Never for a value that may be secret."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{printable(value)}"'
    if isinstance(value, int):
        return str(value) if -INT_MAX <= value <= INT_MAX else "a number that is too large"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "an array"
    return "nothing" if value is None else "something else"


def key_text(key: object) -> str:
    """A key as it would be written."""
    text = key if isinstance(key, str) else shown(key)
    return text if _BARE_KEY.fullmatch(text) else shown(text)


def nearest(word: object, known: Iterable[str]) -> tuple[str | None, bool]:
    """The known word that is most like `word`, and whether it is likely to be meant."""
    text = str(word)[:64] if isinstance(word, str) else ""
    words = sorted(known)
    close = get_close_matches(text, words, n=1, cutoff=0.6)
    if close:
        return close[0], True
    far = get_close_matches(text, words, n=1, cutoff=0.0)
    return (far[0] if far else None), False


def listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {shown(value)}")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {shown(value)}")
    return value


def name(value: object) -> str:
    """What accounts, sinks and groups may be called: safe in a path, a metric and a log line."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f'expected 1 to 64 of A-Z a-z 0-9 "." "_" "-", got {shown(value)}')
    return value


class Whole(msgspec.Struct, frozen=True):
    """Reads an integer within bounds."""

    least: int = -INT_MAX
    most: int = INT_MAX

    def __call__(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected an integer, got {shown(value)}")
        if value < self.least:
            raise ValueError(f"expected at least {self.least}, got {shown(value)}")
        if value > self.most:
            raise ValueError(f"expected at most {self.most}, got {shown(value)}")
        return value


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {shown(value)}")
    if not -1e300 < value < 1e300:  # also false for a NaN
        raise ValueError(f"expected a finite number, got {shown(value)}")
    return float(value)


def share(value: object) -> float:
    """A number from 0 to 1."""
    found = number(value)
    if not 0 <= found <= 1:
        raise ValueError(f"expected a number from 0 to 1, got {shown(value)}")
    return found


class Span(msgspec.Struct, frozen=True):
    """Reads a duration within bounds, in seconds."""

    least_s: float = 0.0

    def __call__(self, value: object) -> float:
        try:
            seconds = duration_s(value)
        except (ValueError, OverflowError):
            raise ValueError(f'expected a duration such as "1s", got {shown(value)}') from None
        if seconds < self.least_s:
            raise ValueError(
                f'expected at least "{spell_duration(self.least_s)}", got {shown(value)}'
            )
        if not seconds <= DURATION_MAX_S:
            raise ValueError(
                f'expected at most "{spell_duration(DURATION_MAX_S)}", got {shown(value)}'
            )
        return seconds


class Size(msgspec.Struct, frozen=True):
    """Reads a number of bytes within bounds."""

    least: int = 0

    def __call__(self, value: object) -> int:
        try:
            size = size_bytes(value)
        except (ValueError, OverflowError):
            raise ValueError(f'expected a size such as "1MiB", got {shown(value)}') from None
        if not self.least <= size <= INT_MAX:
            word = "least" if size < self.least else "most"
            bound = self.least if size < self.least else INT_MAX
            raise ValueError(f"expected at {word} {bound} bytes, got {shown(value)}")
        return size


def moment(value: object) -> int:
    """A time, as epoch ms."""
    try:
        return time_ms(value)
    except (ValueError, OverflowError):
        raise ValueError(
            'expected a time with an offset, such as "2026-11-01T00:00:00Z", '
            f"or epoch seconds, got {shown(value)}"
        ) from None


class Choice(msgspec.Struct, frozen=True):
    """Reads one of a few words."""

    words: tuple[str, ...]

    def __call__(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        wanted = " or ".join(f'"{word}"' for word in self.words)
        if len(self.words) > 2:
            wanted = "one of " + ", ".join(f'"{word}"' for word in self.words)
        raise ValueError(f"expected {wanted}, got {shown(value)}")


def timezone(value: object) -> tuple[str, tzinfo]:
    """A zone's name and the zone."""
    if value == "UTC":  # needs no time zone database
        return "UTC", UTC
    try:
        zone = ZoneInfo(text(value))
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f'expected a time zone such as "Europe/Madrid", got {shown(value)}'
        ) from None
    return text(value), zone


def base_url(value: object) -> str:
    """What stands before a provider's own path; no slash at its end.

    Userinfo and query are refused: that is where credentials are put, and this value is printed.
    """
    wanted = 'expected a URL such as "https://api.example.com"'
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, got {shown(value)}")
    if "@" in value or "?" in value or "#" in value:
        raise ValueError(f"{wanted}, without user, password, query and fragment")
    if not is_http_url(value) or not value.isprintable():
        raise ValueError(f"{wanted}, got {shown(value)}")
    if " " in value or "\\" in value:
        raise ValueError(f"{wanted}, got {shown(value)}")
    return value.rstrip("/")


def file_path(value: object, folder: Path) -> Path:
    """A path, from `folder` where it is relative."""
    if isinstance(value, Path):
        return folder / value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected a path, got {shown(value)}")
    return folder / value


def header_name(value: object) -> str:
    if not isinstance(value, str) or not _HEADER.fullmatch(value):
        raise ValueError("is no name of a header")
    if value.lower() in _FRAMING:
        raise ValueError("is not for you to set")
    return value


def secret(value: object, folder: Path, env: Mapping[str, str]) -> Secret:
    """A string, `{ env = "NAME" }` or `{ file = "PATH" }`."""
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        return _whole_secret(value, "is empty")
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(_SECRET_FORMS)
    ((way, where),) = value.items()
    if not isinstance(where, str) or not where:
        raise ValueError(_SECRET_FORMS)
    if way == "env":
        return _from_env(where, env)
    if way == "file":
        return _from_file(where, folder)
    raise ValueError(_SECRET_FORMS)


def secret_folder(value: object, folder: Path) -> Path:
    """The folder of the file that holds a secret: what a path inside the secret starts from."""
    if isinstance(value, Mapping) and isinstance(value.get("file"), str):
        where: str = value["file"]
        return (folder / where).parent
    return folder


def _from_env(variable: str, env: Mapping[str, str]) -> Secret:
    try:
        found = env.get(variable)
    except ValueError:  # a name that the system cannot have
        found = None
    if found is None:
        raise ValueError(f"the environment variable {key_text(variable)} is not set")
    return _whole_secret(found, f"the environment variable {key_text(variable)} is empty")


def _from_file(where: str, folder: Path) -> Secret:
    try:
        with (folder / where).open("rb") as stream:
            raw = stream.read(SECRET_MAX + 1)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no path"
        raise ValueError(f"the file {shown(where)} cannot be read: {why}") from None
    if len(raw) > SECRET_MAX:
        raise ValueError(f"the file {shown(where)} is too long for a secret")
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"the file {shown(where)} is not UTF-8") from None
    return _whole_secret(content.rstrip("\r\n"), f"the file {shown(where)} is empty")


def _whole_secret(value: str, empty: str) -> Secret:
    if not value:
        raise ValueError(empty)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds characters that cannot be sent") from None
    return Secret(value)
