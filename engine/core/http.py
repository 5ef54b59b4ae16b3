"""HTTP as it is everywhere: its URLs, and what a head means where a provider's documents add
nothing to it."""

from __future__ import annotations

from urllib.parse import urlsplit

from .contracts import Outcome, Verb

_WORDS = {400: "bad request", 404: "not found", 429: "too many requests", 503: "unavailable"}


def outcome_of_status(status: int, said: str = "") -> Outcome | None:
    """None for 2xx: the body decides. `said` is the provider's own explanation."""
    if 200 <= status < 300:
        return None
    cause = ": ".join(part for part in (f"HTTP {status}", said or _WORDS.get(status, "")) if part)
    if status in (401, 402, 403):
        return Outcome(verb=Verb.PAUSE, cause=cause)
    return Outcome(verb=Verb.RETRY, cause=cause, hold=status in (429, 503))


def is_http_url(text: str) -> bool:
    """Whether it names a host to speak HTTP to, and a port that can be, if any."""
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0 and parts.scheme in ("http", "https")
    except ValueError:
        return False


def readable(value: str) -> str:
    """A header's value as text. Bytes that are no UTF-8 (aiohttp has half a surrogate for each)
    could be neither kept nor logged: they are Latin-1, as HTTP has it."""
    if value.isascii():
        return value
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
