"""What a parser could not digest and set aside.

A flaw is a value, not an exception: one bad record must not end the reading of the records
around it. It keeps the bytes as they came, so that a mended parser can read them again, and it
keeps only so many of them that a hostile body cannot fill the memory with its own refuse.

It must never carry a decoded value in its cause: causes are logged, and bodies hold phone numbers
and message texts.
"""

from __future__ import annotations

from typing import Final

from engine.core.contracts import Flaw

# Enough to read every real record again (a delivery report has about 500 bytes, one with the text
# of an e-mail some hundred thousand); small enough that flaws stay a nuisance and not an outage.
FLAW_RAW_MAX: Final = 1024 * 1024

# How much of a body that is no report at all is quoted in a cause: enough for "<!DOCTYPE".
QUOTE_MAX: Final = 16

__all__ = ["FLAW_RAW_MAX", "Flaw", "opening", "set_aside"]


def set_aside(cause: str, position: str, raw: bytes, *, truncated: bool = False) -> Flaw:
    """Make a flaw whose raw bytes are bounded."""
    return Flaw(cause, position, raw[:FLAW_RAW_MAX], truncated or len(raw) > FLAW_RAW_MAX)


def opening(raw: bytes) -> str:
    """Quote the first word of a body that is not what was expected, e.g. `'<html'`."""
    words = raw[: QUOTE_MAX * 4].replace(b">", b" ").split(maxsplit=1)
    word = words[0] if words else b""
    return ascii(word[:QUOTE_MAX].decode("utf-8", "replace"))
