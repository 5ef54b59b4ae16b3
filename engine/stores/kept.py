"""Set-aside pieces as a store keeps them: a beginning to look at, the whole compressed behind it,
the question that the answer belonged to, and an identity by which the same piece is known again.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
import zstandard

from engine.core.contracts import Flaw, Form
from engine.core.work import Asked, Incident

# Of every piece this much can be looked at without unpacking it.
SHOWN_MAX = 4096

# What is kept of a piece for which no question is known: it was kept by an older release.
UNKNOWN = b""

_asked = msgspec.json.Decoder(Asked)


def pack(raw: bytes) -> tuple[bytes, bytes | None]:
    """The beginning, and all of it compressed where there is more."""
    if len(raw) <= SHOWN_MAX:
        return raw, None
    return raw[:SHOWN_MAX], zstandard.ZstdCompressor().compress(raw)


def unpack(shown: bytes, packed: bytes | None) -> bytes:
    """What was packed."""
    return shown if packed is None else zstandard.ZstdDecompressor().decompress(packed)


def write_asked(asked: Asked | None) -> bytes | None:
    return None if asked is None else msgspec.json.encode(asked)


def read_asked(kept: bytes) -> Asked | None:
    """The question; None where it is not known."""
    return _asked.decode(kept) if kept != UNKNOWN else None


def flaw_identity(source: str, flaw: Flaw) -> str:
    """The same piece from the same place is the same trouble, however often it is read.

    Of an answer that can be asked for again only the beginning is kept, and only once for each
    question that goes wrong in the same way.
    """
    digest = blake2b(f"{source}|{flaw.cause}|".encode(), digest_size=16)
    if flaw.form is Form.ANSWER and flaw.truncated:
        digest.update(flaw.position.encode())
    else:
        digest.update(flaw.raw)
    return digest.hexdigest()


def incident_identity(incident: Incident) -> str:
    return f"{incident.from_ms}-{incident.to_ms} {incident.channel or ''}".strip()
