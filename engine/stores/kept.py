"""Set-aside pieces as a store keeps them: a beginning to look at, the whole compressed behind it,
the question that the answer belonged to, and an identity by which the same piece is known again.
"""

from __future__ import annotations

import threading
from hashlib import blake2b

import msgspec
import orjson
import zstandard

from engine.core.contracts import Flaw, Form
from engine.core.work import Asked, Incident

# Of every piece this much can be looked at without unpacking it.
SHOWN_MAX = 4096

# What is kept of a piece for which no question is known: it was kept by an older release.
UNKNOWN = b""

# Shorter rows are not worth it.
PACKED_MIN = 1 << 12

_asked = msgspec.json.Decoder(Asked)


def pack(raw: bytes) -> tuple[bytes, bytes | None]:
    """The beginning, and all of it compressed where there is more."""
    if len(raw) <= SHOWN_MAX:
        return raw, None
    return raw[:SHOWN_MAX], zstandard.ZstdCompressor().compress(raw)


def unpack(shown: bytes, packed: bytes | None) -> bytes:
    """What was packed."""
    return shown if packed is None else zstandard.ZstdDecompressor().decompress(packed)


def pack_log(body: bytes) -> bytes:
    """A log row's records as they are kept: a twentieth of them, for 0.4 us a record."""
    if len(body) < PACKED_MIN:
        return body
    return _tools.packer.compress(body)


def unpack_log(kept: bytes) -> bytes:
    return _tools.unpacker.decompress(kept) if kept.startswith(zstandard.FRAME_HEADER) else kept


class _Tools(threading.local):
    """They keep their memory, and are for one thread at a time."""

    def __init__(self) -> None:
        self.packer = zstandard.ZstdCompressor(level=1)
        self.unpacker = zstandard.ZstdDecompressor()


_tools = _Tools()


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
    if flaw.form is Form.ANSWER:  # the same bytes may have been kept for a record, too
        digest.update(b"answer|")
    if flaw.form is Form.ANSWER and flaw.truncated:
        digest.update(flaw.position.encode())
    else:
        digest.update(flaw.raw)
    return digest.hexdigest()


def incident_identity(incident: Incident) -> str:
    # One about the provider as a whole (a total that follows no window) has no window to name.
    window = "" if incident.from_ms is None else f"{incident.from_ms}-{incident.to_ms}"
    return f"{window} {incident.channel or ''}".strip()


def as_kept(reference: str) -> bytes:
    """How a reference stands in the data of a work, for those who look for it there."""
    return b'"reference":' + orjson.dumps(reference)
