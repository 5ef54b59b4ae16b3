"""What an HTTP status means where a provider's documents add nothing to it."""

from __future__ import annotations

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
