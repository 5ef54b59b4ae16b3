"""What Standard Webhooks sign a body with, after their specification at standardwebhooks.com.

`webhook-id` follows from the body alone, so the same body keeps it over every retry.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from contextlib import suppress
from hashlib import sha256

from .secret import Secret

KEY_BYTES = range(24, 65)


def signing_key(secret: Secret) -> bytes:
    """The key in a secret, which is `whsec_` and base64. Raises ValueError where it is none."""
    prefix, encoded = secret.reveal()[:6], secret.reveal()[6:]
    with suppress(ValueError):
        key = b64decode(encoded if prefix == "whsec_" else "", validate=True)
        if len(key) in KEY_BYTES:
            return key
    raise ValueError("secret: expected whsec_ and the base64 of 24 to 64 bytes") from None


def signature_headers(key: bytes, body: bytes, at_s: int) -> tuple[tuple[str, str], ...]:
    """The three headers of a body that is sent at `at_s`, in epoch seconds."""
    mark = f"msg_{sha256(body).hexdigest()[:32]}"
    signed = hmac.digest(key, f"{mark}.{at_s}.".encode() + body, "sha256")
    signature = f"v1,{b64encode(signed).decode()}"
    return ("webhook-id", mark), ("webhook-timestamp", str(at_s)), ("webhook-signature", signature)
